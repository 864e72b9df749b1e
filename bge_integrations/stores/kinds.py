"""The kind of a store, found by the names of its classes, so that no store's package need be installed."""

from typing import Any

HASH_KEY = "bge_integrations:content_hash"
"""The metadata key that keeps the hash of a stored document's content, where its id is the caller's own."""
SCORE_KEYS = frozenset({"relevance_score", "retrieval_score"})
"""The metadata keys of scores that a search added. They belong to the query, so they are no part of a document."""


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
    """Return the function with which Chroma embeds the texts of a collection; None where nobody has chosen one.

    The order is that of `Collection._embed`: the function that the collection was opened with, unless it is Chroma's
    default, which is there when none was given; the one that its configuration keeps; the one of its schema. Where none
    of them has one, Chroma embeds with its default, which nobody has chosen.

    Raises:
        ValueError: Chroma cannot build the function that the collection keeps.
    """
    given = collection._embedding_function  # noqa: SLF001 - a collection has no public way to it
    if given is not None and not is_a(given, "DefaultEmbeddingFunction"):
        return given
    kept = collection.configuration_json.get("embedding_function") or {"type": "legacy"}  # legacy: a name alone
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
    """Return the table of LangChain's `LanceDB` or LlamaIndex's `LanceDBVectorStore` as it is now; None without one."""
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
    """Return whether an object's class, or one that it inherits from, has one of the names."""
    return any(base.__name__ in names for base in type(candidate).__mro__)


def _is_collection(candidate: object) -> bool:
    return any(base.__module__ == "chromadb.api.models.Collection" for base in type(candidate).__mro__)
