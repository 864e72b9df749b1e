"""Heads, which say what is kept of the hidden states; calls with equal heads share a batch."""

from dataclasses import dataclass

from bge_integrations.types import Pooling


@dataclass(frozen=True, slots=True)
class Dense:
    """One vector for each text.

    Attributes:
        pooling: How token vectors become one vector; a sentence-transformers pipeline uses its own.
        normalize: Scale each vector to length 1, after cutting it to `dim` unless `cut_last`.
        dim: Keep the first `dim` numbers; None keeps all.
        prompt_length: Leading tokens that a pipeline with `include_prompt=False` leaves out of its pooling.
        cut_last: Cut after normalising; the vectors are then shorter than 1.
    """

    pooling: Pooling = Pooling.CLS
    normalize: bool = True
    dim: int | None = None
    prompt_length: int = 0
    cut_last: bool = False


@dataclass(frozen=True, slots=True)
class M3:
    """The outputs of bge-m3, which differ in length: a row holds one object for each output.

    Attributes:
        outputs: The outputs wanted, out of "dense", "sparse" and "colbert", in the order of the columns.
        dense: How the dense vector is made; its `normalize` holds for the token vectors too.
    """

    outputs: tuple[str, ...]
    dense: Dense


@dataclass(frozen=True, slots=True)
class Logit:
    """The cross-encoder's single raw output, one number for each pair."""


@dataclass(frozen=True, slots=True)
class TokenLogit:
    """A language model's logit for one token as the next one after the text, one number for each pair."""

    token: int


@dataclass(frozen=True, slots=True)
class Layers:
    """The logits of a layerwise reranker, one number for each pair and layer.

    Attributes:
        cutoffs: The layers after which to score, ascending; nothing after the last is computed.
        compress_layers: The layers before which the passage's tokens are averaged in groups.
        compress_ratio: Tokens of a group; 1 averages nothing.
    """

    cutoffs: tuple[int, ...]
    compress_layers: tuple[int, ...] = ()
    compress_ratio: int = 1


Head = Dense | M3 | Logit | TokenLogit | Layers
