"""From hidden states to one vector a text."""

import torch

from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense
from bge_integrations.types import Pooling


def dense_rows(hidden: torch.Tensor, batch: TokenBatch, head: Dense) -> torch.Tensor:
    """Pools, cuts and normalises the hidden states of all texts, (tokens, width)."""
    if head.pooling is Pooling.MEAN:
        lengths = torch.from_numpy(batch.lengths).to(hidden.device)
        pooled = torch.segment_reduce(hidden.float(), "mean", lengths=lengths)
    else:
        which = batch.cu_seqlens[:-1] if head.pooling is Pooling.CLS else batch.cu_seqlens[1:] - 1
        pooled = hidden[torch.from_numpy(which).to(hidden.device)]
    return finish(pooled, head)


def finish(pooled: torch.Tensor, head: Dense) -> torch.Tensor:
    """Cuts and normalises pooled vectors, in float32."""
    vectors = pooled.float()[:, : head.dim]
    return torch.nn.functional.normalize(vectors, dim=-1) if head.normalize else vectors
