"""The stores that documents go into: what each holds, and how it takes more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bge_integrations.embed.collection import find_chroma_collection
from bge_integrations.populate.identity import Entry


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
    """Any LangChain vector store that answers `get_by_ids`; it embeds what it is given.

    Attributes:
        max_batch_size: Most documents a write; None for no limit.
        takes_metadata_alone: Whether `update_metadata` is there.
    """

    max_batch_size: int | None = None
    takes_metadata_alone = False

    def __init__(self, store: VectorStore) -> None:
        self.store = store

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return what the store holds of `ids`."""
        return {found.id: Held(found.page_content, found.metadata) for found in self.store.get_by_ids(ids)}

    def write(self, entries: list[Entry]) -> None:
        """Embed and insert or replace documents."""
        self.store.add_documents([entry.document for entry in entries], ids=[entry.id for entry in entries])

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:
        """Give documents that the store holds other metadata, without embedding them."""
        raise NotImplementedError


class ChromaSink(LangChainSink):
    """LangChain's `Chroma`."""

    takes_metadata_alone = True

    def __init__(self, store: VectorStore, collection: Any) -> None:
        super().__init__(store)
        self.collection = collection
        server = collection._client  # noqa: SLF001 - a collection has no public way to its limits
        self.max_batch_size = int(server.get_max_batch_size())

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return what the collection holds of `ids`; its own `get_by_ids` fails on documents without metadata."""
        found = self.collection.get(ids=ids, include=["documents", "metadatas"])
        rows = zip(found["ids"], found["documents"], found["metadatas"], strict=True)
        return {document_id: Held(text, metadata or {}) for document_id, text, metadata in rows}

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:
        """Replace metadata. Chroma merges them, and None removes a key."""
        self.collection.update(
            ids=[entry.id for entry in entries],
            metadatas=[{**dict.fromkeys(held[entry.id].metadata), **entry.document.metadata} for entry in entries],
        )


def make_sink(store: VectorStore) -> LangChainSink:
    """Return the sink for a store.

    Raises:
        TypeError: The store is no LangChain vector store.
    """
    for method in ("get_by_ids", "add_documents"):
        if not callable(getattr(store, method, None)):
            raise TypeError(f"populate needs a LangChain vector store; {type(store).__name__} has no {method}.")
    collection = find_chroma_collection(store)
    return LangChainSink(store) if collection is None else ChromaSink(store, collection)
