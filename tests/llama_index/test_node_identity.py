"""What a node is does not depend on the scores that searches give it: hashes, fusions, docstores, duplicates."""

import copy
import pickle

import pytest
from llama_index.core import Document, MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import HierarchicalNodeParser, get_leaf_nodes
from llama_index.core.retrievers import AutoMergingRetriever, QueryFusionRetriever
from llama_index.core.schema import BaseNode, ImageNode, IndexNode, MediaResource, Node, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index_samples import TEXTS, ListRetriever

from bge_integrations import BgeM3Embedder
from bge_integrations.llama_index import BgeEmbedding, BgeRerank, HybridRetriever, RerankingRetriever
from bge_integrations.populate import populate
from bge_integrations.stores.sparse_index import SparseIndex

QUERY = "where do pandas live?"


class OwnNode(TextNode):
    """A user's kind of node."""

    tenant: str = "acme"
    metadata_template: str = "{key} = {value}"


KINDS: list[BaseNode] = [
    TextNode(text="a", metadata={"page": 1}),
    TextNode(text="a", metadata={"page": 1, "relevance_of": "b"}, excluded_embed_metadata_keys=["page"]),
    Document(text="a", metadata={"page": 1}),
    Node(text_resource=MediaResource(text="a"), metadata={"page": 1}),
    IndexNode(text="a", index_id="i"),
    ImageNode(text="a", image_url="http://localhost/a.png"),
    OwnNode(text="a", tenant="other", metadata={"page": 1}),
]


@pytest.fixture
def index(embedding: BgeEmbedding) -> VectorStoreIndex:
    nodes = [TextNode(id_=f"n{n}", text=text, metadata={"page": n}) for n, text in enumerate(TEXTS) if text]
    return VectorStoreIndex(nodes, embed_model=embedding)


@pytest.mark.parametrize("node", KINDS, ids=lambda node: type(node).__name__)
async def test_a_reranked_node_has_its_own_hash(reranker: BgeRerank, node: BaseNode) -> None:
    before = node.to_dict()
    given = [NodeWithScore(node=node, score=0.25)]
    for (found,) in (
        reranker.postprocess_nodes(given, query_str=QUERY),
        await reranker.apostprocess_nodes(given, query_str=QUERY),
    ):
        again = [found.node, pickle.loads(pickle.dumps(found.node)), copy.deepcopy(found.node), copy.copy(found.node)]
        for scored in again:
            assert isinstance(scored, type(node))
            assert scored == found.node
            assert (scored.hash, scored.class_name()) == (node.hash, node.class_name())
            assert scored.metadata == {**node.metadata, "retrieval_score": 0.25}
        found.node.set_content("b")
        assert found.node.hash != node.hash
    assert node.to_dict() == before


def test_the_first_score_stays_through_rerankings(reranker: BgeRerank, nodes: list[NodeWithScore]) -> None:
    first = {node.node_id: node.score for node in nodes}
    for _ in range(3):
        nodes = reranker.postprocess_nodes(nodes, query_str=QUERY)
        nodes = reranker.model_copy(update={"keep_retrieval_score": False}).postprocess_nodes(nodes, query_str="bread")
        assert [node.metadata["retrieval_score"] for node in nodes] == [first[node.node_id] for node in nodes]


@pytest.mark.parametrize(("hidden", "kept"), [(["retrieval_score"], 0.5), ([], 0.125)], ids=["stored", "foreign"])
def test_a_score_of_an_earlier_search_is_replaced_and_a_foreign_key_is_not(
    reranker: BgeRerank, hidden: list[str], kept: float
) -> None:
    node = TextNode(text="a", metadata={"retrieval_score": 0.125}, excluded_embed_metadata_keys=hidden)
    (found,) = reranker.postprocess_nodes([NodeWithScore(node=node, score=0.5)], query_str=QUERY)
    assert found.metadata["retrieval_score"] == kept
    assert found.node.excluded_embed_metadata_keys == hidden


@pytest.mark.parametrize("mode", ["reciprocal_rerank", "relative_score", "dist_based_score", "simple"])
@pytest.mark.parametrize("queries", [1, 3])
async def test_a_fusion_knows_a_node_again(
    index: VectorStoreIndex, reranker: BgeRerank, mode: str, queries: int
) -> None:
    everything = reranker.model_copy(update={"top_n": None})
    reranking = RerankingRetriever(index=index, reranker=everything)
    twice = RerankingRetriever(retriever=reranking, reranker=everything)
    fused = QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=9), reranking, twice],
        llm=MockLLM(),
        query_gen_prompt="{num_queries}\nbread\n{query}",
        num_queries=queries,
        similarity_top_k=5,  # of these the framework then drops those of one id
        mode=mode,
        use_async=False,
    )
    for found in (fused.retrieve(QUERY), await fused.aretrieve(QUERY)):
        assert sorted(node.node_id for node in found) == ["n0", "n1", "n2", "n3", "n5"]


def test_merged_leaves_come_back_as_their_parent(embedding: BgeEmbedding, reranker: BgeRerank) -> None:
    parser = HierarchicalNodeParser.from_defaults(chunk_sizes=[256, 32], chunk_overlap=0)
    nodes = parser.get_nodes_from_documents([Document(text=" ".join(TEXTS))])
    context = StorageContext.from_defaults()
    context.docstore.add_documents(nodes)
    leaves = VectorStoreIndex(get_leaf_nodes(nodes), storage_context=context, embed_model=embedding)
    reranking = RerankingRetriever(index=leaves, reranker=reranker.model_copy(update={"top_n": None}))
    (found,) = AutoMergingRetriever(reranking, context).retrieve(QUERY)
    assert found.node_id == nodes[0].node_id


def test_reranked_nodes_put_back_are_unchanged(index: VectorStoreIndex, reranker: BgeRerank) -> None:
    given = [TextNode(id_=f"n{n}", text=text, metadata={"page": n}) for n, text in enumerate(TEXTS) if text]
    found = [node.node for node in RerankingRetriever(index=index, reranker=reranker, top_n=5).retrieve(QUERY)]
    again = [node.node for node in RerankingRetriever(index=index, reranker=reranker, top_n=5).retrieve("bread")]

    for strategy in (DocstoreStrategy.UPSERTS, DocstoreStrategy.DUPLICATES_ONLY):
        pipeline = IngestionPipeline(
            transformations=[index._embed_model],
            vector_store=SimpleVectorStore(),
            docstore=SimpleDocumentStore(),
            docstore_strategy=strategy,
        )
        assert len(pipeline.run(nodes=given)) == 5
        assert pipeline.run(nodes=found) == pipeline.run(nodes=again) == []

    empty = VectorStoreIndex([], embed_model=index._embed_model)
    assert populate(empty, given, show_progress=False).added == 5
    for nodes in (found, again):
        assert populate(empty, nodes, show_progress=False).skipped == 5


def test_a_refreshed_index_keeps_a_reranked_document(embedding: BgeEmbedding, reranker: BgeRerank) -> None:
    documents = [Document(id_=f"d{n}", text=text) for n, text in enumerate(TEXTS) if text]
    index = VectorStoreIndex.from_documents(documents, embed_model=embedding)
    found = reranker.postprocess_nodes(
        [NodeWithScore(node=document, score=0.5) for document in documents], query_str="a"
    )
    assert index.refresh_ref_docs([node.node for node in found]) == [False] * 3


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (TextNode(id_="1", text="a"), TextNode(id_="1", text="a", metadata={"source": "x"}), 1),
        (TextNode(id_="1", text="a"), TextNode(id_="2", text="a"), 1),
        (TextNode(id_="1", text="a", metadata={"page": 1}), TextNode(id_="2", text="a", metadata={"page": 2}), 1),
        (
            TextNode(id_="1", text="a", metadata={"source": "x"}),
            TextNode(id_="2", text="a", metadata={"source": "y"}),
            2,
        ),
        (TextNode(id_="1", text="a", metadata={"file_path": "x"}), TextNode(id_="2", text="a"), 2),
        (IndexNode(id_="1", text="a", index_id="x"), IndexNode(id_="2", text="a", index_id="y"), 2),
        (ImageNode(id_="1", text="a", image_url="x.png"), ImageNode(id_="2", text="a", image_url="y.png"), 2),
    ],
)
async def test_both_retrievers_drop_the_same_duplicates(
    reranker: BgeRerank, m3: BgeM3Embedder, first: BaseNode, second: BaseNode, kept: int
) -> None:
    given = [NodeWithScore(node=node, score=0.5) for node in (first, second)]
    reranking = RerankingRetriever(retriever=ListRetriever(given), reranker=reranker)
    index = VectorStoreIndex([], embed_model=MockEmbedding(embed_dim=4), store_nodes_override=True)
    hybrid = HybridRetriever(index=index, sparse_index=SparseIndex(), embedder=m3)
    hybrid.insert_nodes([first, second])
    for retriever in (reranking, hybrid):
        assert len(retriever.retrieve("a")) == len(await retriever.aretrieve("a")) == kept
