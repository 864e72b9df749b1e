"""`BgeM3SparseEmbedding`: bge-m3's lexical weights as a LlamaIndex sparse embedding model."""

import asyncio
from typing import ClassVar

from llama_index.core.base.embeddings.base_sparse import BaseSparseEmbedding, SparseEmbedding
from llama_index.core.bridge.pydantic import Field

from bge_integrations import types
from bge_integrations._fields import PathText
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.llama_index.component import BgeEmbeddingComponent, in_batches, without_span

IndicesAndValues = tuple[list[list[int]], list[list[float]]]


class BgeM3SparseEmbedding(BgeEmbeddingComponent, BaseSparseEmbedding):  # type: ignore[misc]  # both dump alike
    """The sparse vectors of bge-m3 and its fine-tunes: token ids and their weights.

    Construction is cheap; the weights load at first use, once for all objects of the process that use the model: a
    `BgeEmbedding` of the same model shares them.

    ```python
    sparse = BgeM3SparseEmbedding()
    sparse.get_query_embedding("what is a panda?")  # {33600: 0.09, 83: 0.05, ...}
    store = QdrantVectorStore(
        "notes",
        client=client,
        enable_hybrid=True,
        sparse_doc_fn=sparse.sparse_doc_fn,
        sparse_query_fn=sparse.sparse_query_fn,
    )
    index = VectorStoreIndex(nodes, storage_context=..., embed_model=BgeEmbedding(model_name="BAAI/bge-m3"))
    index.as_retriever(vector_store_query_mode="hybrid").retrieve("what is a panda?")
    ```

    Qdrant's hybrid mode asks for dense and for sparse vectors separately, so the model runs twice per text.
    `HybridRetriever` runs it once, over any store.

    Raises:
        UnknownModelError: The id is not in the catalogue though it looks as if it should be.
        WrongKindError: The model is a reranker.
        UnsupportedModelError: The model has no sparse output.
        pydantic.ValidationError: An argument is unknown or of the wrong type.
    """

    model_name: PathText = "BAAI/bge-m3"
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
    embed_batch_size: int = Field(default=2048, gt=0, le=2048)
    """Texts given to the engine at once; the engine cuts its own batches by tokens."""

    outputs: ClassVar[tuple[str, ...]] = ("sparse",)
    normalize: ClassVar[None] = None
    _core_type: ClassVar[type] = BgeM3Embedder

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the framework stores this class."""
        return "BgeM3SparseEmbedding"

    @property
    def embedder(self) -> BgeM3Embedder:
        """The `BgeM3Embedder` that computes the vectors, and only the sparse ones."""
        embedder: BgeM3Embedder = self._core()
        return embedder

    def sparse_doc_fn(self, texts: list[str]) -> IndicesAndValues:
        """Embed documents; pass this method to LlamaIndex's Qdrant store as its argument of the same name.

        Returns:
            The token ids of each text, and their weights.
        """
        return _indices_and_values(self.embedder.encode_documents(texts))

    def sparse_query_fn(self, texts: list[str]) -> IndicesAndValues:
        """Embed queries like `sparse_doc_fn`; the store's async search blocks the event loop meanwhile."""
        return _indices_and_values(self.embedder.encode_queries(texts))

    def _get_query_embedding(self, query: str) -> SparseEmbedding:
        return _dicts(self.embedder.encode_queries([query]))[0]

    async def _aget_query_embedding(self, query: str) -> SparseEmbedding:
        return _dicts(await self.embedder.aencode_queries([query]))[0]

    def _get_text_embedding(self, text: str) -> SparseEmbedding:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> SparseEmbedding:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return _dicts(self.embedder.encode_documents(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[SparseEmbedding]:
        return await asyncio.to_thread(_dicts, await self.embedder.aencode_documents(texts))

    async def aget_text_embedding_batch(self, texts: list[str], show_progress: bool = False) -> list[SparseEmbedding]:
        """Embed documents off the event loop, `num_workers` batches (default 8) of at most 256 texts at a time."""

        async def embed(batch: list[str]) -> list[SparseEmbedding]:
            return await without_span(BaseSparseEmbedding.aget_text_embedding_batch)(self, batch)

        return await in_batches(embed, texts, self.embed_batch_size, self.num_workers, show_progress)


def _dicts(embeddings: types.M3Embeddings) -> list[SparseEmbedding]:
    rows = zip(*_indices_and_values(embeddings), strict=True)
    return [dict(zip(indices, values, strict=True)) for indices, values in rows]


def _indices_and_values(embeddings: types.M3Embeddings) -> IndicesAndValues:
    sparse = embeddings.sparse or []
    return [vector.indices.tolist() for vector in sparse], [vector.values.tolist() for vector in sparse]
