"""`BgeM3Rerank`: the core's scores, weights, copies, events, round trips."""

import copy
import inspect
import pickle
from collections.abc import Sequence
from pathlib import Path

import cloudpickle
import pytest
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from llama_index_samples import Recorder
from pydantic import ValidationError

from bge_integrations import BgeM3Embedder, ModelCache, UnknownModelError, UnsupportedModelError, WrongKindError
from bge_integrations.embed import m3 as module
from bge_integrations.llama_index import BgeM3Rerank
from bge_integrations.stores.kinds import HASH_KEY
from bge_integrations.types import M3Embeddings

QUERY = "where do pandas live?"


@pytest.fixture
def reranker(m3_folder: Path, cache: ModelCache) -> BgeM3Rerank:
    return BgeM3Rerank(model=str(m3_folder), like="BAAI/bge-m3", query_instruction="query: ", cache=cache)


@pytest.mark.parametrize("weights", [(0, 0, 1), (1, 0, 0), (0, 1, 0), (0.4, 0.2, 0.4), (1, 1, 1)])
async def test_scores_and_order_are_the_cores(
    reranker: BgeM3Rerank, nodes: list[NodeWithScore], m3: BgeM3Embedder, weights: tuple[float, float, float]
) -> None:
    pairs = [(QUERY, node.get_content(metadata_mode=MetadataMode.EMBED)) for node in nodes]
    scores = m3.score(pairs)
    expected = {
        f"n{number}": pytest.approx(
            sum(w * scores[name][number] for w, name in zip(weights, ("dense", "sparse", "colbert"), strict=True))
            / sum(weights),
            abs=1e-5,
        )
        for number in range(len(nodes))
    }
    weighted = reranker.model_copy(update={"top_n": None, "weights": weights})
    ranked = weighted.postprocess_nodes(nodes, query_str=QUERY)
    assert {node.node_id: node.score for node in ranked} == expected
    assert [node.score for node in ranked] == sorted((node.score for node in ranked), reverse=True)
    again = await weighted.apostprocess_nodes(nodes, query_str=QUERY)
    assert [node.node_id for node in again] == [node.node_id for node in ranked]
    assert weighted.embedder.outputs == weighted.outputs
    assert weighted.outputs == tuple(
        name for name, weight in zip(("dense", "sparse", "colbert"), weights, strict=True) if weight
    )


async def test_many_nodes_are_scored_a_few_at_a_time(reranker: BgeM3Rerank, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once: list[int] = []
    weighted = module._weighted

    def watched(query: M3Embeddings, passages: M3Embeddings, weights: Sequence[float]) -> list[float]:
        at_once.append(len(passages))
        return weighted(query, passages, weights)

    monkeypatch.setattr(module, "_weighted", watched)
    many = [NodeWithScore(node=TextNode(id_=str(number), text=f"number {number % 300}")) for number in range(600)]
    unlimited = reranker.model_copy(update={"top_n": None})
    ranked = unlimited.postprocess_nodes(many, query_str=QUERY)
    assert at_once == [128, 128, 128, 128, 88]
    assert len(await unlimited.apostprocess_nodes(many, query_str=QUERY)) == len(ranked) == 600
    assert at_once == [128, 128, 128, 128, 88] * 2
    scores = {node.node_id: node.score for node in ranked}
    assert all(scores[str(n)] == pytest.approx(scores[str(n + 300)], abs=1e-5) for n in range(300))


def test_top_n_and_threshold(reranker: BgeM3Rerank, nodes: list[NodeWithScore]) -> None:
    everything = reranker.model_copy(update={"top_n": None}).postprocess_nodes(nodes, query_str=QUERY)
    assert len(everything) == len(nodes)
    top = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert [node.node_id for node in top] == [node.node_id for node in everything[:3]]
    strict = reranker.model_copy(update={"score_threshold": everything[1].score - 1e-6})
    assert len(strict.postprocess_nodes(nodes, query_str=QUERY)) == 2


def test_nothing_given_is_changed_and_the_retrieval_score_is_hidden(
    reranker: BgeM3Rerank, nodes: list[NodeWithScore]
) -> None:
    before = copy.deepcopy(nodes)
    for found in reranker.postprocess_nodes(nodes, query_str=QUERY):
        original = nodes[int(found.node_id[1:])]
        assert type(found.score) is float
        assert found.node is not original.node
        assert found.node.metadata.pop("retrieval_score") == original.score
        assert found.node.excluded_embed_metadata_keys == ["tags", "retrieval_score"]
        assert found.node.excluded_llm_metadata_keys == ["retrieval_score"]
    assert nodes == before


def test_the_hash_that_populate_keeps_is_not_read(reranker: BgeM3Rerank, nodes: list[NodeWithScore]) -> None:
    expected = [found.score for found in reranker.postprocess_nodes(nodes, query_str=QUERY)]
    for found in nodes:
        found.node.metadata[HASH_KEY] = "0f" * 32
    assert [found.score for found in reranker.postprocess_nodes(nodes, query_str=QUERY)] == pytest.approx(expected)


async def test_an_end_follows_each_start(reranker: BgeM3Rerank, nodes: list[NodeWithScore], recorder: Recorder) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker.callback_manager = CallbackManager([debug])
    ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
    await reranker.apostprocess_nodes(nodes, query_str=QUERY)
    assert reranker.postprocess_nodes([], query_str=QUERY) == []
    assert await reranker.apostprocess_nodes([], query_str=QUERY) == []
    strict = reranker.model_copy(update={"on_truncate": "raise"})
    with pytest.raises(ValueError, match="512"):
        strict.postprocess_nodes([NodeWithScore(node=TextNode(text="word " * 1000))], query_str=QUERY)
    assert recorder.rerank_names() == ["ReRankStartEvent", "ReRankEndEvent"] * 5
    assert recorder.named("ReRankEndEvent")[0].nodes == ranked
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 5


def test_every_core_argument_is_a_field_with_its_default() -> None:
    parameters = inspect.signature(BgeM3Embedder).parameters
    own = {"top_n", "score_threshold", "keep_retrieval_score", "weights", "callback_manager"}
    assert set(BgeM3Rerank.model_fields) == set(parameters) - {"outputs"} | own
    for name in set(parameters) - {"outputs"}:
        assert BgeM3Rerank.model_fields[name].default == parameters[name].default, name


@pytest.mark.parametrize("weights", [(0, 0, 0), (1, -1, 1), (1, 1), (float("nan"), 0, 1), (0, 0, float("inf"))])
def test_bad_weights_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError, match="weights"):
        BgeM3Rerank(weights=weights)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValidationError, match="outputs"):
        BgeM3Rerank(outputs=("dense",))
    with pytest.raises(ValidationError, match="top_n"):
        BgeM3Rerank(top_n=0)
    with pytest.raises(UnknownModelError, match="bge-m3"):
        BgeM3Rerank(model="BAAI/bge-m33")
    with pytest.raises(WrongKindError, match="reranker"):
        BgeM3Rerank(model="BAAI/bge-reranker-v2-m3")
    with pytest.raises(UnsupportedModelError, match="colbert"):
        BgeM3Rerank(model="BAAI/bge-base-en-v1.5")


def test_round_trips(m3_folder: Path, nodes: list[NodeWithScore]) -> None:
    reranker = BgeM3Rerank(
        model=str(m3_folder), like="BAAI/bge-m3", top_n=4, weights=(0.4, 0.2, 0.4), max_length=64, token="hf_secret"
    )
    assert "hf_secret" not in str(reranker.to_dict()) + repr(reranker)
    expected = [node.node_id for node in reranker.postprocess_nodes(nodes, query_str=QUERY)]
    for other in (
        BgeM3Rerank.model_validate(reranker.model_dump()),
        BgeM3Rerank.from_dict(reranker.to_dict()),
        BgeM3Rerank.from_json(reranker.to_json()),
        pickle.loads(pickle.dumps(reranker)),
        cloudpickle.loads(cloudpickle.dumps(reranker)),
        copy.deepcopy(reranker),
    ):
        assert other.to_dict() == reranker.to_dict()
        assert [node.node_id for node in other.postprocess_nodes(nodes, query_str=QUERY)] == expected
