"""Scores do not make another document: what LangChain's own classes compare, keep and send on."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever, MergerRetriever
from langchain_classic.retrievers.multi_query import MultiQueryRetriever
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.language_models import FakeListLLM
from langchain_core.load import dumps, loads
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from bge_integrations import ModelCache
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.langchain import BgeEmbeddings, BgeM3Rerank, BgeRerank, HybridRetriever, RerankingRetriever
from bge_integrations.stores.sparse_index import SparseIndex

QUERIES = ["what do pandas eat?", "food of bears", "a very different question"]
TEXTS = [f"A passage about {word}." for word in ("panda", "bread", "moon", "court", "river", "violin")]
DOCUMENTS = [Document(text, id=text, metadata={"source": text[-9:]}) for text in TEXTS]


@pytest.fixture
def rerank(bert_reranker: Path, cache: ModelCache) -> BgeRerank:
    return BgeRerank(model=str(bert_reranker), top_n=4, cache=cache)


@pytest.fixture
def store(m3_dense: BgeEmbeddings) -> InMemoryVectorStore:
    store = InMemoryVectorStore(m3_dense)
    store.add_documents(DOCUMENTS)
    return store


@pytest.fixture(params=["reranking", "compression", "m3", "hybrid"])
def scoring(
    request: pytest.FixtureRequest, store: InMemoryVectorStore, rerank: BgeRerank, m3: Path, m3_embedder: BgeM3Embedder
) -> BaseRetriever:
    """A retriever that writes scores of its query into the metadata."""
    if request.param == "compression":
        return ContextualCompressionRetriever(base_compressor=rerank, base_retriever=store.as_retriever())
    if request.param == "hybrid":
        hybrid = HybridRetriever(vector_store=store, sparse_index=SparseIndex(), embedder=m3_embedder)
        hybrid.add_documents(DOCUMENTS)
        return hybrid
    reranker: BaseDocumentCompressor = rerank
    if request.param == "m3":
        reranker = BgeM3Rerank(model=str(m3), like="BAAI/bge-m3", cache=rerank.cache)
    return RerankingRetriever(vector_store=store, reranker=reranker)


async def test_several_queries_give_each_document_once(scoring: BaseRetriever) -> None:
    scores = [d.metadata.get("relevance_score") or d.metadata["retrieval_score"] for d in scoring.invoke(QUERIES[0])]
    assert len(scores) > 1
    llm = FakeListLLM(responses=["\n".join(QUERIES)] * 2)
    several = MultiQueryRetriever.from_llm(retriever=scoring, llm=llm)
    for found in (several.invoke("pandas?"), await several.ainvoke("pandas?")):
        texts = [document.page_content for document in found]
        assert len(texts) == len(set(texts))
        assert set(texts) >= {document.page_content for document in scoring.invoke(QUERIES[0])}


def test_a_plain_and_a_scoring_retriever_find_the_same_documents(
    scoring: BaseRetriever, store: InMemoryVectorStore, rerank: BgeRerank
) -> None:
    plain = store.as_retriever(search_kwargs={"k": 20})
    for pair in ([plain, scoring], [scoring, plain]):
        merged = MergerRetriever(retrievers=pair).invoke(QUERIES[0])
        firsts = [document for i, document in enumerate(merged) if document not in merged[:i]]
        assert len(firsts) == len(TEXTS) < len(merged)
        assert len(EnsembleRetriever(retrievers=pair, weights=[0.5, 0.5]).invoke(QUERIES[0])) == len(TEXTS)
        again = RerankingRetriever(retriever=MergerRetriever(retrievers=pair), reranker=rerank, top_n=20)
        assert sorted(document.page_content for document in again.invoke(QUERIES[0])) == sorted(TEXTS)


def test_a_scored_copy_is_the_document(rerank: BgeRerank) -> None:
    document = Document("A passage.", id="1", metadata={"source": "a", "pages": [1, 2]})
    (one,), (other,) = (rerank.compress_documents([document], query) for query in QUERIES[:2])
    (twice,) = rerank.compress_documents([one], QUERIES[1])
    assert one.metadata["relevance_score"] != other.metadata["relevance_score"]
    assert twice.metadata["relevance_score"] == other.metadata["relevance_score"]
    for left in (document, one, other, twice):
        for right in (document, one, other, twice):
            assert left == right
            assert not left != right  # noqa: SIM202  a dict answers it on its own
    assert type(one) is Document
    assert one != document.model_copy(update={"id": "2"})
    assert one != document.model_copy(update={"metadata": {"source": "b", "pages": [1, 2]}})
    assert one != document.model_copy(update={"metadata": {**document.metadata, "score": 1}})
    assert one.metadata != "a string"
    assert "relevance_score" not in document.metadata


@pytest.mark.filterwarnings("ignore:.*loads. is in beta", "ignore:.*allowed_objects")
def test_a_scored_copy_travels_as_any_document(rerank: BgeRerank) -> None:
    (scored,) = rerank.compress_documents([Document("A passage.", id="1", metadata={"pages": [1]})], QUERIES[0])
    plain = {"pages": [1], "relevance_score": scored.metadata["relevance_score"]}
    assert type(plain["relevance_score"]) is float
    assert json.loads(json.dumps(scored.metadata)) == plain
    assert type(scored.model_dump()["metadata"]) is dict
    for twin in (
        copy.copy(scored), copy.deepcopy(scored), pickle.loads(pickle.dumps(scored)), loads(dumps(scored)),
        Document.model_validate(scored.model_dump()), Document.model_validate_json(scored.model_dump_json()),
    ):  # fmt: skip
        assert twin == scored == twin
        assert dict(twin.metadata) == plain
        assert str(twin) == str(scored) == f"page_content='A passage.' metadata={plain}"


class _Copying(BaseDocumentCompressor):
    """A compressor that makes documents of its own, as most of other packages do."""

    def compress_documents(self, documents: Any, query: str, callbacks: Any = None) -> list[Document]:
        return [Document(document.page_content, metadata={**document.metadata}) for document in documents]


def test_copies_of_another_compressor_are_the_same_document_too(store: InMemoryVectorStore) -> None:
    retriever = RerankingRetriever(vector_store=store, reranker=_Copying())
    one, other = (sorted(retriever.invoke(query), key=lambda d: d.page_content) for query in QUERIES[:2])
    assert one == other
    assert [dict(document.metadata) for document in one] != [dict(document.metadata) for document in other]


@pytest.mark.parametrize(
    ("documents", "kept"),
    [
        ([Document("same", id="a"), Document("same", id="b")], 1),
        ([Document("same", metadata={"source": "a"}), Document("same", id="1", metadata={"source": "a"})], 1),
        ([Document("same", id="1", metadata={"source": "a"}), Document("same", metadata={"source": "a"})], 1),
        ([Document("same", metadata={"source": "a"}), Document("same", id="1", metadata={"source": "b"})], 2),
        ([Document("same", id="1"), Document("other", id="1")], 1),
        ([Document("same"), Document("same", metadata={"file_path": "a"})], 2),
    ],
)
async def test_the_same_document_from_two_retrievers_comes_once(
    rerank: BgeRerank, documents: list[Document], kept: int
) -> None:
    retriever = RerankingRetriever(retriever=RunnableLambda(lambda _: documents), reranker=rerank)
    found = [retriever.invoke("same"), await retriever.ainvoke("same")]
    assert [len(each) for each in found] == [kept, kept]
    assert all(documents[0] in each for each in found)


async def test_hybrid_gives_one_text_of_one_source_once(store: InMemoryVectorStore, m3_embedder: BgeM3Embedder) -> None:
    hybrid = HybridRetriever(vector_store=store, sparse_index=SparseIndex(), embedder=m3_embedder, k=10)
    hybrid.add_documents([Document(TEXTS[0], metadata={"source": TEXTS[0][-9:]}), Document(TEXTS[1])])
    for found in (hybrid.invoke(TEXTS[0]), await hybrid.ainvoke(TEXTS[0])):
        texts = sorted(document.page_content for document in found)
        assert texts == sorted([*TEXTS, TEXTS[1]])  # the second bread has no source
