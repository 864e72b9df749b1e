"""The documents of a run, and where they are read from: iterables, loaders, asynchronous iterators."""

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from operator import length_hint
from queue import SimpleQueue
from threading import Event
from typing import Any, Protocol

from bge_integrations.stores.kinds import HASH_KEY, SCORE_KEYS, is_a

_DIGEST = re.compile("[0-9a-f]{64}")
_AHEAD = 2
"""How many blocks of an asynchronous source may wait to be read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One document or node to be stored.

    Attributes:
        id: Its own id, or one made from its content.
        document: The object to store; a copy if the content hash was added to its metadata.
        text: The text that the model embeds.
        source: What it was taken from, such as a file; None if that is not known.
        content_hash: The hash to compare with the stored one; None if the id is the hash.
        position: Its place in the input, from 0.
    """

    id: str
    document: Any
    text: str
    source: str | None
    content_hash: str | None
    position: int


def storable(entry: Entry) -> Entry:
    """Return `entry` if any store can keep its id and its source.

    Raises:
        ValueError: The id or the source is not valid Unicode.
    """
    for name, value in (("id", entry.id), ("source", entry.source or "")):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The {name} of document {entry.position}, {value!r:.80}, is not valid Unicode."
            ) from error
    return entry


@dataclass(frozen=True, slots=True)
class Held:
    """A document as the store holds it; its text is None if the store cannot return it."""

    text: str | None
    metadata: Mapping[str, Any]


def content_hash(*content: object) -> str:
    """Hash values that JSON can represent; the hash is the same on every run and machine.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: JSON cannot represent a value.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hashable_metadata(metadata: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return metadata without the content hash that populate stored and without the scores of a search."""
    return {key: value for key, value in metadata.items() if key != HASH_KEY and key not in SCORE_KEYS}


def is_ours(document_id: str, metadata: Mapping[str, Any]) -> bool:
    """Return whether populate has written this document into the store."""
    return bool(metadata.get(HASH_KEY)) or _DIGEST.fullmatch(document_id) is not None


class Loader(Protocol):
    """A document loader of LangChain."""

    def lazy_load(self) -> Iterator[Any]:
        """Load documents one by one."""


class Source:
    """The documents of a run, read one by one until `stop` is set.

    Args:
        documents: An iterable, or a loader of LangChain.

    Attributes:
        stop: Set it to end the reading; iterating then raises `CancelledError`.

    Raises:
        TypeError: `documents` is something else, such as a single document.
    """

    def __init__(self, documents: Iterable[Any] | Loader) -> None:
        self._documents = _iterable(documents)
        self.stop = Event()

    def __iter__(self) -> Iterator[Any]:
        for document in self._documents:
            if self.stop.is_set():
                break
            yield document
        if self.stop.is_set():  # after a normal end, cleanup would delete the unread documents
            raise asyncio.CancelledError

    def __length_hint__(self) -> int:
        return length_hint(self._documents)


class Handover:
    """A queue that hands documents from an event loop to the thread that reads them, a few blocks ahead of it.

    Args:
        documents: An asynchronous iterable.
        size: Documents per block.
    """

    def __init__(self, documents: AsyncIterable[Any], size: int) -> None:
        self._documents = documents
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(_AHEAD)
        self._blocks: SimpleQueue[list[Any] | BaseException | None] = SimpleQueue()

    def __iter__(self) -> Iterator[Any]:
        while (block := self._blocks.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            yield from block
            with suppress(RuntimeError):  # raised if the loop is closed
                self._loop.call_soon_threadsafe(self._room.release)

    async def hand_over(self) -> None:
        """Put all documents into the queue and close their iterator; its error is raised in the reading thread."""
        documents = aiter(self._documents)
        try:
            await self._hand_over(documents)
        except BaseException as error:
            self._blocks.put(error)
            if not isinstance(error, Exception):
                raise
        finally:
            if callable(close := getattr(documents, "aclose", None)):
                await close()

    async def _hand_over(self, documents: AsyncIterator[Any]) -> None:
        block: list[Any] = []
        try:
            async for document in documents:
                block.append(document)
                if len(block) == self._size:
                    await self._room.acquire()
                    self._blocks.put(block)
                    block = []
        finally:
            self._blocks.put(block)
        self._blocks.put(None)


def asynchronous(documents: Any) -> AsyncIterable[Any] | None:
    """Return the documents as an asynchronous iterable; None if they are to be read synchronously.

    A loader is read asynchronously if its class has an `alazy_load` of its own, not only that of `BaseLoader`.
    """
    owner = next((cls for cls in type(documents).__mro__ if "alazy_load" in vars(cls)), None)
    if owner is not None and owner.__name__ != "BaseLoader":
        return documents.alazy_load()  # type: ignore[no-any-return]
    return documents if hasattr(documents, "__aiter__") else None


def _iterable(documents: Any) -> Iterable[Any]:
    kind = type(documents).__name__
    if hasattr(documents, "__aiter__") and not hasattr(documents, "__iter__"):
        raise TypeError(f"{kind} is iterated asynchronously: use `await apopulate(store, documents)`.")
    if isinstance(documents, str | bytes) or is_a(documents, "BaseModel", "BaseNode"):
        raise TypeError(
            f"documents is one {kind} by itself; give an iterable of documents, such as a list: [document]."
        )
    if isinstance(documents, Mapping) or is_a(documents, "DataFrame"):
        raise TypeError(f"documents is a {kind}; give an iterable of documents made of its rows or values.")
    if callable(getattr(documents, "lazy_load", None)) and not isinstance(documents, type):
        return documents.lazy_load()  # type: ignore[no-any-return]
    if isinstance(documents, type) or not (hasattr(documents, "__iter__") or hasattr(documents, "__getitem__")):
        raise TypeError(
            f"documents is {documents!r:.80}; give an iterable of documents, or a loader of LangChain. Call a "
            "function, await a coroutine, and give what the load_data() of a LlamaIndex reader returns."
        )
    return documents  # type: ignore[no-any-return]
