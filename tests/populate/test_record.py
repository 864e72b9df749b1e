"""Stores that cannot tell what they hold, and the record that does."""

import gc
from pathlib import Path
from typing import Any

import faiss
import pytest
import tiny
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from llama_index.core.schema import TextNode
from llama_index.vector_stores.faiss import FaissVectorStore

from bge_integrations import BgeEmbedder, FingerprintMismatchError, ModelCache
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.populate import populate, record

DOCUMENTS = [Document(f"Text number {n} is about pandas.", metadata={"source": f"{n % 3}.md"}) for n in range(12)]


class Mute(VectorStore):
    """A store of texts and vectors that cannot be asked for ids."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._inner = InMemoryVectorStore(embeddings)
        self._embeddings = embeddings

    @property
    def embeddings(self) -> Embeddings:
        return self._embeddings

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        self._inner.embedding = self._embeddings
        return self._inner.add_documents(documents, **kwargs)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> None:
        self._inner.delete(ids)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return self._inner.similarity_search(query, k)

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        return self._inner.similarity_search_by_vector(embedding, k)

    @classmethod
    def from_texts(cls, *arguments: Any, **kwargs: Any) -> "Mute":
        raise NotImplementedError

    @property
    def texts(self) -> list[str]:
        return sorted(row["text"] for row in self._inner.store.values())


@pytest.fixture
def store(bert_embedder: Path, cache: ModelCache) -> Mute:
    return Mute(BgeEmbeddings(model=str(bert_embedder), cache=cache))


def test_it_lasts_as_long_as_the_object(bert_embedder: Path, cache: ModelCache) -> None:
    store = Mute(BgeEmbeddings(model=str(bert_embedder), cache=cache))
    assert populate(store, DOCUMENTS, batch_size=5).added == 12
    report = populate(store, DOCUMENTS)
    assert (report.skipped, report.texts) == (12, 0)
    known = len(record._in_memory)
    del store
    gc.collect()
    assert len(record._in_memory) == known - 1


def test_it_lasts_in_a_file(store: Mute, tmp_path: Path) -> None:
    file = tmp_path / "notes.sqlite"
    populate(store, DOCUMENTS[:6], record=file)
    record._in_memory.clear()
    report = populate(store, DOCUMENTS, record=file)
    assert (report.added, report.skipped, report.texts) == (6, 6, 6)
    populate(store, [Document("Bread needs flour.", id="own")], record=file)
    assert populate(store, [Document("Bread needs yeast.", id="own")], record=file).updated == 1
    assert "Bread needs flour." not in store.texts
    assert "Bread needs yeast." in store.texts
    assert populate(store, DOCUMENTS[:3], record=file, cleanup="source").deleted == 9
    assert len(store.texts) == 4
    assert populate(store, DOCUMENTS[:3], record=file, cleanup="full").deleted == 1


def test_a_lost_or_foreign_store_is_noticed(store: Mute, tmp_path: Path) -> None:
    file = tmp_path / "notes.sqlite"
    populate(store, DOCUMENTS, record=file)
    emptied = Mute(store.embeddings)
    with pytest.raises(ValueError, match=r"notes\.sqlite knows of documents that Mute does not find"):
        populate(emptied, DOCUMENTS, record=file)
    foreign = Mute(store.embeddings)
    populate(foreign, [Document("Something else.")])
    with pytest.raises(ValueError, match="does not find"):
        populate(foreign, DOCUMENTS, record=file)
    assert foreign.texts == ["Something else."]


def test_another_model_is_refused(store: Mute, tmp_path: Path, cache: ModelCache) -> None:
    file = tmp_path / "notes.sqlite"
    populate(store, DOCUMENTS, record=file)
    store._embeddings = BgeEmbeddings(model=str(tiny.make_bert_embedder(tmp_path / "other", seed=7)), cache=cache)
    with pytest.raises(FingerprintMismatchError):
        populate(store, DOCUMENTS, record=file)
    populate(store, DOCUMENTS, record=file, force=True)


def test_embeddings_that_are_not_ours(tmp_path: Path) -> None:
    store = Mute(DeterministicFakeEmbedding(size=8))
    file = tmp_path / "notes.sqlite"
    assert populate(store, DOCUMENTS, record=file).added == 12
    assert populate(store, DOCUMENTS, record=file).skipped == 12


def test_faiss_by_itself(bert_embedder: Path, cache: ModelCache, tmp_path: Path) -> None:
    def nodes() -> list[TextNode]:
        return [TextNode(text=document.page_content) for document in DOCUMENTS]

    store, file = FaissVectorStore(faiss.IndexFlatL2(32)), tmp_path / "notes.sqlite"
    given: dict[str, Any] = {"embedder": BgeEmbedder(str(bert_embedder), cache=cache), "record": file}
    assert populate(store, nodes(), **given).added == 12
    assert populate(store, nodes(), **given).skipped == 12
    store.persist(str(tmp_path / "index" / "faiss"))
    again = FaissVectorStore.from_persist_path(str(tmp_path / "index" / "faiss"))
    assert populate(again, nodes(), **given).skipped == 12
    with pytest.raises(ValueError, match="FaissVectorStore does not find"):
        populate(FaissVectorStore(faiss.IndexFlatL2(32)), nodes(), **given)
