"""How a reranker reads pairs and what it scores with: catalogue, folder and arguments put together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bge_integrations.inference.batch import Encoding
from bge_integrations.inference.heads import Head, Layers, Logit, TokenLogit
from bge_integrations.inference.tokenize import TextTokenizer
from bge_integrations.runtime.folder import Folder

Pair = tuple[str, str]

YES = "Yes"
"""The token whose logit is the score of an LLM-based reranker."""
ARGUMENTS = {
    "prompt": ("llm", "layerwise", "lightweight"),
    "cutoff_layers": ("layerwise", "lightweight"),
    "compress_layers": ("lightweight",),
    "compress_ratio": ("lightweight",),
}
"""Arguments that only some families take."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How pairs become scores.

    Attributes:
        prefixes: Before each query and each passage.
        max_length: Most tokens of a pair.
        query_max_length: Most tokens of its query; None takes three quarters of `max_length`.
        prompt: After each pair; "" for a cross-encoder.
        layers: Of a layerwise reranker; None for others.
    """

    prefixes: tuple[str, str]
    max_length: int
    query_max_length: int | None
    prompt: str
    layers: Layers | None

    @property
    def query_limit(self) -> int:
        """Most tokens of a query; by default three quarters of `max_length`, as in the reference."""
        return self.query_max_length or max(1, self.max_length * 3 // 4)

    def encode(self, tokenizer: TextTokenizer) -> Callable[[Sequence[Pair]], list[Encoding]]:
        """The function that tokenizes pairs.

        Raises:
            ValueError: The query's limit leaves a passage no room.
        """
        # An LLM-based reranker's limit does not count its prompt (TextTokenizer.prompted_pairs).
        room = self.max_length - (1 if self.prompt else tokenizer.pair_special_tokens)
        if (self.query_max_length or 1) >= room:
            raise ValueError(
                f"query_max_length={self.query_max_length} leaves a passage no room within "
                f"max_length={self.max_length}: use at most {room - 1}, or raise max_length."
            )
        plain = partial(
            tokenizer.pairs,
            max_length=self.max_length,
            query_max_length=min(self.query_limit, room - 1),
            prefixes=self.prefixes,
        )
        return partial(tokenizer.prompted_pairs, **plain.keywords, prompt=self.prompt) if self.prompt else plain

    def head(self, tokenizer: TextTokenizer) -> Head:
        """What to keep of a forward."""
        if self.layers:
            return self.layers
        return TokenLogit(tokenizer.token(YES)) if self.prompt else Logit()


def layers_of(
    folder: Folder, cutoffs: tuple[int, ...], compress_layers: tuple[int, ...] | None, compress_ratio: int
) -> Layers:
    """The layers to score after, as far as the folder's model has them.

    Args:
        folder: The model's files.
        cutoffs: After how many layers; () takes all of them.
        compress_layers: None takes 8, as the reference does.
        compress_ratio: 1 compresses nothing.

    Raises:
        ValueError: The model has no head after such a layer, or no such layer.
    """
    total = int(folder.config["num_hidden_layers"])
    start, step = int(folder.config.get("start_layer", 8)), int(folder.config.get("layer_sep", 1))
    check_layers(cutoffs, compress_layers or (), range(start, total + 1, step))
    return Layers(cutoffs or (total,), (8,) if compress_layers is None else compress_layers, compress_ratio)


def check_layers(cutoffs: Sequence[int], compress_layers: Sequence[int], scoring: range) -> None:
    """Refuses layers that a model does not have.

    Args:
        cutoffs: After how many layers to score.
        compress_layers: Before which layers to compress.
        scoring: After which layers the model has a head, the last included.

    Raises:
        ValueError: One of them is not there.
    """
    start, total = scoring[0], scoring[-1]
    if wrong := [layer for layer in cutoffs if layer not in scoring]:
        every = f" in steps of {scoring.step}" if scoring.step > 1 else ""
        raise ValueError(f"cutoff_layers has {wrong}; this model scores after layers {start} to {total}{every}.")
    if wrong := [layer for layer in compress_layers if not 0 < layer < total]:
        raise ValueError(f"compress_layers has {wrong}; this model can compress before layers 1 to {total - 1}.")


def layer_numbers(name: str, layers: Sequence[int] | None) -> tuple[int, ...] | None:
    """Layers in ascending order, each once.

    Raises:
        ValueError: Not a list of whole numbers, or an empty one.
    """
    if layers is None:
        return None
    listed = list(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else []
    if not listed or not all(type(layer) is int for layer in listed):
        raise ValueError(f"{name}={layers!r} must be a list of layers, such as [28].")
    return tuple(sorted(set(listed)))
