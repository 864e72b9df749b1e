"""Decisions from a model's files: its catalogue row, and the backend, device and dtype that run it."""

import functools
import logging
import platform
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from bge_integrations.architectures import decoders_of
from bge_integrations.catalog import ModelSpec, get_spec
from bge_integrations.errors import MissingExtraError, UnknownModelError, UnsupportedModelError, WrongKindError
from bge_integrations.runtime.adapter import require_peft
from bge_integrations.runtime.device import default_dtype, resolve_device
from bge_integrations.runtime.folder import Folder, read_folder
from bge_integrations.runtime.locate import row_of
from bge_integrations.runtime.request import Kind, Located, ModelKey, ModelSource, Resolved
from bge_integrations.runtime.settings import check_pipeline, slow_reason

logger = logging.getLogger(__name__)

_CLASS_OF = {"embedder": "BgeEmbedder", "reranker": "BgeReranker"}
_WEIGHTS = (".safetensors", ".bin")
_openvino_failures: dict[tuple[str, str], str] = {}
_WORTH_COMPILING = 10_000_000
"""Bytes of weights from which backend="auto" takes OpenVINO; torch has loaded and run a smaller model in less time."""


def resolve(source: ModelSource, located: Located) -> Resolved:
    """Read the located files and decide row, backend, device and dtype, before any weights load.

    Raises:
        UnknownModelError: The files alone don't say how to use the model; the message says what to pass.
        WrongKindError: The model is an embedder where a reranker is needed, or the reverse.
        UnsupportedModelError: The model can't be run, or not by the chosen backend.
    """
    folder = _read(located.path, located.revision, located.base)
    require_peft(folder)
    _check_files(source, folder)
    check_pipeline(folder, trust_remote_code=source.trust_remote_code)
    spec, found_by, guessed = _find_row(source, located, folder)
    if spec and spec.unsupported:
        raise UnsupportedModelError(f"{spec.id}: {spec.unsupported}")
    _check_architecture(source, folder, spec)
    backend, reason = _choose_backend(source, located, folder, spec)
    device = resolve_device(source.device or ("cpu" if backend == "openvino" else None))
    dtype = source.dtype or ("int8" if folder.quantized else default_dtype(device))
    key = ModelKey(located.model, located.revision, backend, device, dtype)
    return Resolved(
        source.model, key, folder, located.watched, spec, found_by, guessed, reason, source.trust_remote_code
    )


def check_kind(spec: ModelSpec, kind: Kind) -> None:
    """Refuse a catalogue row of the other kind, or one that can't be run.

    Raises:
        WrongKindError: The row is of the other kind.
        UnsupportedModelError: This version cannot run the model.
    """
    if spec.unsupported:
        raise UnsupportedModelError(f"{spec.id}: {spec.unsupported}")
    if spec.kind != kind:
        raise WrongKindError(f"{spec.id} is {_an(spec.kind)}. Use {_CLASS_OF[spec.kind]} for it.")


def _an(kind: str) -> str:
    return "an embedder" if kind == "embedder" else "a reranker"


@functools.lru_cache(maxsize=256)
def _read(path: Path, _revision: str, base: Path | None) -> Folder:
    """Read a folder once for each revision; a changed folder is read anew."""
    return read_folder(path, base)


def _find_row(source: ModelSource, located: Located, folder: Folder) -> tuple[ModelSpec | None, str, bool]:
    """Return the row or None, how it was found, and whether it is a guess that the files' own facts overrule."""
    name = source.model.rstrip("/")
    if spec := row_of(located.model) or row_of(name):
        return spec, f"by its id {spec.id}" if name == spec.id else f"{source.model} stands for {spec.id}", False
    if source.like is not None:
        return get_spec(source.like), f'like="{source.like}"', False
    if parent := folder.quantized.get("like"):
        return get_spec(parent), f"it was quantized from a model like {parent}", False
    for parent, where in _guesses(source, folder):
        spec = row_of(parent)
        if spec and parent in (spec.id, *spec.aliases) and _same_shape(spec, folder):
            return spec, f"{where} {parent}, and the shapes agree", True
    if source.kind == "embedder" and not folder.modules and not source.pooling_optional:
        raise UnknownModelError(
            f"{source.model} has no modules.json, so its pooling is unknown (sentence-transformers would take the "
            'mean, which is wrong for BGE). Pass like="BAAI/bge-base-en-v1.5", or whichever model it descends from.'
        )
    return None, "by its own files", False


def _guesses(source: ModelSource, folder: Folder) -> Iterator[tuple[str, str]]:
    """Yield the ids that the files or the folder's path name, each with a phrase that says where it stands."""
    yield str(folder.config.get("_name_or_path", "")), "config.json names"
    yield str(folder.adapter.get("base_model_name_or_path", "")), "its adapter is one of"
    if source.path:
        yield "/".join(source.path.parts[-2:]), "its folder is called"


def _check_files(source: ModelSource, folder: Folder) -> None:
    """Refuse files of the other kind; those of a language model don't tell whether it embeds or reranks."""
    actual: Kind = "reranker" if folder.is_reranker else "embedder"
    if actual != source.kind and not folder.is_language_model:
        raise WrongKindError(f"{source.model} is {_an(actual)}. Use {_CLASS_OF[actual]} for it.")


def _check_architecture(source: ModelSource, folder: Folder, spec: ModelSpec | None) -> None:
    """Refuse files of another architecture than the row's, and a language model without such a row as a reranker."""
    if spec and (wanted := decoders_of(spec.family)):
        if folder.model_type not in wanted:
            raise UnsupportedModelError(
                f"{source.model} is of the architecture {folder.model_type!r}; a model like {spec.id} must be of "
                f"{', '.join(wanted)}."
            )
    elif source.kind == "reranker" and folder.is_language_model:
        raise WrongKindError(
            f"{source.model} is a language model ({folder.architecture}), not a cross-encoder. If it was fine-tuned as "
            'an LLM-based reranker, pass like="BAAI/bge-reranker-v2-gemma".'
        )


def _same_shape(spec: ModelSpec, folder: Folder) -> bool:
    config = folder.config
    shapes = (
        (spec.hidden_size, config.get("hidden_size")),
        (spec.layers, config.get("num_hidden_layers")),
        (spec.vocab_size, config.get("vocab_size")),
    )
    same_kind = (
        bool(decoders_of(spec.family)) if folder.is_language_model else (spec.kind == "reranker") == folder.is_reranker
    ) and spec.model_type == folder.model_type
    return same_kind and all(wanted is None or wanted == actual for wanted, actual in shapes)


def _choose_backend(source: ModelSource, located: Located, folder: Folder, spec: ModelSpec | None) -> tuple[str, str]:
    """Return the backend, and why no faster one runs the model; "" if it is the fastest.

    A backend that the caller names comes first, then what the model needs. "auto" takes OpenVINO where it pays, else
    torch, and sentence-transformers for what torch cannot run.
    """
    own_code = source.trust_remote_code and "auto_map" in folder.config
    reason = "it brings its own code" if own_code else slow_reason(folder)
    language_model = spec if spec and decoders_of(spec.family) else None
    if source.kind == "reranker" and not language_model and folder.labels != 1:
        raise UnsupportedModelError(
            f"{source.model} has {folder.labels} labels; a reranker needs a sequence classifier with exactly one."
        )
    if source.backend == "openvino" or source.dtype == "int8" or folder.quantized:
        _check_openvino(source, folder, reason)
        return "openvino", ""
    if language_model:
        if source.backend == "sentence_transformers":
            raise UnsupportedModelError(
                f'backend="sentence_transformers" cannot run {language_model.id}. Use backend="auto".'
            )
        return "torch", ""
    if not reason and not openvino_failure(located) and _openvino_pays(source, folder):
        return "openvino", ""
    if source.backend == "torch" and reason and source.kind == "embedder":
        raise UnsupportedModelError(
            f'backend="torch" cannot run {source.model}: {reason}. Use backend="auto" or "sentence_transformers".'
        )
    if source.backend == "sentence_transformers":
        return source.backend, "asked for"
    if source.backend == "auto" and reason and source.kind == "embedder":
        return "sentence_transformers", reason
    return "torch", reason


def _check_openvino(source: ModelSource, folder: Folder, reason: str) -> None:
    """Refuse a model, backend, device or dtype that cannot be run with OpenVINO."""
    if folder.quantized and (source.backend not in ("auto", "openvino") or source.dtype not in (None, "int8")):
        raise UnsupportedModelError(
            f'{source.model} holds an int8 graph for OpenVINO: use backend="auto" or "openvino", and dtype=None or '
            '"int8". For others use the model that it was made from.'
        )
    if reason:
        raise UnsupportedModelError(f'backend="openvino" cannot run {source.model}: {reason}. Use backend="auto".')
    if source.device and not source.device.startswith("cpu"):
        raise UnsupportedModelError(f'backend="openvino" runs on the CPU, not on device="{source.device}".')
    if source.dtype == "float16":
        raise UnsupportedModelError('backend="openvino" has no dtype="float16". Use float32, bfloat16 or int8.')
    require_openvino()


def _openvino_pays(source: ModelSource, folder: Folder) -> bool:
    """Return whether OpenVINO is there and gives torch's numbers sooner: benchmarks/README.md has the measurements.

    A model with heads besides the dense one stays on torch as a whole, so that there is one copy of it.
    """
    return (
        source.backend == "auto"
        and source.dtype in (None, "float32")
        and not folder.heads
        and sum(f.stat().st_size for f in folder.path.iterdir() if f.suffix in _WEIGHTS) >= _WORTH_COMPILING
        and openvino_pays_here()
        and resolve_device(source.device).startswith("cpu")
    )


def openvino_failed(model: Located | ModelKey, why: str) -> None:
    """Make backend="auto" take torch from now on for a model that OpenVINO could not run."""
    if not openvino_failure(model):
        logger.warning("%s runs on torch, not on OpenVINO: %s", model.model, why)
        _openvino_failures[model.model, model.revision] = why


def openvino_failure(model: Located | ModelKey) -> str:
    """Return why backend="auto" no longer takes OpenVINO for a model, "" if it may."""
    return _openvino_failures.get((model.model, model.revision), "")


def openvino_pays_here() -> bool:
    """Return whether OpenVINO is installed and was measured to be faster than torch on CPUs like this machine's."""
    return platform.machine().lower() in ("x86_64", "amd64") and find_spec("openvino") is not None


def require_openvino(*modules: str) -> None:
    """Raise `MissingExtraError` where openvino, or one of `modules`, is not installed."""
    missing = [module for module in ("openvino", *modules) if module not in sys.modules and not find_spec(module)]
    if missing:
        raise MissingExtraError(
            f'backend="openvino" needs {", ".join(missing)}. Install it: pip install "bge_integrations[openvino]"'
        )
