"""The model as an ONNX graph."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bge_integrations.export.subject import Subject

LARGEST_FILE = 1_900_000_000
"""Bytes of weights that go into the .onnx file itself, whose format ends at 2 GB."""


def write_graph(subject: Subject, inputs: dict[str, Any], file: Path) -> dict[str, Any]:
    """Writes the float32 graph, with free batch and sequence axes; weights beyond 2 GB beside it, in `<file>_data`.

    Args:
        subject: What to export.
        inputs: Name -> tensor (batch, sequence): an example, in the order that the graph's inputs shall have.
        file: Where to write.

    Returns:
        What config.json shall hold.
    """
    import onnx_ir
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from transformers import AutoModel, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if subject.is_reranker else AutoModel
    extra: dict[str, Any] = {} if subject.is_reranker else {"add_pooling_layer": False}
    with _quiet():
        model = auto.from_pretrained(subject.folder.path, dtype=torch.float32, attn_implementation="eager", **extra)
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
        program: Any = torch.onnx.export(
            model,
            kwargs=inputs,
            input_names=list(inputs),
            output_names=[subject.output],
            dynamic_shapes=dict.fromkeys(inputs, axes),
            dynamo=True,
            verbose=False,
        )
    ClearMetadataAndDocStringPass()(program.model)  # it names local paths
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    onnx_ir.save(program.model, file, external_data=f"{file.name}_data" if size > LARGEST_FILE else None)
    config: dict[str, Any] = model.config.to_dict()
    return {name: value for name, value in config.items() if name != "_name_or_path"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what transformers and torch's exporter have to say of themselves off stderr."""
    from transformers.utils import logging as transformers_logging

    exporter = logging.getLogger("torch.onnx")
    level, verbosity = exporter.level, transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    exporter.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
