"""LangChain's document compressor and cross-encoder over the shared reranker."""

from collections.abc import Sequence
from typing import ClassVar, Self

from langchain_core.callbacks import Callbacks
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field, model_validator

from bge_integrations._fields import RerankerFields
from bge_integrations.langchain.fields import LangChainModel
from bge_integrations.langchain.retrieval import with_scores
from bge_integrations.rerank.reranker import BgeReranker
from bge_integrations.types import RerankResult


class RerankerModel(RerankerFields, LangChainModel):
    """The arguments of `BgeReranker`, and the reranker that is made of them."""

    _core_type: ClassVar[type] = BgeReranker

    @property
    def reranker(self) -> BgeReranker:
        """The core reranker that does the work."""
        reranker: BgeReranker = self._built or self._core()
        return reranker


class BgeRerank(RerankerModel, BaseDocumentCompressor):
    """A document compressor that reranks documents and keeps the best; cheap to make, its weights load at first use.

    It returns copies with the key `relevance_score` in their metadata; your documents stay as they are. A copy equals
    its original, and the copy that another query returned, as scores do not make another document.

    Example:
        ```python
        reranker = BgeRerank(model="BAAI/bge-reranker-v2-m3", top_n=3)
        best = reranker.compress_documents(documents, "what is a panda?")
        ```

    Raises:
        UnknownModelError: The id is not in the catalogue though it looks as if it should be.
        WrongKindError: The model is an embedder.
        UnsupportedModelError: This version cannot run the model.
        pydantic.ValidationError: An argument is unknown or of the wrong type, or `score_threshold` can never be met.
    """

    top_n: int | None = Field(default=3, ge=1)
    """How many documents to keep; None = all."""
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
        texts = [document.page_content for document in documents]
        results = self.reranker.rerank(query, texts, top_n=self.top_n)
        return self._copies(documents, results)

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Rerank documents; as `compress_documents`, off the event loop."""
        results = await self.reranker.arerank(
            query, [document.page_content for document in documents], top_n=self.top_n
        )
        return self._copies(documents, results)

    def _copies(self, documents: Sequence[Document], results: list[RerankResult]) -> list[Document]:
        return [
            with_scores(documents[result.index], relevance_score=result.score)
            for result in results
            if self.score_threshold is None or result.score >= self.score_threshold
        ]


class BgeCrossEncoder(RerankerModel, BaseCrossEncoder):
    """A reranker as LangChain's `BaseCrossEncoder`, for instance for langchain-classic's `CrossEncoderReranker`.

    Example:
        ```python
        encoder = BgeCrossEncoder(model="BAAI/bge-reranker-base")
        scores = encoder.score([("what is a panda?", "A bear of China."), ("what is a panda?", "Paris is a city.")])
        ```

    Raises:
        UnknownModelError: The id is not in the catalogue though it looks as if it should be.
        WrongKindError: The model is an embedder.
        UnsupportedModelError: This version cannot run the model.
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
