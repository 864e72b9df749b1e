"""From hidden states to one vector a text."""

import torch

from bge_integrations.inference.backends.transfer import to_device
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense
from bge_integrations.types import Pooling


def dense_rows(hidden: torch.Tensor, batch: TokenBatch, head: Dense) -> torch.Tensor:
    """Pools, cuts and normalises the hidden states of all texts, (tokens, width)."""
    if head.pooling is Pooling.MEAN:
        lengths = to_device(batch.lengths, hidden.device)
        pooled = torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)  # else it asks the device
    else:
        which = batch.cu_seqlens[:-1] if head.pooling is Pooling.CLS else batch.cu_seqlens[1:] - 1
        pooled = hidden[to_device(which, hidden.device)]
    return finish(pooled, head)


def finish(pooled: torch.Tensor, head: Dense) -> torch.Tensor:
    """Cuts and normalises pooled vectors, in float32."""
    vectors = pooled.float()[:, : None if head.cut_last else head.dim]
    vectors = torch.nn.functional.normalize(vectors, dim=-1) if head.normalize else vectors
    return vectors[:, : head.dim]
