"""The small values that cross the package's borders."""

from dataclasses import dataclass
from enum import StrEnum


class Pooling(StrEnum):
    """How token vectors become one vector a text."""

    CLS = "cls"
    """The first token's vector: every BERT and XLM-RoBERTa BGE model."""
    MEAN = "mean"
    """The mean over the text's tokens."""
    LAST_TOKEN = "last_token"  # noqa: S105
    """The last token's vector: the LLM-based embedders."""


@dataclass(frozen=True, slots=True)
class RerankResult:
    """One passage after reranking.

    Attributes:
        index: Position of the passage in the list that was given.
        score: The relevance score: the sigmoid of `logit`, or `logit` itself with `normalize=False`.
        logit: The model's raw, unbounded output.
    """

    index: int
    score: float
    logit: float
