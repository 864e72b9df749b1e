"""populate with a sparse index: one forward for both, nothing twice, nothing lost."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from bge_integrations import FingerprintMismatchError, ModelCache
from bge_integrations.embed.m3 import BgeM3Embedder, sparse_score
from bge_integrations.langchain import BgeEmbeddings, HybridRetriever
from bge_integrations.populate import PopulateReport, populate
from bge_integrations.stores.fingerprint import read_fingerprint
from bge_integrations.stores.sparse_index import SparseIndex

LIKE = "BAAI/bge-m3"
DOCUMENTS = [Document(f"Text number {n} is about pandas.", metadata={"source": f"{n % 3}.md"}) for n in range(20)]


@pytest.fixture
def embedder(m3: Path, cache: ModelCache) -> BgeM3Embedder:
    return BgeM3Embedder(str(m3), like=LIKE, cache=cache)


@pytest.fixture
def embeddings(m3: Path, cache: ModelCache) -> BgeEmbeddings:
    return BgeEmbeddings(model=str(m3), like=LIKE, cache=cache)


@pytest.fixture
def store(embeddings: BgeEmbeddings, tmp_path: Path) -> Chroma:
    return Chroma("notes", embeddings, str(tmp_path / "store"), collection_metadata={"hnsw:space": "cosine"})


@pytest.fixture
def index() -> SparseIndex:
    return SparseIndex()


def work(cache: ModelCache) -> tuple[int, int]:
    models = cache.stats()["models"]
    return sum(model["batches"] for model in models), sum(model["tokens"] for model in models)


def counts(report: PopulateReport) -> tuple[int, int, int, int]:
    return report.added, report.updated, report.skipped, report.texts


def assert_filled(store: Chroma, index: SparseIndex, embedder: BgeM3Embedder) -> None:
    """Both hold the vectors of the texts that the store holds."""
    kept = store.get(include=["documents", "embeddings"])
    expected = embedder.encode_documents(kept["documents"])
    np.testing.assert_allclose(kept["embeddings"], expected.dense, atol=1e-6)
    assert len(index) == len(kept["ids"])
    (query,) = embedder.encode_queries(["Text number 3 is about pandas, not about bread or the moon."]).sparse or []
    scores = dict(index.search(query, len(index)))
    for document_id, text, embedding in zip(kept["ids"], kept["documents"], expected.sparse or [], strict=True):
        assert index.holds(document_id, text)
        assert scores.get(document_id, 0.0) == pytest.approx(sparse_score(query, embedding), rel=1e-5)


def test_one_forward_fills_both(
    store: Chroma, embeddings: BgeEmbeddings, index: SparseIndex, embedder: BgeM3Embedder, cache: ModelCache
) -> None:
    populate(InMemoryVectorStore(embeddings), DOCUMENTS, batch_size=7)
    alone = work(cache)
    report = populate(store, DOCUMENTS, embedder=embedder, sparse_index=index, batch_size=7)
    both = work(cache)
    assert counts(report) == (20, 0, 0, 20)
    assert both[1] == 2 * alone[1]
    assert counts(populate(store, DOCUMENTS, embedder=embedder, sparse_index=index)) == (0, 0, 20, 0)
    assert work(cache) == both
    assert_filled(store, index, embedder)
    assert index.fingerprint == embedder.with_outputs("sparse").fingerprint
    assert read_fingerprint(store) == embedder.with_outputs("dense").fingerprint == embeddings.embedder.fingerprint
    retriever = HybridRetriever(vector_store=store, sparse_index=index, embedder=embedder)
    assert len(retriever.invoke("Text number 3")) == 4


def test_own_ids_changes_and_metadata(store: Chroma, index: SparseIndex, embedder: BgeM3Embedder) -> None:
    def fill(documents: list[Document]) -> tuple[int, int, int, int]:
        return counts(populate(store, documents, embedder=embedder, sparse_index=index))

    first = [Document(f"text {n}", id=f"doc-{n}", metadata={"page": n}) for n in range(4)]
    given = copy.deepcopy(first)
    assert fill(first) == (4, 0, 0, 4)
    assert first == given
    second = [
        first[0],
        Document("another text", id="doc-1", metadata={"page": 1}),
        Document("text 2", id="doc-2", metadata={"page": 99}),
        first[3],
    ]
    assert fill([*second, *second]) == (0, 2, 6, 1)
    assert store.get(ids=["doc-2"])["metadatas"][0]["page"] == 99
    assert_filled(store, index, embedder)


def test_what_the_store_holds_already_gets_into_the_index(
    store: Chroma, index: SparseIndex, embedder: BgeM3Embedder, cache: ModelCache
) -> None:
    populate(store, DOCUMENTS[:12])
    assert counts(populate(store, DOCUMENTS, embedder=embedder, sparse_index=index, batch_size=5)) == (8, 0, 12, 20)
    assert_filled(store, index, embedder)
    index.delete([*store.get()["ids"]][:3])
    assert counts(populate(store, DOCUMENTS, embedder=embedder, sparse_index=index)) == (0, 0, 20, 3)
    assert_filled(store, index, embedder)


def test_an_index_saved_before_a_change_is_brought_up_to_date(
    store: Chroma, index: SparseIndex, embedder: BgeM3Embedder, tmp_path: Path
) -> None:
    documents = [Document(f"text {n}", id=f"doc-{n}") for n in range(4)]
    populate(store, documents, embedder=embedder, sparse_index=index)
    index.save(tmp_path / "old.npz")
    changed = [*documents[:3], Document("a text about bread", id="doc-3")]
    populate(store, changed, embedder=embedder, sparse_index=index)
    old = SparseIndex.load(tmp_path / "old.npz")
    assert counts(populate(store, changed, embedder=embedder, sparse_index=old)) == (0, 0, 4, 1)
    assert_filled(store, old, embedder)


@pytest.mark.parametrize("cleanup", ["source", "full"])
def test_what_a_killed_run_deleted_goes_from_the_index_too(
    store: Chroma, index: SparseIndex, embedder: BgeM3Embedder, tmp_path: Path, cleanup: Any
) -> None:
    def fill(index: SparseIndex, documents: list[Document]) -> int:
        return populate(store, documents, embedder=embedder, sparse_index=index, cleanup=cleanup).deleted

    fill(index, DOCUMENTS)
    index.save(tmp_path / "old.npz")
    assert fill(index, DOCUMENTS[:10]) == 10
    old = SparseIndex.load(tmp_path / "old.npz")
    assert len(old) == 20
    assert fill(old, DOCUMENTS[:10]) == 0
    assert_filled(store, old, embedder)


def test_interrupted_run_is_resumed(store: Chroma, index: SparseIndex, embedder: BgeM3Embedder) -> None:
    def broken() -> Iterator[Document]:
        yield from DOCUMENTS[:13]
        raise ConnectionError("the source went away")

    with pytest.raises(ConnectionError):
        populate(store, broken(), embedder=embedder, sparse_index=index, batch_size=5)
    assert len(store.get()["ids"]) == len(index) == 10
    assert counts(populate(store, DOCUMENTS, embedder=embedder, sparse_index=index)) == (10, 0, 10, 10)
    assert_filled(store, index, embedder)


@pytest.mark.parametrize("failing", ["store", "index"])
def test_a_failed_write_is_made_up_for(
    store: Chroma, index: SparseIndex, embedder: BgeM3Embedder, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(*((store._collection, "upsert") if failing == "store" else (index, "add")), fail)
        with pytest.raises(OSError, match="no room"):
            populate(store, DOCUMENTS, embedder=embedder, sparse_index=index)
    assert len(index) == 0
    assert populate(store, DOCUMENTS, embedder=embedder, sparse_index=index).texts == 20
    assert_filled(store, index, embedder)


def test_texts_that_come_twice(store: Chroma, index: SparseIndex, embedder: BgeM3Embedder) -> None:
    same = [Document("The same text.", metadata={"page": n % 2}) for n in range(4)]
    assert counts(populate(store, same, embedder=embedder, sparse_index=index)) == (2, 0, 2, 2)
    assert_filled(store, index, embedder)


def test_an_embedder_without_an_index_must_be_the_stores_too(store: Chroma, embedder: BgeM3Embedder) -> None:
    assert counts(populate(store, DOCUMENTS[:2], embedder=embedder)) == (2, 0, 0, 2)
    other = BgeM3Embedder(embedder.model, like=LIKE, max_length=64, cache=embedder.cache)
    with pytest.raises(ValueError, match="not the store's own"):
        populate(store, DOCUMENTS, embedder=other)


def test_what_cannot_fill_an_index_is_refused(
    store: Chroma, embeddings: BgeEmbeddings, index: SparseIndex, embedder: BgeM3Embedder
) -> None:
    for wrong in (None, embeddings, embeddings.embedder):
        with pytest.raises(TypeError, match="BgeM3Embedder"):
            populate(store, DOCUMENTS, embedder=wrong, sparse_index=index)
    other = BgeM3Embedder(embedder.model, like=LIKE, max_length=64, cache=embedder.cache)
    foreign: list[VectorStore] = [InMemoryVectorStore(DeterministicFakeEmbedding(size=8)), store]
    for one, given in zip(foreign, (embedder, other), strict=True):
        with pytest.raises(ValueError, match="not the store's own"):
            populate(one, DOCUMENTS, embedder=given, sparse_index=index)
    for force in (False, True):
        with pytest.raises(FingerprintMismatchError, match="sparse index"):
            populate(store, DOCUMENTS, embedder=embedder, sparse_index=SparseIndex("of another"), force=force)
    assert read_fingerprint(store) is None
    assert store.get()["ids"] == []
    assert len(index) == 0
