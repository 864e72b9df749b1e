"""`BgeEmbedding`: a LlamaIndex embedding model."""

import asyncio
from copy import copy
from typing import Any, ClassVar, Literal, Self

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import Field
from llama_index.core.storage.kvstore.types import BaseKVStore

from bge_integrations._fields import DenseFields
from bge_integrations.embed.embedder import BgeEmbedder, ato_lists, to_lists
from bge_integrations.llama_index.component import BgeEmbeddingComponent, in_batches, without_span


class BgeEmbedding(DenseFields, BgeEmbeddingComponent, BaseEmbedding):
    """BGE and other sentence-transformers models as an embedding model.

    Construction is cheap; the weights load at first use, once for all objects of the process that use the model.

    ```python
    embed_model = BgeEmbedding(model_name="BAAI/bge-base-en-v1.5")
    vector = embed_model.get_query_embedding("what is a panda?")  # list of 768 floats
    ```

    Raises:
        UnknownModelError, WrongKindError, UnsupportedModelError: `BgeEmbedder` refuses the model.
        pydantic.ValidationError: An argument is unknown or of the wrong type.
    """

    embed_batch_size: int = Field(default=2048, gt=0, le=2048)
    """Texts given to the engine at once; the engine cuts its own batches by tokens."""
    embeddings_cache: Any = Field(default=None, exclude=True)
    """Key-value store for vectors; the keys hold role, fingerprint and text."""
    _core_type: ClassVar[type] = BgeEmbedder

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the framework stores this class."""
        return "BgeEmbedding"

    @property
    def embedder(self) -> BgeEmbedder:
        """The `BgeEmbedder` that computes the vectors."""
        embedder: BgeEmbedder = self._core()
        return embedder

    def _get_query_embedding(self, query: str) -> Embedding:
        return to_lists(self.embedder.encode_queries([query]))[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return to_lists(await self.embedder.aencode_queries([query]))[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return to_lists(self.embedder.encode_documents(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await ato_lists(await self.embedder.aencode_documents(texts))

    # The framework looks a text up in `embeddings_cache` by the text alone, whichever side it is on. It does so in the
    # methods below; each runs on a copy of this object that sees only its own role's entries of the store. The
    # framework puts a span round each of them, so what they call is its own method without one.

    def get_query_embedding(self, query: str) -> Embedding:
        """Embed one query, with the query instruction."""
        return without_span(BaseEmbedding.get_query_embedding)(self._keyed("query"), query)

    async def aget_query_embedding(self, query: str) -> Embedding:
        """Embed one query as `get_query_embedding` does, without blocking the event loop."""
        return await without_span(BaseEmbedding.aget_query_embedding)(await self._akeyed("query"), query)

    def get_text_embedding(self, text: str) -> Embedding:
        """Embed one document."""
        return without_span(BaseEmbedding.get_text_embedding)(self._keyed("document"), text)

    async def aget_text_embedding(self, text: str) -> Embedding:
        """Embed one document as `get_text_embedding` does, without blocking the event loop."""
        return await without_span(BaseEmbedding.aget_text_embedding)(await self._akeyed("document"), text)

    def get_text_embedding_batch(self, texts: list[str], show_progress: bool = False, **kwargs: Any) -> list[Embedding]:
        """Embed documents."""
        return without_span(BaseEmbedding.get_text_embedding_batch)(
            self._keyed("document"), texts, show_progress, **kwargs
        )

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Embed documents off the event loop, `num_workers` batches (default 8) of at most 256 texts at a time.

        The framework's own method reports the ends of all batches in one go, which blocks the event loop for long.
        """
        keyed = await self._akeyed("document")

        async def embed(batch: list[str]) -> list[Embedding]:
            return await without_span(BaseEmbedding.aget_text_embedding_batch)(keyed, batch, **kwargs)

        return await in_batches(embed, texts, self.embed_batch_size, self.num_workers, show_progress)

    def _keyed(self, role: Literal["query", "document"]) -> Self:
        if self.embeddings_cache is None:
            return self
        as_sent = self.embedder.describe()[role]
        keyed = copy(self)
        keyed.embeddings_cache = _KeyedStore(self.embeddings_cache, f"{role}:{self.embedder.fingerprint}:{as_sent}:")
        return keyed

    async def _akeyed(self, role: Literal["query", "document"]) -> Self:
        if self.embeddings_cache is None:
            return self
        return await asyncio.to_thread(self._keyed, role)  # reads the model's files at first use


class _KeyedStore:
    """The entries of a key-value store whose keys begin with `prefix`."""

    def __init__(self, store: BaseKVStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def get(self, key: str, collection: str) -> dict[str, Embedding] | None:
        return self._store.get(self._prefix + key, collection=collection)

    async def aget(self, key: str, collection: str) -> dict[str, Embedding] | None:
        return await self._store.aget(self._prefix + key, collection=collection)

    def put(self, key: str, val: dict[str, Embedding], collection: str) -> None:
        self._store.put(self._prefix + key, val, collection=collection)

    async def aput(self, key: str, val: dict[str, Embedding], collection: str) -> None:
        await self._store.aput(self._prefix + key, val, collection=collection)
