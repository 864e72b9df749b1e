"""LangChain's document compressors and cross-encoder: rerankers, and bge-m3's token vectors."""

from collections.abc import Sequence
from typing import ClassVar, Self

from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, FiniteFloat, model_validator

from bge_integrations._fields import RerankerFields
from bge_integrations.embed.m3 import OUTPUTS, arank, rank
from bge_integrations.langchain.fields import LangChainModel, M3Fields, Weight
from bge_integrations.langchain.retrieval import with_scores
from bge_integrations.rerank.reranker import BgeReranker


class RerankerModel(RerankerFields, LangChainModel):
    """The arguments of `BgeReranker`, and the reranker that is made of them."""

    _core_type: ClassVar[type] = BgeReranker

    @property
    def reranker(self) -> BgeReranker:
        """The `BgeReranker` that computes the scores."""
        reranker: BgeReranker = self._built or self._core()
        return reranker


class _Compressor(BaseDocumentCompressor):
    """A document compressor that scores documents against the query and puts the best first."""

    top_n: int | None = Field(default=3, ge=1)
    """How many documents to keep; None = all."""
    score_threshold: float | None = None
    """The lowest score of a document that is kept; None = all are kept."""

    def _rank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        """Return the positions and scores of the `top_n` best texts, best first."""
        raise NotImplementedError

    async def _arank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        """Rank texts like `_rank`, off the event loop."""
        raise NotImplementedError

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
        return self._copies(documents, self._rank(query, [document.page_content for document in documents]))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rerank documents as `compress_documents` does, without blocking the event loop."""
        texts = [document.page_content for document in documents]
        return self._copies(documents, await self._arank(query, texts))

    def _copies(self, documents: Sequence[Document], ranking: list[tuple[int, float]]) -> list[Document]:
        return [
            with_scores(documents[position], relevance_score=score)
            for position, score in ranking
            if self.score_threshold is None or score >= self.score_threshold
        ]


class BgeRerank(_Compressor, RerankerModel):
    """A document compressor that reranks documents and keeps the best; cheap to make, its weights load at first use.

    It returns copies with the key `relevance_score` in their metadata; your documents stay as they are. Scores do not
    count in comparisons, so a copy equals its original, and also the copy that another query returned.

    Example:
        ```python
        reranker = BgeRerank(model="BAAI/bge-reranker-v2-m3", top_n=3)
        best = reranker.compress_documents(documents, "what is a panda?")
        ```

    Raises:
        UnknownModelError, WrongKindError, UnsupportedModelError: `BgeReranker` refuses the model.
        pydantic.ValidationError: An argument is unknown or of the wrong type, or `score_threshold` can never be met.
    """

    score_threshold: float | None = None
    """The lowest score of a document that is kept; None = all are kept. Between 0 and 1 unless `normalize=False`."""

    @model_validator(mode="after")
    def _check_threshold(self) -> Self:
        if self.score_threshold is not None and self.normalize and not 0 <= self.score_threshold <= 1:
            raise ValueError(
                f"score_threshold={self.score_threshold} is outside [0, 1], where all scores lie with normalize=True. "
                "Give a threshold between 0 and 1, or normalize=False to compare raw logits."
            )
        return self

    def _rank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        return [(result.index, result.score) for result in self.reranker.rerank(query, texts, self.top_n)]

    async def _arank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        return [(result.index, result.score) for result in await self.reranker.arerank(query, texts, self.top_n)]


class BgeCrossEncoder(RerankerModel, BaseCrossEncoder):
    """A reranker as LangChain's `BaseCrossEncoder`, for instance for langchain-classic's `CrossEncoderReranker`.

    Example:
        ```python
        encoder = BgeCrossEncoder(model="BAAI/bge-reranker-base")
        scores = encoder.score([("what is a panda?", "A bear of China."), ("what is a panda?", "Paris is a city.")])
        ```

    Raises:
        UnknownModelError, WrongKindError, UnsupportedModelError: `BgeReranker` refuses the model.
        pydantic.ValidationError: An argument is unknown or of the wrong type.
    """

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score pairs of query and passage.

        Args:
            text_pairs: (query, passage) pairs.

        Returns:
            One float per pair, in the order of the pairs; [] for [].
        """
        return self.reranker.score(text_pairs)


class BgeM3Rerank(_Compressor, M3Fields):
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
        UnknownModelError, WrongKindError, UnsupportedModelError: `BgeM3Embedder` refuses the model.
        pydantic.ValidationError: An argument is unknown, of the wrong type or out of its range.
    """

    score_threshold: FiniteFloat | None = None
    """The lowest score of a document that is kept; None = all are kept."""
    weights: tuple[Weight, Weight, Weight] = (0.0, 0.0, 1.0)
    """Weights of the dense, the sparse and the token vectors' score; scores of weight 0 are not computed."""
    normalize: bool | None = None
    """Scale dense vectors to length 1; None = as the catalogue says."""

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not any(self.weights):
            raise ValueError(f"weights={self.weights} for dense, sparse and colbert: at least one must be above 0.")
        return self

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs whose weight is not 0."""
        return tuple(output for output, weight in zip(OUTPUTS, self.weights, strict=True) if weight)

    def _rank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        return rank(self.embedder, query, texts, self.weights, self.top_n)

    async def _arank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        return await arank(self.embedder, query, texts, self.weights, self.top_n)
