"""populate on its way: overlap, bad documents, refused and interrupted writes, progress."""

import asyncio
import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import httpx
import numpy as np
import pytest
from chromadb import Documents, EmbeddingFunction
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore
from qdrant_client.http.exceptions import UnexpectedResponse

from bge_integrations import ModelCache
from bge_integrations.chroma import BgeEmbeddingFunction
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.populate import PopulateReport, Progress, apopulate, populate, retry
from bge_integrations.stores.fingerprint import read_fingerprint

DOCUMENTS = [Document(f"Text number {n} is about pandas.", metadata={"source": f"{n % 3}.md"}) for n in range(40)]


class Tried(Chroma):
    """A Chroma whose writes a test can hold up or make fail."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.sizes: list[int] = []

        self._upsert = self._collection.upsert
        self._collection.upsert = self._tried  # type: ignore[method-assign]

    def before(self, ids: list[str]) -> None:
        """What a test does before each write."""

    def _tried(self, ids: list[str], **keywords: Any) -> None:
        self.sizes.append(len(ids))
        self.before(ids)
        self._upsert(ids, **keywords)


@pytest.fixture
def store(tmp_path: Path, bert_embedder: Path, cache: ModelCache) -> Tried:
    embeddings = BgeEmbeddings(model=str(bert_embedder), cache=cache)
    return Tried("notes", embedding_function=embeddings, client=chromadb.PersistentClient(str(tmp_path / "store")))


def tokens(cache: ModelCache) -> int:
    """The tokens that have gone through any model."""
    return sum(model["tokens"] for model in cache.stats()["models"])


def counts(report: PopulateReport) -> tuple[int, int, int, int]:
    return report.added, report.updated, report.skipped, len(report.failed)


def test_reading_and_the_model_go_on_while_a_batch_is_written(store: Tried, cache: ModelCache) -> None:
    read_on, first_write = threading.Event(), threading.Event()

    def documents() -> Iterator[Document]:
        for number, document in enumerate(DOCUMENTS):
            if number == 29:  # the third batch is full; the first is in the middle of its write
                read_on.set()
            yield document

    def before(_: list[str]) -> None:
        if not first_write.is_set():
            first_write.set()
            assert read_on.wait(30)

    store.before = before  # type: ignore[method-assign]
    assert counts(populate(store, documents(), batch_size=10, workers=1)) == (40, 0, 0, 0)


def test_two_writers_write_at_a_time(store: Tried) -> None:
    both = threading.Barrier(2)
    store.before = lambda _: both.wait(30) and None  # type: ignore[method-assign]
    assert counts(populate(store, DOCUMENTS, batch_size=10, workers=2)) == (40, 0, 0, 0)


def test_tokens_and_progress(store: Tried, cache: ModelCache) -> None:
    seen: list[Progress] = []
    report = populate(store, DOCUMENTS, batch_size=9, progress=seen.append)
    assert report.tokens == tokens(cache) > 40
    assert [step.documents for step in seen] == [9, 18, 27, 36, 40]
    assert {step.total for step in seen} == {40}
    assert (seen[-1].texts, seen[-1].tokens) == (40, report.tokens)
    assert 0 < seen[0].seconds <= seen[-1].seconds <= report.seconds
    again = populate(store, (document for document in DOCUMENTS), progress=seen.append)
    assert (again.texts, again.tokens) == (0, 0)
    assert seen[-1].total is None


def test_the_same_document_in_batches_under_way(store: Tried, cache: ModelCache) -> None:
    documents = [DOCUMENTS[n % 5] for n in range(40)]
    report = populate(store, documents, batch_size=5)
    assert (counts(report), report.texts) == ((5, 0, 35, 0), 5)


def test_bad_documents_are_collected(store: Tried) -> None:
    bad = [None, Document("x", id="odd", metadata={"when": object()}), "text", Document(" ", id="empty")]
    report = populate(store, [*DOCUMENTS[:3], *bad, *DOCUMENTS[3:]], batch_size=4, on_error="collect")  # type: ignore[list-item]
    assert counts(report) == (40, 0, 0, 4)
    places = [(failure.position, failure.id) for failure in report.failed]
    assert places == [(3, None), (4, "odd"), (5, None), (6, "empty")]
    assert "needs a page_content" in report.failed[0].reason
    assert "metadata of document 4 cannot be hashed" in report.failed[1].reason
    assert "has no text" in report.failed[3].reason


def test_what_the_model_refuses_is_found(tmp_path: Path, bert_embedder: Path, cache: ModelCache) -> None:
    embeddings = BgeEmbeddings(model=str(bert_embedder), max_length=24, on_truncate="raise", cache=cache)
    store = Chroma("notes", embedding_function=embeddings, client=chromadb.PersistentClient(str(tmp_path / "strict")))
    bad = {5: Document("bamboo " * 40, id="long"), 11: Document("a lone \ud800 surrogate", id="surrogate")}
    documents = [bad.get(n, document) for n, document in enumerate(DOCUMENTS)]
    with pytest.raises(ValueError, match="tokens") as told:
        populate(store, documents, batch_size=8)
    assert told.value.__notes__ == ["This is about document 5, id long."]
    report = populate(store, documents, batch_size=8, on_error="collect")
    assert [(failure.position, failure.id) for failure in report.failed] == [(5, "long"), (11, "surrogate")]
    assert "tokens; the limit is 24" in report.failed[0].reason
    assert "not valid Unicode" in report.failed[1].reason
    assert len(store.get()["ids"]) == 38


def test_cut_texts_are_named_by_their_place_in_the_input(store: Tried, bert_embedder: Path, cache: ModelCache) -> None:
    store._embedding_function = BgeEmbeddings(model=str(bert_embedder), max_length=24, cache=cache)
    populate(store, DOCUMENTS[:10])
    with pytest.warns(UserWarning, match=r"cut 2 text\(s\) to 24 tokens \(index 8, 21;"):
        populate(store, [*DOCUMENTS[:8], Document("bamboo " * 40), *DOCUMENTS[8:20], Document("panda " * 40)])


def test_what_the_store_refuses_is_found_without_computing_anything_twice(store: Tried, cache: ModelCache) -> None:
    refused = [Document(f"Refused {n}", metadata={"deep": {"er": n}}) for n in range(2)]
    documents = [*DOCUMENTS[:7], refused[0], *DOCUMENTS[7:30], refused[1]]
    report = populate(store, documents, batch_size=16, on_error="collect")
    assert counts(report) == (30, 0, 0, 2)
    assert [failure.position for failure in report.failed] == [7, 31]
    assert all("metadata" in failure.reason.lower() for failure in report.failed)
    assert report.texts == 32
    assert report.tokens == tokens(cache)
    assert len(store.get()["ids"]) == 30


def test_what_the_store_refuses_is_raised_with_its_place_and_id(store: Tried) -> None:
    with pytest.raises(ValueError, match="metadata") as told:
        populate(store, [*DOCUMENTS[:7], Document("Refused", id="seven", metadata={"deep": {}})])
    assert told.value.__notes__ == ["This is about document 7, id seven."]
    assert len(store.get()["ids"]) == 7


def test_a_batch_that_is_too_large_is_halved(store: Tried, cache: ModelCache) -> None:
    def before(ids: list[str]) -> None:
        if len(ids) > 3:
            raise ValueError(f"Batch size {len(ids)} exceeds maximum batch size 3")

    store.before = before  # type: ignore[method-assign]
    report = populate(store, DOCUMENTS, batch_size=20, workers=1)
    assert (counts(report), report.tokens) == ((40, 0, 0, 0), tokens(cache))
    assert store.sizes[:4] == [20, 10, 5, 2]


def answered(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("PUT", "http://store"))


def test_a_store_that_is_away_for_a_while(store: Tried, cache: ModelCache) -> None:
    errors = [
        ConnectionError("away"),
        TimeoutError("slow"),
        None,
        httpx.ConnectTimeout("slow"),
        None,
        httpx.HTTPStatusError("busy", request=httpx.Request("PUT", "http://store"), response=answered(503)),
        None,
        UnexpectedResponse.for_response(answered(429)),
        chromadb.errors.RateLimitError("too fast"),
    ]  # None lets one write in
    away = iter(errors)

    def before(_: list[str]) -> None:
        if error := next(away, None):
            raise error

    store.before = before  # type: ignore[method-assign]
    report = populate(store, DOCUMENTS, batch_size=10, workers=1)
    assert (counts(report), report.tokens) == ((40, 0, 0, 0), tokens(cache))
    assert store.sizes == [10] * (4 + len(errors) - errors.count(None))


def test_a_server_in_trouble_gets_no_halves(store: Tried) -> None:
    def before(_: list[str]) -> None:
        raise UnexpectedResponse.for_response(answered(500))

    store.before = before  # type: ignore[method-assign]
    with pytest.raises(UnexpectedResponse, match="500") as caught:
        populate(store, DOCUMENTS, batch_size=10, workers=1, on_error="collect")
    assert set(store.sizes) == {10}
    assert "while writing 10 documents" in caught.value.__notes__[0]


def test_a_store_that_stays_away(store: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    def before(_: list[str]) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr(retry, "SECONDS", 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(store, "before", before)
        for on_error in ("raise", "collect"):
            with pytest.raises(ConnectionError, match="away"):
                populate(store, DOCUMENTS, batch_size=10, on_error=on_error)  # type: ignore[arg-type]
    assert counts(populate(store, DOCUMENTS)) == (40, 0, 0, 0)


def test_an_interrupt_ends_the_call_and_the_next_one_resumes(store: Tried) -> None:
    def documents() -> Iterator[Document]:
        yield from DOCUMENTS[:25]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        populate(store, documents(), batch_size=5)
    held = len(store.get()["ids"])
    assert held % 5 == 0
    assert held <= 25
    assert counts(populate(store, DOCUMENTS)) == (40 - held, 0, held, 0)


def test_a_store_with_one_writer_at_a_time(bert_embedder: Path, cache: ModelCache) -> None:
    store = InMemoryVectorStore(BgeEmbeddings(model=str(bert_embedder), cache=cache))
    report = populate(store, DOCUMENTS, batch_size=3, workers=4)
    assert (counts(report), report.tokens) == ((40, 0, 0, 0), tokens(cache))
    assert len(store.store) == 40


async def test_off_the_event_loop(store: Tried) -> None:
    seen: list[Progress] = []
    report = await apopulate(store, DOCUMENTS, batch_size=10, progress=seen.append)
    assert counts(report) == (40, 0, 0, 0)
    assert [(step.documents, step.total) for step in seen] == [(10, 40), (20, 40), (30, 40), (40, 40)]
    with pytest.raises(TypeError, match="Document 0 is None"):
        await apopulate(store, [None])  # type: ignore[list-item]


async def test_a_cancelled_call_reads_no_further(store: Tried) -> None:
    read, cancelled, ended = threading.Event(), threading.Event(), threading.Event()

    def documents() -> Iterator[Document]:
        try:
            yield from DOCUMENTS[:15]
            read.set()
            assert cancelled.wait(30)
            yield from DOCUMENTS[15:]
        finally:
            ended.set()

    filling = asyncio.ensure_future(apopulate(store, documents(), batch_size=5))
    await asyncio.to_thread(read.wait, 30)
    filling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await filling
    cancelled.set()
    assert await asyncio.to_thread(ended.wait, 30)
    assert counts(await apopulate(store, DOCUMENTS[15:])) == (25, 0, 0, 0)


class Closed(InMemoryVectorStore):
    """A store whose embeddings nobody can put others in the place of."""

    def __init__(self, embedding: Embeddings) -> None:
        super().__init__(embedding)
        self.embedding = Wrapped(embedding)  # type: ignore[assignment]
        self.own = embedding

    @property
    def embeddings(self) -> Embeddings:
        return copy.copy(self.own)


class Wrapped:
    """Embeddings behind something else."""

    def __init__(self, inner: Embeddings) -> None:
        self.embed_documents, self.embed_query = inner.embed_documents, inner.embed_query


def test_a_store_that_takes_no_vectors_embeds_by_itself(bert_embedder: Path, cache: ModelCache) -> None:
    store = Closed(BgeEmbeddings(model=str(bert_embedder), cache=cache))
    report = populate(store, DOCUMENTS, batch_size=9)
    assert (counts(report), report.texts, report.tokens) == ((40, 0, 0, 0), 40, 0)
    assert len(store.store) == 40
    assert counts(populate(store, DOCUMENTS)) == (0, 0, 40, 0)


@pytest.mark.filterwarnings("ignore:legacy embedding function config:DeprecationWarning")
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_a_collection_by_itself(kind: str, tmp_path: Path, bert_embedder: Path, cache: ModelCache) -> None:
    ours = BgeEmbeddingFunction(str(bert_embedder), cache=cache)
    function: Any = ours if kind == "ours" else Letters()
    client = chromadb.PersistentClient(str(tmp_path / "store"))
    collection = client.create_collection("bare", embedding_function=function)
    report = populate(collection, DOCUMENTS, batch_size=9)
    assert (counts(report), report.texts, report.tokens) == ((40, 0, 0, 0), 40, tokens(cache))
    assert (read_fingerprint(collection) == ours.embedder.fingerprint) == (kind == "ours")
    assert counts(populate(collection, DOCUMENTS)) == (0, 0, 40, 0)
    kept = collection.get(include=["documents", "embeddings"])
    np.testing.assert_allclose(kept["embeddings"], function(kept["documents"]), atol=1e-6)
    changed = [Document("another text", id="own", metadata={"page": n}) for n in range(2)]
    assert [counts(populate(collection, [document], cleanup="source"))[:2] for document in changed] == [(1, 0), (0, 1)]


class Letters(EmbeddingFunction[Documents]):
    """Somebody else's function: two numbers of a text."""

    def __init__(self) -> None:
        pass

    def __call__(self, input: Documents) -> Any:  # noqa: A002 - Chroma's name
        return [np.array([len(text), text.count("a")], dtype=np.float32) for text in input]
