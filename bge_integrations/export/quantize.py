"""A graph in 8-bit weights: a quarter of the size."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_BLOCK = 16
"""Weights that share a scale: the smallest block that ONNX Runtime takes, and the most exact."""
_INT8_ACTIVATIONS = 4
"""ONNX Runtime's name for it: where it has the code, it computes in int8, else in float32."""


def write_quantized(file: Path, target: Path) -> None:
    """Writes a float32 graph's copy whose matrices and embeddings hold 8 bits a weight.

    Matrices have a scale a block of weights (ONNX Runtime's operator MatMulNBits), embeddings a scale a row. Its
    `quantize_dynamic`, with one scale for the activations of a whole batch, takes the package's own embedder under a
    cosine of 0.99, and makes a vector depend on the texts beside it; its quantizer of blocks sets up logging for the
    whole process when it is imported.
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
    """The product with a matrix (inner, outer) in blocks along its inner axis."""
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
    """The rows of a table of embeddings."""
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
    """Whole numbers from -127 to 127, and their scales (..., 1) along the last axis."""
    scales = np.maximum(np.abs(weights).max(axis=-1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return np.rint(weights / scales), scales
