"""The LlamaIndex node postprocessors that put the most relevant nodes first."""

import asyncio
from math import isfinite
from typing import ClassVar, Self

from llama_index.core.bridge.pydantic import model_validator

from bge_integrations._fields import PathText, RerankerFields
from bge_integrations.embed.m3 import OUTPUTS, RERANKED_AT_ONCE, BgeM3Embedder, single_scores
from bge_integrations.llama_index.postprocessor import BgeNodePostprocessor
from bge_integrations.rerank.reranker import BgeReranker
from bge_integrations.types import M3Embeddings


class BgeRerank(RerankerFields, BgeNodePostprocessor):
    """BGE rerankers, and other cross-encoders with one label, as a node postprocessor.

    It returns new `NodeWithScore` objects with copies of the nodes, best first; its input is not changed. A node's
    score is the relevance of what the embedding model sees of it (text and metadata, `MetadataMode.EMBED`).

    ```python
    reranker = BgeRerank(model="BAAI/bge-reranker-v2-m3", top_n=5)
    engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[reranker])
    ```

    Raises:
        UnknownModelError: The id is not in the catalogue though it looks as if it should be.
        WrongKindError: The model is an embedder.
        UnsupportedModelError: This version cannot run the model.
        pydantic.ValidationError: An argument is unknown or of the wrong type, or `score_threshold` can never be met:
            outside [0, 1] without `normalize=False`.
    """

    _core_type: ClassVar[type] = BgeReranker

    @model_validator(mode="after")
    def _check_threshold(self) -> Self:
        if self.normalize and self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise ValueError(
                f"score_threshold={self.score_threshold} is outside [0, 1], where all scores lie. "
                "For a threshold on the raw logits pass normalize=False."
            )
        return self

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the framework stores this class."""
        return "BgeRerank"

    @property
    def reranker(self) -> BgeReranker:
        """The core reranker that does the work."""
        reranker: BgeReranker = self._core()
        return reranker

    def _rank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        return [(result.index, result.score) for result in self.reranker.rerank(query, texts, self.top_n)]

    async def _arank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        return [(result.index, result.score) for result in await self.reranker.arerank(query, texts, self.top_n)]


class BgeM3Rerank(BgeNodePostprocessor):
    """Multi-vector reranking with bge-m3: each token of the query is compared with its best token of the node.

    It returns new `NodeWithScore` objects with copies of the nodes, best first; its input is not changed. It scores
    what the embedding model sees of a node (text and metadata, `MetadataMode.EMBED`). However many candidates there
    are, the vectors of 256 at most are in memory together.

    ```python
    reranker = BgeM3Rerank(top_n=5)
    engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[reranker])
    ```

    Raises:
        UnknownModelError: The id is not in the catalogue though it looks as if it should be.
        WrongKindError: The model is a reranker.
        UnsupportedModelError: The model has no such outputs.
        pydantic.ValidationError: An argument is unknown, of the wrong type or out of its range.
    """

    model: PathText = "BAAI/bge-m3"
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
    weights: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Weights of the scores of dense, sparse and token vectors (`maxsim`); the score is their weighted mean. Outputs
    of weight 0 are not computed."""
    document_instruction: str | None = None
    """Text before every node; None = the catalogue's, "" = none."""
    normalize: bool | None = None
    """Scale dense vectors to length 1; None = as the catalogue says."""

    _core_type: ClassVar[type] = BgeM3Embedder

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if any(weight < 0 or not isfinite(weight) for weight in self.weights) or not any(self.weights):
            raise ValueError(
                f"weights={self.weights}: give three numbers, for dense, sparse and colbert, 0 or more and not all 0."
            )
        return self

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the framework stores this class."""
        return "BgeM3Rerank"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs whose weight is not 0."""
        return tuple(output for output, weight in zip(OUTPUTS, self.weights, strict=True) if weight)

    @property
    def embedder(self) -> BgeM3Embedder:
        """The core embedder that does the work; it computes only `outputs`."""
        embedder: BgeM3Embedder = self._core()
        return embedder

    def _rank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        if not texts:
            return []
        queries, scores = self.embedder.encode_queries([query]), list[float]()
        for passages in self.embedder.iter_documents(texts, RERANKED_AT_ONCE):
            scores += self._scores(queries, passages)
            del passages  # frees their memory before the next ones come
        return self._best(scores)

    async def _arank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        if not texts:
            return []
        queries, scores = await self.embedder.aencode_queries([query]), list[float]()
        async for passages in self.embedder.aiter_documents(texts, RERANKED_AT_ONCE):
            scores += await asyncio.to_thread(self._scores, queries, passages)
            del passages
        return self._best(scores)

    def _scores(self, query: M3Embeddings, passages: M3Embeddings) -> list[float]:
        """Return the score of each passage for the one query."""
        total = sum(self.weights)
        singles = [single_scores(query, 0, passages, row) for row in range(len(passages))]
        return [
            sum(weight * score for weight, score in zip(self.weights, three, strict=True)) / total for three in singles
        ]

    def _best(self, scores: list[float]) -> list[tuple[int, float]]:
        return sorted(enumerate(scores), key=lambda ranked: -ranked[1])[: self.top_n]
