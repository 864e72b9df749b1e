"""bge-m3's sparse vectors for langchain-qdrant (extra `qdrant`)."""

import asyncio
from importlib.util import find_spec

from bge_integrations.errors import MissingExtraError
from bge_integrations.langchain.fields import M3Fields
from bge_integrations.types import M3Embeddings

if find_spec("langchain_qdrant") is None:
    raise MissingExtraError(
        'BgeM3SparseEmbeddings needs langchain-qdrant. Install it: pip install "bge_integrations[qdrant]"'
    )

from langchain_qdrant import SparseEmbeddings, SparseVector


class BgeM3SparseEmbeddings(M3Fields, SparseEmbeddings):
    """bge-m3's lexical weights as langchain-qdrant's `SparseEmbeddings`; cheap to make, its weights load at first use.

    In Qdrant's own hybrid mode the store asks the dense and the sparse model one after the other, so each text runs
    through bge-m3 twice; both use one copy of its weights. `HybridRetriever` runs it once.

    Example:
        ```python
        store = QdrantVectorStore.from_documents(
            documents,
            embedding=BgeEmbeddings(model="BAAI/bge-m3"),
            sparse_embedding=BgeM3SparseEmbeddings(),
            retrieval_mode=RetrievalMode.HYBRID,
            path="store",
        )
        ```

    Raises:
        UnknownModelError: The id is not in the catalogue though it looks as if it should be.
        UnsupportedModelError: The model has no sparse output.
        pydantic.ValidationError: An argument is unknown or of the wrong type.
    """

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Embed documents.

        Args:
            texts: Any number of texts; they are embedded unchanged.

        Returns:
            Token ids and their weights, one `SparseVector` per text; [] for [].

        Raises:
            TypeError: `texts` is a bare string, or an item is no string.
        """
        return _vectors(self.embedder.encode_documents(texts))

    def embed_query(self, text: str) -> SparseVector:
        """Embed one query.

        Raises:
            TypeError: `text` is no string.
        """
        return _vectors(self.embedder.encode_queries([text]))[0]

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Embed documents as `embed_documents` does, without blocking the event loop."""
        return await asyncio.to_thread(_vectors, await self.embedder.aencode_documents(texts))

    async def aembed_query(self, text: str) -> SparseVector:
        """Embed one query as `embed_query` does, without blocking the event loop."""
        return _vectors(await self.embedder.aencode_queries([text]))[0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The sparse output alone."""
        return ("sparse",)


def _vectors(embeddings: M3Embeddings) -> list[SparseVector]:
    return [
        SparseVector(indices=embedding.indices.tolist(), values=embedding.values.tolist())
        for embedding in embeddings.sparse or []
    ]
