"""The fingerprint of the model that filled a collection, and where each kind of store keeps it.

Two models of one dimension fit into one collection without any error, and every search is then wrong. The guard is one
string, written once a collection has taken vectors and checked when it is filled again or read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from bge_integrations.errors import FingerprintMismatchError
from bge_integrations.stores.kinds import find_chroma_collection, is_a, open_lance_table

METADATA_KEY = "bge_integrations:fingerprint"

_LEGACY_SPACE_KEY = "hnsw:space"


def read_fingerprint(store: object) -> str | None:
    """Return the fingerprint of the model that filled a store.

    Args:
        store: A Chroma collection, or a vector store of LangChain or LlamaIndex over Chroma, Qdrant, LanceDB, FAISS or
            memory, or a `VectorStoreIndex`. A durable store is asked anew at each call.

    Returns:
        The fingerprint; None where none was written or the store has no place for one.
    """
    place = find_place(store)
    fingerprint = place.read() if place else None
    return fingerprint if isinstance(fingerprint, str) else None


def write_fingerprint(store: object, fingerprint: str) -> None:
    """Write a fingerprint into a store; every other metadata key and the distance function stay.

    Args:
        store: As in `read_fingerprint`; a store that has no place for a fingerprint is not changed.
        fingerprint: `BgeEmbedder.fingerprint` of the model that fills the store.
    """
    place = find_place(store)
    if place and place.read() != fingerprint:
        place.write(fingerprint)


def check_fingerprint(store: object, fingerprint: str, force: bool = False) -> None:
    """Refuse a store that another model has filled.

    Args:
        store: As in `read_fingerprint`.
        fingerprint: `BgeEmbedder.fingerprint` of the model that is about to fill or read the store.
        force: Accept another model's store.

    Raises:
        FingerprintMismatchError: Another model filled the store; the message has both fingerprints.
    """
    if not force:
        refuse_another(read_fingerprint(store), fingerprint)


def refuse_another(stored: str | None, fingerprint: str) -> None:
    """Refuse a store's fingerprint that differs from the model's; None, where it is not known, passes.

    Raises:
        FingerprintMismatchError: The two differ; the message has both fingerprints.
    """
    if stored is not None and stored != fingerprint:
        raise FingerprintMismatchError(
            f"This collection was filled by a model with the fingerprint {stored}; the model given has {fingerprint}. "
            "Vectors of two models cannot be compared: use the model that filled it, or fill a new collection."
        )


class Place(Protocol):
    """A place for one string, as durable as the store itself."""

    def read(self) -> object:
        """Return the string that the store holds now; None where there is none."""

    def write(self, fingerprint: str) -> None:
        """Write a fingerprint; nothing happens while the store has no collection or table yet."""


@dataclass(frozen=True, slots=True)
class ChromaPlace:
    """A Chroma collection's metadata; every other key and the distance function stay."""

    collection: Any

    def read(self) -> object:
        """Return the fingerprint; None where there is none."""
        return self._metadata().get(METADATA_KEY)

    def write(self, fingerprint: str) -> None:
        """Write a fingerprint."""
        metadata = {**self._metadata(), METADATA_KEY: fingerprint}
        if _LEGACY_SPACE_KEY not in metadata:
            self.collection.modify(metadata=metadata)
            return
        # `modify` replaces all metadata and yet refuses this key, even unchanged; the server itself takes it.
        where = {"tenant": self.collection.tenant, "database": self.collection.database}
        self.collection._client._modify(id=self.collection.id, new_metadata=metadata, **where)  # noqa: SLF001
        self.collection._update_model_after_modify_success(None, metadata, None)  # noqa: SLF001

    def _metadata(self) -> dict[str, Any]:
        server = self.collection._client  # noqa: SLF001 - the object's own copy of the metadata may be old
        where = {"tenant": self.collection.tenant, "database": self.collection.database}
        return dict(server.get_collection_by_id(self.collection.id, **where)["metadata"] or {})


@dataclass(frozen=True, slots=True)
class QdrantPlace:
    """A Qdrant collection's metadata, which servers have since 1.16."""

    client: Any
    name: str

    def read(self) -> object:
        """Return the fingerprint; None where there is none."""
        return self._metadata().get(METADATA_KEY) if self.client.collection_exists(self.name) else None

    def write(self, fingerprint: str) -> None:
        """Write a fingerprint."""
        if self.client.collection_exists(self.name):
            self.client.update_collection(self.name, metadata={**self._metadata(), METADATA_KEY: fingerprint})

    def _metadata(self) -> dict[str, Any]:
        return self.client.get_collection(self.name).config.metadata or {}


@dataclass(frozen=True, slots=True)
class LancePlace:
    """The metadata of the column of ids in a LanceDB table."""

    open_table: Callable[[], Any]
    column: str

    def read(self) -> object:
        """Return the fingerprint; None where there is none."""
        table = self.open_table()
        metadata = table.schema.field(self.column).metadata if table is not None else None
        fingerprint = (metadata or {}).get(METADATA_KEY.encode())
        return fingerprint.decode() if fingerprint else None

    def write(self, fingerprint: str) -> None:
        """Write a fingerprint."""
        if (table := self.open_table()) is not None:
            table.update_field_metadata({"path": self.column, "metadata": {METADATA_KEY: fingerprint}})


@dataclass(frozen=True, slots=True)
class SimplePlace:
    """An entry among the node metadata of LlamaIndex's `SimpleVectorStore`, which is saved with the others."""

    store: Any

    def read(self) -> object:
        """Return the fingerprint; None where there is none."""
        return self.store.data.metadata_dict.get(METADATA_KEY, {}).get(METADATA_KEY)

    def write(self, fingerprint: str) -> None:
        """Write a fingerprint."""
        self.store.data.metadata_dict[METADATA_KEY] = {METADATA_KEY: fingerprint}


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """An attribute of a store that lives in memory; the attribute is not saved with the store."""

    store: Any

    def read(self) -> object:
        """Return the fingerprint; None where there is none."""
        return vars(self.store).get(METADATA_KEY)

    def write(self, fingerprint: str) -> None:
        """Write a fingerprint."""
        vars(self.store)[METADATA_KEY] = fingerprint


def find_place(store: object) -> Place | None:
    """Return the place of a store, or of the one behind an index or retriever; None where the store has none."""
    if (collection := find_chroma_collection(store)) is not None:
        return ChromaPlace(collection)
    inner: Any = getattr(store, "vector_store", store)
    if is_a(inner, "QdrantVectorStore"):
        return QdrantPlace(inner.client, inner.collection_name)
    if is_a(inner, "LanceDB", "LanceDBVectorStore"):
        return LancePlace(lambda: open_lance_table(inner), getattr(inner, "_id_key", "id"))
    if is_a(inner, "SimpleVectorStore"):
        return SimplePlace(inner)
    return ObjectPlace(inner) if is_a(inner, "FAISS", "InMemoryVectorStore", "FaissVectorStore") else None
