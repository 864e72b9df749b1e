"""Adapters, which peft saves from a fine-tune: how they are merged into their base at load, and what is refused."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bge_integrations.errors import MissingExtraError, MissingWeightsError, UnsupportedModelError
from bge_integrations.runtime.folder import ADAPTER, ADAPTER_WEIGHTS, Folder

_WEIGHTS = ("model.safetensors", "model-", "pytorch_model", "config.json")
"""Beginnings of the names of files that are taken from the base, even where the adapter's folder has its own."""


def require_peft(folder: Folder) -> None:
    """Refuse an adapter where peft is not installed, before anything is loaded.

    Raises:
        MissingExtraError: peft is not installed.
    """
    if folder.adapter and find_spec("peft") is None:
        raise MissingExtraError(
            f"{folder.adapter_path / ADAPTER} makes this an adapter, which needs peft to be merged into its base. "
            'Install it: pip install "bge_integrations[peft]"'
        )


def brought(folder: Folder, tensor: str) -> bool:
    """Return whether a tensor that the base lacks is one that the adapter brings whole, such as a classifier's."""
    modules = folder.adapter.get("modules_to_save") or ()
    return any(part in modules for part in tensor.split("."))


def merged(model: Any, folder: Folder) -> Any:
    """Return the model with its folder's adapter merged into its weights; without an adapter, as it is.

    Raises:
        UnsupportedModelError: The adapter changes no weights, or is not one of this model.
        MissingWeightsError: The adapter's file does not hold what its config says.
    """
    if not folder.adapter:
        return model
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    where, kind = folder.adapter_path, folder.adapter.get("peft_type")
    try:
        with warnings.catch_warnings():  # what peft warns of is checked below
            warnings.simplefilter("ignore")
            wrapped = PeftModel.from_pretrained(model, str(where))
        held, wanted = set(load_peft_weights(str(where), device="cpu")), set()
        if not wrapped.peft_config["default"].is_prompt_learning:
            wanted = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))  # else it asks the hub
        merge = wrapped.merge_and_unload if wanted else None
    except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"The adapter in {where} ({kind}) does not fit its base: {error}") from error
    if merge is None:
        raise UnsupportedModelError(
            f"The adapter in {where} is of the kind {kind}, which changes no weights and cannot be merged. LoRA and "
            "its like can."
        )
    if not folder.is_reranker:  # an embedder has no pooler of its own, and needs none
        held, wanted = ({name for name in names if ".pooler." not in name} for names in (held, wanted))
    if held != wanted:
        names = ", ".join(sorted(held ^ wanted)[:4])
        raise MissingWeightsError(
            f"The adapter in {where} is not one of this model: {len(held - wanted)} of its tensors have no place, and "
            f"{len(wanted - held)} are missing ({names}, ...)."
        )
    try:
        return merge()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModelError(f"The adapter in {where} ({kind}) cannot be merged: {error}") from error


@contextmanager
def whole(folder: Folder) -> Iterator[Path]:
    """Yield a folder to load from, with the base in place of an adapter; it is there while the context lasts.

    sentence-transformers would look for the base by itself, from the working directory, and leave the adapter unmerged.
    """
    if not folder.adapter or not folder.adapter_path.is_relative_to(folder.root):
        yield folder.root
        return
    with TemporaryDirectory(prefix="bge-") as work:
        root = Path(work) / folder.root.name
        inner = root / folder.adapter_path.relative_to(folder.root)
        inner.mkdir(parents=True)
        for file in (f for f in folder.root.rglob("*") if f.is_file()):
            target = root / file.relative_to(folder.root)
            replaced = target.parent == inner and target.name.startswith(_WEIGHTS)
            if not replaced and target.name not in (ADAPTER, *ADAPTER_WEIGHTS):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file)
        for file in (f for f in folder.path.iterdir() if f.is_file() and not (inner / f.name).exists()):
            (inner / file.name).symlink_to(file)
        yield root
