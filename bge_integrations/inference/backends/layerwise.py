"""Rerankers that score after any of their layers: MiniCPM layerwise and Gemma 2 lightweight.

transformers 5 has neither architecture, but has their decoder layers: MiniCPM is Granite with other constants, and the
lightweight reranker runs Gemma 2's layers. This module adds the loop over them: it stops after the last layer that is
asked for, scores through one head for each layer, and averages the passage's tokens in groups where that is asked for.
https://huggingface.co/BAAI/bge-reranker-v2-minicpm-layerwise,
https://huggingface.co/BAAI/bge-reranker-v2.5-gemma2-lightweight
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import torch
from transformers import Gemma2Config, Gemma2Model, GraniteConfig, GraniteModel, PreTrainedModel

from bge_integrations.inference.backends.pytorch import ModuleBackend, boundaries, positions, softcapped, to_device
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Head, Layers

PASSAGE = 1
"""The token type of a passage's tokens."""


class LayerwiseModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers has no types here
    """Decoder layers with a head after each from `start_layer` on, named as in the published checkpoints."""

    _supports_attention_backend = True
    heads_by_position = False
    """Whether the first layer asked for takes the first head, whichever layer it is."""

    def __init__(self, config: Any, model: PreTrainedModel) -> None:
        super().__init__(config)
        self.model = model
        heads = range(config.start_layer, config.num_hidden_layers + 1, config.layer_sep)
        self.lm_head = torch.nn.ModuleList(_Head(config.hidden_size) for _ in heads)
        self.post_init()  # type: ignore[no-untyped-call]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the scaled token embeddings, (1, tokens, width)."""
        return cast("torch.Tensor", self.model.embed_tokens(ids))

    def score(self, hidden: torch.Tensor, layer: int, position: int) -> torch.Tensor:
        """Return logits (texts, 1) for hidden states (texts, width) after `layer`, the `position`-th one asked for."""
        number = position if self.heads_by_position else (layer - self.config.start_layer) // self.config.layer_sep
        logits = self.lm_head[number].linear_head(self.model.norm(hidden)).float()
        return softcapped(logits, getattr(self.config, "final_logit_softcapping", None))


class LayerwiseMiniCPM(LayerwiseModel):  # type: ignore[no-untyped-call]
    """The published model `LayerWiseMiniCPMForCausalLM`, on Granite's layers."""

    config_class = GraniteConfig

    def __init__(self, config: GraniteConfig) -> None:
        super().__init__(config, GraniteModel(config))

    @staticmethod
    def make_config(facts: Mapping[str, Any]) -> GraniteConfig:
        """Return Granite's configuration for a MiniCPM's config.json."""
        head_size = facts["hidden_size"] // facts["num_attention_heads"]
        return GraniteConfig(
            **_kept(facts, GraniteConfig),
            embedding_multiplier=float(facts["scale_emb"]),
            residual_multiplier=facts["scale_depth"] / facts["num_hidden_layers"] ** 0.5,
            attention_multiplier=head_size**-0.5,
        )

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the scaled token embeddings, (1, tokens, width)."""
        scale: float = self.config.embedding_multiplier
        return super().embed(ids) * scale


class CostWiseGemma(LayerwiseModel):  # type: ignore[no-untyped-call]
    """The published model `CostWiseGemmaForCausalLM`, on Gemma 2's layers.

    FlagEmbedding takes heads by their position in the list of layers: one layer alone always goes through the head of
    `start_layer` (version 1.4.2, gemma_model.py). The published scores come from it, so this does the same.
    """

    config_class = Gemma2Config
    heads_by_position = True

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__(config, Gemma2Model(config))

    @staticmethod
    def make_config(facts: Mapping[str, Any]) -> Gemma2Config:
        """Return Gemma 2's configuration for a lightweight reranker's config.json."""
        return Gemma2Config(**_kept(facts, Gemma2Config))


class LayerwiseBackend(ModuleBackend):
    """The backend of a layerwise reranker, which always runs packed."""

    def __init__(self, model: LayerwiseModel, *, engine: str) -> None:
        super().__init__(model, padded=False, engine=engine)

    def rows(self, model: LayerwiseModel, batch: TokenBatch, head: Head) -> torch.Tensor:
        """Run one forward; return logits (pairs, layers)."""
        if not isinstance(head, Layers):
            raise TypeError(f"A layerwise reranker has no {type(head).__name__}.")
        hidden = model.embed(to_device(batch.ids[None], model.device))
        places = _places(model, hidden, batch)
        logits: list[torch.Tensor] = []
        for number, layer in enumerate(model.model.layers[: head.cutoffs[-1]]):
            if number and number in head.compress_layers and head.compress_ratio > 1:
                hidden, batch = compress(hidden, batch, head.compress_ratio)
                places = _places(model, hidden, batch)
            hidden = layer(hidden, attention_mask=None, use_cache=False, **places)
            if number + 1 in head.cutoffs:
                last = hidden[0, to_device(batch.cu_seqlens[1:] - 1, model.device)]
                logits.append(model.score(last, number + 1, len(logits)))
        return torch.cat(logits, dim=1)


class _Head(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_head = torch.nn.Linear(width, 1, bias=False)


def compress(hidden: torch.Tensor, batch: TokenBatch, ratio: int) -> tuple[torch.Tensor, TokenBatch]:
    """Average each passage's hidden states in groups of `ratio`; the last group may be smaller.

    Args:
        hidden: The hidden states, (1, tokens, width).
        batch: Its texts; the token types say which tokens are a passage's.
        ratio: Tokens of a group.
    """
    types = cast("np.ndarray[Any, np.dtype[np.int64]]", batch.types)
    texts = np.repeat(np.arange(len(batch)), batch.lengths)
    begins = np.diff(texts, prepend=-1).astype(bool) | np.diff(types, prepend=-1).astype(bool)
    start = np.maximum.accumulate(np.where(begins, np.arange(len(types)), 0))
    begins |= (types != PASSAGE) | ((np.arange(len(types)) - start) % ratio == 0)
    first = np.flatnonzero(begins)
    lengths = to_device(np.diff(first, append=len(types)), hidden.device)
    means = torch.segment_reduce(hidden[0].float(), "mean", lengths=lengths, unsafe=True).to(hidden.dtype)
    cu_seqlens = np.searchsorted(first, batch.cu_seqlens)
    return means[None], replace(batch, ids=batch.ids[first], types=types[first], cu_seqlens=cu_seqlens)


def _places(model: LayerwiseModel, hidden: torch.Tensor, batch: TokenBatch) -> dict[str, Any]:
    """Return the arguments that tell the layers the position of each token and where the texts begin."""
    ids = to_device(positions(batch)[None], model.device)
    return {
        "position_ids": ids,
        "position_embeddings": model.model.rotary_emb(hidden, ids),
        **boundaries(batch, model.device),
    }


def _kept(facts: Mapping[str, Any], config_class: type[Any]) -> dict[str, Any]:
    """Return the settings of a config.json that `config_class` knows too, and the layers that have heads."""
    known = {field.name for field in fields(config_class)} - {"architectures", "dtype", "transformers_version"}
    rope = {"rope_type": "default", **(facts.get("rope_scaling") or {}), "rope_theta": facts.get("rope_theta", 1e4)}
    return {
        **{name: facts[name] for name in known if facts.get(name) is not None},
        "rope_parameters": rope,
        "start_layer": facts.get("start_layer", 8),
        "layer_sep": facts.get("layer_sep", 1),
    }
