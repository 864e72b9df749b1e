"""BERT's and XLM-RoBERTa's graph for OpenVINO, written down operation by operation.

Converting the torch module would give the same graph, and take an import of torch and transformers of several seconds.
The names of the tensors are those of transformers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import openvino  # type: ignore[import-untyped]
from openvino import opset13 as ops

from bge_integrations.architectures import architecture_of
from bge_integrations.errors import MissingWeightsError, UnsupportedModelError
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.weights import Tensors

Node = Any
"""An `openvino.Node`."""

_ACTIVATIONS: dict[str, Callable[[Node], Node]] = {
    "gelu": partial(ops.gelu, approximation_mode="erf"),
    "gelu_new": partial(ops.gelu, approximation_mode="tanh"),
    "gelu_pytorch_tanh": partial(ops.gelu, approximation_mode="tanh"),
    "relu": ops.relu,
    "silu": ops.swish,
    "swish": ops.swish,
    "tanh": ops.tanh,
}
_DEFAULTS = {"layer_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2}
"""What a config.json that leaves them out means; both architectures have the same."""
_MASKED = float(np.finfo(np.float32).min)
"""What is added to the attention to padding, as in transformers."""


def encoder_graph(folder: Folder, tensors: Tensors, *, typed: bool) -> openvino.Model:
    """Write down the graph of an encoder.

    Args:
        folder: The model's facts.
        tensors: Its weights, by their names in the checkpoint.
        typed: Whether it takes token types; without, all tokens are of the first type.

    Returns:
        A graph from int64 `input_ids`, `attention_mask` and, if `typed`, `token_type_ids`, each (texts, tokens), to
        float32 hidden states (texts, tokens, width) or, for a reranker, logits (texts, 1).

    Raises:
        MissingWeightsError: A tensor is missing or has another shape than config.json says.
        UnsupportedModelError: The graph has no such activation function.
    """
    return _Encoder(folder, tensors).graph(typed)


class _Encoder:
    def __init__(self, folder: Folder, tensors: Tensors) -> None:
        self._folder = folder
        self._architecture = architecture_of(folder.model_type)
        self._tensors = {_plain_name(name): tensor for name, tensor in tensors.items()}
        self._facts = {**_DEFAULTS, **folder.config}
        self._width, self._heads = int(self._facts["hidden_size"]), int(self._facts["num_attention_heads"])
        if self._facts["hidden_act"] not in _ACTIVATIONS:
            raise UnsupportedModelError(f"There is no hidden_act={self._facts['hidden_act']!r} for OpenVINO.")
        self._activation = _ACTIVATIONS[self._facts["hidden_act"]]

    def graph(self, typed: bool) -> openvino.Model:
        names = ("input_ids", "attention_mask", *(("token_type_ids",) if typed else ()))
        inputs = [ops.parameter([-1, -1], np.int64, name=name) for name in names]
        for node, name in zip(inputs, names, strict=True):
            node.get_output_tensor(0).set_names({name})
        ids, mask, *types = inputs
        hidden = self._embedded(ids, types[0] if types else None)
        real = ops.convert(ops.unsqueeze(mask, _ints([1, 2])), "f32")
        penalty = ops.multiply(ops.subtract(_floats(1), real), _floats(_MASKED))
        for number in range(int(self._facts["num_hidden_layers"])):
            hidden = self._layer(hidden, penalty, f"encoder.layer.{number}")
        return openvino.Model([ops.result(self._logits(hidden) if self._folder.is_reranker else hidden)], inputs)

    def _embedded(self, ids: Node, types: Node | None) -> Node:
        words = self._looked_up("word", "vocab_size", ids)
        kinds = self._looked_up("token_type", "type_vocab_size", _ints([[0]]) if types is None else types)
        places = self._looked_up("position", "max_position_embeddings", self._positions(ids))
        return self._normed(ops.add(ops.add(words, kinds), places), "embeddings.LayerNorm")

    def _looked_up(self, table: str, rows: str, ids: Node) -> Node:
        tensor = self._tensor(f"embeddings.{table}_embeddings.weight", self._facts.get(rows), self._width)
        return ops.gather(tensor, ids, _ints(0))

    def _positions(self, ids: Node) -> Node:
        if not self._architecture.starts_after_padding:
            length = ops.gather(ops.shape_of(ids), _ints(1), _ints(0))
            return ops.unsqueeze(ops.range(_ints(0), length, _ints(1), "i64"), _ints(0))
        pad = _ints(int(self._facts.get("pad_token_id", 1)))
        real = ops.convert(ops.not_equal(ids, pad), "i64")
        return ops.add(ops.multiply(ops.cum_sum(real, _ints(1)), real), pad)

    def _layer(self, hidden: Node, penalty: Node, name: str) -> Node:
        inner = int(self._facts["intermediate_size"])
        split = _ints([0, 0, self._heads, self._width // self._heads])
        order, joined = _ints([0, 2, 1, 3]), _ints([0, 0, -1])

        def headed(which: str) -> Node:
            projected = self._linear(hidden, f"{name}.attention.self.{which}", self._width)
            return ops.transpose(ops.reshape(projected, split, special_zero=True), order)

        attended = ops.scaled_dot_product_attention(headed("query"), headed("key"), headed("value"), penalty)
        attended = ops.reshape(ops.transpose(attended, order), joined, special_zero=True)
        attended = self._linear(attended, f"{name}.attention.output.dense", self._width)
        hidden = self._normed(ops.add(attended, hidden), f"{name}.attention.output.LayerNorm")
        widened = self._activation(self._linear(hidden, f"{name}.intermediate.dense", inner))
        narrowed = self._linear(widened, f"{name}.output.dense", self._width, inner)
        return self._normed(ops.add(narrowed, hidden), f"{name}.output.LayerNorm")

    def _logits(self, hidden: Node) -> Node:
        first = ops.gather(hidden, _ints(0), _ints(1))
        names = "pooler.dense classifier" if self._architecture.pooler else "classifier.dense classifier.out_proj"
        dense, last = names.split()
        return self._linear(ops.tanh(self._linear(first, dense, self._width)), last, 1)

    def _linear(self, hidden: Node, name: str, outputs: int, inputs: int | None = None) -> Node:
        weight = self._tensor(f"{name}.weight", outputs, inputs or self._width)
        product = ops.matmul(hidden, weight, transpose_a=False, transpose_b=True)
        return ops.add(product, self._tensor(f"{name}.bias", outputs))

    def _normed(self, hidden: Node, name: str) -> Node:
        normed = ops.mvn(hidden, _ints([-1]), True, float(self._facts["layer_norm_eps"]), "inside_sqrt")
        scaled = ops.multiply(normed, self._tensor(f"{name}.weight", self._width))
        return ops.add(scaled, self._tensor(f"{name}.bias", self._width))

    def _tensor(self, name: str, *shape: int | None) -> Node:
        """Return a tensor in float32; a None in its shape allows any number."""
        tensor = self._tensors.get(name)
        if tensor is None or not _fits(tensor.shape, shape):
            raise MissingWeightsError(
                f"The checkpoint in {self._folder.path} lacks the tensor {name}, or has it in another shape than "
                "config.json says. It would run on random weights, so it is refused: use a complete checkpoint."
            )
        return ops.constant(np.require(tensor, np.float32, ["C", "A"]), shared_memory=True)


def _plain_name(name: str) -> str:
    """Return a tensor's name without the name of the model, and with today's words for those of the first BERT."""
    name = name.removeprefix("bert.").removeprefix("roberta.")
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _fits(actual: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(actual) == len(wanted) and all(w in (None, a) for a, w in zip(actual, wanted, strict=True))


def _ints(value: object) -> Node:
    return ops.constant(np.array(value, np.int64))


def _floats(value: object) -> Node:
    return ops.constant(np.array(value, np.float32))
