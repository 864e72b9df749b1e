"""`BgeM3SparseEmbedding`: the core's vectors, round trips, events, and hybrid search in a Qdrant on disk."""

import asyncio
import copy
import inspect
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import cloudpickle
import pytest
import tiny
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.qdrant import QdrantVectorStore
from llama_index_samples import TEXTS, Recorder
from pydantic import ValidationError
from qdrant_client import AsyncQdrantClient, QdrantClient

from bge_integrations import (
    BgeM3Embedder,
    MissingWeightsError,
    ModelCache,
    SparseEmbedding,
    UnknownModelError,
    UnsupportedModelError,
    WrongKindError,
)
from bge_integrations.embed.m3 import sparse_score
from bge_integrations.llama_index import BgeEmbedding, BgeM3SparseEmbedding

QUERY = "where do pandas live?"


@pytest.fixture
def sparse(m3_folder: Path, cache: ModelCache) -> BgeM3SparseEmbedding:
    return BgeM3SparseEmbedding(model_name=str(m3_folder), like="BAAI/bge-m3", query_instruction="query: ", cache=cache)


def as_dicts(embeddings: list[SparseEmbedding]) -> list[dict[int, float]]:
    return [
        pytest.approx(dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True)), abs=1e-5)
        for vector in embeddings
    ]


def test_vectors_are_the_cores(sparse: BgeM3SparseEmbedding, m3: BgeM3Embedder) -> None:
    documents, queries = m3.encode_documents(TEXTS).sparse, m3.encode_queries(TEXTS).sparse
    assert sparse.get_text_embedding_batch(TEXTS) == as_dicts(documents)
    assert [sparse.get_text_embedding(text) for text in TEXTS] == as_dicts(documents)
    assert [sparse.get_query_embedding(text) for text in TEXTS] == as_dicts(queries)
    assert sparse.get_query_embedding(QUERY) != sparse.get_text_embedding(QUERY)
    assert sparse.get_text_embedding("") == {}


async def test_async_is_sync(sparse: BgeM3SparseEmbedding, m3: BgeM3Embedder) -> None:
    documents, queries = m3.encode_documents(TEXTS).sparse, m3.encode_queries(TEXTS).sparse
    sparse.embed_batch_size = 4
    assert await sparse.aget_text_embedding_batch(TEXTS, show_progress=True) == as_dicts(documents)
    assert await sparse.aget_text_embedding(TEXTS[0]) == as_dicts(documents)[0]
    assert await sparse.aget_query_embedding(TEXTS[0]) == as_dicts(queries)[0]


def test_nothing_in_gives_nothing_out(sparse: BgeM3SparseEmbedding) -> None:
    assert sparse.get_text_embedding_batch([]) == []
    assert asyncio.run(sparse.aget_text_embedding_batch([])) == []
    assert sparse.sparse_doc_fn([]) == ([], [])


def test_vectors_are_builtin_numbers(sparse: BgeM3SparseEmbedding) -> None:
    vectors = [sparse.get_query_embedding("a"), *sparse.get_text_embedding_batch(["a", "b"])]
    assert {(type(key), type(value)) for vector in vectors for key, value in vector.items()} == {(int, float)}
    assert json.dumps(sparse.sparse_query_fn(["a"]))


async def test_batches_and_events(sparse: BgeM3SparseEmbedding, recorder: Recorder) -> None:
    sparse.get_text_embedding_batch(["text"] * 600)
    assert [len(end.chunks) for end in recorder.named("SparseEmbeddingEndEvent")] == [600]
    await sparse.aget_text_embedding_batch(["text"] * 600)
    assert sorted(len(end.chunks) for end in recorder.named("SparseEmbeddingEndEvent")[1:]) == [88, 256, 256]
    sparse.embed_batch_size = 200
    await sparse.aget_text_embedding_batch(["text"] * 600)
    assert [len(end.chunks) for end in recorder.named("SparseEmbeddingEndEvent")[4:]] == [200, 200, 200]
    assert len(recorder.named("SparseEmbeddingStartEvent")) == 7


def test_every_core_argument_is_a_field_with_its_default() -> None:
    parameters = inspect.signature(BgeM3Embedder).parameters
    always = {"outputs", "normalize"}
    own = {"model_name", "embed_batch_size", "num_workers"}
    assert set(BgeM3SparseEmbedding.model_fields) == set(parameters) - {"model"} - always | own
    for name, parameter in parameters.items():
        field = BgeM3SparseEmbedding.model_fields.get("model_name" if name == "model" else name)
        assert name in always or field.default == parameter.default, name


def test_bad_arguments_are_refused(bert_embedder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="outputs"):
        BgeM3SparseEmbedding(outputs=("dense",))
    with pytest.raises(ValidationError, match="class_name"):
        BgeM3SparseEmbedding(class_name="FastEmbed")
    with pytest.raises(UnknownModelError, match="bge-m3"):
        BgeM3SparseEmbedding(model_name="BAAI/bge-m33")
    with pytest.raises(WrongKindError, match="reranker"):
        BgeM3SparseEmbedding(model_name="BAAI/bge-reranker-v2-m3")
    with pytest.raises(UnsupportedModelError, match="sparse"):
        BgeM3SparseEmbedding(model_name="BAAI/bge-base-en-v1.5")
    headless = tiny.make_xlmr_embedder(tmp_path / "headless", modules=False)
    with pytest.raises(MissingWeightsError, match="sparse_linear.pt"):
        BgeM3SparseEmbedding(model_name=str(headless), like="BAAI/bge-m3").get_query_embedding("a")


def test_round_trips(m3_folder: Path) -> None:
    fields = {
        "model_name": str(m3_folder),
        "like": "BAAI/bge-m3",
        "query_instruction": "q: ",
        "document_instruction": "d: ",
        "max_length": 64,
        "embed_batch_size": 7,
    }
    given = BgeM3SparseEmbedding(**fields, cache=ModelCache(), token="hf_secret")
    assert fields.items() <= given.to_dict().items()
    assert "hf_secret" not in str(given.to_dict()) + repr(given) + str(getattr(given, "to_payload", given.to_dict)())
    again = [
        BgeM3SparseEmbedding.model_validate(given.model_dump()),
        BgeM3SparseEmbedding.from_dict(given.to_dict()),
        BgeM3SparseEmbedding.from_json(given.to_json()),
        BgeM3SparseEmbedding(**given.model_dump()),
        pickle.loads(pickle.dumps(given)),
        cloudpickle.loads(cloudpickle.dumps(given)),
        copy.deepcopy(given),
    ]
    expected = given.get_text_embedding_batch(TEXTS)
    for embedding in again:
        assert embedding.to_dict() == given.to_dict()
        assert embedding.get_text_embedding_batch(TEXTS) == [pytest.approx(vector, abs=1e-5) for vector in expected]
    assert pickle.loads(pickle.dumps(given.sparse_query_fn))([QUERY])[0] == given.sparse_query_fn([QUERY])[0]
    assert len(pickle.dumps(given)) < 10_000


class TestQdrant:
    """The framework's Qdrant store in its hybrid mode, on disk."""

    @pytest.fixture
    def client(self, tmp_path: Path) -> Iterator[QdrantClient]:
        client = QdrantClient(path=str(tmp_path / "qdrant"))
        yield client
        client.close()

    def store(self, sparse: BgeM3SparseEmbedding, **client: object) -> QdrantVectorStore:
        return QdrantVectorStore(
            "notes",
            enable_hybrid=True,
            sparse_doc_fn=sparse.sparse_doc_fn,
            sparse_query_fn=sparse.sparse_query_fn,
            index_doc_id=False,  # the local Qdrant has no such indexes, and warns
            **client,
        )

    def fill(self, store: QdrantVectorStore, dense: BgeEmbedding) -> VectorStoreIndex:
        nodes = [TextNode(id_=str(UUID(int=number)), text=text) for number, text in enumerate(TEXTS) if text]
        context = StorageContext.from_defaults(vector_store=store)
        return VectorStoreIndex(nodes, storage_context=context, embed_model=dense)

    @pytest.fixture
    def dense(self, m3_folder: Path, cache: ModelCache) -> BgeEmbedding:
        return BgeEmbedding(model_name=str(m3_folder), like="BAAI/bge-m3", query_instruction="query: ", cache=cache)

    def test_sparse_and_hybrid(
        self,
        client: QdrantClient,
        sparse: BgeM3SparseEmbedding,
        dense: BgeEmbedding,
        m3: BgeM3Embedder,
        cache: ModelCache,
    ) -> None:
        index = self.fill(self.store(sparse, client=client), dense)
        query, documents = m3.encode_queries([QUERY]), m3.encode_documents([text for text in TEXTS if text])
        scores = [sparse_score(query.sparse[0], vector) for vector in documents.sparse]

        found = index.as_retriever(vector_store_query_mode="sparse", sparse_top_k=6).retrieve(QUERY)
        best = sorted((score for score in scores if score), reverse=True)
        assert [node.score for node in found] == pytest.approx(best, abs=1e-4)

        hybrid = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=1, sparse_top_k=1, alpha=0.0)
        (only,) = hybrid.retrieve(QUERY)
        assert only.node.text == [text for text in TEXTS if text][scores.index(max(scores))]
        assert len(cache.stats()["models"]) == 1

    async def test_async(
        self, tmp_path: Path, client: QdrantClient, sparse: BgeM3SparseEmbedding, dense: BgeEmbedding
    ) -> None:
        modes = {"vector_store_query_mode": "hybrid", "similarity_top_k": 3, "sparse_top_k": 3}
        expected = self.fill(self.store(sparse, client=client), dense).as_retriever(**modes).retrieve(QUERY)
        client.close()
        aclient = AsyncQdrantClient(path=str(tmp_path / "qdrant"))
        index = VectorStoreIndex.from_vector_store(self.store(sparse, aclient=aclient), embed_model=dense)
        found = await index.as_retriever(**modes).aretrieve(QUERY)
        assert [(node.node_id, node.score) for node in found] == [
            (node.node_id, pytest.approx(node.score, abs=1e-4)) for node in expected
        ]
        await aclient.close()
