"""`BgeRerank`: a LlamaIndex node postprocessor that puts the most relevant nodes first."""

from typing import ClassVar, Self

from llama_index.core.bridge.pydantic import model_validator

from bge_integrations._fields import RerankerFields
from bge_integrations.llama_index.postprocessor import BgeNodePostprocessor
from bge_integrations.rerank.reranker import BgeReranker


class BgeRerank(RerankerFields, BgeNodePostprocessor):
    """BGE rerankers, and other cross-encoders with one label, as a node postprocessor.

    Gives new `NodeWithScore` objects round copies of the nodes, best first; what it was given stays as it was. A node's
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
        """The name under which the framework stores this class."""
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
