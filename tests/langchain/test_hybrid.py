"""`HybridRetriever` over real stores."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_qdrant import QdrantVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError
from qdrant_client import QdrantClient, models

from bge_integrations import FingerprintMismatchError, ModelCache
from bge_integrations.embed.m3 import BgeM3Embedder, sparse_score
from bge_integrations.langchain import BgeEmbeddings, BgeRerank, HybridRetriever, RerankingRetriever
from bge_integrations.stores.fingerprint import read_fingerprint, write_fingerprint
from bge_integrations.stores.fusion import reciprocal_rank_fusion, relative_score_fusion
from bge_integrations.stores.sparse_index import SparseIndex

LIKE = "BAAI/bge-m3"
WORDS = ["panda", "bread", "moon", "court", "river", "violin", "planet", "file", "bond", "sailor"]
DOCUMENTS = [
    Document(f"A passage about {word}.", id=str(uuid4()), metadata={"even": i % 2 == 0}) for i, word in enumerate(WORDS)
]
TEXTS = [document.page_content for document in DOCUMENTS]
QUERY = "Tell me of the panda and the moon"


@pytest.fixture
def chroma(m3_dense: BgeEmbeddings, tmp_path: Path) -> Chroma:
    return Chroma("words", m3_dense, str(tmp_path / "chroma"), collection_metadata={"hnsw:space": "cosine"})


@pytest.fixture(params=["chroma", "memory", "qdrant"])
def store(request: pytest.FixtureRequest, m3_dense: BgeEmbeddings, tmp_path: Path) -> Iterator[VectorStore]:
    if request.param == "chroma":
        yield request.getfixturevalue("chroma")
    elif request.param == "memory":
        yield InMemoryVectorStore(m3_dense)
    else:
        client = QdrantClient(path=str(tmp_path / "qdrant"))
        size = m3_dense.embedder.dim
        client.create_collection("d", vectors_config=models.VectorParams(size=size, distance=models.Distance.COSINE))
        yield QdrantVectorStore(client, "d", m3_dense)
        client.close()


def _filled(store: VectorStore, m3_embedder: BgeM3Embedder, **arguments: Any) -> HybridRetriever:
    retriever = HybridRetriever(vector_store=store, sparse_index=SparseIndex(), embedder=m3_embedder, **arguments)
    retriever.add_documents(DOCUMENTS)
    return retriever


def _rankings(m3_embedder: BgeM3Embedder, fetch_k: int) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """What either side finds, by ids of DOCUMENTS."""
    query, documents = m3_embedder.encode_queries([QUERY]), m3_embedder.encode_documents(TEXTS)
    assert query.dense is not None
    assert query.sparse is not None
    dense = {d.id: float(s) for d, s in zip(DOCUMENTS, documents.dense @ query.dense[0], strict=True)}
    sparse = {d.id: sparse_score(query.sparse[0], e) for d, e in zip(DOCUMENTS, documents.sparse or [], strict=True)}
    sides = [sorted(scores.items(), key=lambda item: -item[1])[:fetch_k] for scores in (dense, sparse)]
    return sides[0], [(key, score) for key, score in sides[1] if score > 0]


async def _both(retriever: HybridRetriever, query: str = QUERY, **arguments: Any) -> list[Document]:
    found = retriever.invoke(query, **arguments)
    later = await retriever.ainvoke(query, **arguments)
    assert [document.id for document in later] == [document.id for document in found]
    assert [dict(document.metadata) for document in later] == [
        {**document.metadata, "retrieval_score": pytest.approx(document.metadata["retrieval_score"], abs=1e-4)}
        for document in found
    ]
    return found


def _work(cache: ModelCache) -> tuple[int, int]:
    (model,) = cache.stats()["models"]
    return model["batches"], model["tokens"]


class TestStandard(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _parts(self, chroma: Chroma, m3_embedder: BgeM3Embedder) -> None:
        index = _filled(chroma, m3_embedder).sparse_index
        self.params = {"vector_store": chroma, "sparse_index": index, "embedder": m3_embedder}

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return HybridRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return self.params

    @property
    def retriever_query_example(self) -> str:
        return QUERY


@pytest.mark.parametrize("fetch_k", [3, 50])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 1.0), (0.0, 1.0), (1.0, 0.0)])
async def test_both_sides_are_fused(
    store: VectorStore, m3_embedder: BgeM3Embedder, weights: tuple[float, float], fetch_k: int
) -> None:
    dense, sparse = _rankings(m3_embedder, fetch_k)
    ranks = [[key for key, _ in side] for side in (dense, sparse)]
    for fusion, expected in (
        ("rrf", reciprocal_rank_fusion(ranks, weights)),
        ("weights", relative_score_fusion([dense, sparse], weights)),
    ):
        retriever = _filled(store, m3_embedder, fusion=fusion, weights=weights, fetch_k=fetch_k, k=3)
        found = await _both(retriever)
        assert [document.id for document in found] == list(expected)[:3]
        for document in found:
            assert document.metadata["retrieval_score"] == pytest.approx(expected[document.id], abs=1e-4)
            assert type(document.metadata["retrieval_score"]) is float
            assert document.page_content == TEXTS[[d.id for d in DOCUMENTS].index(document.id)]


async def test_one_forward_fills_and_one_asks(
    store: VectorStore, m3_embedder: BgeM3Embedder, m3_dense: BgeEmbeddings, cache: ModelCache
) -> None:
    async def cost(call: Any) -> tuple[int, int]:
        before = _work(cache)
        await call if asyncio.iscoroutine(call) else call()
        after = _work(cache)
        return after[0] - before[0], after[1] - before[1]

    retriever = _filled(store, m3_embedder)
    alone = await cost(lambda: m3_dense.embed_documents(TEXTS)), await cost(lambda: m3_dense.embed_query(QUERY))
    assert await cost(lambda: retriever.add_documents(DOCUMENTS)) == alone[0]
    assert await cost(retriever.aadd_documents(DOCUMENTS)) == alone[0]
    assert await cost(lambda: retriever.invoke(QUERY)) == alone[1]
    assert await cost(retriever.ainvoke(QUERY)) == alone[1]
    assert store.embeddings is m3_dense


async def test_what_is_filled_is_what_the_model_gives(chroma: Chroma, m3_embedder: BgeM3Embedder) -> None:
    retriever = _filled(chroma, m3_embedder)
    given = [document.model_copy(deep=True) for document in DOCUMENTS]
    assert await retriever.aadd_documents(given) == [document.id for document in DOCUMENTS]
    assert given == DOCUMENTS
    kept = chroma.get(ids=[d.id for d in DOCUMENTS], include=["embeddings", "documents"])
    expected = m3_embedder.encode_documents(kept["documents"])
    np.testing.assert_allclose(kept["embeddings"], expected.dense, atol=1e-6)
    (query,) = m3_embedder.encode_queries([QUERY]).sparse or []
    scores = dict(retriever.sparse_index.search(query, len(DOCUMENTS)))
    for document_id, text, embedding in zip(kept["ids"], kept["documents"], expected.sparse or [], strict=True):
        assert scores.get(document_id, 0.0) == pytest.approx(sparse_score(query, embedding), rel=1e-5)
        assert retriever.sparse_index.holds(document_id, text)


def test_ids(store: VectorStore, m3_embedder: BgeM3Embedder) -> None:
    retriever = HybridRetriever(vector_store=store, sparse_index=SparseIndex(), embedder=m3_embedder)
    given = [uuid4().hex for _ in range(2)]
    assert retriever.add_documents([Document("panda"), Document("moon")], ids=given) == given
    made = retriever.add_documents([Document("bread"), DOCUMENTS[3]])
    assert made[1] == DOCUMENTS[3].id
    assert all(document_id in retriever.sparse_index for document_id in [*given, *made])
    assert len(retriever.invoke("panda, moon, bread", k=10)) == 4
    assert len({document.id for document in retriever.invoke("panda, moon, bread", k=10)}) == 4
    assert retriever.add_documents([]) == []
    with pytest.raises(ValueError, match="1 ids for 2"):
        retriever.add_documents(DOCUMENTS[:2], ids=["a"])


async def test_what_only_words_find_comes_from_the_store(store: VectorStore, m3_embedder: BgeM3Embedder) -> None:
    (dense, *_), (sparse, *_) = _rankings(m3_embedder, 1)
    assert dense[0] != sparse[0]
    retriever = HybridRetriever(
        vector_store=store, sparse_index=SparseIndex(), embedder=m3_embedder, fetch_k=1, k=1, weights=(0.0, 1.0)
    )
    retriever.add_documents([Document(document.page_content, id=document.id) for document in DOCUMENTS])
    (found,) = await _both(retriever)
    assert found.id == sparse[0]
    assert found.page_content == TEXTS[[document.id for document in DOCUMENTS].index(found.id)]


async def test_documents_the_store_has_lost_are_left_out(
    store: VectorStore, m3_embedder: BgeM3Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    retriever = _filled(store, m3_embedder, k=10)
    assert len(await _both(retriever)) == 10
    assert caplog.records == []
    store.delete([DOCUMENTS[0].id, DOCUMENTS[2].id])
    assert {DOCUMENTS[0].id, DOCUMENTS[2].id} <= dict(_rankings(m3_embedder, 50)[1]).keys()
    with caplog.at_level(logging.WARNING):
        found = await _both(retriever)
    assert {document.id for document in found} == {d.id for d in DOCUMENTS} - {DOCUMENTS[0].id, DOCUMENTS[2].id}
    assert "2 documents of the sparse index" in caplog.text
    caplog.clear()
    retriever.sparse_index.delete([DOCUMENTS[0].id, DOCUMENTS[2].id])
    assert len(await _both(retriever)) == 8
    assert caplog.records == []


async def test_filters_hold_for_both_sides(chroma: Chroma, m3_embedder: BgeM3Embedder) -> None:
    dense, sparse = _rankings(m3_embedder, 50)
    even = {document.id for document in DOCUMENTS if document.metadata["even"]}
    ranks = [[key for key, _ in side if key in even] for side in (dense, sparse)]
    for fetch_k in (10, 3):
        ranks = [ranks[0][:fetch_k], [key for key in ranks[1] if key in ranks[0][:fetch_k]]]
        retriever = _filled(chroma, m3_embedder, fetch_k=fetch_k, k=3, search_kwargs={"filter": {"even": True}})
        assert [document.id for document in await _both(retriever)] == list(reciprocal_rank_fusion(ranks))[:3]


async def test_k_of_a_call_and_of_the_retriever(chroma: Chroma, m3_embedder: BgeM3Embedder) -> None:
    retriever = _filled(chroma, m3_embedder, fetch_k=5)
    assert [len(await _both(retriever, k=k)) for k in (1, 5)] == [1, 5]
    assert len(await _both(retriever)) == retriever.k == 4
    for k in (0, -1, 6):
        with pytest.raises(ValueError, match=f"k={k}"):
            retriever.invoke(QUERY, k=k)
        with pytest.raises(ValueError, match=f"k={k}"):
            await retriever.ainvoke(QUERY, k=k)


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 0},
        {"fetch_k": 3},
        {"fusion": "sum"},
        {"weights": (0, 0)},
        {"weights": (-1, 1)},
        {"weights": (1, float("nan"))},
        {"search_kwargs": {"k": 3}},
        {"top_n": 3},
        {"embedder": "BAAI/bge-m3"},
    ],
)
def test_arguments_that_cannot_be_are_refused(m3_dense: BgeEmbeddings, wrong: dict[str, Any]) -> None:
    arguments = {"vector_store": InMemoryVectorStore(m3_dense), "sparse_index": SparseIndex(), "embedder": None}
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        HybridRetriever(**{**arguments, "embedder": BgeM3Embedder(LIKE), **wrong})


class Bare(VectorStore):
    """A store without scores that gives documents without ids."""

    def __init__(self, embedding: Embeddings | None) -> None:
        self.kept = {"embedding": embedding}

    @property
    def embeddings(self) -> Embeddings | None:
        return self.kept["embedding"]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return [Document("without id")]

    @classmethod
    def from_texts(cls, texts: Any, embedding: Embeddings, metadatas: Any = None, **kwargs: Any) -> "Bare":
        return cls(embedding)


async def test_stores_that_cannot_serve_say_so(m3_dense: BgeEmbeddings, m3_embedder: BgeM3Embedder) -> None:
    parts = {"sparse_index": SparseIndex(), "embedder": m3_embedder}
    with pytest.raises(ValidationError, match="Bare gives no scores"):
        HybridRetriever(vector_store=Bare(m3_dense), fusion="weights", **parts)
    for store in (Bare(m3_dense), Bare(None)):
        retriever = HybridRetriever(vector_store=store, **parts)
        with pytest.raises(TypeError, match="Bare does not keep its embeddings"):
            retriever.invoke(QUERY)
        with pytest.raises(TypeError, match="Bare does not keep its embeddings"):
            await retriever.aadd_documents(DOCUMENTS)
    store = Bare(m3_dense)
    store.embedding = m3_dense
    retriever = HybridRetriever(vector_store=store, **parts)
    with pytest.raises(ValueError, match="without ids"):
        retriever.invoke(QUERY)
    with pytest.raises(ValueError, match="without ids"):
        await retriever.ainvoke(QUERY)


async def test_another_models_store_or_index_is_refused(
    chroma: Chroma, m3_embedder: BgeM3Embedder, m3_dense: BgeEmbeddings
) -> None:
    retriever = _filled(chroma, m3_embedder)
    assert read_fingerprint(chroma) == m3_dense.embedder.fingerprint
    assert retriever.sparse_index.fingerprint == m3_embedder.with_outputs("sparse").fingerprint
    other = BgeM3Embedder(m3_embedder.model, like=LIKE, max_length=64, cache=m3_embedder.cache)
    others = m3_dense.model_copy(update={"max_length": 64})
    for store, index, message in (
        (chroma, SparseIndex(), "The store embeds with"),
        (Chroma("words", others, client=chroma._client), SparseIndex(), "This collection"),
        (InMemoryVectorStore(others), retriever.sparse_index, "This sparse index"),
    ):
        refused = HybridRetriever(vector_store=store, sparse_index=index, embedder=other)
        for _ in range(2):
            with pytest.raises(FingerprintMismatchError, match=message):
                refused.invoke(QUERY)
            with pytest.raises(FingerprintMismatchError, match=message):
                await refused.aadd_documents(DOCUMENTS)
    assert len(retriever.sparse_index) == len(DOCUMENTS)
    write_fingerprint(chroma, "of another model")
    assert len(await _both(retriever)) == 4  # checked once: it is its own work


async def test_an_index_kept_and_a_store_opened_again(
    chroma: Chroma, m3_embedder: BgeM3Embedder, tmp_path: Path
) -> None:
    retriever = _filled(chroma, m3_embedder)
    expected = await _both(retriever)
    retriever.sparse_index.save(tmp_path / "sparse.npz")
    again = Chroma("words", chroma.embeddings, str(tmp_path / "chroma"))
    index = SparseIndex.load(tmp_path / "sparse.npz")
    assert await _both(HybridRetriever(vector_store=again, sparse_index=index, embedder=m3_embedder)) == expected


async def test_a_reranker_takes_its_candidates(
    chroma: Chroma, m3_embedder: BgeM3Embedder, bert_reranker: Path, cache: ModelCache
) -> None:
    rerank = BgeRerank(model=str(bert_reranker), top_n=None, cache=cache)
    hybrid = _filled(chroma, m3_embedder, k=6)
    retriever = RerankingRetriever(retriever=hybrid, reranker=rerank, top_n=3)
    candidates = hybrid.invoke(QUERY)
    expected = rerank.compress_documents(candidates, QUERY)[:3]
    for found in (retriever.invoke(QUERY), await retriever.ainvoke(QUERY)):
        assert [document.id for document in found] == [document.id for document in expected]
        assert all({"relevance_score", "retrieval_score"} <= document.metadata.keys() for document in found)


async def test_many_calls_at_once_do_not_mix(store: VectorStore, m3_embedder: BgeM3Embedder) -> None:
    retriever = _filled(store, m3_embedder, fusion="weights")
    queries = [f"Tell me of the {word}" for word in WORDS] * 3
    expected = [retriever.invoke(query, k=2) for query in queries]
    found = await asyncio.gather(*(retriever.ainvoke(query, k=2) for query in queries))
    assert [[d.id for d in documents] for documents in found] == [[d.id for d in documents] for documents in expected]
