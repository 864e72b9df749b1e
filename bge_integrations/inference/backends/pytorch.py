"""The torch backend: transformers' own model classes, padded (the reference) or packed, over one copy of weights."""

import copy
from abc import ABC, abstractmethod
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.inference.backends.base import DeviceMemoryError
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense, Head
from bge_integrations.types import Pooling


class ModuleBackend(ABC):
    """A torch module in evaluation mode on its device; see `Backend`.

    Args:
        model: The module.
        padded: Whether a forward computes padding.
        engine: How it runs and why, for people.
    """

    def __init__(self, model: Any, *, padded: bool, engine: str) -> None:
        self._model = model.eval()
        self.padded = padded
        self.engine = engine
        self.nbytes = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))

    @abstractmethod
    def rows(self, model: Any, batch: TokenBatch, head: Head) -> torch.Tensor:
        """One forward of `model`: (texts, width) on the device."""

    def run(self, batch: TokenBatch, head: Head, *, exact: bool = False) -> NDArray[np.float32]:
        """One forward; see `Backend.run`."""
        try:
            model = copy.deepcopy(self._model).float() if exact else self._model
            with torch.inference_mode():
                return self.rows(model, batch, head).float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            message = str(error)
        # Outside the handler, whose traceback would keep the forward's tensors alive.
        torch.cuda.empty_cache()
        raise DeviceMemoryError(message)

    def close(self) -> None:
        """Frees the weights."""
        on_cuda = self._model is not None and self._model.device.type == "cuda"
        self._model = None
        if on_cuda:
            torch.cuda.empty_cache()


class TorchBackend(ModuleBackend):
    """A transformers encoder, or encoder with a classification head.

    Args:
        model: From `AutoModel` or `AutoModelForSequenceClassification`, on its device, attention chosen by `packed`.
        packed: Run without padding; the model's attention must be `varlen.NAME`.
        engine: "packed" or "padded", with the reason.
    """

    def __init__(self, model: Any, *, packed: bool, engine: str) -> None:
        super().__init__(model, padded=not packed, engine=engine)
        self._pad_id = model.config.pad_token_id or 0

    def rows(self, model: Any, batch: TokenBatch, head: Head) -> torch.Tensor:
        """One forward, padded or packed."""
        return self._padded(model, batch, head) if self.padded else self._packed(model, batch, head)

    def _padded(self, model: Any, batch: TokenBatch, head: Head) -> torch.Tensor:
        ids, mask, types = (self._tensor(model, part) for part in batch.padded(self._pad_id))
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        out = model(**{name: value for name, value in inputs.items() if value is not None})
        if not isinstance(head, Dense):
            return cast("torch.Tensor", out.logits)
        hidden = out.last_hidden_state
        if head.pooling is Pooling.CLS:
            pooled = hidden[:, 0]
        elif head.pooling is Pooling.MEAN:
            weights = mask.unsqueeze(-1).to(torch.float32)
            pooled = (hidden.float() * weights).sum(1) / weights.sum(1)
        else:
            pooled = hidden[torch.arange(len(batch)), torch.as_tensor(batch.lengths - 1)]
        return finish(pooled, head)

    def _packed(self, model: Any, batch: TokenBatch, head: Head) -> torch.Tensor:
        base = model.base_model
        cu_seqlens = torch.as_tensor(batch.cu_seqlens, dtype=torch.int32).to(model.device, non_blocking=True)
        inputs: dict[str, Any] = {
            "input_ids": self._tensor(model, batch.ids[None]),
            "position_ids": self._tensor(model, self._positions(model, batch)[None]),
            "cu_seqlens": cu_seqlens,
            "seqlens": batch.lengths.tolist(),
        }
        if batch.types is not None:
            inputs["token_type_ids"] = self._tensor(model, batch.types[None])
        hidden = base(attention_mask=None, **inputs).last_hidden_state[0]
        first = hidden[cu_seqlens[:-1].long()]
        if not isinstance(head, Dense):
            return _classify(model, first)
        if head.pooling is Pooling.CLS:
            pooled = first
        elif head.pooling is Pooling.MEAN:
            lengths = torch.as_tensor(batch.lengths).to(model.device)
            pooled = torch.segment_reduce(hidden.float(), "mean", lengths=lengths)
        else:
            pooled = hidden[cu_seqlens[1:].long() - 1]
        return finish(pooled, head)

    def _positions(self, model: Any, batch: TokenBatch) -> NDArray[np.int64]:
        """Position of every token in its text, as the architecture counts them."""
        starts = np.repeat(batch.cu_seqlens[:-1], batch.lengths)
        if model.config.model_type == "bert":
            return np.arange(len(batch.ids)) - starts
        # RoBERTa counts the tokens that are not padding from pad_id + 1; a literal "<pad>" in a text stays at pad_id.
        real = (batch.ids != self._pad_id).astype(np.int64)
        before = np.concatenate([[0], np.cumsum(real)])
        positions: NDArray[np.int64] = (before[1:] - before[starts]) * real + self._pad_id
        return positions

    @staticmethod
    def _tensor(model: Any, array: NDArray[np.int64] | None) -> Any:
        return None if array is None else torch.from_numpy(array).to(model.device, non_blocking=True)


def finish(pooled: torch.Tensor, head: Dense) -> torch.Tensor:
    """Cuts and normalises pooled vectors, in float32."""
    vectors = pooled.float()[:, : head.dim]
    return torch.nn.functional.normalize(vectors, dim=-1) if head.normalize else vectors


def _classify(model: Any, first: torch.Tensor) -> torch.Tensor:
    """Logits from each text's first hidden state, through the model's own head."""
    if model.config.model_type == "bert":
        logits = model.classifier(model.bert.pooler(first[:, None]))
    else:
        logits = model.classifier(first[:, None])
    return cast("torch.Tensor", logits)
