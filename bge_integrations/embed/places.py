"""Where stores keep the fingerprint of the model that filled them. Stores are known by the names of their classes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

METADATA_KEY = "bge_integrations:fingerprint"

_LEGACY_SPACE_KEY = "hnsw:space"


class Place(Protocol):
    """A place for one string, as durable as the store itself."""

    def read(self) -> object:
        """Return what is there, else None; asked of the store anew each time."""

    def write(self, fingerprint: str) -> None:
        """Keep a fingerprint; nothing happens while the store has no collection or table yet."""


@dataclass(frozen=True, slots=True)
class ChromaPlace:
    """A Chroma collection's metadata; every other key and the distance function stay."""

    collection: Any

    def read(self) -> object:
        """Return what is there."""
        return self._metadata().get(METADATA_KEY)

    def write(self, fingerprint: str) -> None:
        """Keep a fingerprint."""
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
        """Return what is there."""
        return self._metadata().get(METADATA_KEY) if self.client.collection_exists(self.name) else None

    def write(self, fingerprint: str) -> None:
        """Keep a fingerprint."""
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
        """Return what is there."""
        table = self.open_table()
        metadata = table.schema.field(self.column).metadata if table is not None else None
        fingerprint = (metadata or {}).get(METADATA_KEY.encode())
        return fingerprint.decode() if fingerprint else None

    def write(self, fingerprint: str) -> None:
        """Keep a fingerprint."""
        if (table := self.open_table()) is not None:
            table.update_field_metadata({"path": self.column, "metadata": {METADATA_KEY: fingerprint}})


@dataclass(frozen=True, slots=True)
class SimplePlace:
    """The metadata of LlamaIndex's `SimpleVectorStore`, among those of its nodes: saved with them, never looked at."""

    store: Any

    def read(self) -> object:
        """Return what is there."""
        return self.store.data.metadata_dict.get(METADATA_KEY, {}).get(METADATA_KEY)

    def write(self, fingerprint: str) -> None:
        """Keep a fingerprint."""
        self.store.data.metadata_dict[METADATA_KEY] = {METADATA_KEY: fingerprint}


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """The object of a store that lives in memory and is saved, if at all, without a place for anything else."""

    store: Any

    def read(self) -> object:
        """Return what is there."""
        return vars(self.store).get(METADATA_KEY)

    def write(self, fingerprint: str) -> None:
        """Keep a fingerprint."""
        vars(self.store)[METADATA_KEY] = fingerprint


def find_place(store: object) -> Place | None:
    """Return the place of a store, of the one behind an index or retriever, or None where a store has none."""
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


def find_chroma_collection(store: object) -> Any | None:
    """Return the `chromadb` collection behind a store, or None for a store of another kind."""
    for candidate in (store, getattr(store, "vector_store", None)):
        if _is_collection(candidate):
            return candidate
        inner = getattr(candidate, "_collection", None)
        if _is_collection(inner):
            return inner
    return None


def find_chroma_function(collection: Any) -> Any | None:
    """Return the function with which Chroma embeds the texts of a collection, None where nobody has given it one.

    This is the order of `Collection._embed`: the function that the collection was opened with, unless it is Chroma's
    default, which is there when none was given; the one that its configuration keeps; the one of its schema. Where all
    are silent Chroma embeds with its default, which nobody has chosen.

    Raises:
        ValueError: Chroma cannot build the function that the collection keeps.
    """
    given = collection._embedding_function  # noqa: SLF001 - a collection has no public way to it
    if given is not None and not is_a(given, "DefaultEmbeddingFunction"):
        return given
    kept = collection.configuration_json.get("embedding_function") or {"type": "legacy"}  # a name alone, never built
    if kept["type"] != "legacy" and (configured := collection.configuration.get("embedding_function")) is not None:
        return configured
    schema = collection.schema
    of_vectors = (schema.keys.get("#embedding"), schema.defaults) if schema is not None else ()
    for values in of_vectors:
        index = values.float_list.vector_index if values is not None and values.float_list is not None else None
        function = index.config.embedding_function if index is not None else None
        if function is not None and not is_a(function, "DefaultEmbeddingFunction"):
            return function
    return None


def open_lance_table(store: Any) -> Any | None:
    """Return the table of LangChain's `LanceDB` or LlamaIndex's `LanceDBVectorStore` as it is now, None before any."""
    if hasattr(store, "get_table"):
        return store.get_table()
    table = store._table  # noqa: SLF001 - its public property raises while there is none
    if table is not None and hasattr(table, "checkout_latest"):
        try:
            table.checkout_latest()
        except RuntimeError as error:
            if "not found" not in str(error).lower():
                raise
            return None  # it has been dropped
    return table


def is_a(candidate: object, *names: str) -> bool:
    """Whether an object's class, or one that it inherits from, has one of the names."""
    return any(base.__name__ in names for base in type(candidate).__mro__)


def _is_collection(candidate: object) -> bool:
    return any(base.__module__ == "chromadb.api.models.Collection" for base in type(candidate).__mro__)
