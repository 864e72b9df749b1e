"""`BgeM3SparseEmbeddingFunction`: sparse vectors for a Chroma collection."""

from typing import Any, Literal

from chromadb.api.types import Documents, SparseEmbeddingFunction, SparseVector, SparseVectors
from chromadb.utils.embedding_functions import register_sparse_embedding_function

from bge_integrations.chroma.config import check_config, check_update, to_config
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.runtime.cache import ModelCache
from bge_integrations.types import M3Embeddings

_DOCUMENT_KEYS = ("model", "revision", "like", "document_instruction", "max_length")
"""What decides the vectors of documents: never changed for a collection that exists."""

_CONFIG_KEYS = (*_DOCUMENT_KEYS, "query_instruction", "on_truncate")
"""What a collection keeps."""


@register_sparse_embedding_function
class BgeM3SparseEmbeddingFunction(SparseEmbeddingFunction[Documents]):
    """Gives the sparse vectors of bge-m3 and its fine-tunes for a sparse index of a Chroma collection.

    Only Chroma Cloud takes sparse vectors: a local Chroma (as of 1.5, embedded or as a server) neither keeps nor
    searches them. What the collection keeps of this function, and what not, is as for `BgeEmbeddingFunction`; one of
    the same model shares the weights, and each runs the model.

    Example:
        ```python
        schema = Schema()
        schema.create_index(
            SparseVectorIndexConfig(source_key=K.DOCUMENT, embedding_function=BgeM3SparseEmbeddingFunction()), key="bge"
        )
        ```

    Args:
        model: bge-m3, or the id or folder of a fine-tune of it.

    All other arguments are those of `BgeM3Embedder`.
    """

    def __init__(
        self,
        model: str = "BAAI/bge-m3",
        *,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        max_length: int | None = None,
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
        self.embedder = BgeM3Embedder(
            model,
            outputs=("sparse",),
            query_instruction=query_instruction,
            document_instruction=document_instruction,
            max_length=max_length,
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

    def __call__(self, input: Documents) -> SparseVectors:  # noqa: A002 - Chroma's name
        """Embed documents; Chroma refuses an empty list.

        Returns:
            One sparse vector a text: token ids, ascending, and their weights.
        """
        return _sparse_vectors(self.embedder.encode_documents(input))

    def embed_query(self, input: Documents) -> SparseVectors:  # noqa: A002
        """Embed queries; otherwise as documents."""
        return _sparse_vectors(self.embedder.encode_queries(input))

    @staticmethod
    def name() -> str:
        """Return the name under which collections remember this function."""
        return "bge_integrations_m3_sparse"

    def get_config(self) -> dict[str, Any]:
        """Return what the collection keeps, as JSON types."""
        return to_config(self.embedder, _CONFIG_KEYS)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "BgeM3SparseEmbeddingFunction":
        """Build the function from what a collection keeps; tokens and `trust_remote_code` in it are not read.

        Raises:
            ValueError: A setting that this version does not know.
        """
        BgeM3SparseEmbeddingFunction.validate_config(config)
        return BgeM3SparseEmbeddingFunction(**{key: config[key] for key in _CONFIG_KEYS if key in config})

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


def _sparse_vectors(embeddings: M3Embeddings) -> SparseVectors:
    return [SparseVector(vector.indices.tolist(), vector.values.tolist()) for vector in embeddings.sparse or []]
