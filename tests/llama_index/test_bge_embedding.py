"""`BgeEmbedding`: the core's vectors, round trips, async, the embeddings cache."""

import asyncio
import copy
import inspect
import json
import pickle
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import tiny
import torch
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index_samples import TEXTS, Recorder
from pydantic import ValidationError

from bge_integrations import BgeEmbedder, ModelCache, UnknownModelError, WrongKindError
from bge_integrations.llama_index import BgeEmbedding


@pytest.fixture
def core(bert_embedder: Path, cache: ModelCache) -> BgeEmbedder:
    return BgeEmbedder(str(bert_embedder), query_instruction="query: ", cache=cache)


def test_vectors_are_the_cores(embedding: BgeEmbedding, core: BgeEmbedder) -> None:
    documents = core.encode_documents(TEXTS)
    queries = core.encode_queries(TEXTS)
    np.testing.assert_allclose(embedding.get_text_embedding_batch(TEXTS), documents, atol=1e-6)
    for text, document, query in zip(TEXTS, documents, queries, strict=True):
        np.testing.assert_allclose(embedding.get_text_embedding(text), document, atol=1e-6)
        np.testing.assert_allclose(embedding.get_query_embedding(text), query, atol=1e-6)
    np.testing.assert_allclose(
        embedding.get_agg_embedding_from_queries(TEXTS), queries.astype(np.float64).mean(axis=0), atol=1e-6
    )
    assert not np.allclose(documents, queries)


async def test_async_is_sync(embedding: BgeEmbedding) -> None:
    batch = await embedding.aget_text_embedding_batch(TEXTS)
    np.testing.assert_allclose(batch, embedding.get_text_embedding_batch(TEXTS), atol=1e-6)
    np.testing.assert_allclose(await embedding.aget_text_embedding(TEXTS[0]), batch[0], atol=1e-6)
    np.testing.assert_allclose(
        await embedding.aget_query_embedding(TEXTS[0]), embedding.get_query_embedding(TEXTS[0]), atol=1e-6
    )
    np.testing.assert_allclose(
        await embedding.aget_agg_embedding_from_queries(TEXTS),
        embedding.get_agg_embedding_from_queries(TEXTS),
        atol=1e-6,
    )


@pytest.mark.parametrize("num_workers", [None, 1, 3])
@pytest.mark.parametrize("show_progress", [False, True])
async def test_async_batches_keep_their_order(
    embedding: BgeEmbedding, num_workers: int | None, show_progress: bool
) -> None:
    texts = [f"{text} {number}" for number in range(5) for text in TEXTS]
    embedding.num_workers = num_workers
    embedding.embed_batch_size = 4
    vectors = await embedding.aget_text_embedding_batch(texts, show_progress=show_progress)
    np.testing.assert_allclose(vectors, embedding.embedder.encode_documents(texts), atol=1e-6)


async def test_an_error_in_one_async_batch_stops_the_others(embedding: BgeEmbedding) -> None:
    embedding.embed_batch_size = 1
    with pytest.raises(TypeError):
        await embedding.aget_text_embedding_batch(["a", None, "b", None, *["c"] * 50])
    assert len(asyncio.all_tasks()) == 1
    assert len(await embedding.aget_text_embedding_batch(["a", "b"])) == 2


async def test_a_cancelled_batch_leaves_no_task(embedding: BgeEmbedding) -> None:
    embedding.embed_batch_size = 8
    task = asyncio.create_task(embedding.aget_text_embedding_batch(["word " * 200] * 2000))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) == 1
    assert len(await embedding.aget_text_embedding("a")) == 32


def test_nothing_in_gives_nothing_out(embedding: BgeEmbedding) -> None:
    assert embedding.get_text_embedding_batch([]) == []
    assert asyncio.run(embedding.aget_text_embedding_batch([])) == []


def test_vectors_are_lists_of_builtin_floats(embedding: BgeEmbedding) -> None:
    vectors = [embedding.get_query_embedding("a"), *embedding.get_text_embedding_batch(["a", "b"])]
    assert {type(number) for vector in vectors for number in vector} == {float}
    assert json.loads(json.dumps(vectors)) == vectors


def test_the_engine_sees_many_texts_at_once(embedding: BgeEmbedding, recorder: Recorder) -> None:
    embedding.get_text_embedding_batch(["text"] * 2048)
    (end,) = recorder.named("EmbeddingEndEvent")
    assert len(end.chunks) == 2048


async def test_async_batches_are_small_enough_for_the_event_loop(embedding: BgeEmbedding, recorder: Recorder) -> None:
    assert len(await embedding.aget_text_embedding_batch(["text"] * 600)) == 600
    assert sorted(len(end.chunks) for end in recorder.named("EmbeddingEndEvent")) == [88, 256, 256]


async def test_each_start_event_has_its_end(embedding: BgeEmbedding, recorder: Recorder) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    embedding.callback_manager = CallbackManager([debug])
    embedding.embed_batch_size = 2
    await embedding.aget_text_embedding_batch(TEXTS)
    await embedding.aget_query_embedding("a")
    embedding.get_text_embedding_batch(TEXTS)
    assert len(recorder.named("EmbeddingStartEvent")) == len(recorder.named("EmbeddingEndEvent")) == 7
    assert len(debug.get_event_pairs(CBEventType.EMBEDDING)) == 7


def test_every_core_argument_is_a_field() -> None:
    arguments = set(inspect.signature(BgeEmbedder).parameters) - {"model"}
    assert arguments <= set(BgeEmbedding.model_fields)
    assert set(BgeEmbedding.model_fields) == arguments | set(BaseEmbedding.model_fields)


def test_defaults_are_the_cores() -> None:
    for name, parameter in inspect.signature(BgeEmbedder).parameters.items():
        if name != "model":
            assert BgeEmbedding.model_fields[name].default == parameter.default, name


def test_unknown_keywords_are_refused(bert_embedder: Path) -> None:
    with pytest.raises(ValidationError, match="pooling"):
        BgeEmbedding(model_name=str(bert_embedder), pooling="mean")
    with pytest.raises(ValidationError, match="class_name"):
        BgeEmbedding(model_name=str(bert_embedder), class_name="OpenAIEmbedding")
    with pytest.raises(ValidationError, match="model_name"):
        BgeEmbedding()
    with pytest.raises(ValidationError, match="on_truncate"):
        BgeEmbedding(model_name=str(bert_embedder), on_truncate="never")


def test_the_cores_errors_arrive_as_they_are() -> None:
    with pytest.raises(UnknownModelError, match=r"bge-small-en-v1\.5"):
        BgeEmbedding(model_name="BAAI/bge-small-en-v15")
    with pytest.raises(WrongKindError, match="reranker"):
        BgeEmbedding(model_name="BAAI/bge-reranker-base")


def every_field(folder: Path) -> dict[str, object]:
    return {
        "model_name": str(folder),
        "query_instruction": "q: ",
        "document_instruction": "d: ",
        "normalize": False,
        "max_length": 64,
        "truncate_dim": 16,
        "on_truncate": "ignore",
        "device": "cpu",
        "dtype": "float32",
        "max_batch_tokens": 4096,
        "embed_batch_size": 7,
        "num_workers": 3,
        "local_files_only": True,
    }


def test_round_trips(bert_embedder: Path) -> None:
    given = BgeEmbedding(**every_field(bert_embedder), cache=ModelCache(), token="secret")
    again = [
        BgeEmbedding.model_validate(given.model_dump()),
        BgeEmbedding.model_validate_json(given.model_dump_json()),
        BgeEmbedding.from_dict(given.to_dict()),
        BgeEmbedding.from_json(given.to_json()),
        BgeEmbedding(**given.model_dump()),
        pickle.loads(pickle.dumps(given)),
        cloudpickle.loads(cloudpickle.dumps(given)),
        copy.deepcopy(given),
        copy.copy(given),
        given.model_copy(),
    ]
    for embedding in again:
        assert embedding.to_dict() == given.to_dict()
        np.testing.assert_allclose(
            embedding.get_text_embedding_batch(TEXTS), given.get_text_embedding_batch(TEXTS), atol=1e-6
        )


def test_dumps_hold_what_changes_vectors_and_no_secret(bert_embedder: Path, cache: ModelCache) -> None:
    fields = every_field(bert_embedder)
    embedding = BgeEmbedding(**fields, cache=cache, token="hf_secret", embeddings_cache=SimpleKVStore())
    dumped = embedding.to_dict()
    assert fields.items() <= dumped.items()
    assert dumped["class_name"] == BgeEmbedding.class_name() == "BgeEmbedding"
    assert not {"cache", "token", "embeddings_cache", "callback_manager"} & dumped.keys()
    payload = getattr(embedding, "to_payload", embedding.to_dict)()  # only newer versions have it
    for shown in (json.dumps(dumped), repr(embedding), str(embedding), str(payload)):
        assert "hf_secret" not in shown


def test_pickles_are_small_even_after_use(embedding: BgeEmbedding) -> None:
    embedding.get_text_embedding("a")
    assert len(pickle.dumps(embedding)) < 10_000
    assert pickle.loads(pickle.dumps(embedding)).embedder.query_instruction == "query: "


def test_the_token_reaches_the_core_and_survives_pickling(bert_embedder: Path) -> None:
    embedding = BgeEmbedding(model_name=str(bert_embedder), token="hf_secret")
    assert embedding.embedder.token == "hf_secret"
    assert pickle.loads(pickle.dumps(embedding)).embedder.token == "hf_secret"


def test_torch_objects_are_taken_by_name(bert_embedder: Path) -> None:
    embedding = BgeEmbedding(
        model_name=str(bert_embedder),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    assert (embedding.device, embedding.dtype) == ("cpu", "float32")
    assert embedding.to_json()


def test_a_changed_field_takes_effect(embedding: BgeEmbedding) -> None:
    bare = embedding.model_copy(update={"query_instruction": ""})
    np.testing.assert_allclose(bare.get_query_embedding("a"), bare.get_text_embedding("a"), atol=1e-6)
    assert not np.allclose(embedding.get_query_embedding("a"), embedding.get_text_embedding("a"))
    embedding.query_instruction = ""
    np.testing.assert_allclose(embedding.get_query_embedding("a"), bare.get_query_embedding("a"), atol=1e-6)
    assert embedding.embedder is embedding.embedder


class TestEmbeddingsCache:
    """Query and document of one text never share an entry of `embeddings_cache`."""

    async def test_roles_are_apart_in_every_method(self, embedding: BgeEmbedding) -> None:
        query, document = embedding.get_query_embedding("panda"), embedding.get_text_embedding("panda")
        store = SimpleKVStore()
        embedding.embeddings_cache = store
        for _ in range(2):
            assert embedding.get_query_embedding("panda") == query
            assert await embedding.aget_query_embedding("panda") == query
            assert embedding.get_text_embedding("panda") == document
            assert await embedding.aget_text_embedding("panda") == document
            assert embedding.get_text_embedding_batch(["panda", "panda"]) == [document] * 2
            assert await embedding.aget_text_embedding_batch(["panda"]) == [document]
            assert embedding.get_agg_embedding_from_queries(["panda"]) == pytest.approx(query, abs=1e-6)
        assert embedding.embeddings_cache is store
        assert len(store.get_all("embeddings")) == 2

    async def test_what_is_stored_is_not_computed_again(self, embedding: BgeEmbedding) -> None:
        store = SimpleKVStore()
        embedding.embeddings_cache = store
        embedding.get_text_embedding_batch(["a", "b"])
        embedding.get_query_embedding("a")
        for key in store.get_all("embeddings"):
            store.put(key, {"marked": [1.0]}, collection="embeddings")
        assert embedding.get_text_embedding_batch(["a", "b"]) == [[1.0], [1.0]]
        assert embedding.get_text_embedding("b") == [1.0]
        assert await embedding.aget_text_embedding_batch(["b", "a"]) == [[1.0], [1.0]]
        assert embedding.get_query_embedding("a") == await embedding.aget_query_embedding("a") == [1.0]
        assert embedding.get_query_embedding("b") != [1.0]

    def test_models_and_instructions_share_a_store(self, bert_embedder: Path, tmp_path: Path) -> None:
        other = tiny.make_bert_embedder(tmp_path / "other", seed=1)
        store = SimpleKVStore()
        variants: list[dict[str, object]] = [
            {"model_name": str(bert_embedder)},
            {"model_name": str(other)},
            {"model_name": str(bert_embedder), "query_instruction": "q: "},
            {"model_name": str(bert_embedder), "document_instruction": "d: "},
            {"model_name": str(bert_embedder), "truncate_dim": 16},
        ]
        for _ in range(2):
            for fields in variants:
                cached = BgeEmbedding(**fields, embeddings_cache=store)
                plain = BgeEmbedding(**fields)
                assert cached.get_query_embedding("a") == pytest.approx(plain.get_query_embedding("a"), abs=1e-6)
                assert cached.get_text_embedding("a") == pytest.approx(plain.get_text_embedding("a"), abs=1e-6)

    def test_it_survives_copies(self, embedding: BgeEmbedding) -> None:
        embedding.embeddings_cache = SimpleKVStore()
        vector = embedding.get_text_embedding("a")
        for again in (pickle.loads(pickle.dumps(embedding)), copy.deepcopy(embedding), embedding.model_copy()):
            assert again.get_text_embedding("a") == vector
            assert len(again.embeddings_cache.get_all("embeddings")) == 1

    def test_other_objects_are_refused(self, bert_embedder: Path) -> None:
        with pytest.raises(TypeError, match="BaseKVStore"):
            BgeEmbedding(model_name=str(bert_embedder), embeddings_cache={})
