"""The choice of what computes a store's vectors: this package's embedders on their queue, others in a thread."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.errors import NonFiniteError
from bge_integrations.process import Background
from bge_integrations.stores.kinds import find_chroma_collection, find_chroma_function, is_a

Core = BgeEmbedder | BgeM3Embedder


class Pending(Protocol):
    """Vectors that are being computed."""

    def result(self) -> tuple[Any, int]:
        """Wait for the vectors; return them with the number of tokens."""

    def cancel(self) -> None:
        """Cancel what has not been computed yet."""


class Embedder(Protocol):
    """An embedder that computes vectors while its caller goes on."""

    def submit_documents(self, texts: list[str], positions: list[int]) -> Pending:
        """Start to embed texts and return at once; warnings name the texts by `positions`."""


class _Later:
    def __init__(self, future: "Future[NDArray[np.float32]]") -> None:
        self._future = future

    def result(self) -> tuple[Any, int]:
        return self._future.result(), 0

    def cancel(self) -> None:
        self._future.cancel()


class ForeignEmbedder:
    """Embeddings from outside this package; only one thread calls them, as they need not be thread-safe.

    Args:
        embed: Returns one vector per text, all of one width, as lists of numbers or an array.
    """

    def __init__(self, embed: Callable[[list[str]], Any]) -> None:
        self._embed = embed
        self._width: int | None = None
        self._thread = Background[NDArray[np.float32]](1, "populate-embed")
        self.close, self.stop = self._thread.close, self._thread.stop

    def submit_documents(self, texts: list[str], positions: list[int]) -> Pending:  # noqa: ARG002
        """Start to embed texts, float32 (texts, width), and return at once; tokens count as 0."""
        return _Later(self._thread.submit(partial(self._vectors, texts)))

    def _vectors(self, texts: list[str]) -> NDArray[np.float32]:
        """Call the embeddings and check that they return one finite vector per text.

        Raises:
            ValueError: They return something else, or vectors of another width than before.
            NonFiniteError: A vector has NaN or infinity in it.
        """
        given = self._embed(texts)
        if hasattr(given, "__next__"):
            given = list(given)
        if given is None or len(given) != len(texts):
            count = "None" if given is None else f"{len(given)} vectors"
            raise ValueError(f"The embedder gave {count} for {len(texts)} texts; it has to give a vector for each.")
        with np.errstate(over="ignore"):  # infinity is refused below
            vectors = np.asarray(given, np.float32)
        if vectors.ndim != 2 or not vectors.shape[1] or vectors.shape[1] != (self._width or vectors.shape[1]):
            before = f"; those before have {self._width} numbers each" if self._width else ""
            raise ValueError(f"The embedder gave an array {vectors.shape} for {len(texts)} texts{before}.")
        if not np.isfinite(vectors).all():
            raise NonFiniteError("The embedder gave a vector that has NaN or infinity in it.")
        self._width = vectors.shape[1]
        return vectors


def choose_embedder(store: Any, given: Any) -> tuple[Core | None, Embedder | None]:
    """Find the embedder that computes a store's vectors.

    Args:
        store: The store.
        given: The caller's `embedder=`.

    Returns:
        This package's embedder, None if the embeddings are others; and what computes, None if only the store can.

    Raises:
        TypeError: populate cannot fill this kind of store, or `given` is no embedder.
        ValueError: `given` is not the store's own, or there are no embeddings at all.
    """
    own = _own_or_given(store, given)
    if own is None and given is None:
        if callable(getattr(store, "add_documents", None)):
            return None, None
        raise ValueError(
            f"{type(store).__name__} has no embeddings of its own. Give them: populate(store, documents, embedder=...)."
        )
    core = find_core(own)
    if given is not None and not _is_same(given, own):
        other = find_core(given)
        if core is None or other is None or other.fingerprint != core.fingerprint:
            raise ValueError(
                f"embedder={given!r:.80} is not the store's own, {own!r:.80}, which embeds its queries. "
                "Make the store with the embeddings that are to fill it."
            )
        core = other  # it has settings that only the caller knows, such as the device
    return core, core or ForeignEmbedder(_foreign(own))


def _own_or_given(store: Any, given: Any) -> Any:
    """Return the store's embeddings, or the caller's for a store that takes vectors and has no embeddings."""
    try:
        own = own_embeddings(store)
    except ValueError as error:
        if given is None:
            raise ValueError(
                f"Chroma cannot build the collection's own embedding function ({error}). Import the module that "
                "registers it, or give embedder=..."
            ) from error
        own = None
    takes_vectors = is_a(store, "BasePydanticVectorStore") or find_chroma_collection(store) is not None
    return given if own is None and takes_vectors else own


def _is_same(given: Any, own: Any) -> bool:
    """Return whether both are one object, or embedding functions of Chroma with the same configuration."""
    if given is own or type(given) is not type(own) or not callable(getattr(own, "get_config", None)):
        return given is own
    config = own.get_config()
    return config is not NotImplemented and bool(config == given.get_config())


def own_embeddings(store: Any) -> Any:
    """Return the embeddings with which a store embeds queries; None if it has none.

    Raises:
        TypeError: populate cannot fill this kind of store.
        ValueError: Chroma cannot build the embedding function that the collection keeps.
    """
    collection = find_chroma_collection(store)
    if collection is not None and collection is store:
        return _function_of(collection)
    if is_a(store, "VectorStoreIndex"):
        return store._embed_model  # noqa: SLF001 - it has no public name
    if is_a(store, "BasePydanticVectorStore"):
        return None
    if callable(getattr(store, "add_documents", None)) and callable(getattr(store, "similarity_search", None)):
        if store.embeddings is None and collection is not None:
            return _function_of(collection)  # LangChain's Chroma embeds queries with it
        return store.embeddings
    raise TypeError(
        "populate fills vector stores of LangChain and LlamaIndex, a VectorStoreIndex, and Chroma collections; "
        f"{type(store).__name__} is none of them."
    )


def _function_of(collection: Any) -> Any:
    import bge_integrations.chroma  # noqa: F401 - it registers this package's functions with Chroma

    return find_chroma_function(collection)


def find_core(embeddings: Any) -> Core | None:
    """Return this package's embedder of the dense vectors; None if the embeddings are others."""
    core = getattr(embeddings, "embedder", embeddings)
    if isinstance(core, BgeM3Embedder):
        return core.with_outputs("dense")
    return core if isinstance(core, BgeEmbedder) else None


def _foreign(embeddings: Any) -> Callable[[list[str]], Any]:
    for name in ("embed_documents", "get_text_embedding_batch"):
        if callable(method := getattr(embeddings, name, None)):
            return method  # type: ignore[no-any-return]
    if not callable(embeddings):
        raise TypeError(f"embedder={embeddings!r:.80} is no embedder: it has neither of LangChain's methods nor "
                        "LlamaIndex's.")  # fmt: skip
    return embeddings  # type: ignore[no-any-return]
