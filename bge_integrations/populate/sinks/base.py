"""The base class of the sinks: the operations that populate needs of any store."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.errors import FingerprintMismatchError
from bge_integrations.populate.documents import Entry, Held
from bge_integrations.populate.embedders import Core, Embedder, Pending
from bge_integrations.populate.framework import Framework
from bge_integrations.populate.retry import patiently
from bge_integrations.populate.sinks.guard import Guard, Sample
from bge_integrations.stores.fingerprint import read_fingerprint, write_fingerprint
from bge_integrations.types import M3Embeddings

PAGE = 1000
"""How many documents are listed or deleted at a time."""

Pages = Iterator[list[tuple[str, Mapping[str, Any]]]]
"""Ids and metadata of stored documents, one page at a time."""


class Sink:
    """A store as populate sees it. The attributes say which of the optional methods it has.

    Args:
        store: The store.
        framework: Knows how its documents are identified and stored.
        embedder: Computes its vectors; None if the store takes no vectors and computes them itself.

    Attributes:
        max_batch_size: The most documents that one write may have.
        max_writers: The most threads that may write at the same time.
        takes_metadata_alone: Whether it has `update_metadata`.
        lists: Whether it has `pages` and `delete`.
    """

    max_batch_size = sys.maxsize
    max_writers = 1
    takes_metadata_alone = False
    lists = False

    def __init__(self, store: Any, framework: Framework, embedder: Embedder | None) -> None:
        self.store = store
        self.framework = framework
        self.embedder = embedder
        self._guard: Guard | None = None

    def guard(self, core: Core, *, force: bool) -> None:
        """Refuse a store that another model filled; otherwise remember the model for `claim`.

        Raises:
            FingerprintMismatchError: Another model filled the store.
        """
        self._guard = patiently(lambda: Guard(self, core, force=force))

    def claim(self, written: list[Entry]) -> None:
        """Write the model's fingerprint to the store, which has taken vectors of these documents.

        Raises:
            FingerprintMismatchError: Another model has filled the store meanwhile; if the store can delete, the
                documents are deleted again.
        """
        if (guard := self._guard) is None or not written:
            return
        try:
            patiently(lambda: guard.claim(self))
        except FingerprintMismatchError as error:
            if self.lists:
                patiently(lambda: self.delete([entry.id for entry in written]))
                error.add_note(
                    f"Two models filled the store at once; the {len(written)} documents that this run wrote last are "
                    "deleted again. Run populate with the other model once more, in case it had written some of them."
                )
            raise

    def settle(self) -> None:
        """Check at the end of a run that the store still belongs to the model.

        Raises:
            FingerprintMismatchError: Another model has filled the store at the same time.
        """
        if (guard := self._guard) is not None:
            patiently(lambda: guard.settle(self))

    @property
    def normalises(self) -> bool:
        """Whether the store scales vectors to length 1."""
        return False

    def read_fingerprint(self) -> str | None:
        """Return the fingerprint that is kept with the store; None if there is none."""
        return read_fingerprint(self.store)

    def write_fingerprint(self, fingerprint: str) -> None:
        """Write a fingerprint to the store."""
        write_fingerprint(self.store, fingerprint)

    def sample(self, count: int) -> list[Sample]:  # noqa: ARG002 - only a store that keeps a fingerprint is asked
        """Return up to `count` stored documents with their vectors; [] if the store is empty."""
        return []

    def identify(self, document: Any, position: int) -> Entry:
        """Read a document into an `Entry`, with the id under which this store keeps it.

        Raises:
            TypeError: It is not a document, or its metadata cannot be hashed.
            ValueError: It has no text.
        """
        return self.framework.identify(document, position)

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return the documents that the store holds under these ids; ids that it lacks are left out."""
        raise NotImplementedError

    def submit(self, entries: list[Entry]) -> "Pending | None":
        """Start to embed documents; return None if the store embeds them itself."""
        positions = [entry.position for entry in entries]
        return self.embedder.submit_documents(texts_of(entries), positions) if self.embedder else None

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Insert or replace documents with their embeddings; `held` has the stored ones by id."""
        raise NotImplementedError

    def complete(self, entries: list[Entry]) -> tuple[int, int]:  # noqa: ARG002 - a store alone lacks nothing
        """Embed what is missing beside stored documents; return the number of texts and of tokens."""
        return 0, 0

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:
        """Replace the metadata of stored documents without embedding them again."""
        raise NotImplementedError

    def pages(self, source: str | None) -> Pages:
        """Return the ids and metadata of the stored documents of a source, or of all if it is None."""
        raise NotImplementedError

    def delete(self, ids: list[str]) -> None:
        """Delete the documents with these ids."""
        raise NotImplementedError

    def reconcile(self) -> None:
        """Delete, after a cleanup, what is kept beside the store for documents that the store lacks."""


def texts_of(entries: list[Entry]) -> list[str]:
    """Return the texts that the model embeds, one per document."""
    return [entry.text for entry in entries]


def dense(embeddings: Any) -> NDArray[np.float32]:
    """Return the dense vectors, float32 (n, dim)."""
    return np.asarray(embeddings.dense if isinstance(embeddings, M3Embeddings) else embeddings, np.float32)


def in_pages(rows: list[tuple[str, Mapping[str, Any]]]) -> Pages:
    """Yield the rows in pages of at most `PAGE`."""
    for start in range(0, len(rows), PAGE):
        yield rows[start : start + PAGE]
