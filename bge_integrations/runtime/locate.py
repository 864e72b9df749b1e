"""The search for a model's files: in this package, in a folder, or on the hub."""

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bge_integrations.catalog import ModelSpec, get_spec, list_models
from bge_integrations.errors import UnknownModelError, UnsupportedModelError
from bge_integrations.process import ForkSafeLock
from bge_integrations.runtime.folder import ADAPTER, adapter_of, parts_of, revision_of
from bge_integrations.runtime.request import Located, ModelSource

_HUB_CACHE = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]([^/\\]+)[/\\]?$")
_FILES = ["*.json", "*.txt", "*.model", "*.tiktoken", "*vocab.*", "*.safetensors", "*_linear.pt"]
_OTHER_WEIGHTS = ["pytorch_model*.bin", "adapter_model.bin", "openvino_model.*"]
"""Patterns of weight files that a module's folder may hold in place of safetensors."""
_NOT_FILES = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]
_PACKAGE = Path(__file__).resolve().parents[1]
_download_lock = ForkSafeLock()


def named_folder(model: str) -> Path | None:
    """Return the folder that a name means now, absolute, without following links; None for a repository of the hub.

    A name that can only be a path means that path, whether there is a folder yet or not.
    """
    path = os.path.expanduser(model)  # noqa: PTH111  Path's raises for a user who is not there
    is_path = os.path.isdir(path) or os.path.isabs(path) or model.startswith((".", "~"))  # noqa: PTH112, PTH117
    return Path(path).absolute() if is_path else None


def locate(source: ModelSource) -> Located:
    """Find the model's folder, and that of an adapter's base; download from the hub at most once per process.

    Raises:
        UnknownModelError: The model is neither a folder nor a repository that can be reached.
        UnsupportedModelError: The model is an adapter of an adapter.
    """
    located = _place(source)
    inner, adapter = adapter_of(located.path)
    if not adapter:
        return located
    base = _base(source, inner, adapter)
    if base.watched or located.watched:
        watched = (*(located.watched or (located.path,)), *(base.watched or (base.path,)))
        return Located(located.model, revision_of(watched), located.path, watched, base.path)
    return Located(located.model, f"{located.revision}+{base.revision}", located.path, (), base.path)


def _base(source: ModelSource, inner: Path, adapter: Mapping[str, object]) -> Located:
    """Find an adapter's base: a folder beside it, a path from the working directory, or a repository of the hub."""
    file, name, revision = inner / ADAPTER, adapter.get("base_model_name_or_path"), adapter.get("revision")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{file} names no base_model_name_or_path, so the adapter has no model. Save it again.")
    beside = inner / name
    path = beside if beside.is_dir() else named_folder(name)
    try:
        base = _place(replace(source, model=name, path=path, revision=None if revision is None else str(revision)))
    except UnknownModelError as error:
        raise UnknownModelError(f"{file} is an adapter of {name}: {error}") from error
    if adapter_of(base.path)[1]:
        raise UnsupportedModelError(
            f"{file} is an adapter of {name}, which is an adapter itself. Merge that one first."
        )
    return base


def _place(source: ModelSource) -> Located:
    path = source.path or _packaged_folders().get(source.model)
    if path is not None:
        return _local(path)
    spec = row_of(source.model)
    repository = spec.id if spec else source.model
    with _download_lock:
        snapshot = _download(
            repository,
            source.revision,
            source.cache_folder,
            source.token,
            source.local_files_only,
            source.trust_remote_code,
        )
    return Located(repository, snapshot.name, snapshot)


def _local(path: Path) -> Located:
    if not path.is_dir():
        raise UnknownModelError(f"There is no folder {path}. Pass a hub id or the path of a model folder.")
    if match := _HUB_CACHE.search(str(path)):
        return Located(f"{match[1]}/{match[2]}", match[3], path)
    parts = parts_of(path)
    root = path.resolve()
    name = _name_of(root)
    return Located(name, revision_of(parts), root, () if name in _packaged_folders() else parts)


def names_of(model: str) -> set[str]:
    """Return every name under which the cache may keep what a caller calls `model`."""
    path, spec = Path(model).expanduser(), row_of(model)
    hub = _HUB_CACHE.search(str(path.absolute()))
    return {model, _name_of(path.resolve()), *((spec.id,) if spec else ()), *((f"{hub[1]}/{hub[2]}",) if hub else ())}


def row_of(name: str) -> ModelSpec | None:
    """Return the catalogue's row of a model; None if it has none."""
    try:
        return get_spec(name)
    except UnknownModelError:
        return None


@functools.cache
def _packaged_folders() -> dict[str, Path]:
    """Return the models that ship with this package: id -> folder."""
    return {spec.id: _PACKAGE / spec.packaged for spec in list_models() if spec.packaged}


def _name_of(folder: Path) -> str:
    """Return the cache's name for a local folder: the id of a model that ships with this package, else the path."""
    return next((id_ for id_, packaged in _packaged_folders().items() if packaged == folder), str(folder))


def hub_folder(cache_folder: str | None = None) -> str:
    """Return the folder where downloads are kept: the caller's, else the environment's."""
    from huggingface_hub import constants

    return cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME") or constants.HF_HUB_CACHE


def _other_weights(snapshot: Path) -> list[str]:
    """Return patterns of weights for the modules whose folders have no safetensors."""
    folders = parts_of(snapshot)
    inner = adapter_of(snapshot)[0]
    lacking = [f for f in dict.fromkeys((inner, *folders[1:])) if not any(f.glob("*model*.safetensors"))]
    prefixes = [f"{f.relative_to(snapshot)}/" if f != snapshot else "" for f in lacking]
    return [prefix + name for prefix in prefixes for name in _OTHER_WEIGHTS]


@functools.cache
def _download(
    repository: str,
    revision: str | None,
    cache_folder: str | None,
    token: str | None,
    local_files_only: bool,
    with_code: bool,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cache = hub_folder(cache_folder)

    def fetch(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=patterns,
                ignore_patterns=_NOT_FILES,
            )
        )

    wanted = [*_FILES, *(["*.py"] if with_code else [])]
    try:
        other = _other_weights(path := fetch(wanted))
        return fetch([*wanted, *other]) if other else path
    except GatedRepoError as error:
        raise UnknownModelError(
            f"{repository} asks you to accept its terms on the hub first; then pass token=. ({error})"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UnknownModelError(
            f"{repository} (revision {revision or 'main'}) is not on the hub, or is private (then pass token=), and "
            "it was no local folder when this object was made."
        ) from error
    except LocalEntryNotFoundError as error:
        raise UnknownModelError(
            f"{repository} is not, or not completely, in {cache}, and the hub was not asked or not reached. Download "
            "it once with a network, or pass the path of a local folder."
        ) from error
