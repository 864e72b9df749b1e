"""The three outputs of bge-m3 from one forward (https://arxiv.org/abs/2402.03216, section 3.2)."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.inference.backends.base import Launched
from bge_integrations.inference.backends.fused import Fusing
from bge_integrations.inference.backends.graphs import ForwardGraphs
from bge_integrations.inference.backends.pytorch import HostCopy, TorchBackend, dense_rows, to_device
from bge_integrations.inference.batch import Rows, TokenBatch
from bge_integrations.inference.heads import M3, Head
from bge_integrations.types import SparseEmbedding


class M3Backend(TorchBackend):
    """An encoder with bge-m3's own heads, its modules `sparse_linear` and `colbert_linear`.

    Args:
        model: As in `TorchBackend`, like the arguments that follow.
        unused: Ids of tokens that get no sparse weight.
    """

    def __init__(
        self,
        model: Any,
        *,
        packed: bool,
        engine: str,
        unused: tuple[int, ...] = (),
        fusing: Fusing | None = None,
        graphs: ForwardGraphs | None = None,
    ) -> None:
        super().__init__(model, packed=packed, engine=engine, fusing=fusing, graphs=graphs)
        self._unused = unused

    def rows_of(
        self, model: Any, hidden: torch.Tensor, batch: TokenBatch, head: Head
    ) -> torch.Tensor | Rows | Launched:
        """Return one object per text and output of `M3`: dense vector, `SparseEmbedding` or array of token vectors."""
        if not isinstance(head, M3):
            return super().rows_of(model, hidden, batch, head)
        outputs = head.outputs
        copies = [HostCopy(_on_device(model, hidden, batch, head, output)) for output in outputs]

        def rows() -> Rows:
            objects = np.empty((len(batch), len(outputs)), dtype=object)
            for column, (output, copy) in enumerate(zip(outputs, copies, strict=True)):
                for row, value in enumerate(_by_text(output, copy.wait(), batch, self._unused)):
                    objects[row, column] = value
            return objects

        return Launched(rows) if hidden.is_cuda else rows()


def _on_device(model: Any, hidden: torch.Tensor, batch: TokenBatch, head: M3, output: str) -> torch.Tensor:
    """Return dense vectors (texts, width), sparse weights (tokens,), or token vectors without each text's first."""
    if output == "dense":
        return dense_rows(hidden, batch, head.dense)
    if output == "sparse":
        return torch.relu(model.sparse_linear(hidden))[:, 0]
    kept = np.delete(np.arange(len(batch.ids)), batch.cu_seqlens[:-1])
    vectors = cast("torch.Tensor", model.colbert_linear(hidden[to_device(kept, hidden.device)])).float()
    return torch.nn.functional.normalize(vectors, dim=-1) if head.dense.normalize else vectors


def _by_text(output: str, values: NDArray[np.float32], batch: TokenBatch, unused: tuple[int, ...]) -> Sequence[Any]:
    if output == "dense":
        return list(values)
    if output == "sparse":
        return sparse_embeddings(values, batch, unused)
    bounds = batch.cu_seqlens[1:-1] - np.arange(1, len(batch))
    return [part.copy() for part in np.split(values, bounds)]  # a view would keep the whole batch


def sparse_embeddings(
    weights: NDArray[np.float32], batch: TokenBatch, unused: tuple[int, ...]
) -> list[SparseEmbedding]:
    """Return each text's sparse embedding: the largest weight of every token that has a weight above 0."""
    texts = np.repeat(np.arange(len(batch)), batch.lengths)
    used = ~np.isin(batch.ids, unused) & ~(weights <= 0)  # NaN stays, for `not_finite` to find
    order = np.lexsort((batch.ids[used], texts[used]))
    texts, ids, weights = texts[used][order], batch.ids[used][order], weights[used][order]
    first = np.flatnonzero((np.diff(texts, prepend=-1) != 0) | (np.diff(ids, prepend=-1) != 0))
    values = np.maximum.reduceat(weights, first) if len(first) else weights
    bounds = np.searchsorted(texts[first], np.arange(1, len(batch)))
    parts = zip(np.split(ids[first], bounds), np.split(values, bounds), strict=True)
    return [SparseEmbedding(indices.copy(), weights.copy()) for indices, weights in parts]
