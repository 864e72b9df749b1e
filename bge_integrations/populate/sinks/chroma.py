"""The sink for Chroma collections, alone or behind LangChain's `Chroma` or LlamaIndex's `ChromaVectorStore`."""

import sys
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from bge_integrations.populate.documents import Entry, Held
from bge_integrations.populate.embedders import Embedder
from bge_integrations.populate.framework import Framework
from bge_integrations.populate.retry import is_away, patiently
from bge_integrations.populate.sinks.base import PAGE, Pages, Sink, dense
from bge_integrations.populate.sinks.guard import Sample
from bge_integrations.stores.kinds import is_a


class ChromaSink(Sink):
    """The sink for a Chroma collection; `stores/fingerprint.py` says where it keeps the fingerprint."""

    max_writers = sys.maxsize
    takes_metadata_alone = True
    lists = True

    def __init__(self, store: Any, framework: Framework, embedder: Embedder | None, collection: Any) -> None:
        super().__init__(store, framework, embedder)
        server = collection._client  # noqa: SLF001 - a collection has no public way to its limits
        self.max_batch_size = int(server.get_max_batch_size())
        self.collection = copy(collection)
        if is_a(server, "RustBindingsAPI"):
            self.collection._client = _Turns(server)  # noqa: SLF001

    def sample(self, count: int) -> list[Sample]:
        """Return up to `count` documents of the collection with their vectors.

        Raises:
            TimeoutError: Others are writing them, and Chroma returns documents whose vectors it lacks.
        """
        found = self.collection.get(limit=count, include=["documents", "metadatas", "embeddings"])
        if len(found["embeddings"]) < len(found["ids"]):
            raise TimeoutError(f"Chroma's collection {self.collection.name} lacks the vectors of some documents.")
        rows = zip(found["ids"], found["documents"], found["metadatas"], found["embeddings"], strict=True)
        return [
            Sample(name, self.framework.held(text, metadata or {}).text if text else None, np.asarray(vector))
            for name, text, metadata, vector in rows
        ]

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return the documents that the collection holds under these ids; ids that it lacks are left out."""
        found = self.collection.get(ids=ids, include=["documents", "metadatas"])
        rows = zip(found["ids"], found["documents"], found["metadatas"], strict=True)
        return {name: self.framework.held(text or "", metadata or {}) for name, text, metadata in rows}

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Insert or replace documents with their embeddings, and replace their metadata."""
        rows = [self.framework.row(entry) for entry in entries]
        self.collection.upsert(
            ids=[entry.id for entry in entries],
            embeddings=dense(embeddings),
            documents=[text for text, _ in rows],
            metadatas=[
                _replacing(metadata, held.get(entry.id)) or None
                for entry, (_, metadata) in zip(entries, rows, strict=True)
            ],
        )

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:
        """Replace the metadata of stored documents."""
        metadatas = [_replacing(self.framework.row(entry)[1], held.get(entry.id)) for entry in entries]
        self.collection.update(ids=[entry.id for entry in entries], metadatas=metadatas)

    def pages(self, source: str | None) -> Pages:
        """Return the ids and metadata of the stored documents of a source, or of all if it is None."""
        where = self._of(source) if source is not None else None
        offset = 0
        while ids := (found := self._page(where, offset))["ids"]:
            offset += len(ids)
            yield [(name, metadata or {}) for name, metadata in zip(ids, found["metadatas"], strict=True)]

    def delete(self, ids: list[str]) -> None:
        """Delete the documents with these ids."""
        self.collection.delete(ids=ids)

    def _of(self, source: str) -> dict[str, Any]:
        alternatives = [{key: source} for key in self.framework.source_keys]
        return {"$or": alternatives} if len(alternatives) > 1 else alternatives[0]

    def _page(self, where: dict[str, Any] | None, offset: int) -> Any:
        return patiently(lambda: self.collection.get(where=where, limit=PAGE, offset=offset, include=["metadatas"]))


class _Turns:
    """A proxy for a Chroma in this process: one thread calls it at a time, and none after an internal error.

    Chroma holds the GIL while it writes, so taking turns costs next to nothing. When its disk is full, one of its next
    calls waits for ever with the GIL held (seen with 1.5.9).
    """

    def __init__(self, server: Any) -> None:
        self._server = server
        self._turn = Lock()
        self._failure: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, getattr(self._server, name))

    def _call(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self._turn:
            if self._failure:
                raise self._failure
            try:
                return operation(*args, **kwargs)
            except Exception as error:
                if is_a(error, "InternalError") and not is_away(error):
                    error.add_note(
                        "Chroma may hang if this process calls it again: fix the cause and start a new process."
                    )
                    self._failure = error
                raise


def _replacing(metadata: dict[str, Any], before: Held | None) -> dict[str, Any]:
    """Return the metadata with None, which removes a key, for all other stored keys, as Chroma merges metadata."""
    return {**dict.fromkeys(before.metadata if before else ()), **metadata}
