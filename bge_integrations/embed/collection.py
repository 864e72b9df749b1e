"""The fingerprint of the model that filled a collection, kept with the collection itself.

Two models of one dimension fit into one collection without any error, and every search is then wrong. The guard is one
string, written once a collection has taken vectors and checked when it is filled again or read.
"""

from bge_integrations.embed.places import find_place
from bge_integrations.errors import FingerprintMismatchError

HASH_KEY = "bge_integrations:content_hash"
"""The metadata key of a stored document that keeps the hash of its content, where its id is the caller's own."""
SCORE_KEYS = frozenset({"relevance_score", "retrieval_score"})
"""The metadata keys of what a search gave back. They belong to the query, so they are no part of a document."""


def read_fingerprint(store: object) -> str | None:
    """Return the fingerprint of the model that filled a store.

    Args:
        store: A Chroma collection, or a vector store of LangChain or LlamaIndex over Chroma, Qdrant, LanceDB, FAISS or
            memory, or a `VectorStoreIndex`. A durable store is asked anew at each call.

    Returns:
        The fingerprint, or None where none was written or the store has no place for one.
    """
    place = find_place(store)
    fingerprint = place.read() if place else None
    return fingerprint if isinstance(fingerprint, str) else None


def write_fingerprint(store: object, fingerprint: str) -> None:
    """Keep a fingerprint with a store; every other metadata key and the distance function stay.

    Args:
        store: As in `read_fingerprint`; a store that has no place for a fingerprint is left as it is.
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
    """Refuse a fingerprint that is known and is another one.

    Raises:
        FingerprintMismatchError: The message has both fingerprints.
    """
    if stored is not None and stored != fingerprint:
        raise FingerprintMismatchError(
            f"This collection was filled by a model with the fingerprint {stored}; the model given has {fingerprint}. "
            "Vectors of two models cannot be compared: use the model that filled it, or fill a new collection."
        )
