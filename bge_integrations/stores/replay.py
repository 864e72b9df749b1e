"""Vectors computed beforehand, handed to a LangChain store through its own public methods.

Such a store takes texts and asks its embeddings for the vectors. Where one forward gives more than dense vectors, the
dense ones exist already: a copy of the store then asks a `Replay` for them, which only looks them up.
"""

import copy
from abc import ABCMeta
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.embed.embedder import to_lists
from bge_integrations.types import M3Embeddings

Store = TypeVar("Store")


class Replay:
    """Embeddings, as LangChain's stores use them, that know the vectors of a few texts.

    Args:
        texts: The texts whose vectors a store is going to ask for.
        embeddings: Their vectors, float32 (n, dim), or an `M3Embeddings` with dense vectors.
    """

    def __init__(self, texts: Sequence[str], embeddings: NDArray[np.float32] | M3Embeddings) -> None:
        vectors = embeddings.dense if isinstance(embeddings, M3Embeddings) else embeddings
        if vectors is None:
            raise ValueError("There are no dense vectors to hand to a store.")
        self._vectors = dict(zip(texts, to_lists(vectors), strict=True))

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a text.

        Raises:
            LookupError: The vector of this text was not given.
        """
        if text not in self._vectors:
            raise LookupError(f"The store asks for the vector of a text that was not among those given: {text!r:.80}.")
        return self._vectors[text]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of texts; see `embed_query`."""
        return [self.embed_query(text) for text in texts]

    async def aembed_query(self, text: str) -> list[float]:
        """Return the vector of a text, as `embed_query` does."""
        return self.embed_query(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of texts, as `embed_documents` does."""
        return self.embed_documents(texts)


def can_replay(store: object) -> bool:
    """Return whether `replaying` works with a store."""
    return bool(_places(store))


@contextmanager
def replaying(store: Store, embeddings: Replay) -> Iterator[Store]:
    """Yield a shallow copy of a store with other embeddings; meanwhile other threads use the store as before.

    Args:
        store: A LangChain vector store that holds its embeddings in an attribute, as nearly all do.
        embeddings: The embeddings that the copy asks for vectors.

    Raises:
        TypeError: The store's embeddings cannot be found among its attributes.
    """
    own: Any = getattr(store, "embeddings", None)
    held = _places(store)
    if not held:
        raise TypeError(
            f"{type(store).__name__} does not keep its embeddings in an attribute of its own, so it cannot be given "
            "vectors. Take another store, such as Chroma, FAISS, Qdrant or InMemoryVectorStore, made with embeddings."
        )
    for base in type(own).__mro__:
        if base.__name__ == "Embeddings" and isinstance(base, ABCMeta):
            base.register(type(embeddings))  # FAISS's store takes nothing else
    double = copy.copy(store)
    vars(double).update(dict.fromkeys(held, embeddings))
    before = dict(vars(double))
    try:
        yield double
    finally:  # the store takes over attributes that the copy's methods set, such as a grown matrix
        vars(store).update({name: value for name, value in vars(double).items() if value is not before.get(name)})


def _places(store: object) -> list[str]:
    """Return the names of the attributes in which a store holds its embeddings."""
    own = getattr(store, "embeddings", None)
    return [name for name, value in vars(store).items() if value is own and own is not None]
