"""bge-m3's three outputs from one forward (https://arxiv.org/abs/2402.03216, section 3.2)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.inference.backends.pooling import dense_rows
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.call import Rows
from bge_integrations.inference.heads import M3
from bge_integrations.types import SparseEmbedding


def m3_rows(model: Any, hidden: torch.Tensor, batch: TokenBatch, head: M3, unused: tuple[int, ...]) -> Rows:
    """One object a text and output: a dense vector, a `SparseEmbedding`, or an array of token vectors.

    Args:
        model: Holds the heads `sparse_linear` and `colbert_linear`.
        hidden: (tokens, width), all texts end to end.
        batch: The texts.
        head: Which outputs.
        unused: Tokens that have no sparse weight.
    """
    rows = np.empty((len(batch), len(head.outputs)), dtype=object)
    for column, output in enumerate(head.outputs):
        if output == "dense":
            values: Sequence[Any] = list(dense_rows(hidden, batch, head.dense).cpu().numpy())
        elif output == "sparse":
            weights = torch.relu(model.sparse_linear(hidden))[:, 0]
            values = sparse_embeddings(weights.float().cpu().numpy(), batch, unused)
        else:
            values = _token_vectors(model, hidden, batch, normalize=head.dense.normalize)
        for row, value in enumerate(values):
            rows[row, column] = value
    return rows


def sparse_embeddings(
    weights: NDArray[np.float32], batch: TokenBatch, unused: tuple[int, ...]
) -> list[SparseEmbedding]:
    """Of every text the largest weight of each token that has one."""
    texts = np.repeat(np.arange(len(batch)), batch.lengths)
    used = ~np.isin(batch.ids, unused) & ~(weights <= 0)  # NaN stays, to be found out
    order = np.lexsort((batch.ids[used], texts[used]))
    texts, ids, weights = texts[used][order], batch.ids[used][order], weights[used][order]
    first = np.flatnonzero((np.diff(texts, prepend=-1) != 0) | (np.diff(ids, prepend=-1) != 0))
    values = np.maximum.reduceat(weights, first) if len(first) else weights
    bounds = np.searchsorted(texts[first], np.arange(1, len(batch)))
    parts = zip(np.split(ids[first], bounds), np.split(values, bounds), strict=True)
    return [SparseEmbedding(indices.copy(), weights.copy()) for indices, weights in parts]


def _token_vectors(
    model: Any, hidden: torch.Tensor, batch: TokenBatch, *, normalize: bool
) -> list[NDArray[np.float32]]:
    """Vectors of all tokens but each text's first."""
    kept = np.delete(np.arange(len(batch.ids)), batch.cu_seqlens[:-1])
    vectors = model.colbert_linear(hidden[torch.from_numpy(kept).to(hidden.device)]).float()
    if normalize:
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
    bounds = batch.cu_seqlens[1:-1] - np.arange(1, len(batch))
    return [part.copy() for part in np.split(vectors.cpu().numpy(), bounds)]  # a view would keep the whole batch
