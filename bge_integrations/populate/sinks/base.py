"""What populate asks of any store."""

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
"""Documents listed or deleted at a time."""

Pages = Iterator[list[tuple[str, Mapping[str, Any]]]]
"""Ids and metadata, some at a time."""


class Sink:
    """A store, as far as populate is concerned. Some methods are there only where an attribute says so.

    Args:
        store: The store.
        framework: What its documents are like.
        embedder: Computes its vectors; None where the store does that, because it takes none.

    Attributes:
        max_batch_size: Most documents a write.
        max_writers: Threads that may write at a time.
        takes_metadata_alone: Whether `update_metadata` is there.
        lists: Whether `pages` and `delete` are there.
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
        """Refuse another model than the one that filled the store, and remember the model for `claim`.

        Raises:
            FingerprintMismatchError: Another model filled it.
        """
        self._guard = patiently(lambda: Guard(self, core, force=force))

    def claim(self, written: list[Entry]) -> None:
        """Keep the model's fingerprint with the store, which has taken vectors of these documents.

        Raises:
            FingerprintMismatchError: Another model has filled the store meanwhile; the documents are taken out again.
        """
        if (guard := self._guard) is None or not written:
            return
        try:
            patiently(lambda: guard.claim(self))
        except FingerprintMismatchError as error:
            if self.lists:
                patiently(lambda: self.delete([entry.id for entry in written]))
                error.add_note(
                    f"Two models filled it at once; the {len(written)} documents that this one had written last are "
                    "taken out again. Bring the other model's documents once more, in case some were the same."
                )
            raise

    def settle(self) -> None:
        """At the end of a run, see that the store is still the model's.

        Raises:
            FingerprintMismatchError: Another model has filled the store at the same time.
        """
        if (guard := self._guard) is not None:
            patiently(lambda: guard.settle(self))

    @property
    def normalises(self) -> bool:
        """Whether vectors get the length 1 in the store."""
        return False

    def read_fingerprint(self) -> str | None:
        """Return the fingerprint that is kept with the store."""
        return read_fingerprint(self.store)

    def write_fingerprint(self, fingerprint: str) -> None:
        """Keep a fingerprint with the store."""
        write_fingerprint(self.store, fingerprint)

    def sample(self, count: int) -> list[Sample]:  # noqa: ARG002 - only a store that keeps a fingerprint is asked
        """Return some of what the store holds; nothing where it is empty."""
        return []

    def identify(self, document: Any, position: int) -> Entry:
        """Give a document the identity under which this store keeps it.

        Raises:
            TypeError: It is none.
            ValueError: It has no text.
        """
        return self.framework.identify(document, position)

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return what the store holds of `ids`."""
        raise NotImplementedError

    def submit(self, entries: list[Entry]) -> "Pending | None":
        """Have the vectors of documents computed; None where the store does that."""
        positions = [entry.position for entry in entries]
        return self.embedder.submit_documents(texts_of(entries), positions) if self.embedder else None

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Insert or replace documents with their embeddings; `held` is what the store has under their ids."""
        raise NotImplementedError

    def complete(self, entries: list[Entry]) -> tuple[int, int]:  # noqa: ARG002 - a store by itself holds all there is
        """Compute what else should be there of documents that the store holds; return the texts and tokens it took."""
        return 0, 0

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:
        """Give documents that the store holds other metadata, without embedding them."""
        raise NotImplementedError

    def pages(self, source: str | None) -> Pages:
        """Return ids and metadata of what the store holds of a source, or of all with None."""
        raise NotImplementedError

    def delete(self, ids: list[str]) -> None:
        """Take documents out."""
        raise NotImplementedError

    def reconcile(self) -> None:
        """After a cleanup, take out what stands beside the store and that the store lacks."""


def texts_of(entries: list[Entry]) -> list[str]:
    """What the model reads of documents."""
    return [entry.text for entry in entries]


def dense(embeddings: Any) -> NDArray[np.float32]:
    """Give the dense vectors, float32 (n, dim)."""
    return np.asarray(embeddings.dense if isinstance(embeddings, M3Embeddings) else embeddings, np.float32)


def in_pages(rows: list[tuple[str, Mapping[str, Any]]]) -> Pages:
    """Cut a list into pages."""
    for start in range(0, len(rows), PAGE):
        yield rows[start : start + PAGE]
