"""From what a caller names to what is loaded: files, catalogue row, and the cache's key."""

import functools
import os
import platform
import re
import sys
import threading
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from bge_integrations.catalog import ModelSpec, get_spec, list_models
from bge_integrations.errors import MissingExtraError, UnknownModelError, UnsupportedModelError, WrongKindError
from bge_integrations.runtime.device import default_dtype, resolve_device
from bge_integrations.runtime.folder import Folder, read_folder, revision_of

Kind = Literal["embedder", "reranker"]
_CLASS_OF = {"embedder": "BgeEmbedder", "reranker": "BgeReranker"}
_HUB_CACHE = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]([^/\\]+)[/\\]?$")
_FAST_MODEL_TYPES = ("bert", "xlm-roberta")
_DECODERS = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3")
_LLM_MODEL_TYPES = {"llm": _DECODERS, "layerwise": ("minicpm",), "lightweight": ("cost_wise_gemma",)}
_FAST_MODULES = {"Transformer", "Pooling", "Normalize"}
_FAST_SETTINGS = {"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"}
_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*_linear.pt"]
_OTHER_FILES = ["*pytorch_model*.bin", "openvino_model.*"]
_NOT_FILES = ["onnx/*", "openvino/*", "*/onnx/*", "*/openvino/*"]
_WEIGHTS = (".safetensors", ".bin")
_WORTH_CONVERTING = 50_000_000
"""Bytes of weights from which backend="auto" takes OpenVINO; a smaller model is rarely run long enough to gain."""
_PACKAGE = Path(__file__).resolve().parents[1]
_download_lock = threading.Lock()


def forget_download_lock() -> None:
    """In a forked child: the parent's thread that may hold the lock does not exist here."""
    global _download_lock  # noqa: PLW0603
    _download_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What a caller names. Hashable, so that a cache can remember what it led to.

    Attributes are those of `BgeEmbedder`; `device` and `dtype` are normalised names. `pooling_optional` accepts a
    folder that does not say how it pools.
    """

    model: str
    kind: Kind
    revision: str | None = None
    backend: str = "auto"
    device: str | None = None
    dtype: str | None = None
    like: str | None = None
    cache_folder: str | None = None
    token: str | None = field(default=None, repr=False)
    local_files_only: bool = False
    trust_remote_code: bool = False
    pooling_optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelKey:
    """What decides the bytes on a device, and nothing else."""

    model: str
    revision: str
    backend: str
    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a source led to.

    Attributes:
        key: The cache's key.
        folder: The model's files.
        spec: The catalogue's row, or None for a model outside it.
        found_by: How the row was found, for people.
        reason: Why the fast backend does not run it; empty if it does.
        trust_remote_code: Whether the folder's own Python code may run.
    """

    key: ModelKey
    folder: Folder
    spec: ModelSpec | None
    found_by: str
    reason: str
    trust_remote_code: bool


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model's files are, and under which name and revision the cache knows them."""

    model: str
    revision: str
    path: Path


def names_of(model: str) -> set[str]:
    """Every name under which a key may know what a caller calls `model`."""
    path, spec = Path(model).expanduser(), _row(model, None)
    hub = _HUB_CACHE.search(str(path.absolute()))
    return {model, _name_of(path.resolve()), *((spec.id,) if spec else ()), *((f"{hub[1]}/{hub[2]}",) if hub else ())}


def locate(source: ModelSource) -> Located:
    """Finds the model's folder; downloads it from the hub at most once a process.

    Raises:
        UnknownModelError: Neither a folder nor a repository that can be reached.
    """
    path = _packaged_folders().get(source.model) or Path(source.model).expanduser()
    if path.is_dir():
        if match := _HUB_CACHE.search(str(path.absolute())):
            return Located(f"{match[1]}/{match[2]}", match[3], path.absolute())
        path = path.resolve()
        return Located(_name_of(path), revision_of(path), path)
    if path.is_absolute() or source.model.startswith((".", "~")):
        raise UnknownModelError(f"There is no folder {path}. Pass a hub id or the path of a model folder.")
    spec = _row(source.model, None)
    repository = spec.id if spec else source.model
    with _download_lock:
        snapshot = _download(repository, source.revision, source.cache_folder, source.token, source.local_files_only)
    return Located(repository, snapshot.name, snapshot)


@functools.cache
def _packaged_folders() -> dict[str, Path]:
    """The models that ship with this package: id -> folder."""
    return {spec.id: _PACKAGE / spec.packaged for spec in list_models() if spec.packaged}


def _name_of(folder: Path) -> str:
    """What the cache calls a local folder."""
    return next((id_ for id_, packaged in _packaged_folders().items() if packaged == folder), str(folder))


def resolve(source: ModelSource, located: Located) -> Resolved:
    """Reads the located files and decides row, backend, device and dtype, before any weights load.

    Raises:
        UnknownModelError: The files alone don't say how to use the model; the message says what to pass.
        WrongKindError: An embedder where a reranker is needed, or the reverse.
        UnsupportedModelError: A model or a choice of backend that can't be run.
    """
    folder = _read(located.path, located.revision)
    _check_files(source, folder)
    spec, found_by = _find_row(source, located, folder)
    if spec and spec.unsupported:
        raise UnsupportedModelError(f"{spec.id}: {spec.unsupported}")
    _check_architecture(source, folder, spec)
    backend, reason = _choose_backend(source, folder, spec)
    device = resolve_device(source.device or ("cpu" if backend == "openvino" else None))
    dtype = source.dtype or ("int8" if folder.quantized else default_dtype(device))
    key = ModelKey(located.model, located.revision, backend, device, dtype)
    return Resolved(key, folder, spec, found_by, reason, source.trust_remote_code)


def check_kind(spec: ModelSpec, kind: Kind) -> None:
    """Refuses a catalogue row of the other kind, or one that can't be run.

    Raises:
        WrongKindError, UnsupportedModelError
    """
    if spec.unsupported:
        raise UnsupportedModelError(f"{spec.id}: {spec.unsupported}")
    if spec.kind != kind:
        raise WrongKindError(f"{spec.id} is {_an(spec.kind)}. Use {_CLASS_OF[spec.kind]} for it.")


def _an(kind: str) -> str:
    return "an embedder" if kind == "embedder" else "a reranker"


@functools.lru_cache(maxsize=256)
def _read(path: Path, _revision: str) -> Folder:
    """The revision is there for the cache: a changed folder is read anew."""
    return read_folder(path)


def _row(name: str, like: str | None) -> ModelSpec | None:
    try:
        return get_spec(name, like)
    except UnknownModelError:
        return None


def _find_row(source: ModelSource, located: Located, folder: Folder) -> tuple[ModelSpec | None, str]:
    if spec := _row(located.model, None):
        return spec, f"by its id {spec.id}" if source.model == spec.id else f"{source.model} stands for {spec.id}"
    if source.like is not None:
        return get_spec(source.like), f'like="{source.like}"'
    if parent := folder.quantized.get("like"):
        return get_spec(parent), f"it was quantized from a model like {parent}"
    spec = _row(str(folder.config.get("_name_or_path", "")), None)
    if spec and spec.id == folder.config["_name_or_path"] and _same_shape(spec, folder):
        return spec, f"config.json names {spec.id}, and the shapes agree"
    if source.kind == "embedder" and not folder.modules and not source.pooling_optional:
        raise UnknownModelError(
            f"{source.model} has no modules.json, so its pooling is unknown (sentence-transformers would take the "
            'mean, which is wrong for BGE). Pass like="BAAI/bge-base-en-v1.5", or whichever model it descends from.'
        )
    return None, "by its own files"


def _check_files(source: ModelSource, folder: Folder) -> None:
    """Refuses files of the other kind. A language model's don't tell whether it embeds or reranks."""
    actual: Kind = "reranker" if folder.is_reranker else "embedder"
    if actual != source.kind and not folder.is_language_model:
        raise WrongKindError(f"{source.model} is {_an(actual)}. Use {_CLASS_OF[actual]} for it.")


def _check_architecture(source: ModelSource, folder: Folder, spec: ModelSpec | None) -> None:
    """Refuses files that are not of the architecture that the row, or its absence, asks for."""
    if spec and spec.family in _LLM_MODEL_TYPES:
        wanted = _LLM_MODEL_TYPES[spec.family]
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
        spec.family in _LLM_MODEL_TYPES if folder.is_language_model else (spec.kind == "reranker") == folder.is_reranker
    ) and spec.model_type == folder.model_type
    return same_kind and all(wanted is None or wanted == actual for wanted, actual in shapes)


def _choose_backend(source: ModelSource, folder: Folder, spec: ModelSpec | None) -> tuple[str, str]:
    own_code = source.trust_remote_code and "auto_map" in folder.config
    reason = "it brings its own code" if own_code else _slow_reason(folder)
    language_model = spec if spec and spec.family in _LLM_MODEL_TYPES else None
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
    if not reason and _openvino_pays(source, folder):
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
    """Refuses what OpenVINO cannot run."""
    if folder.quantized and (source.backend not in ("auto", "openvino") or source.dtype not in (None, "int8")):
        raise UnsupportedModelError(
            f'{source.model} holds an int8 graph for OpenVINO: backend "auto" or "openvino", dtype None or "int8". '
            "For others use the model that it was made from."
        )
    if reason:
        raise UnsupportedModelError(f'backend="openvino" cannot run {source.model}: {reason}. Use backend="auto".')
    if source.device and not source.device.startswith("cpu"):
        raise UnsupportedModelError(f'backend="openvino" runs on the CPU, not on device="{source.device}".')
    if source.dtype == "float16":
        raise UnsupportedModelError('backend="openvino" has no dtype="float16". Use float32, bfloat16 or int8.')
    require_openvino()


def _openvino_pays(source: ModelSource, folder: Folder) -> bool:
    """Whether OpenVINO is there and gives torch's numbers sooner: benchmarks/README.md has what was measured.

    Heads besides the dense one stay with torch, and with them their model, so that there is one copy of it.
    """
    return (
        source.backend == "auto"
        and source.dtype in (None, "float32")
        and not folder.heads
        and sum(f.stat().st_size for f in folder.path.iterdir() if f.suffix in _WEIGHTS) >= _WORTH_CONVERTING
        and openvino_pays_here()
        and resolve_device(source.device).startswith("cpu")
    )


def openvino_pays_here() -> bool:
    """Whether OpenVINO is installed, and this machine's CPU one on which it was measured to be faster than torch."""
    return platform.machine().lower() in ("x86_64", "amd64") and find_spec("openvino") is not None


def _slow_reason(folder: Folder) -> str:
    """Why the fast paths don't know this pipeline; empty if they do."""
    unknown_modules = [module.type for module in folder.modules if module.type not in _FAST_MODULES]
    unknown_settings = sorted(set(folder.settings) - _FAST_SETTINGS)
    if folder.model_type not in _FAST_MODEL_TYPES:
        return f"its architecture is {folder.model_type or 'not named'}, not BERT or XLM-RoBERTa"
    if folder.config.get("is_decoder") or folder.config.get("position_embedding_type", "absolute") != "absolute":
        return "it is a decoder or has relative positions"
    if unknown_modules:
        return f"its pipeline holds {', '.join(unknown_modules)}"
    if folder.modules and not folder.is_reranker and (folder.pooling is None or not folder.include_prompt):
        return "its pooling is not simply cls, mean or last token"
    if unknown_settings:
        return f"sentence_bert_config.json sets {', '.join(unknown_settings)}"
    return ""


def require_openvino(*modules: str) -> None:
    """Raises `MissingExtraError` where openvino, or one of `modules`, is not installed."""
    missing = [module for module in ("openvino", *modules) if module not in sys.modules and not find_spec(module)]
    if missing:
        raise MissingExtraError(
            f'backend="openvino" needs {", ".join(missing)}. Install it: pip install "bge_integrations[openvino]"'
        )


def hub_folder(cache_folder: str | None = None) -> str:
    """Where downloads are kept: the caller's folder, else the environment's."""
    from huggingface_hub import constants

    return cache_folder or os.environ.get("SENTENCE_TRANSFORMERS_HOME") or constants.HF_HUB_CACHE


@functools.cache
def _download(
    repository: str, revision: str | None, cache_folder: str | None, token: str | None, local_files_only: bool
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

    try:
        path = fetch(_FILES)
        return path if list(path.glob("**/*.safetensors")) else fetch([*_FILES, *_OTHER_FILES])
    except GatedRepoError as error:
        raise UnknownModelError(
            f"{repository} asks you to accept its terms on the hub first; then pass token=. ({error})"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise UnknownModelError(
            f"{repository} (revision {revision or 'main'}) is neither a local folder nor on the hub (or it is private: "
            "pass token=)."
        ) from error
    except LocalEntryNotFoundError as error:
        raise UnknownModelError(
            f"{repository} is not, or not completely, in {cache}, and the hub was not asked or not reached. Download "
            "it once with a network, or pass the path of a local folder."
        ) from error
