"""`BgeRerank`: order and scores, copies, events, thresholds."""

import copy
import inspect
import json
import pickle
import random
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.schema import Document, IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index_samples import TEXTS, Recorder
from pydantic import ValidationError

from bge_integrations import BgeReranker, ModelCache, UnknownModelError, WrongKindError
from bge_integrations.llama_index import BgeRerank
from bge_integrations.stores.kinds import HASH_KEY

QUERY = "where do pandas live?"


def dump(nodes: list[NodeWithScore]) -> list[dict[str, object]]:
    return [node.to_dict() for node in nodes]


def test_scores_and_order_are_the_cores(reranker: BgeRerank, nodes: list[NodeWithScore]) -> None:
    texts = [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
    expected = reranker.reranker.rerank(QUERY, texts)
    ranked = reranker.model_copy(update={"top_n": None}).postprocess_nodes(nodes, query_str=QUERY)
    assert [node.node_id for node in ranked] == [f"n{result.index}" for result in expected]
    assert [node.score for node in ranked] == pytest.approx([result.score for result in expected], abs=1e-6)
    assert [node.node_id for node in reranker.postprocess_nodes(nodes, query_str=QUERY)] == [
        node.node_id for node in ranked[:3]
    ]


async def test_async_is_sync(reranker: BgeRerank, nodes: list[NodeWithScore]) -> None:
    sync = reranker.postprocess_nodes(nodes, query_str=QUERY)
    assert dump(await reranker.apostprocess_nodes(nodes, query_str=QUERY)) == [
        {**node, "score": pytest.approx(node["score"], abs=1e-6)} for node in dump(sync)
    ]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), top_n=st.one_of(st.none(), st.integers(1, 8)))
def test_scores_follow_their_nodes_under_any_permutation(
    reranker: BgeRerank, nodes: list[NodeWithScore], seed: int, top_n: int | None
) -> None:
    shuffled = random.Random(seed).sample(nodes, len(nodes))
    everything = reranker.model_copy(update={"top_n": None}).postprocess_nodes(nodes, query_str=QUERY)
    scores = {node.node_id: node.score for node in everything}
    ranked = reranker.model_copy(update={"top_n": top_n}).postprocess_nodes(shuffled, query_str=QUERY)
    assert len(ranked) == min(top_n or len(nodes), len(nodes))
    for node in ranked:
        assert node.score == pytest.approx(scores[node.node_id], abs=1e-6)
        assert node.node.metadata["retrieval_score"] == nodes[int(node.node_id[1:])].score
    assert [node.score for node in ranked] == sorted((node.score or 0.0 for node in ranked), reverse=True)


def test_nothing_given_is_changed_or_shared(reranker: BgeRerank, nodes: list[NodeWithScore]) -> None:
    before = copy.deepcopy(nodes)
    bundle = QueryBundle(QUERY)
    ranked = reranker.postprocess_nodes(nodes, query_bundle=bundle)
    ranked[0].node.metadata["tags"].append("c")
    ranked[0].node.metadata["page"] = -1
    ranked[0].node.relationships.clear()
    ranked[0].node.excluded_llm_metadata_keys.append("page")
    reranker.postprocess_nodes(nodes, query_str="bread")
    assert nodes == before
    assert bundle == QueryBundle(QUERY)
    assert not {id(node) for node in nodes} & {id(node) for node in ranked}
    assert not {id(node.node) for node in nodes} & {id(node.node) for node in ranked}


def test_the_retrieval_score_is_kept_out_of_sight(reranker: BgeRerank, nodes: list[NodeWithScore]) -> None:
    scores = {node.node_id: node.score for node in nodes}
    for node in reranker.postprocess_nodes(nodes, query_str=QUERY):
        assert node.node.metadata["retrieval_score"] == scores[node.node_id]
        assert node.node.excluded_embed_metadata_keys == ["tags", "retrieval_score"]
        assert node.node.excluded_llm_metadata_keys == ["retrieval_score"]
        for mode in (MetadataMode.EMBED, MetadataMode.LLM):
            assert "retrieval_score" not in node.node.get_content(metadata_mode=mode)


def test_the_hash_that_populate_keeps_is_not_read(reranker: BgeRerank, nodes: list[NodeWithScore]) -> None:
    expected = [found.score for found in reranker.postprocess_nodes(nodes, query_str="whales")]
    for found in nodes:
        found.node.metadata[HASH_KEY] = "0f" * 32
    results = reranker.postprocess_nodes(nodes, query_str="whales")
    assert [found.score for found in results] == pytest.approx(expected)
    assert all(
        found.node.metadata[HASH_KEY] and HASH_KEY not in found.node.excluded_embed_metadata_keys for found in results
    )


def test_reranking_twice_scores_the_same_text(reranker: BgeRerank, nodes: list[NodeWithScore]) -> None:
    once = reranker.postprocess_nodes(nodes, query_str=QUERY)
    twice = reranker.postprocess_nodes(once, query_str=QUERY)
    assert [node.score for node in twice] == pytest.approx([node.score for node in once], abs=1e-6)
    first = {node.node_id: node.score for node in nodes}
    assert [node.node.metadata["retrieval_score"] for node in twice] == [first[node.node_id] for node in twice]
    assert twice[0].node.excluded_llm_metadata_keys == ["retrieval_score"]


def test_no_retrieval_score_unless_there_is_one(reranker: BgeRerank, nodes: list[NodeWithScore]) -> None:
    without = reranker.model_copy(update={"keep_retrieval_score": False}).postprocess_nodes(nodes, query_str=QUERY)
    unscored = reranker.postprocess_nodes([NodeWithScore(node=node.node) for node in nodes], query_str=QUERY)
    for node in [*without, *unscored]:
        assert "retrieval_score" not in node.node.metadata
        assert node.node.excluded_llm_metadata_keys == []


def test_results_can_be_written_to_json(reranker: BgeRerank) -> None:
    node = NodeWithScore(node=TextNode(text="a"))
    node.score = np.float32(0.5)  # what some retrievers give
    (ranked,) = reranker.postprocess_nodes([node], query_str=QUERY)
    assert type(ranked.score) is float
    assert type(ranked.node.metadata["retrieval_score"]) is float
    assert json.loads(json.dumps(ranked.to_dict()))["score"] == ranked.score


def test_every_kind_of_node_keeps_its_kind(reranker: BgeRerank) -> None:
    given_nodes = [
        Document(text="a document"),
        IndexNode(text="an index", index_id="i", obj=object()),
        TextNode(text="b"),
    ]
    ranked = reranker.postprocess_nodes([NodeWithScore(node=node, score=0.0) for node in given_nodes], query_str=QUERY)
    assert {node.node.class_name() for node in ranked} == {"Document", "IndexNode", "TextNode"}
    assert all(isinstance(node.node, type(given)) for node in ranked for given in given_nodes if given.id_ == node.id_)


def test_thresholds(reranker: BgeRerank, nodes: list[NodeWithScore]) -> None:
    everything = reranker.model_copy(update={"top_n": None}).postprocess_nodes(nodes, query_str=QUERY)
    middle = everything[2].score
    strict = BgeRerank(**{**reranker.to_dict(), "top_n": None, "score_threshold": middle}, cache=reranker.cache)
    kept = strict.postprocess_nodes(nodes, query_str=QUERY)
    assert [node.node_id for node in kept] == [
        node.node_id for node in everything if (node.score or 0) >= (middle or 0)
    ]


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_threshold_that_no_score_can_meet_is_refused(bert_reranker: Path, threshold: float) -> None:
    with pytest.raises(ValidationError, match="score_threshold"):
        BgeRerank(model=str(bert_reranker), score_threshold=threshold)
    if abs(threshold) < 2:
        assert BgeRerank(model=str(bert_reranker), score_threshold=threshold, normalize=False).score_threshold


class TestEvents:
    """What the framework's observers see."""

    async def test_an_end_follows_each_start(
        self, reranker: BgeRerank, nodes: list[NodeWithScore], recorder: Recorder
    ) -> None:
        ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
        await reranker.apostprocess_nodes(nodes, query_str=QUERY)
        events = [event for event in recorder.events if "ReRank" in event.class_name()]
        assert recorder.rerank_names() == ["ReRankStartEvent", "ReRankEndEvent"] * 2
        start, end = events[:2]
        assert (start.query, start.top_n, start.model_name) == (QUERY, 3, reranker.model)
        assert start.nodes == nodes
        assert end.nodes == ranked

    async def test_no_nodes(self, reranker: BgeRerank, cache: ModelCache, recorder: Recorder) -> None:
        everything = reranker.model_copy(update={"top_n": None})
        assert everything.postprocess_nodes([], query_str=QUERY) == []
        assert await everything.apostprocess_nodes([], query_str=QUERY) == []
        assert recorder.rerank_names() == ["ReRankStartEvent", "ReRankEndEvent"] * 2

    async def test_errors(self, reranker: BgeRerank, recorder: Recorder) -> None:
        debug = LlamaDebugHandler(print_trace_on_end=False)
        reranker.callback_manager = CallbackManager([debug])
        long = [NodeWithScore(node=TextNode(text="word " * 1000))]
        strict = reranker.model_copy(update={"on_truncate": "raise"})
        with pytest.raises(ValueError, match="512"):
            strict.postprocess_nodes(long, query_str=QUERY)
        with pytest.raises(ValueError, match="512"):
            await strict.apostprocess_nodes(long, query_str=QUERY)
        assert recorder.rerank_names() == ["ReRankStartEvent", "ReRankEndEvent"] * 2
        assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 2

    def test_callbacks(self, reranker: BgeRerank, nodes: list[NodeWithScore]) -> None:
        debug = LlamaDebugHandler(print_trace_on_end=False)
        reranker.callback_manager = CallbackManager([debug])
        ranked = reranker.postprocess_nodes(nodes, query_str=QUERY)
        ((start, end),) = debug.get_event_pairs(CBEventType.RERANKING)
        assert start.payload == {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: reranker.model,
            EventPayload.QUERY_STR: QUERY,
            EventPayload.TOP_K: 3,
        }
        assert end.payload == {EventPayload.NODES: ranked}

    async def test_without_a_query(self, reranker: BgeRerank, nodes: list[NodeWithScore], recorder: Recorder) -> None:
        with pytest.raises(ValueError, match="query"):
            reranker.postprocess_nodes(nodes)
        with pytest.raises(ValueError, match="query"):
            await reranker.apostprocess_nodes(nodes)
        assert recorder.rerank_names() == []


def test_every_core_argument_is_a_field_with_its_default() -> None:
    parameters = inspect.signature(BgeReranker).parameters
    own = {"top_n", "score_threshold", "keep_retrieval_score", "callback_manager"}
    assert set(BgeRerank.model_fields) == set(parameters) | own
    for name, parameter in parameters.items():
        if name != "model":
            assert BgeRerank.model_fields[name].default == parameter.default, name


def test_bad_arguments_are_refused(bert_reranker: Path) -> None:
    with pytest.raises(ValidationError, match="use_fp16"):
        BgeRerank(model=str(bert_reranker), use_fp16=True)
    with pytest.raises(ValidationError, match="top_n"):
        BgeRerank(model=str(bert_reranker), top_n=0)
    with pytest.raises(UnknownModelError, match="bge-reranker-v2-m3"):
        BgeRerank(model="BAAI/bge-reranker-v2-m33")
    with pytest.raises(WrongKindError, match="embedder"):
        BgeRerank(model="BAAI/bge-small-en-v1.5")


def test_round_trips(bert_reranker: Path, nodes: list[NodeWithScore]) -> None:
    reranker = BgeRerank(
        model=str(bert_reranker), top_n=4, score_threshold=0.01, max_length=64, normalize=True, token="hf_secret"
    )
    assert "hf_secret" not in str(reranker.to_dict()) + repr(reranker)
    again = [
        BgeRerank.model_validate(reranker.model_dump()),
        BgeRerank.from_dict(reranker.to_dict()),
        BgeRerank.from_json(reranker.to_json()),
        pickle.loads(pickle.dumps(reranker)),
        cloudpickle.loads(cloudpickle.dumps(reranker)),
        copy.deepcopy(reranker),
    ]
    expected = [node.node_id for node in reranker.postprocess_nodes(nodes, query_str=QUERY)]
    for other in again:
        assert other.to_dict() == reranker.to_dict()
        assert [node.node_id for node in other.postprocess_nodes(nodes, query_str=QUERY)] == expected
    assert len(pickle.dumps(reranker)) < 10_000
    assert len(TEXTS) == len(nodes)
