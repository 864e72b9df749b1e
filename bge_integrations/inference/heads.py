"""What is kept of the hidden states: calls with equal heads share a batch."""

from dataclasses import dataclass

from bge_integrations.types import Pooling


@dataclass(frozen=True, slots=True)
class Dense:
    """One vector a text.

    Attributes:
        pooling: How token vectors become one vector; a sentence-transformers pipeline uses its own.
        normalize: Scale each vector to length 1, after cutting it to `dim`.
        dim: Keep the first `dim` numbers; None keeps all.
        prompt_length: Leading tokens that a pipeline with `include_prompt=False` leaves out of its pooling.
    """

    pooling: Pooling = Pooling.CLS
    normalize: bool = True
    dim: int | None = None
    prompt_length: int = 0


@dataclass(frozen=True, slots=True)
class Logit:
    """The cross-encoder's single raw output, one number a pair."""


Head = Dense | Logit
