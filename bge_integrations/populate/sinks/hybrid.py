"""The stores that documents go into: what each holds, and how it takes more."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bge_integrations.embed.collection import find_chroma_collection
from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.embed.pending import Pending
from bge_integrations.embed.replay import Replay, can_replay, replaying
from bge_integrations.embed.sparse_index import SparseIndex
from bge_integrations.populate.identity import Entry
from bge_integrations.types import M3Embeddings

Core = BgeEmbedder | BgeM3Embedder


class VectorStore(Protocol):
    """What is used of a LangChain vector store; any of them with `get_by_ids` will do."""

    @property
    def embeddings(self) -> Any:
        """The store's own embeddings, or None."""

    def get_by_ids(self, ids: Sequence[str], /) -> list[Any]:
        """Return those documents that the store holds."""

    def add_documents(self, documents: list[Any], **kwargs: Any) -> list[str]:
        """Embed documents and insert or replace them."""


@dataclass(frozen=True, slots=True)
class Held:
    """A document as a store holds it."""

    text: str
    metadata: Mapping[str, Any]


class LangChainSink:
    """Any LangChain vector store that answers `get_by_ids`.

    Args:
        store: The store.
        embedder: Computes its vectors; None where the store embeds what it is given: its embeddings are not this
            package's, or it takes vectors from nobody else.

    Attributes:
        max_batch_size: Most documents a write.
        max_writers: Threads that may write at a time.
        takes_metadata_alone: Whether `update_metadata` is there.
        lists: Whether `listed` and `delete` are there.
    """

    lists = False
    max_batch_size = sys.maxsize
    max_writers = 1
    takes_metadata_alone = False

    def __init__(self, store: VectorStore, embedder: Core | None) -> None:
        self.store = store
        self.embedder = embedder

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return what the store holds of `ids`."""
        return {found.id: Held(found.page_content, found.metadata) for found in self.store.get_by_ids(ids)}

    def submit(self, entries: list[Entry]) -> "Pending[Any] | None":
        """Have the vectors of documents computed; None where the store does that."""
        return self.embedder.submit_documents(_texts(entries)) if self.embedder else None

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Insert or replace documents with their embeddings; `held` is what the store has under their ids."""
        if embeddings is None:
            _insert(self.store, entries)
            return
        with replaying(self.store, Replay(_texts(entries), embeddings)) as store:
            _insert(store, entries)

    def complete(self, entries: list[Entry]) -> tuple[int, int]:  # noqa: ARG002 - a store by itself holds all there is
        """Compute what else should be there of documents that the store holds; return the texts and tokens it took."""
        return 0, 0

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:
        """Give documents that the store holds other metadata, without embedding them."""
        raise NotImplementedError

    def listed(self, source: str | None, limit: int, offset: int) -> list[tuple[str, Mapping[str, Any]]]:
        """Return ids and metadata of what the store holds of a source, or of all with None; some at a time."""
        raise NotImplementedError

    def delete(self, ids: list[str]) -> None:
        """Take documents out."""
        raise NotImplementedError


class ChromaSink(LangChainSink):
    """A Chroma collection, by itself or behind LangChain's `Chroma`."""

    lists = True
    max_writers = sys.maxsize
    takes_metadata_alone = True

    def __init__(self, store: VectorStore, embedder: Core | None, collection: Any) -> None:
        super().__init__(store, embedder)
        self.collection = collection
        server = collection._client  # noqa: SLF001 - a collection has no public way to its limits
        self.max_batch_size = int(server.get_max_batch_size())

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return what the collection holds of `ids`."""
        found = self.collection.get(ids=ids, include=["documents", "metadatas"])
        rows = zip(found["ids"], found["documents"], found["metadatas"], strict=True)
        return {document_id: Held(text or "", metadata or {}) for document_id, text, metadata in rows}

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Insert or replace documents with their embeddings, and replace their metadata."""
        texts = _texts(entries)
        if isinstance(embeddings, M3Embeddings):
            embeddings = embeddings.dense
        elif embeddings is None and self.store is not self.collection:
            embeddings = self.store.embeddings.embed_documents(texts)
        self.collection.upsert(
            ids=[entry.id for entry in entries],
            embeddings=embeddings,  # None has the collection's own function compute them
            documents=texts,
            metadatas=[_replacing(entry, held) or None for entry in entries],
        )

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:
        """Replace metadata."""
        self.collection.update(
            ids=[entry.id for entry in entries], metadatas=[_replacing(entry, held) for entry in entries]
        )

    def listed(self, source: str | None, limit: int, offset: int) -> list[tuple[str, Mapping[str, Any]]]:
        """Return ids and metadata of what the collection holds of a source, or of all with None; some at a time."""
        where = None if source is None else {"source": source}
        found = self.collection.get(where=where, limit=limit, offset=offset, include=["metadatas"])
        return [(name, metadata or {}) for name, metadata in zip(found["ids"], found["metadatas"], strict=True)]

    def delete(self, ids: list[str]) -> None:
        """Take documents out."""
        self.collection.delete(ids=ids)


class HybridSink(LangChainSink):
    """A sink with a `SparseIndex` beside it; one forward gives the vectors for both.

    Args:
        sink: Takes texts, metadata and dense vectors.
        index: Takes sparse vectors.
        embedder: The store's own model.

    Raises:
        FingerprintMismatchError: Another model filled the index.
    """

    def __init__(self, sink: LangChainSink, index: SparseIndex, embedder: BgeM3Embedder) -> None:
        super().__init__(sink.store, None)
        self.sink = sink
        self.index = index
        self.both = embedder.with_outputs("dense", "sparse")
        self.sparse = embedder.with_outputs("sparse")
        self.fingerprint = self.sparse.fingerprint
        self.max_batch_size = sink.max_batch_size
        self.max_writers = 1
        self.takes_metadata_alone = sink.takes_metadata_alone
        self.lists = sink.lists
        index.check_fingerprint(self.fingerprint)

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return what the store holds of `ids`."""
        return self.sink.look_up(ids)

    def submit(self, entries: list[Entry]) -> "Pending[Any] | None":
        """Have both vectors of documents computed."""
        return self.both.submit_documents(_texts(entries))

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Insert or replace documents; after a failure the index has none that the store lacks."""
        self.sink.write(entries, embeddings, held)
        self._add(entries, embeddings)

    def complete(self, entries: list[Entry]) -> tuple[int, int]:
        """Add what the index lacks of documents that the store holds; return their number and tokens."""
        lacking = [entry for entry in entries if not self.index.holds(entry.id, entry.document.page_content)]
        if not lacking:
            return 0, 0
        embeddings, tokens = self.sparse.submit_documents(_texts(lacking)).result()
        self._add(lacking, embeddings)
        return len(lacking), tokens

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:
        """Give documents that the store holds other metadata, without embedding them."""
        self.sink.update_metadata(entries, held)

    def listed(self, source: str | None, limit: int, offset: int) -> list[tuple[str, Mapping[str, Any]]]:
        """Return ids and metadata of what the store holds of a source, or of all with None; some at a time."""
        return self.sink.listed(source, limit, offset)

    def delete(self, ids: list[str]) -> None:
        """Take documents out of both."""
        self.sink.delete(ids)
        self.index.delete(ids)

    def _add(self, entries: list[Entry], embeddings: M3Embeddings) -> None:
        self.index.add([entry.id for entry in entries], embeddings.sparse or [], self.fingerprint, _texts(entries))


def _replacing(entry: Entry, held: Mapping[str, Held]) -> dict[str, Any]:
    """The document's metadata, and None, which removes a key, for what else is held: Chroma merges metadata."""
    before = held[entry.id].metadata if entry.id in held else {}
    return {**dict.fromkeys(before), **entry.document.metadata}


def own_embeddings(store: Any) -> Any:
    """The embeddings with which a store answers queries.

    Raises:
        TypeError: It is neither a LangChain vector store nor a Chroma collection.
    """
    collection = find_chroma_collection(store)
    if collection is not None and collection is store:
        return collection._embedding_function  # noqa: SLF001 - a collection has no public way to it
    for method in ("get_by_ids", "add_documents"):
        if not callable(getattr(store, method, None)):
            kind = type(store).__name__
            raise TypeError(f"populate fills LangChain vector stores and Chroma collections; {kind} has no {method}.")
    return store.embeddings


def make_sink(store: VectorStore, embedder: Core | None) -> LangChainSink:
    """Return the sink for a store whose vectors the embedder computes, or, without one, the store itself."""
    collection = find_chroma_collection(store)
    if collection is not None:
        return ChromaSink(store, embedder, collection)
    return LangChainSink(store, embedder if can_replay(store) else None)


def _insert(store: VectorStore, entries: list[Entry]) -> None:
    store.add_documents([entry.document for entry in entries], ids=[entry.id for entry in entries])


def _texts(entries: list[Entry]) -> list[str]:
    return [entry.document.page_content for entry in entries]
