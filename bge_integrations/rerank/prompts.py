"""How a reranker's arguments, the catalogue and the model's files become a plan: prompts, limits and the head."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from bge_integrations.catalog import ModelSpec
from bge_integrations.inference.heads import Layers
from bge_integrations.inference.plan import PairPlan, length_limit
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.request import Resolved, plan_of

DEFAULT_MAX_LENGTH = 512
ARGUMENTS = {
    "prompt": ("llm", "layerwise", "lightweight"),
    "cutoff_layers": ("layerwise", "lightweight"),
    "compress_layers": ("lightweight",),
    "compress_ratio": ("lightweight",),
}
"""Arguments that only some families of rerankers take, and those families."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankOptions:
    """The options, besides the model, that decide scores: arguments of `BgeReranker`."""

    query_instruction: str | None = None
    document_instruction: str | None = None
    prompt: str | None = None
    max_length: int | None = None
    query_max_length: int | None = None
    document_max_length: int | None = None
    cutoff_layers: tuple[int, ...] | None = None
    compress_layers: tuple[int, ...] | None = None
    compress_ratio: int | None = None

    def refuse_foreign(self, spec: ModelSpec | None, model: str) -> None:
        """Refuse arguments that this kind of reranker does not have.

        Raises:
            ValueError: One is given.
        """
        family = spec.family if spec else "cross_encoder"
        for name, families in ARGUMENTS.items():
            if getattr(self, name) is not None and family not in families:
                raise ValueError(
                    f"{name}= belongs to rerankers of the kind {' or '.join(families)}; {model} is of the kind "
                    f"{family}. For a fine-tune pass like= with the id of its parent."
                )

    def plan(self, resolved: Resolved) -> PairPlan:
        """Return the plan by which the model computes pairs.

        Raises:
            ValueError: The files show that an argument is impossible.
        """
        spec, folder = resolved.spec, resolved.folder
        self.refuse_foreign(spec, resolved.name)
        layerwise = spec is not None and spec.family in ARGUMENTS["cutoff_layers"]
        by_row = spec is not None and not (resolved.guessed and folder.modules)
        default = spec.max_length if spec and by_row else min(DEFAULT_MAX_LENGTH, folder.max_length)
        return PairPlan(
            prefixes=self._prefixes(resolved),
            max_length=length_limit(self.max_length, default, folder.positions, resolved.name),
            query_max_length=self.query_max_length,
            document_max_length=self.document_max_length,
            prompt=self.prompt or (spec.prompt if spec else ""),
            layers=layers_of(folder, self.cutoff_layers or (), self.compress_layers, self.compress_ratio or 1)
            if layerwise
            else None,
        )

    def describe(self, resolved: Resolved) -> dict[str, Any]:
        """Return the plan's settings, with the places of query and passage in "query" and "document"."""
        plan = cast("PairPlan", plan_of(self, resolved))
        before_query, before_passage = plan.prefixes
        return {
            "query": before_query + "{query}",
            "document": before_passage + "{document}",
            "prompt": plan.prompt,
            "cutoff_layers": plan.layers.cutoffs if plan.layers else None,
            "max_length": plan.max_length,
            "query_max_length": plan.query_limit,
        }

    def _prefixes(self, resolved: Resolved) -> tuple[str, str]:
        spec = resolved.spec
        own = resolved.folder.default_prompt if resolved.guessed or not spec else ""
        query, passage = (spec.query_instruction, spec.document_instruction) if spec and not own else (own, "")
        return (
            query if self.query_instruction is None else self.query_instruction,
            passage if self.document_instruction is None else self.document_instruction,
        )


def layers_of(
    folder: Folder, cutoffs: tuple[int, ...], compress_layers: tuple[int, ...] | None, compress_ratio: int
) -> Layers:
    """Return the layers to score after and to compress before, once checked against the folder's model.

    Args:
        folder: The model's files.
        cutoffs: The layers after which to score; () scores after the last layer.
        compress_layers: The layers before which to compress; None takes 8, as FlagEmbedding does.
        compress_ratio: Tokens of a group; 1 compresses nothing.

    Raises:
        ValueError: The model has no head after such a layer, or no such layer.
    """
    total = int(folder.config["num_hidden_layers"])
    start, step = int(folder.config.get("start_layer", 8)), int(folder.config.get("layer_sep", 1))
    check_layers(cutoffs, compress_layers or (), range(start, total + 1, step))
    return Layers(cutoffs or (total,), (8,) if compress_layers is None else compress_layers, compress_ratio)


def check_layers(cutoffs: Sequence[int], compress_layers: Sequence[int], scoring: range) -> None:
    """Refuse layers that a model does not have.

    Args:
        cutoffs: The layers after which to score.
        compress_layers: The layers before which to compress.
        scoring: The layers after which the model has a head, the last included.

    Raises:
        ValueError: The model lacks one of them.
    """
    start, total = scoring[0], scoring[-1]
    if wrong := [layer for layer in cutoffs if layer not in scoring]:
        every = f" in steps of {scoring.step}" if scoring.step > 1 else ""
        raise ValueError(f"cutoff_layers has {wrong}; this model scores after layers {start} to {total}{every}.")
    if wrong := [layer for layer in compress_layers if not 0 < layer < total]:
        raise ValueError(f"compress_layers has {wrong}; this model can compress before layers 1 to {total - 1}.")


def layer_numbers(name: str, layers: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return layers in ascending order, each once; None stays None.

    Raises:
        ValueError: `layers` is empty, or not a list of whole numbers.
    """
    if layers is None:
        return None
    listed = list(layers) if isinstance(layers, Sequence) and not isinstance(layers, str) else []
    if not listed or not all(type(layer) is int for layer in listed):
        raise ValueError(f"{name}={layers!r} must be a list of layers, such as [28].")
    return tuple(sorted(set(listed)))
