"""A test whether a model may run packed: two texts in one row must give what each of them gives alone.

A model's files may choose another attention, other positions or a mask of their own. No error would show that: a packed
row would run without its boundaries, and texts of different callers would see each other. So packing is always tested.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.inference.backends import varlen
from bge_integrations.inference.backends.base import Launched
from bge_integrations.inference.backends.pytorch import ModuleBackend, table_rows
from bge_integrations.inference.batch import Encoding, TokenBatch
from bge_integrations.inference.heads import Head

PLAIN = "sdpa"
"""The name of the attention in transformers that works with every architecture."""
_LENGTHS = (7, 4)
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""Hidden states may change by this much beside another text, as a fraction of their spread: rounding changes them less,
and a row without boundaries by about 0.3."""


def use_attention(model: torch.nn.Module, name: str) -> None:
    """Make every module of a transformers model compute its attention with the function of that name."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = name  # noqa: SLF001 - transformers has no public name for all of them


def packing_fault(last_layer: torch.nn.Module, head: Head, *, packed: ModuleBackend, alone: ModuleBackend) -> str:
    """Return why a model may not run packed, and leave transformers' attention in it; "" if it may, with ours in it.

    Args:
        last_layer: The last of the model's layers, whose hidden states are compared.
        head: The head whose rows are compared as well.
        packed: The backend that runs the model packed.
        alone: The backend that runs the same model as transformers does, one text at a time.
    """
    model = packed.model
    fault = _difference(model, last_layer, head, packed, alone)
    if fault:
        use_attention(model, PLAIN)
    return fault


def _difference(
    model: Any, last_layer: torch.nn.Module, head: Head, packed: ModuleBackend, alone: ModuleBackend
) -> str:
    """Return, as a message, how two texts in one row fail or differ from the same texts alone; "" if they do not."""
    probes = _probes(model)
    use_attention(model, PLAIN)
    apart = [_run(alone, last_layer, [probe], head) for probe in probes]
    use_attention(model, varlen.NAME)
    try:
        hidden, rows = _run(packed, last_layer, probes, head)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"a packed forward fails ({error})"
    wanted_hidden, wanted_rows = (np.concatenate(parts) for parts in zip(*apart, strict=True))
    spread = np.linalg.norm(wanted_hidden - wanted_hidden.mean(axis=0))
    tolerance = _TOLERANCES.get(model.dtype, 1e-3)
    for got, wanted, scale in (
        (hidden, wanted_hidden, spread),
        (rows, wanted_rows, 1 + np.linalg.norm(wanted_rows)),
    ):
        if not np.linalg.norm(got - wanted) <= tolerance * scale:
            return "in a packed row its texts would not give what they give alone"
    return ""


def _probes(model: Any) -> list[Encoding]:
    """Return two texts of tokens from all over the vocabulary."""
    count = sum(_LENGTHS)
    ids = np.linspace(0, (table_rows(model) or 1) - 1, count + 2).astype(np.int64)
    ids = np.resize(ids[ids != model.config.pad_token_id], count)
    typed = (getattr(model.config, "type_vocab_size", 0) or 0) > 1
    return [
        Encoding(part, (np.arange(len(part)) > len(part) // 2).astype(np.int64) if typed else None, len(part))
        for part in np.split(ids, np.cumsum(_LENGTHS)[:-1])
    ]


def _run(
    backend: ModuleBackend, last_layer: torch.nn.Module, texts: Sequence[Encoding], head: Head
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return hidden states (tokens, width) and rows (texts, width) of one forward; NaN and infinity become numbers."""
    with _output_of(last_layer) as outputs:
        rows = backend.run(TokenBatch.of(texts), head)
    hidden = outputs[0].flatten(0, -2).float().cpu().numpy()
    both = (hidden, rows.rows() if isinstance(rows, Launched) else rows)
    first, second = (np.nan_to_num(part.astype(np.float64), posinf=1e6, neginf=-1e6) for part in both)
    return first, second


@contextmanager
def _output_of(layer: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect the outputs of a layer in a list while the context is open."""
    outputs: list[torch.Tensor] = []

    def collect(_: torch.nn.Module, _args: Any, output: Any) -> None:
        outputs.append(output if isinstance(output, torch.Tensor) else output[0])

    hook = layer.register_forward_hook(collect)
    try:
        yield outputs
    finally:
        hook.remove()
