"""`RerankingRetriever` over real stores."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from langchain_chroma import Chroma
from langchain_core.callbacks import BaseCallbackHandler, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from bge_integrations import FingerprintMismatchError, ModelCache
from bge_integrations.langchain import BgeEmbeddings, BgeRerank, RerankingRetriever
from bge_integrations.stores.fingerprint import write_fingerprint

WORDS = ["panda", "bread", "moon", "court", "river", "violin", "planet", "file", "bond", "sailor"]
DOCUMENTS = [
    Document(f"A passage about {word}.", id=f"id-{word}", metadata={"source": f"{word}.txt", "even": i % 2 == 0})
    for i, word in enumerate(WORDS)
]
QUERY = "Tell me of the panda and the moon"


class ListRetriever(BaseRetriever):
    """Gives the documents it was made with."""

    documents: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return self.documents


class PlainStore(VectorStore):
    """A store without scores: it gives its first documents."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return self.documents[:k]

    @classmethod
    def from_texts(
        cls, texts: list[str], embedding: Embeddings, metadatas: list[dict[str, Any]] | None = None, **kwargs: Any
    ) -> "PlainStore":
        return cls([Document(text) for text in texts])


@pytest.fixture
def embeddings(bert_embedder: Path, cache: ModelCache) -> BgeEmbeddings:
    return BgeEmbeddings(model=str(bert_embedder), cache=cache)


@pytest.fixture
def store(embeddings: BgeEmbeddings, tmp_path: Path) -> Chroma:
    store = Chroma(
        collection_name="words",
        embedding_function=embeddings,
        persist_directory=str(tmp_path / "store"),
        collection_metadata={"hnsw:space": "cosine"},
    )
    store.add_documents(DOCUMENTS)
    return store


@pytest.fixture
def rerank(bert_reranker: Path, cache: ModelCache) -> BgeRerank:
    return BgeRerank(model=str(bert_reranker), cache=cache)


class TestStandard(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _parts(self, store: Chroma, rerank: BgeRerank) -> None:
        self.params = {"vector_store": store, "reranker": rerank}

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return RerankingRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return self.params

    @property
    def retriever_query_example(self) -> str:
        return QUERY

    @property
    def num_results_arg_name(self) -> str:
        return "top_n"


def _scores(document: Document) -> dict[str, float]:
    return {key: value for key, value in document.metadata.items() if key.endswith("_score")}


def _without_scores(document: Document) -> dict[str, Any]:
    return {key: value for key, value in document.metadata.items() if not key.endswith("_score")}


async def _both(retriever: RerankingRetriever, **arguments: Any) -> list[Document]:
    found = retriever.invoke(QUERY, **arguments)
    later = await retriever.ainvoke(QUERY, **arguments)
    assert [document.id for document in later] == [document.id for document in found]
    for mine, other in zip(found, later, strict=True):
        assert _without_scores(mine) == _without_scores(other)
        assert _scores(mine) == pytest.approx(_scores(other), abs=1e-6)
    return found


async def test_candidates_of_a_store_are_reranked(store: Chroma, rerank: BgeRerank) -> None:
    found = await _both(RerankingRetriever(vector_store=store, reranker=rerank, fetch_k=6, top_n=4))
    candidates = store.similarity_search_with_score(QUERY, k=6)
    every = rerank.model_copy(update={"top_n": None})
    expected = every.compress_documents([document for document, _ in candidates], QUERY)[:4]
    assert [document.id for document in found] == [document.id for document in expected]
    distances = {document.id: distance for document, distance in candidates}
    for document, twin in zip(found, expected, strict=True):
        metadata = document.metadata
        assert metadata["relevance_score"] == pytest.approx(twin.metadata["relevance_score"], abs=1e-6)
        assert metadata["retrieval_score"] == pytest.approx(distances[document.id], abs=1e-6)
        assert type(metadata["retrieval_score"]) is type(metadata["relevance_score"]) is float
    json.dumps([document.metadata for document in found])


async def test_top_n_of_call_retriever_reranker(store: Chroma, rerank: BgeRerank) -> None:
    silent = RerankingRetriever(vector_store=store, reranker=rerank)
    assert len(await _both(silent)) == 3
    assert len(await _both(silent, top_n=2)) == 2
    telling = RerankingRetriever(vector_store=store, reranker=rerank, top_n=5)
    assert len(await _both(telling)) == 5
    assert len(await _both(telling, top_n=7)) == 7
    everything = RerankingRetriever(vector_store=store, reranker=rerank.model_copy(update={"top_n": None}))
    assert len(await _both(everything)) == len(DOCUMENTS)
    assert rerank.top_n == 3


async def test_too_few_candidates_are_refused(store: Chroma, rerank: BgeRerank) -> None:
    with pytest.raises(ValidationError, match="fetch_k=2"):
        RerankingRetriever(vector_store=store, reranker=rerank, fetch_k=2)
    retriever = RerankingRetriever(vector_store=store, reranker=rerank, fetch_k=4)
    for top_n in (5, 0, -1):
        with pytest.raises(ValueError, match=f"top_n={top_n}"):
            retriever.invoke(QUERY, top_n=top_n)
        with pytest.raises(ValueError, match=f"top_n={top_n}"):
            await retriever.ainvoke(QUERY, top_n=top_n)


def test_arguments_that_cannot_go_together_are_refused(store: Chroma, rerank: BgeRerank) -> None:
    other = ListRetriever(documents=DOCUMENTS)
    with pytest.raises(ValidationError, match="exactly one"):
        RerankingRetriever(reranker=rerank)
    with pytest.raises(ValidationError, match="exactly one"):
        RerankingRetriever(reranker=rerank, vector_store=store, retriever=other)
    with pytest.raises(ValidationError, match="fetch_k"):
        RerankingRetriever(reranker=rerank, retriever=other, fetch_k=20)
    with pytest.raises(ValidationError, match="search_kwargs"):
        RerankingRetriever(reranker=rerank, retriever=other, search_kwargs={"filter": {"even": True}})
    with pytest.raises(ValidationError, match="fetch_k"):
        RerankingRetriever(reranker=rerank, vector_store=store, search_kwargs={"k": 20})
    with pytest.raises(ValidationError, match="top_k"):
        RerankingRetriever(reranker=rerank, vector_store=store, top_k=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="top_k"):
        RerankingRetriever(reranker=rerank, vector_store=store).invoke(QUERY, top_k=3)
    with pytest.raises(ValueError, match="fetch_k.*top_n"):
        RerankingRetriever(reranker=rerank, vector_store=store).invoke(QUERY, k=3)
    for wrong in (rerank.reranker, {"model": rerank.model}, "BAAI/bge-reranker-v2-m3"):
        with pytest.raises(ValidationError, match="instance of BaseDocumentCompressor"):
            RerankingRetriever(reranker=wrong, vector_store=store)


async def test_filters_reach_the_store(store: Chroma, rerank: BgeRerank) -> None:
    filters = {"filter": {"even": True}}
    evens = {document.id for document in DOCUMENTS if document.metadata["even"]}
    for source in ({"vector_store": store}, {"retriever": store.as_retriever()}):
        retriever = RerankingRetriever(**source, reranker=rerank, search_kwargs=filters, top_n=10)
        assert {document.id for document in await _both(retriever)} == evens
    assert filters == {"filter": {"even": True}}


async def test_a_stores_retriever_keeps_its_k_unless_told(store: Chroma, rerank: BgeRerank) -> None:
    inner = store.as_retriever(search_kwargs={"k": 2, "filter": {"even": False}})
    found = await _both(RerankingRetriever(retriever=inner, reranker=rerank, fetch_k=5, top_n=5))
    assert len(found) == 5
    assert not any(document.metadata["even"] for document in found)
    assert not any("retrieval_score" in document.metadata for document in found)
    retriever = RerankingRetriever(retriever=inner, reranker=rerank)
    assert len(await _both(retriever)) == 2
    assert len(await _both(retriever, top_n=1)) == 1
    assert len(await _both(retriever, top_n=4, fetch_k=4)) == 4
    with pytest.raises(ValueError, match="own k=2 is less than top_n=3"):
        retriever.invoke(QUERY, top_n=3)
    with pytest.raises(ValidationError, match="own k=2 is less than top_n=3"):
        RerankingRetriever(retriever=inner, reranker=rerank, top_n=3)
    everything = RerankingRetriever(retriever=store.as_retriever(), reranker=rerank, top_n=len(DOCUMENTS))
    assert len(await _both(everything)) == len(DOCUMENTS)
    assert inner.search_kwargs == {"k": 2, "filter": {"even": False}}


async def test_any_retriever_serves(rerank: BgeRerank) -> None:
    for inner in (ListRetriever(documents=DOCUMENTS), RunnableLambda(lambda query: DOCUMENTS)):
        retriever = RerankingRetriever(retriever=inner, reranker=rerank, top_n=len(DOCUMENTS))
        assert {document.id for document in await _both(retriever)} == {document.id for document in DOCUMENTS}


async def test_a_store_without_scores_serves(rerank: BgeRerank) -> None:
    retriever = RerankingRetriever(vector_store=PlainStore(DOCUMENTS), reranker=rerank, fetch_k=4, top_n=4)
    found = await _both(retriever)
    assert {document.id for document in found} == {document.id for document in DOCUMENTS[:4]}
    assert all(set(document.metadata) == {"source", "even", "relevance_score"} for document in found)


async def test_duplicates_are_judged_once(rerank: BgeRerank) -> None:
    one, other = Document("Same text.", metadata={"source": "a"}), Document("Same text.", metadata={"source": "b"})
    named = [Document("First text.", id="1"), Document("Second text.", id="1"), Document("First text.", id="2")]
    odd = [Document("Odd.", metadata={"source": ["a", "list"]})] * 2
    inner = ListRetriever(documents=[one, one.model_copy(update={"id": "3"}), other, *named, *odd])
    found = await _both(RerankingRetriever(retriever=inner, reranker=rerank, top_n=100))
    assert sorted(f"{document.id} {document.page_content}" for document in found) == [
        "1 First text.",
        "None Odd.",
        "None Same text.",
        "None Same text.",
    ]


async def test_the_stores_documents_stay_as_they_are(embeddings: BgeEmbeddings, rerank: BgeRerank) -> None:
    memory = InMemoryVectorStore(embeddings)
    memory.add_documents(DOCUMENTS)
    await _both(RerankingRetriever(vector_store=memory, reranker=rerank))
    given = [document.model_copy(deep=True) for document in DOCUMENTS]
    await _both(RerankingRetriever(retriever=ListRetriever(documents=given), reranker=rerank))
    assert given == DOCUMENTS
    assert {frozenset(entry["metadata"]) for entry in memory.store.values()} == {frozenset({"source", "even"})}


async def test_many_calls_at_once_do_not_mix(store: Chroma, rerank: BgeRerank) -> None:
    retriever = RerankingRetriever(vector_store=store, reranker=rerank)
    counts = [1 + i % 8 for i in range(24)]
    found = await asyncio.gather(*(retriever.ainvoke(QUERY, top_n=count) for count in counts))
    assert [len(documents) for documents in found] == counts
    assert (retriever.top_n, rerank.top_n) == (None, 3)


class Recorder(BaseCallbackHandler):
    """Remembers which retrievers started, and under which parent."""

    def __init__(self) -> None:
        self.starts: list[Any] = []
        self.results: list[int] = []

    def on_retriever_start(self, serialized: Any, query: str, *, parent_run_id: Any = None, **kwargs: Any) -> None:
        self.starts.append(parent_run_id)

    def on_retriever_end(self, documents: Any, **kwargs: Any) -> None:
        self.results.append(len(documents))


def test_the_inner_retriever_runs_under_the_outer_one(rerank: BgeRerank) -> None:
    recorder = Recorder()
    retriever = RerankingRetriever(retriever=ListRetriever(documents=DOCUMENTS), reranker=rerank)
    retriever.invoke(QUERY, {"callbacks": [recorder]})
    assert [parent is None for parent in recorder.starts] == [True, False]
    assert recorder.results == [len(DOCUMENTS), 3]


async def test_a_collection_of_another_model_is_refused(
    store: Chroma, rerank: BgeRerank, embeddings: BgeEmbeddings
) -> None:
    write_fingerprint(store, "of another model")
    for source in ({"vector_store": store}, {"retriever": store.as_retriever()}):
        retriever = RerankingRetriever(**source, reranker=rerank)
        for _ in range(2):
            with pytest.raises(FingerprintMismatchError, match="of another model"):
                retriever.invoke(QUERY)
            with pytest.raises(FingerprintMismatchError, match=embeddings.embedder.fingerprint):
                await retriever.ainvoke(QUERY)
    write_fingerprint(store, embeddings.embedder.fingerprint)
    assert len(await _both(retriever)) == 3
