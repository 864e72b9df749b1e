"""The torch backend: transformers' own model classes, padded (the reference) or packed, over one copy of weights."""

import copy
from abc import ABC, abstractmethod
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.errors import WrongKindError
from bge_integrations.inference.backends.base import DeviceMemoryError
from bge_integrations.inference.backends.m3 import m3_rows
from bge_integrations.inference.backends.pooling import dense_rows
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.call import Rows
from bge_integrations.inference.heads import M3, Dense, Head, TokenLogit


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
    def rows(self, model: Any, batch: TokenBatch, head: Head) -> torch.Tensor | Rows:
        """One forward of `model`: (texts, width) on the device, or rows of objects."""

    def run(self, batch: TokenBatch, head: Head, *, exact: bool = False) -> Rows:
        """One forward; see `Backend.run`."""
        try:
            model = copy.deepcopy(self._model).float() if exact else self._model
            with torch.inference_mode():
                rows = self.rows(model, batch, head)
                return rows.float().cpu().numpy() if isinstance(rows, torch.Tensor) else rows
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
    """A transformers encoder, decoder, or either with a head.

    Args:
        model: From one of transformers' auto classes, on its device, attention chosen by `packed`; bge-m3's own heads
            are its modules `sparse_linear` and `colbert_linear`.
        packed: Run without padding; the model's attention must be `varlen.NAME`. Decoders always do.
        engine: "packed" or "padded", with the reason.
        unused: Tokens that have no sparse weight.
    """

    def __init__(self, model: Any, *, packed: bool, engine: str, unused: tuple[int, ...] = ()) -> None:
        super().__init__(model, padded=not packed, engine=engine)
        self._pad_id = model.config.pad_token_id or 0
        self._unused = unused

    def rows(self, model: Any, batch: TokenBatch, head: Head) -> torch.Tensor | Rows:
        """One forward, padded or packed."""
        if self.padded and not isinstance(head, Dense | M3):
            return cast("torch.Tensor", model(**self._padded_inputs(model, batch)).logits)
        hidden = self._padded(model, batch) if self.padded else self._packed(model, batch)
        if isinstance(head, Dense):
            return dense_rows(hidden, batch, head)
        if isinstance(head, M3):
            return m3_rows(model, hidden, batch, head, self._unused)
        ends = torch.from_numpy(batch.cu_seqlens).to(hidden.device)
        if isinstance(head, TokenLogit):
            return _token_logit(model, hidden[ends[1:] - 1], head.token)
        return _classify(model, hidden[ends[:-1]])

    def _padded(self, model: Any, batch: TokenBatch) -> torch.Tensor:
        """Hidden states of all texts end to end, (tokens, width)."""
        hidden = model(**self._padded_inputs(model, batch)).last_hidden_state
        real = np.flatnonzero(np.arange(batch.max_seqlen) < batch.lengths[:, None])
        return cast("torch.Tensor", hidden.flatten(0, 1)[tensor(model, real)])

    def _padded_inputs(self, model: Any, batch: TokenBatch) -> dict[str, torch.Tensor]:
        ids, mask, types = batch.padded(self._pad_id)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: tensor(model, value) for name, value in inputs.items() if value is not None}

    def _packed(self, model: Any, batch: TokenBatch) -> torch.Tensor:
        """Hidden states of all texts end to end, (tokens, width)."""
        inputs: dict[str, Any] = {
            "input_ids": tensor(model, batch.ids[None]),
            "position_ids": tensor(model, positions(model.config.model_type, batch, self._pad_id)[None]),
            **boundaries(model, batch),
        }
        if model.config.model_type not in (*ROBERTA, "bert"):
            inputs["use_cache"] = False
        elif batch.types is not None:
            inputs["token_type_ids"] = tensor(model, batch.types[None])
        return cast("torch.Tensor", model.base_model(attention_mask=None, **inputs).last_hidden_state[0])


ROBERTA = ("xlm-roberta",)


def positions(model_type: str, batch: TokenBatch, pad_id: int) -> NDArray[np.int64]:
    """Position of every token in its text, as the architecture counts them."""
    starts = np.repeat(batch.cu_seqlens[:-1], batch.lengths)
    if model_type not in ROBERTA:
        return np.arange(len(batch.ids)) - starts
    # RoBERTa counts the tokens that are not padding from pad_id + 1; a literal "<pad>" in a text stays at pad_id.
    real = (batch.ids != pad_id).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(real)])
    counted: NDArray[np.int64] = (before[1:] - before[starts]) * real + pad_id
    return counted


def boundaries(model: Any, batch: TokenBatch) -> dict[str, Any]:
    """What `varlen_attention` needs to know of where each text begins."""
    cu_seqlens = torch.as_tensor(batch.cu_seqlens, dtype=torch.int32).to(model.device, non_blocking=True)
    return {"cu_seqlens": cu_seqlens, "seqlens": batch.lengths.tolist()}


def tensor(model: Any, array: NDArray[np.int64]) -> torch.Tensor:
    """The array on the model's device."""
    return torch.from_numpy(array).to(model.device, non_blocking=True)


def _classify(model: Any, first: torch.Tensor) -> torch.Tensor:
    """Logits from each text's first hidden state, through the model's own head."""
    if model.config.model_type == "bert":
        logits = model.classifier(model.bert.pooler(first[:, None]))
    else:
        logits = model.classifier(first[:, None])
    return cast("torch.Tensor", logits)


def _token_logit(model: Any, last: torch.Tensor, token: int) -> torch.Tensor:
    """One token's logit from each text's last hidden state, through the model's own output embedding."""
    output = model.get_output_embeddings()
    if output is None:  # one folder serves as an embedder and as a reranker
        raise WrongKindError(
            "This folder is loaded as an embedder already, without the output layer that reranking needs. Unload it "
            "first, or give the reranker a ModelCache of its own."
        )
    logits = (last @ output.weight[token])[:, None]
    return softcapped(logits, getattr(model.config, "final_logit_softcapping", None))


def softcapped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Gemma 2's bound on its logits."""
    return logits if cap is None else cap * torch.tanh(logits / cap)
