"""A LangChain document compressor on bge-m3's token vectors, and the fields that the bge-m3 classes share."""

import asyncio
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, FiniteFloat, model_validator

from bge_integrations.embed.m3 import OUTPUTS, RERANKED_AT_ONCE, BgeM3Embedder, single_scores
from bge_integrations.langchain.fields import LangChainModel, ModelName, Weight
from bge_integrations.langchain.retrieval import texts_of, with_scores
from bge_integrations.types import M3Embeddings


class M3Fields(LangChainModel):
    """The model and where it runs: the arguments of `BgeM3Embedder` except `outputs`."""

    model: ModelName = "BAAI/bge-m3"
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
    document_instruction: str | None = None
    """Text before every document; None = the catalogue's, "" = none."""

    _core_type: ClassVar[type] = BgeM3Embedder

    @property
    def embedder(self) -> BgeM3Embedder:
        """The core embedder that does the work."""
        embedder: BgeM3Embedder = self._built or self._core()
        return embedder

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model's outputs that the class needs."""
        raise NotImplementedError


class BgeM3Rerank(M3Fields, BaseDocumentCompressor):
    """A reranker that orders documents by bge-m3's token vectors (late interaction) and keeps the best.

    It is lighter than a cross-encoder, as documents are encoded without the query, and finer than one dense vector per
    text. The score is `maxsim`, at most 1, or with `weights` the weighted mean of bge-m3's scores. It returns copies
    with the key `relevance_score` in their metadata; your documents stay as they are, and a copy equals its original.
    The token vectors of 256 documents are in memory at a time, however many there are.

    Example:
        ```python
        reranker = BgeM3Rerank(top_n=3)
        best = reranker.compress_documents(documents, "what is a panda?")
        ```

    Raises:
        UnknownModelError: The id is not in the catalogue though it looks as if it should be.
        UnsupportedModelError: The model has no such outputs.
        pydantic.ValidationError: An argument is unknown, of the wrong type or out of its range.
    """

    top_n: int | None = Field(default=3, ge=1)
    """How many documents to keep; None = all."""
    score_threshold: FiniteFloat | None = None
    """The lowest score of a document that is kept; None = all are kept."""
    weights: tuple[Weight, Weight, Weight] = (0.0, 0.0, 1.0)
    """Weights of the dense, the sparse and the token vectors' score; scores of weight 0 are not computed."""
    normalize: bool | None = None
    """Scale dense vectors to length 1; None = as the catalogue says."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not any(self.weights):
            raise ValueError(f"weights={self.weights} for dense, sparse and colbert: give one more than 0.")
        return self

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rerank documents.

        Args:
            documents: Candidates in any order; they are not changed.
            query: The query that they are scored against.
            callbacks: Not used: there is no inner run to report.

        Returns:
            At most `top_n` copies, best first, equals in the order given, each with its score as the float
            `relevance_score` in its metadata; [] for [].
        """
        if not documents:
            return []
        queries, scores = self.embedder.encode_queries([query]), list[float]()
        for passages in self.embedder.iter_documents(texts_of(documents), RERANKED_AT_ONCE):
            scores += self._scores(queries, passages)
            del passages  # frees their memory before the next ones come
        return self._best(documents, scores)

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rerank documents; as `compress_documents`, off the event loop."""
        if not documents:
            return []
        queries, scores = await self.embedder.aencode_queries([query]), list[float]()
        async for passages in self.embedder.aiter_documents(texts_of(documents), RERANKED_AT_ONCE):
            scores += await asyncio.to_thread(self._scores, queries, passages)
            del passages
        return self._best(documents, scores)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs whose weight is not 0."""
        return tuple(output for output, weight in zip(OUTPUTS, self.weights, strict=True) if weight)

    def _scores(self, queries: M3Embeddings, passages: M3Embeddings) -> list[float]:
        """Return the score of each passage for the one query."""
        weights = np.array(self.weights) / sum(self.weights)
        return [float(weights @ single_scores(queries, 0, passages, row)) for row in range(len(passages))]

    def _best(self, documents: Sequence[Document], scores: list[float]) -> list[Document]:
        order = sorted(range(len(documents)), key=lambda position: -scores[position])[: self.top_n]
        return [
            with_scores(documents[position], relevance_score=scores[position])
            for position in order
            if self.score_threshold is None or scores[position] >= self.score_threshold
        ]
