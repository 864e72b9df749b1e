"""Every store that populate fills, made and asked the way its users do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import lancedb
from chromadb import PersistentClient
from langchain_chroma import Chroma
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS, LanceDB
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_qdrant import QdrantVectorStore
from llama_index.core import MockEmbedding, StorageContext, VectorStoreIndex
from llama_index.core.schema import MetadataMode, TextNode
from llama_index.core.vector_stores import SimpleVectorStore, VectorStoreQuery
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.lancedb import LanceDBVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexQdrant
from qdrant_client import QdrantClient, models

from bge_integrations import ModelCache
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.llama_index import BgeEmbedding

DIM = 32
DURABLE = ("chroma", "lancedb", "qdrant")


@dataclass
class Bench:
    """One store on disk or in memory, opened again and again with one model, or with somebody else's: None."""

    name: str
    folder: Path
    model: str | None
    cache: ModelCache
    like: str | None = None

    def __post_init__(self) -> None:
        self.qdrant: QdrantClient | None = None
        self.store = self.open(self.model)

    @property
    def is_llama_index(self) -> bool:
        return self.name.startswith("llama_index")

    @property
    def is_durable(self) -> bool:
        return any(kind in self.name for kind in DURABLE)

    @property
    def deletes(self) -> bool:
        return "llama_index faiss" not in self.name

    def open(self, model: str | None) -> Any:
        """The store, made anew over what is on disk; one in memory is empty."""
        if self.qdrant is not None:
            self.qdrant.close()
        self.embeddings = self.make_embeddings(model)
        self.store = STORES[self.name](self, self.embeddings)
        return self.store

    def make_embeddings(self, model: str | None) -> Any:
        if model is None:
            return MockEmbedding(DIM) if self.is_llama_index else DeterministicFakeEmbedding(size=DIM)
        if self.is_llama_index:
            return BgeEmbedding(model_name=model, cache=self.cache, like=self.like)
        return BgeEmbeddings(model=model, cache=self.cache, like=self.like)

    def give(self, model: str) -> None:
        """Another model to the store, with all that it holds."""
        store = self.store
        self.open(model)
        if not self.is_durable:
            self.store = store
            for name in ("embedding", "embedding_function", "_embed_model"):
                if hasattr(store, name):
                    setattr(store, name, self.embeddings)

    def drop(self) -> None:
        """Take the collection or table away, behind the store's back."""
        if self.qdrant is not None:
            self.qdrant.delete_collection("notes")
        elif "chroma" in self.name:
            PersistentClient(str(self.folder / "chroma")).delete_collection("notes")
        else:
            lancedb.connect(str(self.folder / "lance")).drop_all_tables()

    def client(self) -> QdrantClient:
        """Qdrant's local mode, which one client at a time opens."""
        self.qdrant = QdrantClient(path=str(self.folder / "qdrant"))
        return self.qdrant

    def given(self) -> dict[str, Any]:
        """The embedder, for a store that has none of its own."""
        return {"embedder": self.embeddings} if self.name.endswith("alone") else {}

    def document(self, text: str, source: str, own_id: str | None = None, **metadata: Any) -> Any:
        """A document of the store's framework; what is more of metadata is hidden from the model."""
        if not self.is_llama_index:
            return Document(text, metadata={"source": source, **metadata}, id=own_id)
        node = TextNode(text=text, metadata={"source": source, **metadata}, excluded_embed_metadata_keys=list(metadata))
        return node if own_id is None else node.model_copy(update={"id_": own_id})

    def find(self, text: str, k: int = 1) -> list[str]:
        """Texts nearest to a text, or their ids where the store keeps no texts."""
        if not self.is_llama_index:
            return [found.page_content for found in self.store.similarity_search(text, k=k)]
        if isinstance(self.store, VectorStoreIndex):
            found = self.store.as_retriever(similarity_top_k=k).retrieve(text)
            return [node.node.get_content(MetadataMode.NONE) for node in found]
        query = self.embeddings.get_query_embedding(text)
        result = self.store.query(VectorStoreQuery(query_embedding=query, similarity_top_k=k))
        return (
            list(result.ids) if result.nodes is None else [node.get_content(MetadataMode.NONE) for node in result.nodes]
        )

    def close(self) -> None:
        if self.qdrant is not None:
            self.qdrant.close()


def _qdrant(bench: Bench, embeddings: Any) -> QdrantVectorStore:
    client = bench.client()
    if not client.collection_exists("notes"):
        size = models.VectorParams(size=DIM, distance=models.Distance.COSINE)
        client.create_collection("notes", vectors_config=size)
    return QdrantVectorStore(client, "notes", embedding=embeddings)


def _faiss(_: Bench, embeddings: Any) -> FAISS:
    return FAISS(embeddings, faiss.IndexFlatL2(DIM), InMemoryDocstore(), {})


def _chroma(bench: Bench) -> Any:
    return PersistentClient(str(bench.folder / "chroma")).get_or_create_collection("notes", embedding_function=None)


def _over(make: Callable[[Bench], Any]) -> Callable[[Bench, Any], VectorStoreIndex]:
    return lambda bench, embeddings: VectorStoreIndex(
        [], storage_context=StorageContext.from_defaults(vector_store=make(bench)), embed_model=embeddings
    )


def _lance(bench: Bench) -> LanceDBVectorStore:
    return LanceDBVectorStore(uri=str(bench.folder / "lance"), table_name="notes")


def _llama_index_qdrant(bench: Bench) -> LlamaIndexQdrant:
    return LlamaIndexQdrant(collection_name="notes", client=bench.client())


STORES: dict[str, Callable[[Bench, Any], Any]] = {
    "langchain chroma": lambda bench, embeddings: Chroma(
        "notes", embedding_function=embeddings, persist_directory=str(bench.folder / "chroma")
    ),
    "langchain lancedb": lambda bench, embeddings: LanceDB(
        connection=lancedb.connect(str(bench.folder / "lance")), embedding=embeddings
    ),
    "langchain qdrant": _qdrant,
    "langchain faiss": _faiss,
    "langchain memory": lambda _, embeddings: InMemoryVectorStore(embeddings),
    "llama_index chroma": _over(lambda bench: ChromaVectorStore(_chroma(bench))),
    "llama_index lancedb": _over(_lance),
    "llama_index qdrant": _over(_llama_index_qdrant),
    "llama_index simple": _over(lambda _: SimpleVectorStore()),
    "llama_index faiss": _over(lambda _: FaissVectorStore(faiss.IndexFlatL2(DIM))),
    "llama_index chroma alone": lambda bench, _: ChromaVectorStore(_chroma(bench)),
    "llama_index lancedb alone": lambda bench, _: _lance(bench),
    "llama_index qdrant alone": lambda bench, _: _llama_index_qdrant(bench),
    "llama_index simple alone": lambda _, __: SimpleVectorStore(),
    "llama_index faiss alone": lambda _, __: FaissVectorStore(faiss.IndexFlatL2(DIM)),
}
