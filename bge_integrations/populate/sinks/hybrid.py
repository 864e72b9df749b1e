"""A sparse index beside a store: one forward gives the vectors for both."""

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
    """A sink with a `SparseIndex` beside it.

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
        """Whether dense vectors get the length 1 in the store."""
        return self.sink.normalises

    def read_fingerprint(self) -> str | None:
        """Return the fingerprint that is kept with the store."""
        return self.sink.read_fingerprint()

    def write_fingerprint(self, fingerprint: str) -> None:
        """Keep a fingerprint with the store."""
        self.sink.write_fingerprint(fingerprint)

    def sample(self, count: int) -> list[Sample]:
        """Return some of what the store holds."""
        return self.sink.sample(count)

    def identify(self, document: Any, position: int) -> Entry:
        """Give a document the store's identity."""
        return self.sink.identify(document, position)

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return what the store holds of `ids`."""
        return self.sink.look_up(ids)

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Insert or replace documents; after a failure the index has none that the store lacks."""
        self.sink.write(entries, embeddings, held)
        self._add(entries, embeddings)

    def complete(self, entries: list[Entry]) -> tuple[int, int]:
        """Add what the index lacks of documents that the store holds; return their number and tokens."""
        lacking = [entry for entry in entries if not self.index.holds(entry.id, entry.text)]
        if not lacking:
            return 0, 0
        embeddings, tokens = self.sparse.submit_documents(texts_of(lacking)).result()
        self._add(lacking, embeddings)
        return len(lacking), tokens

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:
        """Give documents that the store holds other metadata, without embedding them."""
        self.sink.update_metadata(entries, held)

    def pages(self, source: str | None) -> Pages:
        """Return ids and metadata of what the store holds of a source, or of all with None."""
        return self.sink.pages(source)

    def delete(self, ids: list[str]) -> None:
        """Take documents out of both."""
        self.sink.delete(ids)
        self.index.delete(ids)

    def reconcile(self) -> None:
        """Take out of the index what the store lacks, such as what a killed run deleted and never saved."""
        ids = self.index.ids()
        for start in range(0, len(ids), PAGE):
            part = ids[start : start + PAGE]
            held = patiently(lambda part=part: self.sink.look_up(part))  # type: ignore[misc]
            self.index.delete(document_id for document_id in part if document_id not in held)

    def _add(self, entries: list[Entry], embeddings: M3Embeddings) -> None:
        self.index.add([entry.id for entry in entries], embeddings.sparse or [], self.fingerprint, texts_of(entries))
