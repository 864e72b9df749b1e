"""Embedding functions for Chroma, dense and sparse, which embed documents and queries separately.

Example:
    ```python
    import chromadb
    from bge_integrations.chroma import BgeEmbeddingFunction

    client = chromadb.PersistentClient("store")
    collection = client.create_collection("notes", embedding_function=BgeEmbeddingFunction("BAAI/bge-small-en-v1.5"))
    collection.add(ids=["1"], documents=["Pandas eat bamboo."])
    collection.query(query_texts=["what do pandas eat?"])
    ```

Importing this module registers the functions as "bge_integrations" and "bge_integrations_m3_sparse", so that a
collection that is opened again finds them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any, ClassVar, Self, cast

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.errors import FingerprintMismatchError, MissingExtraError
from bge_integrations.runtime.user import ModelUser
from bge_integrations.types import M3Embeddings

if find_spec("chromadb") is None:
    raise MissingExtraError(
        'bge_integrations.chroma needs chromadb. Install it: pip install "bge_integrations[chroma]"'
    )

from chromadb.api.types import (
    Documents,
    EmbeddingFunction,
    Embeddings,
    Space,
    SparseEmbeddingFunction,
    SparseVector,
    SparseVectors,
)
from chromadb.utils.embedding_functions import register_embedding_function, register_sparse_embedding_function

__all__ = ["BgeEmbeddingFunction", "BgeM3SparseEmbeddingFunction"]


class _Kept:
    """The settings of an embedding function that a collection keeps, and the checks of new settings against them."""

    decisive: ClassVar[tuple[str, ...]]
    """The arguments that decide the vectors of documents: never changed for a collection that exists."""
    kept: ClassVar[tuple[str, ...]]
    """The arguments that a collection keeps; the others, of the machine and the user, are neither written nor read."""

    def get_config(self) -> dict[str, Any]:
        """Return the settings that the collection keeps, as JSON types."""
        config = {name: getattr(self, name) for name in self.kept}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}

    @classmethod
    def build_from_config(cls, config: dict[str, Any]) -> Self:
        """Build the function from the settings that a collection keeps; tokens and `trust_remote_code` are not read.

        Raises:
            ValueError: There is no model, or a setting that this version does not know.
        """
        cls.validate_config(config)
        return cls(**{name: config[name] for name in cls.kept if name in config})

    @classmethod
    def validate_config(cls, config: dict[str, Any]) -> None:
        """Refuse a configuration without a model or with a setting that this version does not know.

        Raises:
            ValueError: The message names the setting.
        """
        if "model" not in config:
            raise ValueError(f"The configuration needs the key model; it has only {sorted(config)}.")
        of_the_machine = {argument.name for argument in fields(ModelUser)}
        if unknown := sorted(config.keys() - {*cls.kept, *of_the_machine}):
            raise ValueError(f"Unknown settings {unknown}; known are {sorted(cls.kept)}.")

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse a change of the settings that decide the vectors that the collection already holds.

        Raises:
            FingerprintMismatchError: The message names each changed setting, old and new.
        """
        old, new = old_config.get, new_config.get
        changed = [
            f"{name}={old(name)!r} is not {name}={new(name)!r}" for name in self.decisive if old(name) != new(name)
        ]
        if changed:
            raise FingerprintMismatchError(
                f"The collection was filled with other settings: {', '.join(changed)}. Vectors of two models cannot be "
                "compared: keep the settings, or fill a new collection."
            )


@register_embedding_function
@dataclass(repr=False, eq=False, kw_only=True)
class BgeEmbeddingFunction(_Kept, BgeEmbedder, EmbeddingFunction[Documents]):
    """A `BgeEmbedder` that a Chroma collection calls for documents and queries; the default space is cosine.

    The collection keeps the model and the settings that decide its vectors, so `client.get_collection(name)` needs no
    function once this module is imported. Where and how the model runs (`device`, `dtype`, `backend`, folders), tokens
    and `trust_remote_code` are never kept: give the function again to set them.

    Do not rely on Chroma to refuse another model: it checks changed settings only in
    `collection.modify(configuration=...)`, and only after it has stored them; it opens a collection with another model
    without a check. The fingerprint that `bge_integrations.populate` keeps with a collection guards against that.

    Args:
        model: A BGE model's id, a sentence-transformers model's id, or a folder.

    All other arguments are those of `BgeEmbedder`.
    """

    decisive: ClassVar[tuple[str, ...]] = (
        "model",
        "revision",
        "like",
        "task",
        "document_instruction",
        "normalize",
        "max_length",
        "truncate_dim",
    )
    kept: ClassVar[tuple[str, ...]] = (*decisive, "query_instruction", "examples", "on_truncate")

    @property
    def embedder(self) -> BgeEmbedder:
        """The embedder that computes, which is this object itself."""
        return self

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma's name
        """Embed documents.

        Args:
            input: The texts; Chroma refuses an empty list.

        Returns:
            One float32 vector (dim,) per text.
        """
        return cast(Embeddings, list(self.encode_documents(input)))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002
        """Embed queries, with the query instruction.

        Args:
            input: The queries.

        Returns:
            One float32 vector (dim,) per query.
        """
        return cast(Embeddings, list(self.encode_queries(input)))

    @staticmethod
    def name() -> str:
        """Return the name under which collections remember this function."""
        return "bge_integrations"

    def default_space(self) -> Space:
        """Return "cosine", the space of a new collection."""
        return "cosine"

    def supported_spaces(self) -> list[Space]:
        """Return every space that fits the vectors: all three order normalised vectors alike."""
        return ["cosine", "l2", "ip"]


@register_sparse_embedding_function
@dataclass(repr=False, eq=False, kw_only=True)
class BgeM3SparseEmbeddingFunction(_Kept, BgeM3Embedder, SparseEmbeddingFunction[Documents]):
    """A `BgeM3Embedder` that gives the sparse vectors for a sparse index of a Chroma collection.

    Only Chroma Cloud takes sparse vectors: a local Chroma (as of 1.5, embedded or as a server) neither keeps nor
    searches them. The collection keeps the same kinds of settings as for `BgeEmbeddingFunction`. Two functions of one
    model share its weights, but each runs the model by itself.

    Example:
        ```python
        schema = Schema()
        schema.create_index(
            SparseVectorIndexConfig(source_key=K.DOCUMENT, embedding_function=BgeM3SparseEmbeddingFunction()), key="bge"
        )
        ```

    Args:
        model: bge-m3, or the id or folder of a fine-tune of it.

    All other arguments are those of `BgeM3Embedder`, except `outputs`.
    """

    decisive: ClassVar[tuple[str, ...]] = ("model", "revision", "like", "document_instruction", "max_length")
    kept: ClassVar[tuple[str, ...]] = (*decisive, "query_instruction", "on_truncate")

    outputs: Iterable[str] = field(default=("sparse",), init=False)

    @property
    def embedder(self) -> BgeM3Embedder:
        """The embedder that computes, which is this object itself."""
        return self

    def __call__(self, input: Documents) -> SparseVectors:  # noqa: A002 - Chroma's name
        """Embed documents; Chroma refuses an empty list.

        Returns:
            One sparse vector per text: token ids, ascending, and their weights.
        """
        return _sparse_vectors(self.encode_documents(input))

    def embed_query(self, input: Documents) -> SparseVectors:  # noqa: A002
        """Embed queries, with the query instruction; the result is as for documents."""
        return _sparse_vectors(self.encode_queries(input))

    @staticmethod
    def name() -> str:
        """Return the name under which collections remember this function."""
        return "bge_integrations_m3_sparse"


def _sparse_vectors(embeddings: M3Embeddings) -> SparseVectors:
    return [SparseVector(vector.indices.tolist(), vector.values.tolist()) for vector in embeddings.sparse or []]
