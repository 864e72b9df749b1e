"""What a call asks a store or a retriever for: enough candidates under any filter, and all that the call brings."""

from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import EnsembleRetriever
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
    EmbeddingsFilter,
)
from langchain_community.vectorstores import FAISS
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from bge_integrations import ModelCache
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.langchain import BgeCrossEncoder, BgeEmbeddings, BgeRerank, HybridRetriever, RerankingRetriever
from bge_integrations.langchain.retrieval import searches
from bge_integrations.stores.sparse_index import SparseIndex

QUERY = "Tell me of the panda"
FEW, MANY = {"tenant": "few"}, {"tenant": "many"}
DOCUMENTS = [
    Document(f"A passage about panda number {i}.", id=str(i), metadata=FEW if i % 9 == 8 else MANY) for i in range(90)
]


@pytest.fixture
def rerank(bert_reranker: Path, cache: ModelCache) -> BgeRerank:
    return BgeRerank(model=str(bert_reranker), top_n=5, cache=cache)


@pytest.fixture
def faiss() -> FAISS:
    fake = DeterministicFakeEmbedding(size=8)
    return FAISS.from_documents(DOCUMENTS, fake, relevance_score_fn=lambda distance: 1 / (1 + distance))


@pytest.fixture
def memory() -> InMemoryVectorStore:
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents(DOCUMENTS)
    return store


def _of_few(document: Document) -> bool:
    return document.metadata["tenant"] == "few"


async def _found(retriever: Any, query: str = QUERY, **arguments: Any) -> list[str]:
    """The tenants of what is found, by every way to call."""
    ways = [
        retriever.invoke(query, **arguments),
        await retriever.ainvoke(query, **arguments),
        retriever.batch([query], **arguments)[0],
        retriever.bind(**arguments).invoke(query),
    ]
    tenants = [[document.metadata["tenant"] for document in way] for way in ways]
    assert tenants == [tenants[0]] * 4
    return tenants[0]


@pytest.mark.parametrize("fetch_k", [5, 10, 70])
async def test_a_filter_finds_what_matches_in_faiss(faiss: FAISS, rerank: BgeRerank, fetch_k: int) -> None:
    kept = RerankingRetriever(vector_store=faiss, reranker=rerank, fetch_k=fetch_k, search_kwargs={"filter": FEW})
    assert await _found(kept) == ["few"] * 5
    free = RerankingRetriever(vector_store=faiss, reranker=rerank, fetch_k=fetch_k)
    assert await _found(free, filter=lambda metadata: metadata == FEW) == ["few"] * 5
    assert await _found(free, filter={"tenant": "of nobody"}) == []


@pytest.mark.parametrize("search_type", ["similarity", "mmr", "similarity_score_threshold"])
async def test_a_filter_finds_what_matches_in_faisss_own_retriever(
    faiss: FAISS, rerank: BgeRerank, search_type: str
) -> None:
    threshold = {"score_threshold": 0.0} if search_type.endswith("threshold") else {}
    inner = faiss.as_retriever(search_type=search_type, search_kwargs={**threshold, "filter": FEW})
    assert await _found(RerankingRetriever(retriever=inner, reranker=rerank)) == ["few"] * 5
    free = faiss.as_retriever(search_type=search_type, search_kwargs=threshold)
    assert await _found(RerankingRetriever(retriever=free, reranker=rerank), filter=FEW) == ["few"] * 5
    told = faiss.as_retriever(search_type=search_type, search_kwargs={**threshold, "filter": FEW, "fetch_k": 5})
    assert len(await _found(RerankingRetriever(retriever=told, reranker=rerank))) < 5


def test_searches_widen_until_the_whole_store(faiss: FAISS, memory: InMemoryVectorStore) -> None:
    def looked_at(*arguments: Any, **options: Any) -> list[Any]:
        return [each.get("fetch_k") for each in searches(*arguments, **options)]

    assert looked_at(faiss, 1, {"filter": FEW}) == [5, 50, 90]
    assert looked_at(faiss, 20, {"filter": FEW}) == [100]
    assert looked_at(faiss, 1, {}) == looked_at(faiss, 1, {}, mmr=True) == [5]
    assert looked_at(faiss, 1, {"filter": FEW, "fetch_k": 7}) == [7]
    assert looked_at(memory, 1, {"filter": FEW}) == [None]
    assert looked_at(memory, 1, {"filter": FEW}, mmr=True) == [5]
    assert list(searches(memory, 3, {"filter": FEW})) == [{"filter": FEW, "k": 3}]


async def test_maximal_marginal_relevance_gets_as_many_as_are_asked_for(
    memory: InMemoryVectorStore, rerank: BgeRerank
) -> None:
    inner = memory.as_retriever(search_type="mmr")
    assert len(await _found(RerankingRetriever(retriever=inner, reranker=rerank, fetch_k=40, top_n=40))) == 40


async def test_arguments_of_a_call_reach_the_store(memory: InMemoryVectorStore, rerank: BgeRerank) -> None:
    for source in (
        {"vector_store": memory},
        {"retriever": memory.as_retriever()},
        {"retriever": memory.as_retriever().with_config(tags=["wrapped"])},
        {"retriever": RerankingRetriever(vector_store=memory, reranker=rerank)},
        {"retriever": RunnableLambda(lambda query, **given: memory.similarity_search(query, k=9, **given))},
    ):
        retriever = RerankingRetriever(**source, reranker=rerank)
        found = await _found(retriever, filter=_of_few, top_n=2)
        assert found == ["few"] * 2, source
    retriever = RerankingRetriever(vector_store=memory, reranker=rerank, search_kwargs={"filter": _of_few})
    assert await _found(retriever, filter=lambda document: not _of_few(document)) == ["many"] * 5
    assert await _found(retriever, fetch_k=12, top_n=12) == ["few"] * 10
    assert retriever.search_kwargs == {"filter": _of_few}


async def test_arguments_that_would_be_lost_are_refused(memory: InMemoryVectorStore, rerank: BgeRerank) -> None:
    plain = memory.as_retriever()
    for inner in (EnsembleRetriever(retrievers=[plain], weights=[1.0]), RunnablePassthrough() | plain):
        retriever = RerankingRetriever(retriever=inner, reranker=rerank)
        assert len(await _found(retriever)) == 4
        for arguments in ({"filter": _of_few}, {"fetch_k": 9}):
            name = next(iter(arguments))
            with pytest.raises(ValueError, match=f"{name}=.* cannot be handed on to {type(inner).__name__}"):
                retriever.invoke(QUERY, **arguments)
            with pytest.raises(ValueError, match=name):
                await retriever.ainvoke(QUERY, **arguments)
    for fetch_k in (0, -1, 4):
        with pytest.raises(ValueError, match=f"fetch_k={fetch_k} is less"):
            RerankingRetriever(vector_store=memory, reranker=rerank).invoke(QUERY, fetch_k=fetch_k)


async def test_hybrid_takes_arguments_of_a_call(m3_dense: BgeEmbeddings, m3_embedder: BgeM3Embedder) -> None:
    faiss = FAISS.from_documents(DOCUMENTS[:1], m3_dense)
    hybrid = HybridRetriever(vector_store=faiss, sparse_index=SparseIndex(), embedder=m3_embedder, fetch_k=10)
    hybrid.add_documents(DOCUMENTS[1:])
    assert await _found(hybrid, "panda number", filter=FEW) == ["few"] * 4
    assert await _found(hybrid, "panda number", filter=FEW, fetch_k=4, k=3) == ["few"] * 3
    assert len(await _found(hybrid, "panda number", k=12, fetch_k=12)) == 12
    kept = hybrid.model_copy(update={"search_kwargs": {"filter": FEW, "fetch_k": 90}})
    assert await _found(kept, "panda number") == ["few"] * 4
    for numbers in ({"k": 11}, {"fetch_k": 3}):
        with pytest.raises(ValueError, match="fetch_k=.* is less than k="):
            hybrid.invoke(QUERY, **numbers)


def _encoder(rerank: BgeRerank) -> BaseDocumentCompressor:
    return CrossEncoderReranker(model=BgeCrossEncoder(model=rerank.model, cache=rerank.cache), top_n=3)


def _pipeline(rerank: BgeRerank) -> BaseDocumentCompressor:
    return DocumentCompressorPipeline(transformers=[rerank])


def _nearest(rerank: BgeRerank) -> BaseDocumentCompressor:
    return EmbeddingsFilter(embeddings=DeterministicFakeEmbedding(size=8), k=7)


@pytest.mark.parametrize(
    ("make", "alone", "most"),
    [(_encoder, 3, 12), (_pipeline, 5, 5), (_nearest, 7, 7)],
    ids=["cross-encoder", "pipeline", "embeddings"],
)
async def test_any_compressor_reranks(
    memory: InMemoryVectorStore, rerank: BgeRerank, make: Any, alone: int, most: int
) -> None:
    compressor = make(rerank)
    before = compressor.model_dump()
    assert len(await _found(RerankingRetriever(vector_store=memory, reranker=compressor))) == alone
    for top_n in (1, 12):
        retriever = RerankingRetriever(vector_store=memory, reranker=compressor, top_n=top_n)
        assert len(await _found(retriever)) == min(top_n, most)
        assert len(await _found(retriever, top_n=2)) == 2
    assert await _found(retriever, filter=lambda document: False) == []
    assert compressor.model_dump() == before
