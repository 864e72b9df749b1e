"""The fingerprint of an embedder: one short string that changes with whatever decides its document vectors."""

import hashlib
import json
from collections.abc import Sequence

from bge_integrations.inference.plan import TextPlan
from bge_integrations.runtime.folder import Folder, content_hash
from bge_integrations.runtime.request import Resolved

_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
_TOKENIZER = {"truncation_side": "right", "split_special_tokens": False, "strip_accents": None}
"""Settings of a tokenizer that tokenizer.json does not hold, and their usual values."""
_PLACES = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision")
"""Keys of adapter_config.json that decide no vector."""
_VECTOR = "sentence_embedding"
_READ_FROM = ("modality_config", "module_output_name")
_USUAL = (
    {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "token_embeddings",
)
"""The usual values of the settings that say where a Transformer module takes its token vectors from."""


def fingerprint(resolved: Resolved, plan: TextPlan, outputs: Sequence[str]) -> str:
    """Return 32 hexadecimal digits that hash the weights and tokenizer, the plan and the outputs."""
    folder = resolved.folder
    settings = {
        "pooling": plan.dense.pooling,
        "normalize": plan.dense.normalize,
        "dim": plan.dim,
        "max_length": plan.max_length,
        "document_prefix": plan.prefix,
    } | ({"int8": True} if resolved.key.dtype == "int8" else {})
    tokenizer = next(
        (folder.tokenizer_path / n for n in _TOKENIZER_FILES if (folder.tokenizer_path / n).is_file()), None
    )
    files = [*folder.weights(), *folder.module_weights(), *([tokenizer] if tokenizer else [])]
    facts = {"files": [content_hash(f) for f in files], "pipeline": _pipeline(folder), **settings}
    if heads := {name: content_hash(f) for name, f in folder.heads.items() if name in outputs}:
        facts |= {"outputs": list(outputs), "heads": heads}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _pipeline(folder: Folder) -> list[object]:
    """Return what is unusual in the folder's pipeline; an empty list for plain pooling and normalisation."""
    in_settings = {"Transformer", *(("Pooling",) if folder.pooling and folder.include_prompt else ())}
    unusual: list[object] = [
        [m.type, dict(m.config)]
        for m in folder.modules
        if m.type not in in_settings
        and (m.type != "Normalize" or m.config.get("module_input_name", _VECTOR) != _VECTOR)
    ]
    asked = {key: folder.settings[key] for key in _READ_FROM if folder.settings.get(key) not in (None, *_USUAL)}
    tokenizer = {
        key: value for key, usual in _TOKENIZER.items() if (value := folder.tokenizer.get(key, usual)) != usual
    }
    return [
        *unusual,
        *(["lower case"] if folder.settings.get("do_lower_case") else []),
        *([["cut after normalising", folder.truncate_dim]] if folder.truncate_dim and folder.normalize else []),
        *([asked] if asked else []),
        *([tokenizer] if tokenizer else []),
        *([_adapter(folder)] if folder.adapter else []),
    ]


def _adapter(folder: Folder) -> dict[str, object]:
    """Return the settings of an adapter's config that decide vectors, without those that say where its base lies."""
    return {
        key: sorted(value) if isinstance(value, list) else value
        for key, value in folder.adapter.items()
        if key not in _PLACES
    }
