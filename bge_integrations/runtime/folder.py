"""The facts in a model folder's own files, read without loading weights or any framework."""

import functools
import hashlib
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bge_integrations.architectures import architecture_of
from bge_integrations.errors import MissingWeightsError, UnknownModelError, UnsupportedModelError
from bge_integrations.runtime.modules import (
    AGAIN,
    VECTOR,
    Module,
    entries_of,
    names_of_vectors,
    read_modules,
    read_object,
    width_of,
)
from bge_integrations.types import Pooling

LOCAL = "local-"
"""The beginning of a local folder's revision; a hub revision is a commit hash."""

OPENVINO_GRAPH = "openvino_model.xml"
"""Name of the graph file in a folder that `bge quantize` wrote; its weights lie beside it, with the suffix `.bin`."""
OPENVINO_FACTS = "bge_openvino.json"
"""Name of the file that marks such a folder and says how it was made."""

_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Names that sentence-transformers has given the file of the Transformer module's settings; the first filled counts."""
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
PIPELINE = "config_sentence_transformers.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json")
"""A folder that brings a tokenizer has at least one of these files."""
_POOLINGS = {"cls": Pooling.CLS, "mean": Pooling.MEAN, "lasttoken": Pooling.LAST_TOKEN}


@dataclass(frozen=True)
class Folder:
    """The facts of a model folder, as its JSON files state them.

    Attributes:
        root: The folder.
        path: Where config.json, tokenizer and weights are: the folder itself, or its Transformer module's.
        config: config.json.
        modules: modules.json with each module's config; empty without the file.
        pipeline: config_sentence_transformers.json.
        prompts: Name -> text, from that file; empty without modules.json, where sentence-transformers takes none.
        default_prompt: The text that sentence-transformers adds where no prompt is named.
        settings: sentence_bert_config.json, or the older file of its kind; empty without modules.json.
        settings_file: The name of that file.
        tokenizer: tokenizer_config.json.
        adapter: adapter_config.json, empty where there is none; with it, `path` and `config` are those of the base.
        tokenizer_path: Where the tokenizer's files are.
        adapter_path: Where the adapter's files are.
        quantized: bge_openvino.json, which says how `bge quantize` made the folder; empty without the file. With it,
            the folder holds an int8 graph for OpenVINO instead of weights.
    """

    root: Path
    path: Path
    config: Mapping[str, Any]
    modules: tuple[Module, ...]
    pipeline: Mapping[str, Any]
    prompts: Mapping[str, str]
    default_prompt: str
    settings: Mapping[str, Any]
    settings_file: str
    tokenizer: Mapping[str, Any]
    quantized: Mapping[str, Any]
    adapter: Mapping[str, Any]
    tokenizer_path: Path
    adapter_path: Path

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def architecture(self) -> str:
        """The model class that config.json names."""
        return str((self.config.get("architectures") or [""])[0])

    @property
    def is_reranker(self) -> bool:
        """Whether the files describe a sequence classifier, which scores pairs."""
        saved_so = self.pipeline.get("model_type") == "CrossEncoder" or self.adapter.get("task_type") == "SEQ_CLS"
        return saved_so or self.architecture.endswith("ForSequenceClassification")

    @property
    def is_language_model(self) -> bool:
        """Whether the files describe a language model with its output layer, which may embed or rerank."""
        return self.architecture.endswith("ForCausalLM")

    @property
    def labels(self) -> int:
        """Number of outputs of the classification head; 1 if an adapter brings it, as in sentence-transformers."""
        if self.adapter and not self.architecture.endswith("ForSequenceClassification"):
            return 1
        return int(self.config.get("num_labels") or len(self.config.get("id2label") or {}) or 2)

    @cached_property
    def pooling(self) -> Pooling | None:
        """The one pooling of the pipeline; None without modules.json or with a pooling that only the library knows."""
        return _POOLINGS.get(self.poolings)

    @cached_property
    def poolings(self) -> str:
        """The modes of the pipeline's pooling, such as "cls" or "cls+max"; "" without modules.json."""
        return "+".join(mode for module in self.modules if module.type == "Pooling" for mode in module.modes)

    @cached_property
    def include_prompt(self) -> bool:
        """Whether a prompt's tokens take part in the pooling."""
        return all(m.config.get("include_prompt", True) for m in self.modules if m.type == "Pooling")

    @cached_property
    def normalize(self) -> bool:
        """Whether the pipeline ends in vectors of length 1."""
        last = next((module for module in reversed(self.modules) if module.type != "Dropout"), None)
        pooled = any(module.type == "Pooling" for module in self.modules)
        return pooled and last is not None and last.type == "Normalize" and names_of_vectors(last) == (VECTOR, VECTOR)

    @cached_property
    def dim(self) -> int:
        """Length of the pipeline's vectors, before the folder's own `truncate_dim`."""
        config = self.config
        hidden = config.get("hidden_size") or config.get("d_model") or config.get("dim") or config.get("n_embd") or 0
        return width_of(self.modules, int(hidden))

    @cached_property
    def truncate_dim(self) -> int | None:
        """Number of leading dimensions that sentence-transformers keeps of the pipeline's vectors; None for all."""
        return self.pipeline.get("truncate_dim") if self.modules else None

    @cached_property
    def positions(self) -> int | None:
        """Most tokens the position embeddings can take, special tokens included; None where no file says."""
        positions = self.config.get("max_position_embeddings")
        if not isinstance(positions, int) or positions <= 0:
            return None
        after_padding = architecture_of(self.model_type).starts_after_padding
        return positions - self.config.get("pad_token_id", 1) - 1 if after_padding else positions

    @cached_property
    def max_length(self) -> int:
        """Number of tokens to which sentence-transformers would cut a text; 512 where no file says."""
        of_tokenizer = self.tokenizer.get("model_max_length") or self.tokenizer.get("max_len")
        limits = (self.settings.get("max_seq_length") or of_tokenizer, self.positions)
        return min((int(limit) for limit in limits if limit), default=512)

    @cached_property
    def heads(self) -> dict[str, Path]:
        """bge-m3's files beside the weights: output -> file of the linear layer that makes it; {} for other models."""
        files = [
            (name, d / f"{name}_linear.pt") for d in (self.root, self.adapter_path) for name in ("sparse", "colbert")
        ]
        return {name: file for name, file in files if file.is_file()}

    def weights(self) -> tuple[Path, ...]:
        """Return the files that transformers would read, safetensors where there are some, else `.bin`; or a graph's.

        An adapter's files come after those of its base.

        Raises:
            MissingWeightsError: The folder has no weights, or not every shard.
        """
        return (*self._own_weights(), *self._adapter_weights())

    def _adapter_weights(self) -> tuple[Path, ...]:
        files = [file for name in ADAPTER_WEIGHTS if (file := self.adapter_path / name).is_file()]
        if self.adapter and not files:
            raise MissingWeightsError(f"{self.adapter_path} lacks {' or '.join(ADAPTER_WEIGHTS)}: download it again.")
        return tuple(files[:1]) if self.adapter else ()

    def _own_weights(self) -> tuple[Path, ...]:
        if self.quantized:
            graph = self.path / OPENVINO_GRAPH
            files = (graph, graph.with_suffix(".bin"))
            if absent := [file.name for file in files if not file.is_file()]:
                raise MissingWeightsError(f"{self.path} lacks {', '.join(absent)}. Quantize the model again.")
            return files
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (self.path / name).is_file():
                return (self.path / name,)
            if index := read_object(self.path / f"{name}.index.json"):
                if not isinstance(index.get("weight_map"), dict):
                    raise MissingWeightsError(f"{name}.index.json of {self.path} names no files. Download it again.")
                shards = [self.path / shard for shard in sorted(set(index["weight_map"].values()))]
                if absent := [shard.name for shard in shards if not shard.is_file()]:
                    raise MissingWeightsError(f"{self.path} lacks {', '.join(absent)}. Download the folder again.")
                return tuple(shards)
        raise MissingWeightsError(
            f"{self.path} holds no weights: neither model.safetensors nor pytorch_model.bin (or their shards). "
            "Download the folder again, or save the model with save_pretrained()."
        )

    def module_weights(self) -> tuple[Path, ...]:
        """Return the weight files of the pipeline's other modules, such as Dense."""
        folders = [self.root / module.name for module in self.modules if module.name]
        return tuple(sorted(f for d in folders if d != self.path for f in (*d.glob("*.safetensors"), *d.glob("*.bin"))))


def adapter_of(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return where a folder's adapter would be, and its adapter_config.json; {} where there is none."""
    inner = path / next((entry["path"] for entry in entries_of(path)), "")
    return inner, read_object(inner / ADAPTER)


def read_folder(path: Path, base: Path | None = None) -> Folder:
    """Read a folder's JSON files.

    Args:
        path: The folder.
        base: For an adapter, the folder of its base. An adapter without a modules.json takes its base's.

    Raises:
        UnknownModelError: There is no such folder, or no config.json in it.
        UnsupportedModelError: A sentence-transformers pipeline whose first module is not `Transformer`.
        ValueError: A file is not JSON.
    """
    if not path.is_dir():
        raise UnknownModelError(f"There is no folder {path}. Pass a hub id or the path of a model folder.")
    modules = read_modules(path)
    if modules and modules[0].type != "Transformer":
        raise UnsupportedModelError(
            f"{path} is a sentence-transformers pipeline that begins with {modules[0].type}; only pipelines that begin "
            "with Transformer can be run."
        )
    inner = path / modules[0].name if modules else path
    if base is not None:
        return _adapted(read_folder(base), path, inner, modules)
    if not (inner / "config.json").is_file():
        raise UnknownModelError(f"{inner} has no config.json, so it is not a model folder.")
    return Folder(
        root=path,
        path=inner,
        config=read_object(inner / "config.json"),
        quantized=read_object(inner / OPENVINO_FACTS),
        adapter={},
        adapter_path=inner,
        **_of_tokenizer(inner),
        **_of_pipeline(path, inner, modules),
    )


def _adapted(base: Folder, path: Path, inner: Path, modules: tuple[Module, ...]) -> Folder:
    """Return the base's facts, replaced where an adapter's folder states its own."""
    folder = replace(base, adapter=read_object(inner / ADAPTER), adapter_path=inner)
    if any((inner / name).is_file() for name in _TOKENIZERS):
        folder = replace(folder, **_of_tokenizer(inner))
    return replace(folder, root=path, **_of_pipeline(path, inner, modules)) if modules else folder


def _of_tokenizer(inner: Path) -> dict[str, Any]:
    return {"tokenizer": read_object(inner / "tokenizer_config.json"), "tokenizer_path": inner}


def _of_pipeline(path: Path, inner: Path, modules: tuple[Module, ...]) -> dict[str, Any]:
    """Return the facts in sentence-transformers' files; without modules.json that library takes only the kind."""
    pipeline = read_object(path / PIPELINE)
    settings_file, settings = _settings(inner) if modules else (_SETTINGS[0], {})
    prompts, default = _prompts(path, pipeline) if modules else ({}, "")
    return {
        "modules": modules,
        "pipeline": pipeline,
        "prompts": prompts,
        "default_prompt": default,
        "settings": settings,
        "settings_file": settings_file,
    }


def parts_of(path: Path) -> tuple[Path, ...]:
    """Return the folders whose files make up the model in `path`: itself, and those of its modules."""
    names = [entry["path"] for entry in entries_of(path)]
    return (path, *(path / name for name in dict.fromkeys(names) if name and (path / name).is_dir()))


def revision_of(parts: tuple[Path, ...]) -> str:
    """Return a local model's revision, a hash of its files' names, sizes, times and inodes.

    It changes when the model is retrained in place, and when a link to the folder, above it or in it leads elsewhere.
    """
    states = repr([sorted(_states(part)) for part in parts]).encode()
    return LOCAL + hashlib.blake2s(states, digest_size=8).hexdigest()


class FolderWatch:
    """Revisions of local models; one look at a model's files answers all threads that asked before it began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[Path, ...], tuple[float, str]] = {}

    def revision(self, parts: tuple[Path, ...]) -> str:
        """Return `revision_of(parts)` as of some moment after this was called."""
        asked = time.perf_counter()
        with self._lock:
            looked, revision = self._seen.get(parts, (-math.inf, ""))
            if looked < asked:
                looked, revision = time.perf_counter(), revision_of(parts)
                self._seen[parts] = looked, revision
            return revision


def content_hash(file: Path) -> str:
    """Return the file's SHA-256; the file is read once, and again when its size or time has changed."""
    stat = file.stat()
    return _content_hash(file, (stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _content_hash(file: Path, _state: tuple[int, int]) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _states(folder: Path) -> list[tuple[str, int, int, int]]:
    """Return name, size, time and inode of each file directly in a folder."""
    states = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                stat = entry.stat()
                states.append((entry.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return states


def _settings(inner: Path) -> tuple[str, dict[str, Any]]:
    """Return the name of the file of the Transformer module's settings, and the settings; {} where there are none."""
    found = ((name, read_object(inner / name)) for name in _SETTINGS)
    return next(((name, settings) for name, settings in found if settings), (_SETTINGS[0], {}))


def _prompts(path: Path, pipeline: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """Return the prompts by name, and the text of the default one, "" where there is none."""
    file, prompts, name = path / PIPELINE, pipeline.get("prompts") or {}, pipeline.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise ValueError(f'{file} should hold texts by name in "prompts", not {prompts!r:.80}. {AGAIN}')
    texts = {str(key): text or "" for key, text in prompts.items()}
    if name is not None and name not in (*texts, "query", "document"):
        raise ValueError(f"{file} names the default prompt {name!r}, which is not among {', '.join(texts) or 'none'}.")
    truncate_dim = pipeline.get("truncate_dim")
    if truncate_dim is not None and (type(truncate_dim) is not int or truncate_dim < 1):
        raise ValueError(f"{file} sets truncate_dim={truncate_dim!r:.80}, which is not a number of dimensions.")
    return texts, texts.get(name or "", "")
