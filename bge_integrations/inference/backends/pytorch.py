"""The torch backend: transformers' own model classes, run padded as usual or packed, with one copy of the weights.

Copies to and from a device do not block: on CUDA they run while the device computes.
"""

import copy
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.architectures import architecture_of
from bge_integrations.errors import DeviceLostError, WrongKindError
from bge_integrations.inference.backends.base import DeviceMemoryError, Launched
from bge_integrations.inference.backends.fused import Fusing
from bge_integrations.inference.backends.graphs import Arrays, ForwardGraphs
from bge_integrations.inference.batch import Rows, TokenBatch
from bge_integrations.inference.heads import Dense, Head, Logit, TokenLogit
from bge_integrations.types import Pooling


class ModuleBackend(ABC):
    """A torch module in evaluation mode on its device; see `Backend`.

    Args:
        model: The module.
        padded: Whether a forward computes padding.
        engine: How it runs and why, for logs and `stats()`.
    """

    def __init__(self, model: Any, *, padded: bool, engine: str) -> None:
        self._model = model.eval()
        self.padded = padded
        self.vocabulary = table_rows(model)
        self.engine = engine
        self.nbytes = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))

    @abstractmethod
    def rows(self, model: Any, batch: TokenBatch, head: Head) -> torch.Tensor | Rows | Launched:
        """Run one forward of `model`; return a tensor (texts, width) on the device, or rows of objects."""

    def run(self, batch: TokenBatch, head: Head, *, exact: bool = False) -> Rows | Launched:
        """Run one forward; see `Backend.run`."""
        try:
            model = self._in_float32() if exact else self._model
            with device_errors(), torch.inference_mode():
                rows = self.rows(model, batch, head)
                if not isinstance(rows, torch.Tensor):
                    return rows
                return Launched(HostCopy(rows).wait) if rows.is_cuda else rows.float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            message = str(error)
        # This stands outside the handler, whose traceback would keep the forward's tensors alive.
        torch.cuda.empty_cache()
        raise DeviceMemoryError(message)

    @property
    def model(self) -> Any:
        """The module; None once the backend is closed."""
        return self._model

    def _in_float32(self) -> Any:
        """Return the model itself if all its weights are float32, else a float32 copy."""
        floats = (tensor.dtype for tensor in self._model.parameters() if tensor.is_floating_point())
        return self._model if set(floats) <= {torch.float32} else copy.deepcopy(self._model).float()

    def close(self) -> None:
        """Free the weights."""
        on_cuda = self._model is not None and self._model.device.type == "cuda"
        self._model = None
        if on_cuda:
            torch.cuda.empty_cache()


class TorchBackend(ModuleBackend):
    """The backend of a transformers encoder or decoder, with or without a head.

    Args:
        model: A model from one of transformers' auto classes, on its device, with the attention that `packed` needs.
        packed: Run without padding; the model's attention must be `varlen.NAME`.
        engine: "packed" or "padded", with the reason.
        fusing: Compiles the layers once there is enough work.
        graphs: Replays packed forwards over small batches.
    """

    def __init__(
        self,
        model: Any,
        *,
        packed: bool,
        engine: str,
        fusing: Fusing | None = None,
        graphs: ForwardGraphs | None = None,
    ) -> None:
        super().__init__(model, padded=not packed, engine=engine)
        model.config.use_cache = False  # a decoder would keep keys and values
        self._architecture = architecture_of(model.config.model_type)
        self._pad_id = model.config.pad_token_id
        self._starts_after = self._pad_id or 0 if self._architecture.starts_after_padding else None
        self._has_pad_token = self._pad_id is not None and 0 <= self._pad_id < (self.vocabulary or math.inf)
        # For a decoder that scores each text at its last token, transformers looks for the last token that is not
        # padding, and without a padding token it takes only one text at a time.
        self._scores_last_token = hasattr(model, "score") and not self._has_pad_token
        self._takes_types = "token_type_ids" in inspect.signature(model.forward).parameters
        self._fusing = fusing
        self._graphs = graphs

    def close(self) -> None:
        """Free the weights."""
        self._fusing = self._graphs = None
        super().close()

    def rows(self, model: Any, batch: TokenBatch, head: Head) -> torch.Tensor | Rows | Launched:
        """Run one forward, padded or packed."""
        if self.padded and isinstance(head, Logit) and not self._scores_last_token:
            return cast("torch.Tensor", model(**self._padded_inputs(model, batch)).logits)
        hidden = self._padded(model, batch) if self.padded else self._packed(model, batch)
        return self.rows_of(model, hidden, batch, head)

    def rows_of(
        self, model: Any, hidden: torch.Tensor, batch: TokenBatch, head: Head
    ) -> torch.Tensor | Rows | Launched:
        """Return what the head keeps of the hidden states, (tokens, width), of all texts end to end."""
        if isinstance(head, Dense):
            return dense_rows(hidden, batch, head)
        ends = to_device(batch.cu_seqlens, hidden.device)
        if isinstance(head, TokenLogit):
            return _token_logit(model, hidden[ends[1:] - 1], head.token)
        if self._scores_last_token:
            return cast("torch.Tensor", model.score(hidden[ends[1:] - 1]))
        return _classify(model, hidden[ends[:-1]], pooler=self._architecture.pooler)

    def _padded(self, model: Any, batch: TokenBatch) -> torch.Tensor:
        """Return the hidden states of all texts end to end, (tokens, width)."""
        hidden = model.base_model(**self._padded_inputs(model, batch)).last_hidden_state
        real = np.flatnonzero(np.arange(batch.max_seqlen) < batch.lengths[:, None])
        return cast("torch.Tensor", hidden.flatten(0, 1)[to_device(real, model.device)])

    def _padded_inputs(self, model: Any, batch: TokenBatch) -> dict[str, torch.Tensor]:
        ids, mask, types = batch.padded(self._pad_id if self._has_pad_token else 0)
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types if self._takes_types else None}
        return {name: to_device(value, model.device) for name, value in inputs.items() if value is not None}

    def _packed(self, model: Any, batch: TokenBatch) -> torch.Tensor:
        """Return the hidden states of all texts end to end, (tokens, width)."""
        arrays: Arrays = {
            "input_ids": batch.ids[None],
            "position_ids": positions(batch, self._starts_after)[None],
            "cu_seqlens": batch.cu_seqlens.astype(np.int32),
        }
        if batch.types is not None and self._architecture.packs:
            arrays["token_type_ids"] = batch.types[None]
        if model is self._model:
            if self._graphs and (hidden := self._graphs.hidden(arrays)) is not None:
                return hidden
            if self._fusing:
                self._fusing.count(len(batch.ids))
        inputs = {}
        for name, array in arrays.items():
            inputs[name] = to_device(array, model.device)
        return packed_hidden(model, inputs, batch.max_seqlen, torch.from_numpy(batch.cu_seqlens))


def table_rows(model: Any) -> int | None:
    """Return the number of rows of a model's table of token embeddings; None where no such table is found."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return getattr(table, "num_embeddings", None)


def packed_hidden(
    model: Any, inputs: Mapping[str, torch.Tensor], max_seqlen: int, starts: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the hidden states (tokens, width) of a packed row; `varlen_attention` explains `max_seqlen`, `starts`."""
    out = model.base_model(attention_mask=None, **inputs, max_seqlen=max_seqlen, starts=starts)
    return cast("torch.Tensor", out.last_hidden_state[0])


def positions(batch: TokenBatch, starts_after: int | None = None) -> NDArray[np.int64]:
    """Return each token's position in its text: from 0, or from `starts_after` (the padding token's id) + 1."""
    starts = np.repeat(batch.cu_seqlens[:-1], np.diff(batch.cu_seqlens))
    if starts_after is None:
        return np.arange(len(batch.ids)) - starts
    # RoBERTa counts the tokens that are not padding; a literal "<pad>" in a text stays at the padding's own position.
    real = (batch.ids != starts_after).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(real)])
    counted: NDArray[np.int64] = (before[1:] - before[starts]) * real + starts_after
    return counted


def boundaries(batch: TokenBatch, device: torch.device) -> dict[str, Any]:
    """Return the arguments that tell `varlen_attention` where each text begins."""
    return {
        "cu_seqlens": to_device(batch.cu_seqlens.astype(np.int32), device),
        "starts": torch.from_numpy(batch.cu_seqlens),
        "max_seqlen": batch.max_seqlen,
    }


def _classify(model: Any, first: torch.Tensor, *, pooler: bool) -> torch.Tensor:
    """Return logits from each text's first hidden state, through the model's own head."""
    rows = first[:, None]
    return cast("torch.Tensor", model.classifier(model.bert.pooler(rows) if pooler else rows))


def _token_logit(model: Any, last: torch.Tensor, token: int) -> torch.Tensor:
    """Return one token's logit from each text's last hidden state, through the model's own output embedding."""
    output = model.get_output_embeddings()
    if output is None:  # one folder serves as an embedder and as a reranker
        raise WrongKindError(
            "This folder is loaded as an embedder already, without the output layer that reranking needs. Unload it "
            "first, or give the reranker a ModelCache of its own."
        )
    logits = (last @ output.weight[token])[:, None]
    return softcapped(logits, getattr(model.config, "final_logit_softcapping", None))


def softcapped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Bound logits to -`cap` to `cap` as Gemma 2 does; None bounds nothing."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def dense_rows(hidden: torch.Tensor, batch: TokenBatch, head: Dense) -> torch.Tensor:
    """Pool, cut and normalise the hidden states of all texts, (tokens, width)."""
    if head.pooling is Pooling.MEAN:
        lengths = to_device(batch.lengths, hidden.device)
        pooled = torch.segment_reduce(hidden.float(), "mean", lengths=lengths, unsafe=True)  # its checks would block
    else:
        which = batch.cu_seqlens[:-1] if head.pooling is Pooling.CLS else batch.cu_seqlens[1:] - 1
        pooled = hidden[to_device(which, hidden.device)]
    return finish(pooled, head)


def finish(pooled: torch.Tensor, head: Dense) -> torch.Tensor:
    """Cut and normalise pooled vectors, in float32."""
    vectors = pooled.float()[:, : None if head.cut_last else head.dim]
    vectors = torch.nn.functional.normalize(vectors, dim=-1) if head.normalize else vectors
    return vectors[:, : head.dim]


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy an array to a device, without waiting for the copy."""
    host = torch.from_numpy(array)
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)


class HostCopy:
    """A copy of a tensor to the host's memory, in float32; on CUDA it runs while the device computes."""

    def __init__(self, values: torch.Tensor) -> None:
        values = values.float()
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.current_stream(values.device).record_event()
        else:
            self._host = values.cpu()

    def wait(self) -> NDArray[np.float32]:
        """Wait for the copy to arrive and return it."""
        if self._arrived is not None:
            with device_errors():
                self._arrived.synchronize()
        array: NDArray[np.float32] = self._host.numpy()
        return array


@contextmanager
def device_errors() -> Iterator[None]:
    """Raise `DeviceLostError` for an error after which CUDA computes nothing more in this process; pass on others."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("CUDA error"):
            raise
        raise DeviceLostError(
            f"The device failed, and computes nothing more in this process; restart it. ({error})"
        ) from error
