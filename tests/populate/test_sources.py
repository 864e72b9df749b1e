"""Where documents come from: what LangChain's index() takes, and clear words for the rest."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pandas as pd
import pytest
from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core.schema import TextNode

from bge_integrations.populate import apopulate, populate

DOCUMENTS = [Document(f"Text {n}", metadata={"source": "a.md"}) for n in range(40)]


class Lazy(BaseLoader):
    def lazy_load(self) -> Iterator[Document]:
        yield from DOCUMENTS


class Whole(BaseLoader):
    def load(self) -> list[Document]:
        return list(DOCUMENTS)


class Asynchronous(BaseLoader):
    """A loader that loads on the event loop only."""

    async def alazy_load(self) -> AsyncIterator[Document]:
        for document in DOCUMENTS:
            await asyncio.sleep(0)
            yield document


class Anew:
    """What is iterated asynchronously, again and again, and has nothing to close."""

    def __aiter__(self) -> AsyncIterator[Document]:
        self.reader = iter(DOCUMENTS)
        return self  # type: ignore[return-value]

    async def __anext__(self) -> Document:
        try:
            return next(self.reader)
        except StopIteration:
            raise StopAsyncIteration from None


@pytest.fixture
def store() -> InMemoryVectorStore:
    return InMemoryVectorStore(DeterministicFakeEmbedding(size=4))


SOURCES: dict[str, Any] = {
    "list": lambda: DOCUMENTS,
    "tuple": lambda: tuple(DOCUMENTS),
    "iterator": lambda: iter(DOCUMENTS),
    "generator": lambda: (document for document in DOCUMENTS),
    "loader": Lazy,
    "loader of all": Whole,
}
ASYNCHRONOUS: dict[str, Any] = {
    "asynchronous loader": Asynchronous,
    "alazy_load": lambda: Lazy().alazy_load(),
    "asynchronous generator": lambda: Asynchronous().alazy_load(),
    "asynchronous iterable": Anew,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_sources(kind: str, store: InMemoryVectorStore) -> None:
    assert populate(store, SOURCES[kind](), batch_size=7).added == 40
    assert len(store.store) == 40


@pytest.mark.parametrize("kind", SOURCES | ASYNCHRONOUS)
async def test_sources_off_the_event_loop(kind: str, store: InMemoryVectorStore) -> None:
    make = (SOURCES | ASYNCHRONOUS)[kind]
    assert (await apopulate(store, make(), batch_size=7)).added == 40
    assert (await apopulate(store, make(), cleanup="full")).skipped == 40
    assert len(store.store) == 40


WRONG: dict[str, Any] = {
    "one Document by itself; .* such as a list": DOCUMENTS[0],
    "one TextNode by itself": TextNode(text="a"),
    "one str by itself": "a text",
    "one bytes by itself": b"a text",
    "is a dict; .* made of its rows or values": {"a": DOCUMENTS[0]},
    "is a DataFrame; .* made of its rows or values": pd.DataFrame({"text": ["a"]}),
    "documents is None; .* an iterable of documents": None,
    "documents is 3": 3,
    "documents is <class .*Lazy": Lazy,
    "Call a function": Lazy().lazy_load,
}


@pytest.mark.parametrize("message", WRONG)
async def test_what_is_no_source_is_refused_by_name(message: str, store: InMemoryVectorStore) -> None:
    with pytest.raises(TypeError, match=message):
        populate(store, WRONG[message])
    with pytest.raises(TypeError, match=message):
        await apopulate(store, WRONG[message])


def test_what_only_an_event_loop_reads_is_refused_by_name(store: InMemoryVectorStore) -> None:
    with pytest.raises(TypeError, match="use `await apopulate"):
        populate(store, Asynchronous().alazy_load())
    with pytest.raises(TypeError, match="use `await apopulate"):
        populate(store, Anew())


class Traced:
    """An asynchronous source that tells how far it was read, and whether it was closed by the task that read it."""

    def __init__(self, store: InMemoryVectorStore, fails_at: int = -1) -> None:
        self.store, self.fails_at = store, fails_at
        self.ahead: list[int] = []
        self.closed = asyncio.Event()

    async def documents(self) -> AsyncIterator[Document]:
        task = asyncio.current_task()
        try:
            async with asyncio.timeout(60):  # must be left in the task that entered it
                for read in range(1000):
                    if read == self.fails_at:
                        raise ConnectionError("the source went away")
                    self.ahead.append(read - len(self.store.store))
                    yield Document(f"Text {read}")
        finally:
            assert asyncio.current_task() is task
            self.closed.set()


async def test_an_asynchronous_source_is_read_a_few_batches_ahead(store: InMemoryVectorStore) -> None:
    source = Traced(store)
    assert (await apopulate(store, source.documents(), batch_size=5, workers=1)).added == 1000
    assert max(source.ahead) <= 5 * (1 + 2 + 1 + 2 + 1)
    assert source.closed.is_set()


async def test_an_error_of_an_asynchronous_source_arrives(store: InMemoryVectorStore) -> None:
    source = Traced(store, fails_at=17)
    with pytest.raises(ConnectionError, match="the source went away"):
        await apopulate(store, source.documents(), batch_size=5)
    assert source.closed.is_set()
    assert len(store.store) == 15


async def test_an_error_of_the_run_closes_an_asynchronous_source() -> None:
    closed = asyncio.Event()

    async def documents() -> AsyncIterator[Any]:
        try:
            for _ in range(4):
                yield None
            await asyncio.sleep(60)
        finally:
            closed.set()

    with pytest.raises(TypeError, match="Document 0 is None"):
        await asyncio.wait_for(
            apopulate(InMemoryVectorStore(DeterministicFakeEmbedding(size=4)), documents(), batch_size=2), 30
        )
    assert closed.is_set()


async def test_cancelling_closes_an_asynchronous_source_and_cleans_nothing_up(store: InMemoryVectorStore) -> None:
    await apopulate(store, DOCUMENTS)
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def documents() -> AsyncIterator[Document]:
        try:
            yield DOCUMENTS[0]
            waiting.set()
            await asyncio.sleep(60)
        finally:
            closed.set()

    filling = asyncio.ensure_future(apopulate(store, documents(), cleanup="full"))
    await waiting.wait()
    threads = [thread for thread in threading.enumerate() if "populate" in thread.name]
    filling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await filling
    assert closed.is_set()
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
    assert len(store.store) == 40


async def test_the_event_loop_goes_on_meanwhile(store: InMemoryVectorStore) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    await apopulate(store, Asynchronous(), batch_size=5)
    ticking.cancel()
    assert ticks > 10
