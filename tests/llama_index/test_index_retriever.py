"""`RerankingRetriever` and a query engine over a real Chroma collection on disk."""

from pathlib import Path

import chromadb
import pytest
import tiny
from llama_index.core import MockEmbedding, Settings, StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import VectorIndexRetriever
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import ExactMatchFilter, MetadataFilters
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index_samples import TEXTS, ListRetriever

from bge_integrations import FingerprintMismatchError, ModelCache
from bge_integrations.llama_index import BgeEmbedding, BgeRerank, RerankingRetriever
from bge_integrations.stores.fingerprint import write_fingerprint

QUERY = "where do pandas live?"
EVEN = MetadataFilters(filters=[ExactMatchFilter(key="parity", value=0)])


@pytest.fixture
def store(tmp_path: Path) -> ChromaVectorStore:
    client = chromadb.PersistentClient(str(tmp_path / "chroma"))
    return ChromaVectorStore(chroma_collection=client.create_collection("test", metadata={"hnsw:space": "cosine"}))


@pytest.fixture
def index(store: ChromaVectorStore, embedding: BgeEmbedding) -> VectorStoreIndex:
    nodes = [
        TextNode(id_=f"n{number}", text=text or "nothing", metadata={"parity": number % 2})
        for number, text in enumerate(TEXTS)
    ]
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(nodes, storage_context=context, embed_model=embedding)


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def test_the_candidates_are_reranked(index: VectorStoreIndex, reranker: BgeRerank) -> None:
    candidates = index.as_retriever(similarity_top_k=50).retrieve(QUERY)
    expected = reranker.postprocess_nodes(candidates, query_str=QUERY)
    found = RerankingRetriever(index=index, reranker=reranker).retrieve(QUERY)
    assert ids(found) == ids(expected)
    assert [node.score for node in found] == pytest.approx([node.score for node in expected], abs=1e-6)
    retrieval_scores = {node.node_id: node.score for node in candidates}
    assert [node.node.metadata["retrieval_score"] for node in found] == pytest.approx(
        [retrieval_scores[node.node_id] for node in found]
    )


def test_a_bare_vector_store_is_asked_with_the_settings_model(
    store: ChromaVectorStore, index: VectorStoreIndex, reranker: BgeRerank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "_embed_model", index._embed_model)
    found = RerankingRetriever(vector_store=store, reranker=reranker).retrieve(QUERY)
    assert ids(found) == ids(RerankingRetriever(index=index, reranker=reranker).retrieve(QUERY))
    with pytest.raises(ValueError, match="exactly one"):
        RerankingRetriever(vector_store=store, index=index, reranker=reranker)


async def test_async_is_sync(index: VectorStoreIndex, reranker: BgeRerank) -> None:
    retriever = RerankingRetriever(index=index, reranker=reranker)
    assert ids(await retriever.aretrieve(QUERY)) == ids(retriever.retrieve(QUERY))


def test_only_fetch_k_candidates_are_scored(index: VectorStoreIndex, reranker: BgeRerank) -> None:
    nearest = index.as_retriever(similarity_top_k=2).retrieve(QUERY)
    found = RerankingRetriever(index=index, reranker=reranker, fetch_k=2, top_n=2).retrieve(QUERY)
    assert set(ids(found)) == set(ids(nearest))


def test_top_n_wins_over_the_rerankers(index: VectorStoreIndex, reranker: BgeRerank) -> None:
    assert len(RerankingRetriever(index=index, reranker=reranker).retrieve(QUERY)) == 3
    assert len(RerankingRetriever(index=index, reranker=reranker, top_n=1).retrieve(QUERY)) == 1
    assert len(RerankingRetriever(index=index, reranker=reranker, top_n=5).retrieve(QUERY)) == 5
    assert reranker.top_n == 3


def test_filters_pass_through(index: VectorStoreIndex, reranker: BgeRerank) -> None:
    own = index.as_retriever(similarity_top_k=6, filters=EVEN)
    for retriever in (
        RerankingRetriever(index=index, reranker=reranker, top_n=6, filters=EVEN),
        RerankingRetriever(retriever=own, reranker=reranker, top_n=6),
    ):
        assert {node.node.metadata["parity"] for node in retriever.retrieve(QUERY)} == {0}


async def test_a_vector_retriever_keeps_its_own_number_unless_fetch_k_is_given(
    index: VectorStoreIndex, reranker: BgeRerank
) -> None:
    own = VectorIndexRetriever(index, similarity_top_k=2)
    assert reranker.top_n == 3
    for given, count in (({}, 2), ({"top_n": 1}, 1), ({"fetch_k": 4, "top_n": 4}, 4), ({"fetch_k": 5}, 3)):
        retriever = RerankingRetriever(retriever=own, reranker=reranker, **given)
        assert len(retriever.retrieve(QUERY)) == len(await retriever.aretrieve(QUERY)) == count
    with pytest.raises(ValueError, match="similarity_top_k"):
        RerankingRetriever(retriever=own, reranker=reranker, top_n=3)
    with pytest.raises(ValueError, match="fetch_k=2"):
        RerankingRetriever(retriever=own, reranker=reranker, fetch_k=2)
    assert own.similarity_top_k == 2


@pytest.mark.parametrize("top_n", [None, 2])
async def test_any_node_postprocessor_reranks(nodes: list[NodeWithScore], top_n: int | None) -> None:
    class Backwards(BaseNodePostprocessor):
        def _postprocess_nodes(
            self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
        ) -> list[NodeWithScore]:
            return nodes[::-1]

    retriever = RerankingRetriever(retriever=ListRetriever(nodes), reranker=Backwards(), top_n=top_n)
    assert ids(retriever.retrieve(QUERY)) == ids(nodes)[::-1][:top_n]
    assert ids(await retriever.aretrieve(QUERY)) == ids(nodes)[::-1][:top_n]


def test_another_retriever_decides_itself(nodes: list[NodeWithScore], reranker: BgeRerank) -> None:
    retriever = RerankingRetriever(retriever=ListRetriever(nodes), reranker=reranker)
    assert ids(retriever.retrieve(QUERY)) == ids(reranker.postprocess_nodes(nodes, query_str=QUERY))
    with pytest.raises(ValueError, match="ListRetriever"):
        RerankingRetriever(retriever=ListRetriever(nodes), reranker=reranker, fetch_k=10)


def test_bad_arguments_are_refused(index: VectorStoreIndex, nodes: list[NodeWithScore], reranker: BgeRerank) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        RerankingRetriever(reranker=reranker)
    with pytest.raises(ValueError, match="exactly one"):
        RerankingRetriever(index=index, retriever=ListRetriever(nodes), reranker=reranker)
    with pytest.raises(ValueError, match="fetch_k=2"):
        RerankingRetriever(index=index, reranker=reranker, fetch_k=2)
    with pytest.raises(ValueError, match="top_n=60"):
        RerankingRetriever(index=index, reranker=reranker, top_n=60)
    with pytest.raises(ValueError, match="fetch_k=0"):
        RerankingRetriever(index=index, reranker=reranker.model_copy(update={"top_n": None}), fetch_k=0)
    with pytest.raises(ValueError, match="top_n=0"):
        RerankingRetriever(index=index, reranker=reranker, top_n=0)
    with pytest.raises(ValueError, match="filters"):
        RerankingRetriever(retriever=index.as_retriever(), reranker=reranker, filters=EVEN)
    with pytest.raises(TypeError, match="BgeRerank"):
        RerankingRetriever(index=index, reranker="BAAI/bge-reranker-base")
    with pytest.raises(TypeError, match="k"):
        RerankingRetriever(index=index, reranker=reranker, k=3)


async def test_duplicates_are_dropped(reranker: BgeRerank) -> None:
    first = TextNode(id_="1", text="pandas", metadata={"source": "a.md"})
    duplicates = [
        first,
        TextNode(id_="1", text="another text", metadata={"source": "b.md"}),
        TextNode(id_="2", text="pandas", metadata={"source": "a.md", "page": 4}),
    ]
    others = [
        TextNode(id_="3", text="pandas", metadata={"source": "b.md"}),
        TextNode(id_="4", text="bears", metadata={"source": "a.md"}),
        ImageNode(id_="5", image_url="a.png"),
        ImageNode(id_="6", image_url="b.png"),
    ]
    given = [NodeWithScore(node=node, score=0.5) for node in [*duplicates, *others]]
    retriever = RerankingRetriever(retriever=ListRetriever(given), reranker=reranker, top_n=10)
    assert sorted(ids(retriever.retrieve(QUERY))) == ["1", "3", "4", "5", "6"]
    assert sorted(ids(await retriever.aretrieve(QUERY))) == ["1", "3", "4", "5", "6"]


async def test_nothing_given_is_changed(index: VectorStoreIndex, reranker: BgeRerank) -> None:
    bundle = QueryBundle(QUERY)
    retriever = RerankingRetriever(index=index, reranker=reranker, top_n=2)
    retriever.retrieve(bundle)
    await retriever.aretrieve(bundle)
    assert bundle == QueryBundle(QUERY)


async def test_another_models_collection_is_refused(
    store: ChromaVectorStore,
    index: VectorStoreIndex,
    embedding: BgeEmbedding,
    reranker: BgeRerank,
    cache: ModelCache,
    tmp_path: Path,
) -> None:
    retriever = RerankingRetriever(index=index, reranker=reranker)
    assert retriever.retrieve(QUERY)
    write_fingerprint(store, embedding.embedder.fingerprint)
    assert retriever.retrieve(QUERY)
    folder = tiny.make_bert_embedder(tmp_path / "other", seed=1)
    other = BgeEmbedding(model_name=str(folder), cache=cache)
    wrong = VectorStoreIndex.from_vector_store(store, embed_model=other)
    for retriever in (
        RerankingRetriever(index=wrong, reranker=reranker),
        RerankingRetriever(retriever=wrong.as_retriever(), reranker=reranker),
    ):
        for _ in range(2):
            with pytest.raises(FingerprintMismatchError) as caught:
                retriever.retrieve(QUERY)
            assert embedding.embedder.fingerprint in str(caught.value)
            assert other.embedder.fingerprint in str(caught.value)
        with pytest.raises(FingerprintMismatchError):
            await retriever.aretrieve(QUERY)


def test_a_foreign_embedding_model_is_not_checked(reranker: BgeRerank) -> None:
    index = VectorStoreIndex([TextNode(text="a"), TextNode(text="b")], embed_model=MockEmbedding(embed_dim=4))
    assert len(RerankingRetriever(index=index, reranker=reranker).retrieve(QUERY)) == 2


class TestQueryEngine:
    """The whole way from documents on disk to an answer, with the framework's own LLM for tests."""

    async def test_postprocessor(self, index: VectorStoreIndex, reranker: BgeRerank) -> None:
        engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=6, node_postprocessors=[reranker])
        expected = ids(RerankingRetriever(index=index, reranker=reranker).retrieve(QUERY))
        response = engine.query(QUERY)
        assert ids(response.source_nodes) == expected
        assert "retrieval_score" not in str(response)
        assert ids((await engine.aquery(QUERY)).source_nodes) == expected

    async def test_retriever(self, index: VectorStoreIndex, reranker: BgeRerank) -> None:
        retriever = RerankingRetriever(index=index, reranker=reranker)
        engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
        assert ids(engine.query(QUERY).source_nodes) == ids(retriever.retrieve(QUERY))
        assert ids((await engine.aquery(QUERY)).source_nodes) == ids(retriever.retrieve(QUERY))

    def test_an_index_in_memory_keeps_its_nodes(self, embedding: BgeEmbedding, reranker: BgeRerank) -> None:
        index = VectorStoreIndex([TextNode(text=text) for text in TEXTS if text], embed_model=embedding)
        before = {key: node.to_dict() for key, node in index.docstore.docs.items()}
        RerankingRetriever(index=index, reranker=reranker).retrieve(QUERY)
        assert {key: node.to_dict() for key, node in index.docstore.docs.items()} == before
