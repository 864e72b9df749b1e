"""`BgeEmbeddingFunction`: dense vectors for a Chroma collection."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from bge_integrations.chroma.config import check_config, check_update, to_config
from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.runtime.cache import ModelCache

_DOCUMENT_KEYS = (
    "model",
    "revision",
    "like",
    "task",
    "document_instruction",
    "normalize",
    "max_length",
    "truncate_dim",
)
"""What decides the vectors of documents: never changed for a collection that exists."""

_CONFIG_KEYS = (*_DOCUMENT_KEYS, "query_instruction", "examples", "on_truncate")
"""What a collection keeps."""


@register_embedding_function
class BgeEmbeddingFunction(EmbeddingFunction[Documents]):
    """Embeds documents and queries for a Chroma collection; the default space is cosine.

    The collection keeps the model and what decides its vectors, so `client.get_collection(name)` needs no function once
    this module is imported. Where and how the model runs (`device`, `dtype`, `backend`, folders), tokens and
    `trust_remote_code` are never kept: give the function again to set them.

    Chroma asks whether settings may change only in `collection.modify(configuration=...)`, and only after it has stored
    them; it opens a collection with another model without asking. What guards against that is the fingerprint that
    `bge_integrations.populate` keeps with a collection.

    Args:
        model: A BGE model's id, a sentence-transformers model's id, or a folder.

    All other arguments are those of `BgeEmbedder`.
    """

    def __init__(
        self,
        model: str,
        *,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        task: str | None = None,
        examples: Sequence[Mapping[str, str]] | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        on_truncate: Literal["warn", "raise", "ignore"] = "warn",
        backend: Literal["auto", "torch", "openvino", "sentence_transformers"] = "auto",
        device: object = None,
        dtype: object = None,
        revision: str | None = None,
        max_batch_tokens: int | None = None,
        like: str | None = None,
        cache: ModelCache | None = None,
        cache_folder: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        self.embedder = BgeEmbedder(
            model,
            query_instruction=query_instruction,
            document_instruction=document_instruction,
            task=task,
            examples=examples,
            normalize=normalize,
            max_length=max_length,
            truncate_dim=truncate_dim,
            on_truncate=on_truncate,
            backend=backend,
            device=device,
            dtype=dtype,
            revision=revision,
            max_batch_tokens=max_batch_tokens,
            like=like,
            cache=cache,
            cache_folder=cache_folder,
            token=token,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
        )

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma's name
        """Embed documents.

        Args:
            input: The texts; Chroma refuses an empty list.

        Returns:
            One float32 vector (dim,) a text.
        """
        return cast(Embeddings, list(self.embedder.encode_documents(input)))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002
        """Embed queries, with the query instruction.

        Args:
            input: The queries.

        Returns:
            One float32 vector (dim,) a query.
        """
        return cast(Embeddings, list(self.embedder.encode_queries(input)))

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

    def get_config(self) -> dict[str, Any]:
        """Return what the collection keeps, as JSON types."""
        return {**to_config(self.embedder, _CONFIG_KEYS), "examples": list(self.embedder.examples)}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "BgeEmbeddingFunction":
        """Build the function from what a collection keeps; tokens and `trust_remote_code` in it are not read.

        Raises:
            ValueError: A setting that this version does not know.
        """
        BgeEmbeddingFunction.validate_config(config)
        return BgeEmbeddingFunction(**{key: config[key] for key in _CONFIG_KEYS if key in config})

    @staticmethod
    def validate_config(config: dict[str, Any]) -> None:
        """Refuse a configuration without a model or with a setting that this version does not know.

        Raises:
            ValueError: Names the setting.
        """
        check_config(config, _CONFIG_KEYS)

    def validate_config_update(self, old_config: dict[str, Any], new_config: dict[str, Any]) -> None:
        """Refuse a change of what decides the vectors that the collection already holds.

        Raises:
            FingerprintMismatchError: Names each changed setting, old and new.
        """
        check_update(old_config, new_config, _DOCUMENT_KEYS)
