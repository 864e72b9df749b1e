"""OpenVINO on a CPU: a batch runs as groups of texts of about one length, several groups at a time."""

import os
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import openvino  # type: ignore[import-untyped]
from numpy.typing import NDArray

from bge_integrations.inference.batch import IntArray, Rows, TokenBatch
from bge_integrations.inference.heads import Dense, Head
from bge_integrations.types import Pooling

Length = TypeVar("Length", int, IntArray)

GROUP_TOKENS = 512
"""A group has at most this many tokens, padding included; a longer text is a group of its own."""
STEP = 16
"""Groups are padded to a multiple of this, because OpenVINO makes code for every shape it meets, and keeps it."""
THREADS = int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0] or 0)
"""The cores to use; 0 uses all. torch reads the same variable, and engines such as Spark and Ray set it."""
STREAMS = min(2, THREADS or os.cpu_count() or 1)
"""This many groups run at a time, each on its share of the cores."""


class OpenVinoBackend:
    """A graph compiled for this machine's CPU; see `Backend`.

    Args:
        read: Returns the graph: from int64 `input_ids`, `attention_mask` and perhaps `token_type_ids`, each (texts,
            tokens), to hidden states (texts, tokens, width) or logits (texts, 1).
        precision: "f32" or "bf16": the precision of everything that the graph does not hold in int8.
        pad_id: The id of the tokenizer's padding token.
        vocabulary: Rows of the table of token embeddings; None for no limit.
        positions: Most tokens that the model has positions for; None for no limit.
    """

    padded = False

    def __init__(
        self,
        read: Callable[[], openvino.Model],
        *,
        precision: str,
        pad_id: int,
        vocabulary: int | None = None,
        positions: int | None = None,
    ) -> None:
        graph = read()
        self.nbytes = sum(node.get_byte_size() for node in graph.get_ops() if isinstance(node, openvino.op.Constant))
        self._read = read
        self.vocabulary = vocabulary
        self._pad_id = pad_id if pad_id < (vocabulary or sys.maxsize) else 0
        self._positions = positions or sys.maxsize
        self._compiled: _Compiled | None = _Compiled(graph, precision)
        self.engine = f"openvino: {self._compiled.precision}, {STREAMS} groups of texts at a time"

    def run(self, batch: TokenBatch, head: Head, *, exact: bool = False) -> Rows:
        """Run one forward; see `Backend.run`."""
        compiled = self._compiled
        if compiled is None:
            raise RuntimeError("This backend is closed.")
        if exact and compiled.precision != "f32":
            compiled = _Compiled(self._read(), "f32")
        order = np.argsort(-batch.lengths, kind="stable")
        groups = [_taken(batch, order[part]) for part in _parts(batch.lengths[order])]
        widths = [min(_rounded(group.max_seqlen), self._positions) for group in groups]
        inputs = [group.padded(self._pad_id, width) for group, width in zip(groups, widths, strict=True)]
        parts = [_rows(out, group, head) for out, group in zip(compiled.run(inputs), groups, strict=True)]
        rows = np.concatenate(parts)
        rows[order] = rows.copy()
        return rows

    def close(self) -> None:
        """Free the weights."""
        self._compiled = None


class _Compiled:
    """A compiled graph and the requests that run it, which OpenVINO spreads over its streams."""

    def __init__(self, graph: openvino.Model, precision: str) -> None:
        # Pinning is off, because several processes would otherwise all sit on the machine's first cores.
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": THREADS,
            "NUM_STREAMS": STREAMS,
            "ENABLE_CPU_PINNING": False,
        }
        self._model = openvino.Core().compile_model(graph, "CPU", settings)
        self.precision = str(self._model.get_property("INFERENCE_PRECISION_HINT").to_string())
        self._typed = len(self._model.inputs) > 2
        self._requests: list[openvino.InferRequest] = []

    def run(self, inputs: list[tuple[IntArray, IntArray, IntArray | None]]) -> Iterator[NDArray[np.float32]]:
        """Yield the graph's output for each of `(ids, mask, types)`, valid until the next run."""
        while len(self._requests) < len(inputs):
            self._requests.append(self._model.create_infer_request())
        for request, (ids, mask, types) in zip(self._requests, inputs, strict=False):
            arrays = {"input_ids": ids, "attention_mask": mask}
            request.start_async(arrays | {"token_type_ids": types} if self._typed else arrays)
        for request, _ in zip(self._requests, inputs, strict=False):
            request.wait()
            yield request.get_output_tensor(0).data


def _parts(lengths: IntArray) -> Iterator[slice]:
    """Cut descending lengths into groups, so that every stream has work and there is little padding."""
    lengths = _rounded(lengths)
    limit = min(GROUP_TOKENS, -(-int(lengths.sum()) // STREAMS))
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or (stop + 1 - start) * lengths[start] > limit:
            yield slice(start, stop)
            start = stop


def _rounded(length: Length) -> Length:
    return -(-length // STEP) * STEP


def _taken(batch: TokenBatch, texts: IntArray) -> TokenBatch:
    """Return some of the batch's texts as a batch of their own."""
    tokens = np.concatenate([np.arange(batch.cu_seqlens[text], batch.cu_seqlens[text + 1]) for text in texts])
    types = None if batch.types is None else batch.types[tokens]
    return TokenBatch(batch.ids[tokens], types, np.cumsum([0, *batch.lengths[texts]], dtype=np.int64))


def _rows(out: NDArray[np.float32], group: TokenBatch, head: Head) -> NDArray[np.float32]:
    """Return logits as they are; pool, cut and normalise hidden states (texts, tokens, width)."""
    if not isinstance(head, Dense):
        return out.reshape(len(group), -1).copy()
    if head.pooling is Pooling.MEAN:
        pooled = np.stack([hidden[:length].mean(axis=0) for hidden, length in zip(out, group.lengths, strict=True)])
    else:
        which = 0 if head.pooling is Pooling.CLS else group.lengths - 1
        pooled = out[np.arange(len(group)), which]
    vectors: NDArray[np.float32] = pooled[:, : None if head.cut_last else head.dim]
    if head.normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors[:, : head.dim]
