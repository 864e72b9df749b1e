"""The small value types that the package's public functions take and return."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Pooling(StrEnum):
    """The ways in which token vectors become one vector per text."""

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


@dataclass(frozen=True, slots=True, eq=False)
class SparseEmbedding:
    """A text's lexical weights, as bge-m3 gives them.

    Attributes:
        indices: Token ids, int64 (n,), ascending, each once; special tokens are left out.
        values: Their weights, float32 (n,), all above 0.
    """

    indices: NDArray[np.int64]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, slots=True, eq=False)
class M3Embeddings:
    """The outputs of bge-m3 for n texts; an output that was not asked for is None.

    Attributes:
        dense: One vector per text, float32 (n, dim).
        sparse: One `SparseEmbedding` per text.
        colbert: One vector per token, a float32 (tokens - 1, dim) array per text: all tokens but the first, `<s>`.
    """

    dense: NDArray[np.float32] | None
    sparse: list[SparseEmbedding] | None
    colbert: list[NDArray[np.float32]] | None

    def __len__(self) -> int:
        return next((len(output) for output in (self.dense, self.sparse, self.colbert) if output is not None), 0)

    def __getitem__(self, texts: slice) -> "M3Embeddings":
        """Return the outputs for a slice of the texts; the arrays are views, not copies."""
        return M3Embeddings(
            None if self.dense is None else self.dense[texts],
            None if self.sparse is None else self.sparse[texts],
            None if self.colbert is None else self.colbert[texts],
        )
