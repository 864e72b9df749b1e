"""The fingerprint of the model that filled a collection, kept with the collection itself.

Two models of one dimension fit into one collection without any error, and every search is then wrong. The guard is one
metadata key, written when a collection is filled and checked when it is filled again or read.
"""

from typing import Any

from bge_integrations.errors import FingerprintMismatchError

METADATA_KEY = "bge_integrations:fingerprint"
HASH_KEY = "bge_integrations:content_hash"
"""The metadata key of a stored document that keeps the hash of its content, where its id is the caller's own."""

_LEGACY_SPACE_KEY = "hnsw:space"


def read_fingerprint(store: object) -> str | None:
    """Return the fingerprint of the model that filled a store.

    Args:
        store: A Chroma collection, LangChain's `Chroma`, LlamaIndex's `ChromaVectorStore`, or a `VectorStoreIndex` over
            one. The collection's metadata are read anew at each call, not taken from the object's own copy.

    Returns:
        The fingerprint, or None where none was written or the store has no place for one.
    """
    collection = find_chroma_collection(store)
    if collection is None:
        return None
    fingerprint = _read_metadata(collection).get(METADATA_KEY)
    return fingerprint if isinstance(fingerprint, str) else None


def write_fingerprint(store: object, fingerprint: str) -> None:
    """Keep a fingerprint with a store; every other metadata key and the distance function stay.

    Args:
        store: As in `read_fingerprint`; a store that has no place for a fingerprint is left as it is.
        fingerprint: `BgeEmbedder.fingerprint` of the model that fills the store.
    """
    collection = find_chroma_collection(store)
    if collection is None:
        return
    metadata = {**_read_metadata(collection), METADATA_KEY: fingerprint}
    if _LEGACY_SPACE_KEY not in metadata:
        collection.modify(metadata=metadata)
        return
    # `modify` replaces all metadata and yet refuses this key, even unchanged; the server itself takes it.
    where = {"tenant": collection.tenant, "database": collection.database}
    collection._client._modify(id=collection.id, new_metadata=metadata, **where)  # noqa: SLF001
    collection._update_model_after_modify_success(None, metadata, None)  # noqa: SLF001


def check_fingerprint(store: object, fingerprint: str, force: bool = False) -> None:
    """Refuse a store that another model has filled.

    Args:
        store: As in `read_fingerprint`.
        fingerprint: `BgeEmbedder.fingerprint` of the model that is about to fill or read the store.
        force: Accept another model's store.

    Raises:
        FingerprintMismatchError: Another model filled the store; the message has both fingerprints.
    """
    if force:
        return
    stored = read_fingerprint(store)
    if stored is not None and stored != fingerprint:
        raise FingerprintMismatchError(
            f"This collection was filled by a model with the fingerprint {stored}; the model given has {fingerprint}. "
            "Vectors of two models cannot be compared: use the model that filled it, or fill a new collection."
        )


def find_chroma_collection(store: object) -> Any | None:
    """Return the `chromadb` collection behind a store, or None for a store of another kind."""
    for candidate in (store, getattr(store, "vector_store", None)):
        if _is_collection(candidate):
            return candidate
        inner = getattr(candidate, "_collection", None)
        if _is_collection(inner):
            return inner
    return None


def _is_collection(candidate: object) -> bool:
    return any(base.__module__ == "chromadb.api.models.Collection" for base in type(candidate).__mro__)


def _read_metadata(collection: Any) -> dict[str, Any]:
    server = collection._client  # noqa: SLF001 - the object's own copy of the metadata may be old
    model = server.get_collection_by_id(collection.id, tenant=collection.tenant, database=collection.database)
    return dict(model["metadata"] or {})
