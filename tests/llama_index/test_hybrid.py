"""`HybridRetriever` over real stores: in memory, Chroma and Qdrant on disk."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import chromadb
import pytest
import tiny
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    SimpleVectorStore,
)
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore
from llama_index_samples import TEXTS, Recorder
from qdrant_client import QdrantClient

from bge_integrations import BgeM3Embedder, FingerprintMismatchError, ModelCache
from bge_integrations.embed.m3 import sparse_score
from bge_integrations.llama_index import BgeEmbedding, BgeM3Rerank, HybridRetriever, RerankingRetriever
from bge_integrations.stores.fingerprint import read_fingerprint
from bge_integrations.stores.fusion import reciprocal_rank_fusion, relative_score_fusion
from bge_integrations.stores.sparse_index import SparseIndex

QUERY = "where do pandas live?"
EVEN = MetadataFilters(filters=[MetadataFilter(key="parity", value=0)])


def sample_nodes() -> list[TextNode]:
    return [
        TextNode(id_=str(UUID(int=number)), text=text or "nothing", metadata={"parity": number % 2})
        for number, text in enumerate(TEXTS)
    ]


def text_of(node: TextNode) -> str:
    return node.get_content(metadata_mode=MetadataMode.EMBED)


@contextmanager
def chroma(folder: Path) -> Iterator[BasePydanticVectorStore]:
    client = chromadb.PersistentClient(str(folder))
    yield ChromaVectorStore(chroma_collection=client.create_collection("test", metadata={"hnsw:space": "cosine"}))


@contextmanager
def qdrant(folder: Path) -> Iterator[BasePydanticVectorStore]:
    client = QdrantClient(path=str(folder))
    yield QdrantVectorStore("test", client=client, index_doc_id=False)
    client.close()


@contextmanager
def in_memory(folder: Path) -> Iterator[BasePydanticVectorStore]:
    yield SimpleVectorStore()


STORES = {"chroma": chroma, "qdrant": qdrant, "in_memory": in_memory}


@pytest.fixture(params=STORES.values(), ids=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BasePydanticVectorStore]:
    with request.param(tmp_path / "store") as store:
        yield store


def index_over(store: BasePydanticVectorStore) -> VectorStoreIndex:
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex([], storage_context=context, embed_model=MockEmbedding(embed_dim=32))


def filled(store: BasePydanticVectorStore, m3: BgeM3Embedder, **options: object) -> HybridRetriever:
    retriever = HybridRetriever(index=index_over(store), sparse_index=SparseIndex(), embedder=m3, **options)
    retriever.insert_nodes(sample_nodes())
    return retriever


@pytest.fixture
def retriever(m3: BgeM3Embedder) -> HybridRetriever:
    """Over the store in memory."""
    return filled(SimpleVectorStore(), m3)


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def sides(m3: BgeM3Embedder, query: str = QUERY) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """What either side ranks, worked out from the core's vectors."""
    nodes = sample_nodes()
    queries, documents = m3.encode_queries([query]), m3.encode_documents([text_of(node) for node in nodes])
    dense = documents.dense @ queries.dense[0]
    sparse = [sparse_score(queries.sparse[0], vector) for vector in documents.sparse]
    ranked = [
        sorted(
            ((node.node_id, float(score)) for node, score in zip(nodes, scores, strict=True)), key=lambda one: -one[1]
        )
        for scores in (dense, sparse)
    ]
    return ranked[0], [(key, score) for key, score in ranked[1] if score > 0]


async def test_ranks_are_fused(store: BasePydanticVectorStore, m3: BgeM3Embedder) -> None:
    retriever = filled(store, m3, similarity_top_k=6, weights=(2.0, 1.0))
    rankings = [[key for key, _ in side] for side in sides(m3)]
    expected = reciprocal_rank_fusion(rankings, (2.0, 1.0))
    found = retriever.retrieve(QUERY)
    assert ids(found) == list(expected)
    assert [node.score for node in found] == pytest.approx(list(expected.values()))
    assert {type(node.score) for node in found} == {float}
    assert [node.node.text for node in found] == [TEXTS[UUID(node.node_id).int] or "nothing" for node in found]
    if not isinstance(store, QdrantVectorStore):  # which takes a second client for that, and the disk has one lock
        again = await retriever.aretrieve(QUERY)
        assert [(node.node_id, node.score) for node in again] == [(node.node_id, node.score) for node in found]


def test_scores_are_fused(m3: BgeM3Embedder, retriever: HybridRetriever) -> None:
    dense, sparse = sides(m3)
    weighted = HybridRetriever(
        index=retriever.index,
        sparse_index=retriever.sparse_index,
        embedder=m3,
        fusion="weights",
        weights=(0.3, 0.7),
        similarity_top_k=6,
    )
    expected = relative_score_fusion([dense, sparse], (0.3, 0.7))
    found = weighted.retrieve(QUERY)
    assert ids(found) == list(expected)
    assert [node.score for node in found] == pytest.approx(list(expected.values()), abs=1e-4)


async def test_what_only_the_sparse_side_finds_is_read(store: BasePydanticVectorStore, m3: BgeM3Embedder) -> None:
    dense, sparse = sides(m3, "oranges")
    assert dense[0][0] != sparse[0][0]
    retriever = filled(store, m3, similarity_top_k=1, fetch_k=1, weights=(0.0, 1.0))
    (found,) = retriever.retrieve("oranges")
    assert (found.node_id, found.node.text, found.node.metadata["parity"]) == (sparse[0][0], TEXTS[5], 1)
    if not isinstance(store, QdrantVectorStore):
        assert ids(await retriever.aretrieve("oranges")) == [found.node_id]


def test_filters_hold_on_both_sides(store: BasePydanticVectorStore, m3: BgeM3Embedder) -> None:
    retriever = filled(store, m3, similarity_top_k=2, fetch_k=2, filters=EVEN, weights=(0.1, 1.0))
    assert sides(m3)[1][0][0] == str(UUID(int=1))
    assert {node.node.metadata["parity"] for node in retriever.retrieve(QUERY)} == {0}


def test_filters_know_what_stores_add_and_every_operator(m3: BgeM3Embedder, retriever: HybridRetriever) -> None:
    first = sample_nodes()[0].node_id
    one_of = MetadataFilters(
        filters=[
            MetadataFilter(key="parity", value=1, operator=FilterOperator.GT),
            MetadataFilter(key="ref_doc_id", value=["None"], operator=FilterOperator.IN),
        ],
        condition=FilterCondition.OR,
    )
    for filters, fits in ((one_of, True), (MetadataFilters(filters=one_of.filters, condition="and"), False)):
        filtered = HybridRetriever(
            index=retriever.index,
            sparse_index=retriever.sparse_index,
            embedder=m3,
            filters=filters,
        )
        node = retriever.index.docstore.get_node(first)
        assert bool(filtered._fused([], [(first, 1.0)], [node])) == fits


def test_one_run_of_the_model_feeds_both_sides(
    m3: BgeM3Embedder, cache: ModelCache, retriever: HybridRetriever
) -> None:
    def batches() -> int:
        (model,) = cache.stats()["models"]
        return model["batches"]

    before = batches()
    retriever.retrieve(QUERY)
    assert batches() == before + 1
    retriever.insert_nodes([TextNode(text="a new node"), TextNode(text="another new node")])
    assert batches() == before + 2


def test_the_outputs_of_the_embedder_do_not_matter(m3: BgeM3Embedder, retriever: HybridRetriever) -> None:
    given = m3.with_outputs("colbert")
    other = HybridRetriever(index=retriever.index, sparse_index=retriever.sparse_index, embedder=given)
    assert other.embedder.outputs == retriever.embedder.outputs == ("dense", "sparse")
    assert given.outputs == ("colbert",)
    assert ids(other.retrieve(QUERY)) == ids(retriever.retrieve(QUERY))


def test_inserting_changes_no_node_and_replaces_what_is_there(m3: BgeM3Embedder, retriever: HybridRetriever) -> None:
    given = [TextNode(id_="new", text="Pandas live in pandas.", embedding=[0.5] * 32)]
    before = copy.deepcopy(given)
    retriever.insert_nodes(given)
    assert given == before
    (vector,) = m3.encode_documents(["Pandas live in pandas."]).dense
    assert retriever.index.vector_store.get("new") == pytest.approx(vector.tolist(), abs=1e-5)
    assert len(retriever.sparse_index) == len(TEXTS) + 1
    retriever.insert_nodes(given)
    assert len(retriever.sparse_index) == len(TEXTS) + 1
    retriever.insert_nodes([])


async def test_async_insertion_is_sync(m3: BgeM3Embedder, retriever: HybridRetriever) -> None:
    other = HybridRetriever(index=index_over(SimpleVectorStore()), sparse_index=SparseIndex(), embedder=m3)
    await other.ainsert_nodes(sample_nodes())
    assert ids(await other.aretrieve(QUERY)) == ids(retriever.retrieve(QUERY))


def test_nodes_inserted_after_a_search_are_found(retriever: HybridRetriever) -> None:
    retriever.retrieve(QUERY)
    retriever.insert_nodes([TextNode(id_="new", text=QUERY)])
    assert "new" in ids(retriever.retrieve(QUERY))


async def test_a_node_that_the_store_lost_is_left_out(
    tmp_path: Path, m3: BgeM3Embedder, caplog: pytest.LogCaptureFixture
) -> None:
    with chroma(tmp_path) as store:
        retriever = filled(store, m3, similarity_top_k=6)
        lost = sides(m3)[1][0][0]
        retriever.index.delete_nodes([lost])
        for found in (retriever.retrieve(QUERY), await retriever.aretrieve(QUERY)):
            assert len(found) == 5
            assert lost not in ids(found)
    assert [record.levelno for record in caplog.records if "sparse index" in record.message] == [logging.WARNING] * 2


def test_what_a_query_bundle_brings_is_honoured(m3: BgeM3Embedder, retriever: HybridRetriever) -> None:
    vector = m3.encode_queries([TEXTS[3]]).dense[0]
    only_dense = HybridRetriever(
        index=retriever.index, sparse_index=SparseIndex(), embedder=m3, similarity_top_k=6, weights=(1.0, 0.0)
    )
    expected = ids(only_dense.retrieve(TEXTS[3]))
    assert expected != ids(only_dense.retrieve(QUERY))
    for bundle in (
        QueryBundle(QUERY, embedding=vector.tolist()),
        QueryBundle(QUERY, custom_embedding_strs=[TEXTS[3]]),
        QueryBundle(QUERY, custom_embedding_strs=[TEXTS[3], TEXTS[3]]),
    ):
        before = copy.deepcopy(bundle)
        assert ids(only_dense.retrieve(bundle)) == expected
        assert bundle == before
    assert len(only_dense.retrieve("")) == 6


def test_index_nodes_are_followed_once(retriever: HybridRetriever) -> None:
    target = TextNode(id_="target", text="behind the index node")
    behind = VectorStoreIndex([TextNode(id_="far", text="far")], embed_model=MockEmbedding(embed_dim=4)).as_retriever()
    given = [
        IndexNode(id_="pointer", index_id="near", text=QUERY, obj=target),
        IndexNode(id_="other", index_id="far", text=QUERY, obj=behind),
    ]
    retriever.insert_nodes(given)
    assert [node.obj for node in given] == [target, behind]
    found = ids(retriever.retrieve(QUERY))
    assert {"target", "far"} <= set(found)
    assert not {"pointer", "other"} & set(found)


def test_events(retriever: HybridRetriever, recorder: Recorder) -> None:
    found = retriever.retrieve(QUERY)
    assert len(recorder.named("RetrievalStartEvent")) == len(recorder.named("RetrievalEndEvent")) == 1
    assert recorder.named("RetrievalEndEvent")[0].nodes == found


async def test_in_a_query_engine_and_before_a_reranker(
    m3_folder: Path, cache: ModelCache, retriever: HybridRetriever
) -> None:
    engine = RetrieverQueryEngine.from_args(retriever, llm=MockLLM())
    assert ids(engine.query(QUERY).source_nodes) == ids(retriever.retrieve(QUERY))
    assert ids((await engine.aquery(QUERY)).source_nodes) == ids(retriever.retrieve(QUERY))
    reranker = BgeM3Rerank(model=str(m3_folder), like="BAAI/bge-m3", cache=cache, top_n=2)
    best = RerankingRetriever(retriever=retriever, reranker=reranker).retrieve(QUERY)
    assert len(best) == 2
    assert set(ids(best)) <= set(ids(retriever.retrieve(QUERY)))


class TestFingerprints:
    """Another model's collection, sparse index or embedding model is refused."""

    @pytest.fixture
    def other(self, tmp_path: Path, cache: ModelCache) -> BgeM3Embedder:
        return BgeM3Embedder(str(tiny.make_m3(tmp_path / "other", seed=1)), like="BAAI/bge-m3", cache=cache)

    async def test_the_store_and_the_sparse_index(
        self, tmp_path: Path, m3: BgeM3Embedder, other: BgeM3Embedder
    ) -> None:
        with chroma(tmp_path / "store") as store:
            mine = filled(store, m3)
            assert read_fingerprint(store) == m3.with_outputs("dense").fingerprint
            assert mine.sparse_index.fingerprint == m3.with_outputs("sparse").fingerprint
            for index, sparse_index in (
                (mine.index, SparseIndex()),
                (index_over(SimpleVectorStore()), mine.sparse_index),
            ):
                wrong = HybridRetriever(index=index, sparse_index=sparse_index, embedder=other)
                with pytest.raises(FingerprintMismatchError):
                    wrong.retrieve(QUERY)
                with pytest.raises(FingerprintMismatchError):
                    await wrong.aretrieve(QUERY)
                with pytest.raises(FingerprintMismatchError):
                    wrong.insert_nodes(sample_nodes())
                with pytest.raises(FingerprintMismatchError):
                    await wrong.ainsert_nodes(sample_nodes())
            assert len(mine.sparse_index) == len(TEXTS)

    def test_the_indexs_embedding_model(
        self, m3_folder: Path, cache: ModelCache, m3: BgeM3Embedder, other: BgeM3Embedder
    ) -> None:
        embed_model = BgeEmbedding(model_name=str(m3_folder), like="BAAI/bge-m3", cache=cache)
        index = VectorStoreIndex(sample_nodes(), embed_model=embed_model)
        assert HybridRetriever(index=index, sparse_index=SparseIndex(), embedder=m3).retrieve(QUERY)
        with pytest.raises(FingerprintMismatchError, match=other.with_outputs("dense").fingerprint):
            HybridRetriever(index=index, sparse_index=SparseIndex(), embedder=other).retrieve(QUERY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"similarity_top_k": 0}, "similarity_top_k=0"),
        ({"fetch_k": 3}, "fetch_k=3"),
        ({"fusion": "max"}, "fusion='max'"),
        ({"weights": (0, 0)}, "weights"),
        ({"weights": (1, -1)}, "weights"),
        ({"weights": (1, 1, 1)}, "weights"),
        ({"weights": (1, float("nan"))}, "weights"),
        ({"filters": MetadataFilters(filters=[EVEN])}, "flat"),
    ],
)
def test_bad_arguments_are_refused(m3: BgeM3Embedder, change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridRetriever(index=index_over(SimpleVectorStore()), sparse_index=SparseIndex(), embedder=m3, **change)


def test_another_embedder_is_refused(embedding: BgeEmbedding) -> None:
    with pytest.raises(TypeError, match="BgeM3Embedder"):
        HybridRetriever(index=index_over(SimpleVectorStore()), sparse_index=SparseIndex(), embedder=embedding.embedder)
