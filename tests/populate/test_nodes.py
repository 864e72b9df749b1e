"""LlamaIndex's nodes on their way into a store: ids, relationships, and what the model reads."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode, NodeRelationship, TextNode
from llama_index.core.vector_stores import SimpleVectorStore

from bge_integrations import BgeEmbedder, ModelCache
from bge_integrations.llama_index import BgeEmbedding
from bge_integrations.populate import populate
from bge_integrations.populate.nodes import LlamaIndex
from bge_integrations.stores.kinds import HASH_KEY

TEXT = " ".join(f"Sentence number {n} is about pandas and bamboo." for n in range(60))


def parts(source: str = "pandas.md") -> list[TextNode]:
    """The nodes of one text, as a splitter makes them: with random ids, and pointing at one another."""
    nodes = SentenceSplitter(chunk_size=64, chunk_overlap=0, tokenizer=str.split)(
        [Document(text=TEXT, metadata={"source": source})]
    )
    assert len(nodes) > 5
    return nodes  # type: ignore[return-value]


def stored(index: VectorStoreIndex) -> dict[str, Any]:
    return {name: index.docstore.get_node(name) for name in index.index_struct.nodes_dict.values()}


@pytest.fixture
def index(bert_embedder: Any, cache: ModelCache) -> VectorStoreIndex:
    return VectorStoreIndex([], embed_model=BgeEmbedding(model_name=str(bert_embedder), cache=cache))


@pytest.mark.parametrize("size", [2, 3, 512])
def test_random_ids_become_stable_and_relationships_follow(index: VectorStoreIndex, size: int) -> None:
    nodes = parts()
    before = copy.deepcopy(nodes)
    assert populate(index, iter(nodes), batch_size=size).added == len(nodes)
    assert nodes == before
    first = stored(index)
    assert not {node.node_id for node in nodes} & first.keys()

    start = next(node for node in first.values() if NodeRelationship.PREVIOUS not in node.relationships)
    chain = [start]
    while following := chain[-1].next_node:
        chain.append(first[following.node_id])
        assert chain[-1].prev_node.node_id == chain[-2].node_id
    assert [node.text for node in chain] == [node.text for node in nodes]
    assert {node.ref_doc_id for node in chain} == {nodes[0].ref_doc_id}

    assert populate(index, parts()).skipped == len(nodes)
    assert stored(index).keys() == first.keys()


@pytest.mark.parametrize("own", ["mine", "2f0e9d4c-7a36-4c5e-9b1f-6d8a0c3e5b72"])
def test_own_ids_stay(index: VectorStoreIndex, own: str) -> None:
    node = TextNode(id_=own, text="Pandas eat bamboo.")
    node.relationships[NodeRelationship.NEXT] = TextNode(id_="other", text="x").as_related_node_info()
    populate(index, [node])
    assert stored(index)[own].next_node.node_id == "other"


def test_the_model_reads_what_llama_index_embeds(
    index: VectorStoreIndex, bert_embedder: Any, cache: ModelCache
) -> None:
    node = TextNode(id_="a", text="Pandas eat bamboo.", metadata={"title": "Food", "page": 3})
    node.excluded_embed_metadata_keys = ["page"]
    populate(index, [node])
    kept = stored(index)["a"]
    for mode in (MetadataMode.EMBED, MetadataMode.LLM):
        assert kept.get_content(mode) == node.get_content(mode)
    assert HASH_KEY in kept.metadata
    expected = BgeEmbedder(str(bert_embedder), cache=cache).encode_documents([node.get_content(MetadataMode.EMBED)])
    assert index.vector_store.get("a") == pytest.approx(expected[0].tolist(), abs=1e-6)
    assert populate(index, [kept]).skipped == 1  # what comes back can be given again


def test_bad_nodes_are_collected(index: VectorStoreIndex) -> None:
    bad: Sequence[Any] = [None, "text", TextNode(text=""), TextNode(text="x", metadata={"when": object()})]
    report = populate(index, [*parts()[:2], *bad], on_error="collect")
    assert (report.added, [failure.position for failure in report.failed]) == (2, [2, 3, 4, 5])
    with pytest.raises(TypeError, match="Document 0 is None"):
        populate(index, [None])


def test_the_source_of_a_node() -> None:
    node = parts()[0]
    source_of = LlamaIndex().source_of
    assert source_of(node) == "pandas.md"
    del node.metadata["source"]
    assert source_of(node) == node.ref_doc_id
    node.metadata["file_path"] = "/data/pandas.md"
    assert source_of(node) == "/data/pandas.md"
    assert source_of(TextNode(text="x")) is None
    assert source_of("text") is None


def test_foreign_embeddings() -> None:
    index = VectorStoreIndex([], embed_model=MockEmbedding(embed_dim=4))
    report = populate(index, parts())
    assert (report.added, report.tokens) == (report.texts, 0)
    store = SimpleVectorStore()
    with pytest.raises(ValueError, match="SimpleVectorStore has no embeddings of its own"):
        populate(store, parts())
    populate(store, parts(), embedder=MockEmbedding(embed_dim=4))
    assert len(store.data.embedding_dict) == report.added
    with pytest.raises(TypeError, match="no embedder"):
        populate(store, parts(), embedder="bge")
