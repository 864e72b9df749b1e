"""A folder's config.json as transformers reads it, without the keys that say only how a forward is packaged.

Fine-tunes keep what their training had set: another attention, tuples instead of objects, all hidden states. None of
these settings changes a text's numbers, and all of them are decided here.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.request import Resolved

_ATTENTION = ("_attn_implementation", "attn_implementation")
_COMPUTED_EVERYWHERE = ("eager", "sdpa")
"""Implementations of attention that need no other package and run on every device."""
_PACKAGING = {
    "return_dict": True,
    "use_return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "torchscript": False,
    "use_cache": False,
    "chunk_size_feed_forward": 0,
    "gradient_checkpointing": False,
    "add_cross_attention": False,
    "dtype": None,
    "torch_dtype": None,
}
"""Keys that are left out, and the values that count instead. An encoder has no use for cross-attention, and the dtype
comes from the model's key in the cache."""
_FOR_THE_LIBRARY = ("return_dict", "output_attentions", "chunk_size_feed_forward")
"""Keys of `_PACKAGING` that would make sentence-transformers fail; it decides the others by itself."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and reports off stderr; what they report is checked here and raised or logged."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def configuration(resolved: Resolved) -> Any:
    """Return the configuration to load a model with.

    Its attention is the folder's where that runs everywhere; otherwise transformers chooses.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    folder = resolved.folder
    own_code = resolved.trust_remote_code and "auto_map" in folder.config
    if own_code or folder.model_type not in CONFIG_MAPPING:
        overrides = {key: value for key, value in _PACKAGING.items() if key in _FOR_THE_LIBRARY}
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=resolved.trust_remote_code, **overrides)
    else:
        facts = {key: value for key, value in plain(folder.config).items() if key != "model_type"}
        config = AutoConfig.for_model(folder.model_type, **facts)
    config.use_cache = False
    config._attn_implementation = attention(folder)  # noqa: SLF001 - transformers has no public name for it
    if not _is_token(config.pad_token_id, folder, lowest=-1):
        config.pad_token_id = None
    return config


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json without the keys of `_PACKAGING` and those of attention, in its inner configurations too."""
    return {
        key: plain(value) if isinstance(value, dict) else value
        for key, value in facts.items()
        if key not in _PACKAGING and not key.endswith(("attn_implementation", "attn_implementation_internal"))
    }


def attention(folder: Folder) -> str | None:
    """Return the attention that the folder names, if it runs everywhere; None leaves the choice to transformers."""
    named = _named_attention(folder)
    return named if named in _COMPUTED_EVERYWHERE else None


def library_arguments(folder: Folder, pad_id: int | None) -> dict[str, dict[str, Any]]:
    """Return `config_kwargs` and `model_kwargs` with which sentence-transformers can load a folder with such keys.

    Args:
        folder: The model's files.
        pad_id: The padding token that a classifier without one takes; None gives it none.
    """
    config = {key: _PACKAGING[key] for key in _FOR_THE_LIBRARY if key in folder.config}
    if folder.is_reranker and not _is_token(folder.config.get("pad_token_id"), folder) and pad_id is not None:
        config["pad_token_id"] = pad_id
    named = _named_attention(folder)
    model = {} if named in (None, *_COMPUTED_EVERYWHERE) else {"attn_implementation": None}
    return {"config_kwargs": config, "model_kwargs": model}


def _named_attention(folder: Folder) -> str | None:
    """Return the attention that sentence_bert_config.json, in arguments for transformers, or config.json names."""
    arguments = (folder.settings.get(name) or {} for name in ("model_kwargs", "model_args"))
    for facts in (*arguments, folder.config):
        for key in _ATTENTION:
            named = facts.get(key)
            if named := named.get("") if isinstance(named, dict) else named:
                return str(named)
    return None


def _is_token(token: object, folder: Folder, lowest: int = 0) -> bool:
    vocabulary = folder.config.get("vocab_size")
    return isinstance(token, int) and lowest <= token and (not isinstance(vocabulary, int) or token < vocabulary)
