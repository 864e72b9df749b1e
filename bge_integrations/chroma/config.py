"""What a collection keeps of an embedding function, and what it refuses."""

from collections.abc import Sequence
from typing import Any

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.errors import FingerprintMismatchError

_MACHINE_KEYS = (
    "backend",
    "device",
    "dtype",
    "max_batch_tokens",
    "cache",
    "cache_folder",
    "token",
    "local_files_only",
    "trust_remote_code",
)
"""What belongs to the machine and the user that open a collection: never written to it, never read from it."""


def to_config(embedder: BgeEmbedder | BgeM3Embedder, keys: Sequence[str]) -> dict[str, Any]:
    """The settings of these names, as JSON types."""
    config = {key: getattr(embedder, key) for key in keys}
    return {**config, "model": str(config["model"])}


def check_config(config: dict[str, Any], keys: Sequence[str]) -> None:
    """Refuse, with a `ValueError`, a configuration without a model or with a setting that is not among the keys."""
    if "model" not in config:
        raise ValueError(f"The configuration needs model; it has {sorted(config)}.")
    unknown = sorted(config.keys() - {*keys, *_MACHINE_KEYS})
    if unknown:
        raise ValueError(f"Unknown settings {unknown}; known are {sorted(keys)}.")


def check_update(old: dict[str, Any], new: dict[str, Any], keys: Sequence[str]) -> None:
    """Refuse, with a `FingerprintMismatchError`, a change of one of the keys; names each, old and new."""
    changed = [f"{key}={old.get(key)!r} is not {key}={new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]
    if changed:
        raise FingerprintMismatchError(
            f"The collection was filled with other settings: {', '.join(changed)}. Vectors of two models cannot be "
            "compared: keep the settings, or fill a new collection."
        )
