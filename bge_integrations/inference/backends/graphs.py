"""CUDA graphs for the small batches of live queries, where Python and kernel launches take most of the time.

A graph replays one forward over a fixed number of tokens, so a batch is filled up to the next of a few sizes. The added
tokens follow in texts of their own: the batch's texts do not attend to them, and their outputs are dropped.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

SIZES = (64, 128, 256, 512, 1024)
"""The numbers of tokens for which there may be a graph."""
TEXTS = 32
"""Every graph has this many texts, including those that fill it up, of which there is at least one."""
TOLERANCE = 1e-2
"""A graph is used if its first replay is this close to the forward that it was made from."""

Arrays = dict[str, NDArray[Any]]
Forward = Callable[[Mapping[str, torch.Tensor], int], torch.Tensor]
"""Returns hidden states (tokens, width) for inputs and the number of tokens of the longest text."""


class ForwardGraphs:
    """CUDA graphs that replay `forward` over small batches; each size is captured when its first batch comes.

    Args:
        forward: The function to capture; it reads nothing but its inputs.
        device: A CUDA device.
    """

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self._forward = forward
        self._device = device
        self._captured: dict[int, _Captured] = {}
        self._usable = True

    def hidden(self, arrays: Arrays) -> torch.Tensor | None:
        """Return hidden states (tokens, width), valid until the next call; None where no graph can be used."""
        tokens = arrays["input_ids"].shape[1]
        size = graph_size(tokens, len(arrays["cu_seqlens"]) - 1)
        if size is None or not self._usable:
            return None
        inputs = {name: torch.from_numpy(array).pin_memory() for name, array in filled(arrays, size).items()}
        if size not in self._captured and not self._capture(size, inputs):
            return None
        return self._captured[size].replay(inputs)[:tokens]

    def _capture(self, size: int, inputs: Mapping[str, torch.Tensor]) -> bool:
        try:
            captured = _Captured(self._forward, size, inputs, self._device)
            plain = self._forward(captured.inputs, size)
            if torch.allclose(captured.replay(inputs), plain, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                self._captured[size] = captured
                return True
            problem = "a graph's output differs"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            problem = str(error)
        self._usable = False
        logger.warning("small batches run without CUDA graphs: %s", problem)
        return False


class _Captured:
    """One graph, and the memory that it reads and writes."""

    def __init__(self, forward: Forward, size: int, inputs: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        self._graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(2):  # what libraries allocate in their first call must not be captured
                forward(self.inputs, size)
        torch.cuda.current_stream(device).wait_stream(aside)
        # Other threads may use the device during a capture.
        with torch.cuda.graph(self._graph, stream=aside, capture_error_mode="thread_local"):
            self._hidden = forward(self.inputs, size)

    def replay(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        for name, tensor in self.inputs.items():
            tensor.copy_(inputs[name], non_blocking=True)
        self._graph.replay()
        return self._hidden


def graph_size(tokens: int, texts: int) -> int | None:
    """Return the size of the smallest graph that a batch fits; None if it is too large for all of them."""
    needed = tokens + TEXTS - texts
    return next((size for size in SIZES if texts < TEXTS and needed <= size), None)


def filled(arrays: Arrays, size: int) -> Arrays:
    """Fill a batch up to `TEXTS` texts and `size` tokens, by texts of one token and a last one with all the rest."""
    starts = arrays["cu_seqlens"]
    added = TEXTS + 1 - len(starts)
    out = {"cu_seqlens": np.concatenate([starts, starts[-1] + np.arange(1, added), [size]], dtype=starts.dtype)}
    for name in arrays.keys() - out.keys():
        row = arrays[name]
        rest = np.repeat(row[:, :1], size - row.shape[1], axis=1)  # the first token's, valid for any model
        out[name] = np.concatenate([row, rest], axis=1)
    return out
