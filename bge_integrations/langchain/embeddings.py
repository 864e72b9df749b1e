"""LangChain's `Embeddings` over the shared embedder."""

from typing import ClassVar

from langchain_core.embeddings import Embeddings

from bge_integrations._fields import DenseFields
from bge_integrations.embed.embedder import BgeEmbedder, ato_lists, to_lists
from bge_integrations.langchain.fields import LangChainModel


class BgeEmbeddings(DenseFields, LangChainModel, Embeddings):
    """A BGE (or any sentence-transformers) embedder for LangChain; cheap to make, its weights load at first use.

    All objects with the same model, including `BgeEmbedder` and the classes for LlamaIndex, share one copy of the
    weights and one queue. Queries get the instruction in the catalogue and documents none, unless you give others.

    Example:
        ```python
        embeddings = BgeEmbeddings(model="BAAI/bge-base-en-v1.5")
        vector = embeddings.embed_query("what is a panda?")
        ```

    Raises:
        UnknownModelError, WrongKindError, UnsupportedModelError: `BgeEmbedder` refuses the model.
        pydantic.ValidationError: An argument is unknown or of the wrong type.
    """

    _core_type: ClassVar[type] = BgeEmbedder

    @property
    def embedder(self) -> BgeEmbedder:
        """The `BgeEmbedder` that computes the vectors."""
        embedder: BgeEmbedder = self._built or self._core()
        return embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents.

        Args:
            texts: Any number of texts; they are embedded unchanged.

        Returns:
            One vector of `embedder.dim` floats per text, in the order of the texts; [] for [].

        Raises:
            TypeError: `texts` is a bare string, or an item is no string.
        """
        return to_lists(self.embedder.encode_documents(texts))

    def embed_query(self, text: str) -> list[float]:
        """Embed one query, with the query instruction.

        Returns:
            `embedder.dim` floats.

        Raises:
            TypeError: `text` is no string.
        """
        return to_lists(self.embedder.encode_queries([text]))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents as `embed_documents` does, without blocking the event loop."""
        return await ato_lists(await self.embedder.aencode_documents(texts))

    async def aembed_query(self, text: str) -> list[float]:
        """Embed one query as `embed_query` does, without blocking the event loop."""
        return to_lists(await self.embedder.aencode_queries([text]))[0]
