"""Writing of a model as an ONNX graph, and of that graph with 8-bit weights."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.export.subject import Subject

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

LARGEST_FILE = 1_900_000_000
"""At most this many bytes of weights go into the .onnx file itself, whose format ends at 2 GB."""
_BLOCK = 16
"""This many weights share a scale: it is the smallest block that ONNX Runtime takes, and the most exact."""
_INT8_ACTIVATIONS = 4
"""ONNX Runtime's accuracy level for int8: it computes in int8 where it has the code for that, else in float32."""


def write_graph(subject: Subject, inputs: dict[str, Any], file: Path) -> dict[str, Any]:
    """Write the float32 graph, with free batch and sequence axes; weights too large for it go into `<file>_data`.

    Args:
        subject: The model to export.
        inputs: Name -> tensor (batch, sequence): an example, in the order that the graph's inputs shall have.
        file: Where to write.

    Returns:
        The content of config.json.
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
    ClearMetadataAndDocStringPass()(program.model)  # the metadata name local paths
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    onnx_ir.save(program.model, file, external_data=f"{file.name}_data" if size > LARGEST_FILE else None)
    config: dict[str, Any] = model.config.to_dict()
    return {name: value for name, value in config.items() if name != "_name_or_path"}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the messages of transformers and torch's exporter off stderr while the context is open."""
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


def write_quantized(file: Path, target: Path) -> None:
    """Write a copy of a float32 graph whose matrices and embeddings hold 8 bits per weight.

    Matrices have one scale per block of weights (ONNX Runtime's operator MatMulNBits), embeddings one per row. ONNX
    Runtime's own tools are not used: `quantize_dynamic`, with one scale for the activations of a whole batch, takes the
    package's own embedder under a cosine of 0.99 and makes a vector depend on the texts beside it; the quantizer of
    blocks leaves embeddings in float32 with 8 bits (seen with 1.32), and the file of that embedder is twice as large.
    """
    import onnx

    model = onnx.load(file)
    weights = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == tensor.FLOAT and len(tensor.dims) == 2
    }
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        made: list[NodeProto] = [node]
        new: list[TensorProto] = []
        if node.op_type == "MatMul" and node.input[1] in weights:
            made, new = _matmul(node, weights[node.input[1]])
        elif node.op_type == "Gather" and node.input[0] in weights:
            made, new = _lookup(node, weights[node.input[0]])
        nodes += made
        model.graph.initializer.extend(new)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _matmul(node: "NodeProto", tensor: "TensorProto") -> tuple[list["NodeProto"], list["TensorProto"]]:
    """Return a node, with its tensors, for the product with a matrix (inner, outer) in blocks along its inner axis."""
    from onnx import helper, numpy_helper

    inner, outer = tensor.dims
    padded = np.pad(numpy_helper.to_array(tensor).T, ((0, 0), (0, -inner % _BLOCK)))
    quantized, scales = _quantized(padded.reshape(outer, -1, _BLOCK))
    weights = numpy_helper.from_array((quantized + np.float32(128)).astype(np.uint8), f"{tensor.name}_8bit")
    scale = numpy_helper.from_array(scales[..., 0], f"{tensor.name}_scale")
    product = helper.make_node(
        "MatMulNBits",
        [node.input[0], weights.name, scale.name],
        node.output,
        domain="com.microsoft",
        K=inner,
        N=outer,
        bits=8,
        block_size=_BLOCK,
        accuracy_level=_INT8_ACTIVATIONS,
    )
    return [product], [weights, scale]


def _lookup(node: "NodeProto", tensor: "TensorProto") -> tuple[list["NodeProto"], list["TensorProto"]]:
    """Return nodes, with their tensors, that look up rows of a table of embeddings."""
    from onnx import TensorProto, helper, numpy_helper

    quantized, scales = _quantized(numpy_helper.to_array(tensor))
    weights = numpy_helper.from_array(quantized.astype(np.int8), f"{tensor.name}_8bit")
    scale = numpy_helper.from_array(scales, f"{tensor.name}_scale")
    ids, rows = node.input[1], node.output[0]
    return [
        helper.make_node("Gather", [weights.name, ids], [f"{rows}_8bit"]),
        helper.make_node("Cast", [f"{rows}_8bit"], [f"{rows}_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [scale.name, ids], [f"{rows}_scale"]),
        helper.make_node("Mul", [f"{rows}_float", f"{rows}_scale"], [rows]),
    ], [weights, scale]


def _quantized(weights: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the weights as whole numbers from -127 to 127, and their scales (..., 1) along the last axis."""
    scales = np.maximum(np.abs(weights).max(axis=-1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return np.rint(weights / scales), scales
