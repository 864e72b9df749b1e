"""A sparse index beside a store: one forward pass of the model gives the vectors for both."""

from collections.abc import Mapping
from typing import Any

from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.populate.documents import Entry, Held
from bge_integrations.populate.retry import patiently
from bge_integrations.populate.sinks.base import PAGE, Pages, Sink, texts_of
from bge_integrations.populate.sinks.guard import Sample
from bge_integrations.stores.sparse_index import SparseIndex
from bge_integrations.types import M3Embeddings


class HybridSink(Sink):
    """A sink that fills a `SparseIndex` along with the store.

    Args:
        sink: Takes texts, metadata and dense vectors.
        index: Takes sparse vectors.
        embedder: The store's own model.

    Raises:
        FingerprintMismatchError: Another model filled the index.
    """

    def __init__(self, sink: Sink, index: SparseIndex, embedder: BgeM3Embedder) -> None:
        super().__init__(sink.store, sink.framework, embedder.with_outputs("dense", "sparse"))
        self.sink = sink
        self.index = index
        self.sparse = embedder.with_outputs("sparse")
        self.fingerprint = self.sparse.fingerprint
        self.max_batch_size = sink.max_batch_size
        self.takes_metadata_alone = sink.takes_metadata_alone
        self.lists = sink.lists
        index.check_fingerprint(self.fingerprint)

    @property
    def normalises(self) -> bool:
        """Whether the store scales dense vectors to length 1."""
        return self.sink.normalises

    def read_fingerprint(self) -> str | None:
        """Return the fingerprint that is kept with the store; None if there is none."""
        return self.sink.read_fingerprint()

    def write_fingerprint(self, fingerprint: str) -> None:
        """Write a fingerprint to the store."""
        self.sink.write_fingerprint(fingerprint)

    def sample(self, count: int) -> list[Sample]:
        """Return up to `count` stored documents with their dense vectors."""
        return self.sink.sample(count)

    def identify(self, document: Any, position: int) -> Entry:
        """Read a document into an `Entry`, with the id under which the store keeps it."""
        return self.sink.identify(document, position)

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return the documents that the store holds under these ids; ids that it lacks are left out."""
        return self.sink.look_up(ids)

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Write documents to the store and then to the index, so that a failure leaves none in the index alone."""
        self.sink.write(entries, embeddings, held)
        self._add(entries, embeddings)

    def complete(self, entries: list[Entry]) -> tuple[int, int]:
        """Add the stored documents that the index lacks; return their number and their tokens."""
        lacking = [entry for entry in entries if not self.index.holds(entry.id, entry.text)]
        if not lacking:
            return 0, 0
        embeddings, tokens = self.sparse.submit_documents(texts_of(lacking)).result()
        self._add(lacking, embeddings)
        return len(lacking), tokens

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:
        """Replace the metadata of stored documents without embedding them again."""
        self.sink.update_metadata(entries, held)

    def pages(self, source: str | None) -> Pages:
        """Return the ids and metadata of the stored documents of a source, or of all if it is None."""
        return self.sink.pages(source)

    def delete(self, ids: list[str]) -> None:
        """Delete documents from the store and from the index."""
        self.sink.delete(ids)
        self.index.delete(ids)

    def reconcile(self) -> None:
        """Delete from the index what the store lacks: a killed run may have deleted it without saving the index."""
        ids = self.index.ids()
        for start in range(0, len(ids), PAGE):
            part = ids[start : start + PAGE]
            held = patiently(lambda part=part: self.sink.look_up(part))  # type: ignore[misc]
            self.index.delete(document_id for document_id in part if document_id not in held)

    def _add(self, entries: list[Entry], embeddings: M3Embeddings) -> None:
        self.index.add([entry.id for entry in entries], embeddings.sparse or [], self.fingerprint, texts_of(entries))
