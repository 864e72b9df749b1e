"""What is refused: one document's fault is found in a few calls, anything else ends the run at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import faiss
import httpx
import lancedb
import numpy as np
import pytest
import requests
import tiny
from langchain_chroma import Chroma
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS, LanceDB
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_qdrant import QdrantVectorStore
from qdrant_client import QdrantClient, models

from bge_integrations import MissingWeightsError, ModelCache, OverBudgetError
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.populate import populate

Vectors = Callable[[list[str]], Any]
DOCUMENTS = [Document(f"Text {n}", id=f"id-{n}", metadata={"source": f"{n % 3}.md"}) for n in range(512)]
FEW = 12
"""Calls that find one document among 512."""


class APIStatusError(Exception):
    """As the clients of hosted models raise it."""

    def __init__(self, status_code: int) -> None:
        super().__init__(f"Error code: {status_code}")
        self.status_code = status_code


def answered(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://model")
    return httpx.HTTPStatusError(f"{status}", request=request, response=httpx.Response(status, request=request))


def vectors(texts: list[str]) -> list[list[float]]:
    return [[float(len(text)), 1.0, 2.0] for text in texts]


def raising(make: Callable[[], Exception]) -> Vectors:
    def embed(_: list[str]) -> Any:
        raise make()

    return embed


class Theirs(Embeddings):
    """Somebody else's embeddings, which do as `bad` says where a text is bad; all are, without a word for it."""

    def __init__(self, bad: Vectors, word: str = "") -> None:
        self.bad, self.word, self.calls = bad, word, 0

    def embed_documents(self, texts: list[str]) -> Any:
        self.calls += 1
        return self.bad(texts) if any(self.word in text for text in texts) else vectors(texts)

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]  # type: ignore[no-any-return]


def with_bad(*places: int, of: list[Document] = DOCUMENTS) -> list[Document]:
    bad = {place: Document("A bad text", id=f"bad-{place}", metadata={"source": "bad.md"}) for place in places}
    return [bad.get(n, document) for n, document in enumerate(of)]


MAYBE_A_DOCUMENT = {
    "value": raising(lambda: ValueError("too long")),
    "runtime": raising(lambda: RuntimeError("index out of range")),
    "attribute": raising(lambda: AttributeError("'NoneType' object has no attribute 'shape'")),
    "status 400": raising(lambda: APIStatusError(400)),
    "httpx 422": raising(lambda: answered(422)),
    "none": lambda _: None,
    "one less": lambda texts: vectors(texts)[1:],
    "not a number": lambda texts: [[float("nan")] * 3 for _ in texts],
    "infinity": lambda texts: [[1e300] * 3 for _ in texts],
    "nothing for one": lambda texts: [*vectors(texts)[1:], None],
    "no numbers": lambda texts: [[] for _ in texts],
}


@pytest.mark.parametrize("place", [0, 300, 511])
@pytest.mark.parametrize("kind", MAYBE_A_DOCUMENT)
def test_a_text_that_an_embedder_refuses_is_found_in_a_few_calls(kind: str, place: int) -> None:
    embeddings = Theirs(MAYBE_A_DOCUMENT[kind], "bad")
    with pytest.raises(Exception) as told:  # noqa: PT011 - the embedder's own
        populate(InMemoryVectorStore(embeddings), with_bad(place))
    assert told.value.__notes__ == [f"This is about document {place}, id bad-{place}."]
    assert embeddings.calls <= FEW


@pytest.mark.parametrize("kind", MAYBE_A_DOCUMENT)
def test_texts_that_an_embedder_refuses_are_collected(kind: str) -> None:
    store = InMemoryVectorStore(Theirs(MAYBE_A_DOCUMENT[kind], "bad"))
    for added in (61, 0):
        report = populate(store, with_bad(0, 7, 63, of=DOCUMENTS[:64]), on_error="collect", batch_size=32)
        assert (report.added, report.skipped) == (added, 61 - added)
        failed = [(failure.position, failure.id, failure.source) for failure in report.failed]
        assert failed == [(place, f"bad-{place}", "bad.md") for place in (0, 7, 63)]
        assert all(failure.reason for failure in report.failed)


@pytest.mark.parametrize("on_error", ["raise", "collect"])
@pytest.mark.parametrize("kind", MAYBE_A_DOCUMENT)
def test_an_embedder_that_refuses_everything_ends_the_run(kind: str, on_error: Any) -> None:
    embeddings = Theirs(MAYBE_A_DOCUMENT[kind])
    with pytest.raises(Exception) as told:  # noqa: PT011 - the embedder's own
        populate(InMemoryVectorStore(embeddings), DOCUMENTS, on_error=on_error)
    assert "while embedding 512 documents, 0 to 511 of the input" in told.value.__notes__[0]
    assert embeddings.calls <= FEW


@pytest.mark.parametrize("given", [np.array, iter, tuple, lambda rows: [np.array(row) for row in rows]])
def test_vectors_may_be_given_as_whatever_holds_numbers(given: Callable[[Any], Any]) -> None:
    store = InMemoryVectorStore(Theirs(lambda texts: given(vectors(texts))))
    populate(store, DOCUMENTS[:3])
    assert [row["vector"] for row in store.store.values()] == [[6.0, 1.0, 2.0]] * 3


def test_a_batch_that_is_too_large_for_an_embedder_is_halved() -> None:
    def limited(texts: list[str]) -> Any:
        if len(texts) > 100:
            raise ValueError("at most 100 inputs")
        return vectors(texts)

    embeddings = Theirs(limited)
    assert populate(InMemoryVectorStore(embeddings), DOCUMENTS).added == 512
    assert embeddings.calls == 15


def test_vectors_of_another_width_are_refused() -> None:
    embeddings = Theirs(lambda texts: [vector[:2] for vector in vectors(texts)], "bad")
    report = populate(
        InMemoryVectorStore(embeddings), with_bad(30, of=DOCUMENTS[:40]), batch_size=4, on_error="collect"
    )
    assert [(failure.position, failure.reason) for failure in report.failed] == [
        (30, "The embedder gave an array (1, 2) for 1 texts; those before have 3 numbers each.")
    ]


NO_DOCUMENT = [
    APIStatusError(401), answered(403), answered(404), answered(500), answered(503), ConnectionError("refused"),
    httpx.ConnectTimeout("slow"), requests.exceptions.ReadTimeout("slow"), MissingWeightsError("truncated"),
    OverBudgetError("too large"), ImportError("no torch"), NotImplementedError("not yet"), MemoryError("full"),
]  # fmt: skip


@pytest.mark.parametrize("error", NO_DOCUMENT, ids=repr)
def test_what_is_no_documents_fault_ends_the_run_at_once(error: Exception) -> None:
    embeddings = Theirs(raising(lambda: error))
    with pytest.raises(type(error)):
        populate(InMemoryVectorStore(embeddings), DOCUMENTS, on_error="collect")
    assert embeddings.calls == 1


def test_a_checkpoint_that_lacks_weights_ends_the_run(tmp_path: Path, cache: ModelCache) -> None:
    folder = tiny.make_bert_embedder(tmp_path / "broken")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    store = InMemoryVectorStore(BgeEmbeddings(model=str(folder), cache=cache))
    with pytest.raises(MissingWeightsError):
        populate(store, DOCUMENTS[:64], on_error="collect")
    assert store.store == {}


def test_the_first_bad_document_is_the_one_that_is_named() -> None:
    embeddings = Theirs(raising(lambda: ValueError("too long")), "bad")
    with pytest.raises(ValueError, match="too long") as told:
        populate(InMemoryVectorStore(embeddings), with_bad(3, 9, 17), batch_size=8)
    assert told.value.__notes__ == ["This is about document 3, id bad-3."]


class Picky(InMemoryVectorStore):
    """A store that refuses documents."""

    writes = 0

    def refuses(self, document: Document) -> bool:
        return "bad" in document.page_content

    def add_documents(self, documents: list[Document], ids: list[str] | None = None, **keywords: Any) -> list[str]:
        self.writes += 1
        if any(map(self.refuses, documents)):
            raise KeyError("title")
        return super().add_documents(documents, ids, **keywords)


@pytest.mark.parametrize("size", [16, 512])
def test_documents_that_a_store_refuses_are_collected(size: int) -> None:
    store = Picky(Theirs(vectors))
    bad = [*range(12), 40]
    report = populate(store, with_bad(*bad, of=DOCUMENTS[:64]), batch_size=size, on_error="collect")
    assert (report.added, [failure.position for failure in report.failed]) == (51, bad)


def test_all_of_a_few_documents_may_be_bad() -> None:
    report = populate(Picky(Theirs(vectors)), with_bad(0, 1, 2, of=DOCUMENTS[:3]), on_error="collect")
    assert (report.added, len(report.failed)) == (0, 3)


@pytest.mark.parametrize("on_error", ["raise", "collect"])
def test_a_store_that_takes_nothing_ends_the_run(on_error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Picky(Theirs(vectors))
    monkeypatch.setattr(store, "refuses", lambda _: True)
    with pytest.raises(KeyError, match="title"):
        populate(store, DOCUMENTS, on_error=on_error)
    assert store.writes <= FEW + 8


def test_a_store_that_takes_nothing_any_more_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Picky(Theirs(vectors))
    populate(store, DOCUMENTS[:8])
    monkeypatch.setattr(store, "refuses", lambda _: len(store.store) >= 40)
    with pytest.raises(KeyError, match="title") as told:
        populate(store, DOCUMENTS, batch_size=8, on_error="collect")
    assert "while writing 8 documents, 40 to 47 of the input" in told.value.__notes__[0]
    assert len(store.store) == 40


def _chroma(folder: Path, embeddings: Embeddings) -> Chroma:
    return Chroma("notes", embeddings, persist_directory=str(folder))


def _lance(folder: Path, embeddings: Embeddings) -> LanceDB:
    return LanceDB(connection=lancedb.connect(str(folder)), embedding=embeddings)


STORES: dict[str, Callable[[Path, Embeddings], Any]] = {"chroma": _chroma, "lancedb": _lance}


@pytest.mark.parametrize("on_error", ["raise", "collect"])
@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize("kind", ["chroma", "lancedb", "qdrant", "faiss"])
def test_vectors_too_wide_for_the_store_end_the_run(kind: str, count: int, on_error: Any, tmp_path: Path) -> None:
    narrow, wide = DeterministicFakeEmbedding(size=4), DeterministicFakeEmbedding(size=6)
    if kind in STORES:
        populate(STORES[kind](tmp_path, narrow), [Document("before")])
        store = STORES[kind](tmp_path, wide)
    elif kind == "qdrant":
        client = QdrantClient(":memory:")
        client.create_collection("notes", models.VectorParams(size=4, distance=models.Distance.COSINE))
        populate(QdrantVectorStore(client, "notes", embedding=narrow), [Document("before")])
        store = QdrantVectorStore(client, "notes", embedding=wide, validate_collection_config=False)
    else:
        store = FAISS(wide, faiss.IndexFlatL2(4), InMemoryDocstore(), {})
    with pytest.raises((ValueError, AssertionError, chromadb.errors.ChromaError)) as told:
        populate(store, DOCUMENTS[:count], on_error=on_error)
    assert f"{count} documents, 0 to {count - 1} of the input" in told.value.__notes__[0]


def test_ids_and_sources_that_are_not_unicode_are_collected(tmp_path: Path) -> None:
    bad = [Document("x", id="\ud800"), Document("y", metadata={"source": "\udfff"})]
    store = _chroma(tmp_path, DeterministicFakeEmbedding(size=4))
    report = populate(store, [*DOCUMENTS[:8], *bad], on_error="collect", cleanup="source")
    assert (report.added, [failure.position for failure in report.failed]) == (8, [8, 9])
    with pytest.raises(ValueError, match="The id of document 1, .* is not valid Unicode"):
        populate(store, [DOCUMENTS[0], *bad])
