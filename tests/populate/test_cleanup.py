"""Stale documents leave the store once the new ones are in, and nothing else does."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import chromadb
import pytest
import tiny
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from bge_integrations import BgeM3Embedder, ModelCache, SparseIndex
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.populate import cleanup, populate


@pytest.fixture
def store(tmp_path: Path, bert_embedder: Path, cache: ModelCache) -> Chroma:
    embeddings = BgeEmbeddings(model=str(bert_embedder), cache=cache)
    return Chroma("notes", embedding_function=embeddings, client=chromadb.PersistentClient(str(tmp_path / "store")))


def of(source: str, *texts: str) -> list[Document]:
    return [Document(text, metadata={"source": source}) for text in texts]


def texts(store: Chroma) -> list[str]:
    return sorted(store.get()["documents"])


OLD = [
    *of("a.md", "a1", "a2"),
    *of("b.md", "b1"),
    Document("bare"),
    Document("own", id="o", metadata={"source": "b.md"}),
]


@pytest.fixture
def filled(store: Chroma) -> Chroma:
    """What populate has put there, and two documents that somebody else has."""
    assert populate(store, OLD).deleted == 0
    store.add_texts(["theirs", "theirs too"], metadatas=[{"source": "a.md"}, {"page": 1}], ids=["t1", "t2"])
    return store


def test_of_the_sources_that_came(filled: Chroma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "PAGE", 1)
    report = populate(filled, of("a.md", "a2", "a3"), cleanup="source")
    assert (report.added, report.skipped, report.deleted) == (1, 1, 1)
    assert texts(filled) == ["a2", "a3", "b1", "bare", "own", "theirs", "theirs too"]
    assert populate(filled, of("a.md", "a2", "a3"), cleanup="source").deleted == 0


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_of_all(filled: Chroma, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    monkeypatch.setattr(cleanup, "PAGE", page)
    report = populate(filled, iter(of("a.md", "a2", "a3")), cleanup="full")
    assert (report.added, report.skipped, report.deleted) == (1, 1, 4)
    assert texts(filled) == ["a2", "a3", "theirs", "theirs too"]


def test_nothing_is_deleted_before_the_new_is_in_or_after_an_error(filled: Chroma) -> None:
    def broken() -> Iterator[Document]:
        yield from of("a.md", "a3")
        assert "a1" in texts(filled)
        raise ConnectionError("the source went away")

    for mode in ("source", "full"):
        with pytest.raises(ConnectionError, match="went away"):
            populate(filled, broken(), cleanup=mode, batch_size=1)  # type: ignore[arg-type]
    assert texts(filled) == ["a1", "a2", "a3", "b1", "bare", "own", "theirs", "theirs too"]


@pytest.mark.parametrize(
    "bad", [{"when": object()}, {"deep": {"er": 1}}], ids=["not a document", "refused by the store"]
)
def test_a_source_with_a_bad_document_keeps_what_it_had(filled: Chroma, bad: dict[str, Any]) -> None:
    documents = [*of("a.md", "a3"), Document("bad", metadata={"source": "a.md", **bad}), *of("b.md", "b2")]
    report = populate(filled, documents, cleanup="full", on_error="collect")
    assert (len(report.failed), report.failed[0].source, report.deleted) == (1, "a.md", 3)
    assert texts(filled) == ["a1", "a2", "a3", "b2", "theirs", "theirs too"]


def test_without_the_source_of_a_bad_document_all_keep_theirs(filled: Chroma, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = populate(filled, [*of("a.md", "a3"), None], cleanup="source", on_error="collect")  # type: ignore[list-item]
    assert (report.deleted, len(report.failed)) == (0, 1)
    assert "nothing is cleaned up" in caplog.text
    assert "a1" in texts(filled)


def test_the_sparse_index_is_cleaned_up_too(tmp_path: Path, cache: ModelCache) -> None:
    m3 = BgeM3Embedder(str(tiny.make_m3(tmp_path / "m3")), like="BAAI/bge-m3", cache=cache)
    embeddings = BgeEmbeddings(model=m3.model, like="BAAI/bge-m3", cache=cache)
    store = Chroma("hybrid", embedding_function=embeddings, client=chromadb.PersistentClient(str(tmp_path / "store")))
    index = SparseIndex()
    populate(store, OLD, embedder=m3, sparse_index=index)
    report = populate(store, of("a.md", "a2"), embedder=m3, sparse_index=index, cleanup="source")
    assert report.deleted == 1
    assert len(index) == len(texts(store)) == 4


class Unlisted(VectorStore):
    """A store that answers for ids and lists nothing."""

    def __init__(self) -> None:
        self.held: dict[str, Document] = {}

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        self.held.update(zip(kwargs["ids"], documents, strict=True))
        return list(kwargs["ids"])

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return [self.held[name] for name in ids if name in self.held]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return []

    @classmethod
    def from_texts(cls, *arguments: Any, **kwargs: Any) -> "Unlisted":
        return cls()


def test_what_cannot_be_cleaned_up_is_refused(store: Chroma) -> None:
    unlisted = Unlisted()
    with pytest.raises(ValueError, match="Unlisted does not"):
        populate(unlisted, OLD, cleanup="full")
    assert unlisted.held == {}
    with pytest.raises(ValueError, match="cleanup must be"):
        populate(store, OLD, cleanup="all")  # type: ignore[arg-type]
