"""What a model folder's own files say, read without loading weights or any framework."""

import functools
import hashlib
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from bge_integrations.errors import MissingWeightsError, UnknownModelError, UnsupportedModelError
from bge_integrations.runtime.json_files import AGAIN, read_json, read_object
from bge_integrations.types import Pooling

LOCAL = "local-"
"""What a local folder's revision begins with; a hub revision is a commit hash."""

OPENVINO_GRAPH = "openvino_model.xml"
"""The graph of a folder that `bge quantize` wrote; its weights lie beside it, `.bin`."""
OPENVINO_FACTS = "bge_openvino.json"
"""What marks such a folder, and says how it was made."""

_SETTINGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""The names that sentence-transformers gave the Transformer module's settings; the first that says something counts."""
PIPELINE = "config_sentence_transformers.json"
_VECTOR, _TOKENS = "sentence_embedding", "token_embeddings"
_CONFIG_OF = {"CNN": "cnn_config.json", "LSTM": "lstm_config.json"}
"""Modules whose settings are not in a config.json."""

POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The older notation of a Pooling module's modes, in the order in which they are put together."""
_POOLINGS = {"cls": Pooling.CLS, "mean": Pooling.MEAN, "lasttoken": Pooling.LAST_TOKEN}
_ROBERTA_POSITIONS = ("xlm-roberta", "roberta", "camembert")
"""Architectures whose position ids begin at pad_token_id + 1."""


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of modules.json: its class, by the last name alone if the library brings it, and its config."""

    name: str
    type: str
    config: Mapping[str, Any]

    @property
    def modes(self) -> tuple[str, ...]:
        """A Pooling module's modes, in the old or the new notation."""
        if mode := self.config.get("pooling_mode"):
            return (mode,) if isinstance(mode, str) else tuple(map(str, mode))
        return tuple(mode for flag, mode in POOLING_FLAGS.items() if self.config.get(flag)) or ("mean",)


@dataclass(frozen=True)
class Folder:
    """A model folder's facts.

    Attributes:
        root: The folder.
        path: Where config.json, tokenizer and weights are: the folder itself, or its Transformer module's.
        config: config.json.
        modules: modules.json with each module's config; empty without the file.
        pipeline: config_sentence_transformers.json.
        prompts: Name to text, from that file; empty without modules.json, where sentence-transformers takes none.
        default_prompt: The text that sentence-transformers adds where no prompt is named.
        settings: sentence_bert_config.json, or the older file of its kind; empty without modules.json.
        settings_file: The name of that file.
        tokenizer: tokenizer_config.json.
        quantized: bge_openvino.json: how `bge quantize` made it. It then holds an int8 graph for OpenVINO instead of
            weights. Empty without the file.
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
        return self.pipeline.get("model_type") == "CrossEncoder" or self.architecture.endswith(
            "ForSequenceClassification"
        )

    @property
    def is_language_model(self) -> bool:
        """Whether the files describe a language model with its output layer, which may embed or rerank."""
        return self.architecture.endswith("ForCausalLM")

    @property
    def labels(self) -> int:
        """Outputs of the classification head."""
        return int(self.config.get("num_labels") or len(self.config.get("id2label") or {}) or 2)

    @cached_property
    def pooling(self) -> Pooling | None:
        """The one pooling of the pipeline; None without modules.json or with a pooling that only the library knows."""
        modes = [module.modes for module in self.modules if module.type == "Pooling"]
        return _POOLINGS.get(modes[0][0]) if len(modes) == 1 and len(modes[0]) == 1 else None

    @cached_property
    def include_prompt(self) -> bool:
        """Whether a prompt's tokens take part in the pooling."""
        return all(m.config.get("include_prompt", True) for m in self.modules if m.type == "Pooling")

    @cached_property
    def normalize(self) -> bool:
        """Whether the pipeline ends in vectors of length 1."""
        last = next((module for module in reversed(self.modules) if module.type != "Dropout"), None)
        pooled = any(module.type == "Pooling" for module in self.modules)
        return pooled and last is not None and last.type == "Normalize" and _names(last) == (_VECTOR, _VECTOR)

    @cached_property
    def dim(self) -> int:
        """Length of the pipeline's vectors, before the folder's own `truncate_dim`."""
        config = self.config
        hidden = config.get("hidden_size") or config.get("d_model") or config.get("dim") or config.get("n_embd") or 0
        return _width(self.modules, int(hidden))

    @cached_property
    def truncate_dim(self) -> int | None:
        """How many leading numbers sentence-transformers keeps of the pipeline's vectors; None for all."""
        return self.pipeline.get("truncate_dim") if self.modules else None

    @cached_property
    def positions(self) -> int | None:
        """Most tokens the position embeddings can take, special tokens included."""
        positions = self.config.get("max_position_embeddings")
        if not isinstance(positions, int) or positions <= 0:
            return None
        return (
            positions - self.config.get("pad_token_id", 1) - 1 if self.model_type in _ROBERTA_POSITIONS else positions
        )

    @cached_property
    def max_length(self) -> int:
        """Tokens at which sentence-transformers would cut a text of this folder."""
        of_tokenizer = self.tokenizer.get("model_max_length") or self.tokenizer.get("max_len")
        limits = (self.settings.get("max_seq_length") or of_tokenizer, self.positions)
        return min((int(limit) for limit in limits if limit), default=512)

    @cached_property
    def heads(self) -> dict[str, Path]:
        """bge-m3's files beside the weights: output -> the linear layer that makes it."""
        files = {name: self.root / f"{name}_linear.pt" for name in ("sparse", "colbert")}
        return {name: file for name, file in files.items() if file.is_file()}

    def weights(self) -> tuple[Path, ...]:
        """The files that transformers would read: safetensors where there are some, else `.bin`; or an int8 graph's.

        Raises:
            MissingWeightsError: The folder has neither, or not every shard.
        """
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
        """The weight files of the pipeline's other modules, such as Dense."""
        folders = [self.root / module.name for module in self.modules if module.name]
        return tuple(sorted(f for d in folders if d != self.path for f in (*d.glob("*.safetensors"), *d.glob("*.bin"))))


def read_folder(path: Path) -> Folder:
    """Reads a folder's JSON files.

    Raises:
        UnknownModelError: There is no such folder, or no config.json in it.
        UnsupportedModelError: A sentence-transformers pipeline whose first module is not `Transformer`.
        ValueError: A file is not JSON.
    """
    if not path.is_dir():
        raise UnknownModelError(f"There is no folder {path}. Pass a hub id or the path of a model folder.")
    modules = _modules(path)
    if modules and modules[0].type != "Transformer":
        raise UnsupportedModelError(
            f"{path} is a sentence-transformers pipeline that begins with {modules[0].type}; only pipelines that begin "
            "with Transformer can be run."
        )
    inner = path / modules[0].name if modules else path
    settings_file, settings = _settings(inner) if modules else (_SETTINGS[0], {})
    if not (inner / "config.json").is_file():
        raise UnknownModelError(f"{inner} has no config.json, so it is not a model folder.")
    pipeline = read_object(path / PIPELINE)
    prompts, default = _prompts(path, pipeline) if modules else ({}, "")
    return Folder(
        root=path,
        path=inner,
        config=read_object(inner / "config.json"),
        modules=modules,
        pipeline=pipeline,
        prompts=prompts,
        default_prompt=default,
        settings=settings,
        settings_file=settings_file,
        tokenizer=read_object(inner / "tokenizer_config.json"),
        quantized=read_object(inner / OPENVINO_FACTS),
    )


def parts_of(path: Path) -> tuple[Path, ...]:
    """The folders whose files make up the model in `path`: itself, and those of its modules."""
    names = [entry["path"] for entry in _entries(path)]
    return (path, *(path / name for name in dict.fromkeys(names) if name and (path / name).is_dir()))


def revision_of(parts: tuple[Path, ...]) -> str:
    """A local model's revision: its files' names, sizes, times and inodes.

    Retraining in place is seen, and that a link to the folder, above it or in it now leads elsewhere.
    """
    states = repr([sorted(_states(part)) for part in parts]).encode()
    return LOCAL + hashlib.blake2s(states, digest_size=8).hexdigest()


class FolderWatch:
    """Revisions of local models; a model is looked at once for all who ask while it is looked at."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[Path, ...], tuple[float, str]] = {}

    def revision(self, parts: tuple[Path, ...]) -> str:
        """`revision_of(parts)` at some moment after this was called."""
        asked = time.perf_counter()
        with self._lock:
            looked, revision = self._seen.get(parts, (-math.inf, ""))
            if looked < asked:
                looked, revision = time.perf_counter(), revision_of(parts)
                self._seen[parts] = looked, revision
            return revision


def content_hash(file: Path) -> str:
    """The file's SHA-256; read once, and again when its size or time has changed."""
    stat = file.stat()
    return _content_hash(file, (stat.st_size, stat.st_mtime_ns))


@functools.lru_cache(maxsize=256)
def _content_hash(file: Path, _state: tuple[int, int]) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _states(folder: Path) -> list[tuple[str, int, int, int]]:
    """Name, size, time and inode of the files right in a folder."""
    states = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file():
                stat = entry.stat()
                states.append((entry.name, stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return states


def _entries(path: Path) -> list[dict[str, Any]]:
    """The entries of modules.json, in the order in which they run: that of the file."""
    file = path / "modules.json"
    entries = read_json(file) if file.is_file() else []
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("path"), str) and isinstance(entry.get("type"), str)
        for entry in entries
    ):
        raise ValueError(f'{file} should hold a list of objects, each with "path" and "type". {AGAIN}')
    for entry in entries:
        inside = PurePosixPath(entry["path"].replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts:
            raise ValueError(f"{file} names the folder {entry['path']!r}, which is not inside the model's own.")
    return entries


def _modules(path: Path) -> tuple[Module, ...]:
    modules = []
    for entry in _entries(path):
        kind = re.sub(r"^sentence_transformers\.(.*\.)?", "", entry["type"])
        config = read_object(path / entry["path"] / _CONFIG_OF.get(kind, "config.json"))
        modules.append(Module(name=entry["path"], type=kind, config=config))
    return tuple(modules)


def _settings(inner: Path) -> tuple[str, dict[str, Any]]:
    """The Transformer module's settings, and the name of their file."""
    found = ((name, read_object(inner / name)) for name in _SETTINGS)
    return next(((name, settings) for name, settings in found if settings), (_SETTINGS[0], {}))


def _prompts(path: Path, pipeline: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """The prompts, and the text of the one that is used by default."""
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


def _names(module: Module) -> tuple[str, str]:
    """What a Dense or a Normalize reads and what it writes."""
    source = module.config.get("module_input_name") or _VECTOR
    return source, module.config.get("module_output_name") or source


def _width(modules: tuple[Module, ...], hidden: int) -> int:
    """Length of a pipeline's vectors, from the width of its transformer's hidden states."""
    widths = {_TOKENS: hidden}
    for module in modules:
        config = module.config
        if module.type == "Pooling":
            widths[_VECTOR] = widths[_TOKENS] * len(module.modes)
        elif module.type == "CNN":
            widths[_TOKENS] = int(config.get("out_channels", 256)) * len(config.get("kernel_sizes") or (1, 3, 5))
        elif module.type == "Dense":
            widths[_names(module)[1]] = int(config.get("out_features", hidden))
    return widths.get(_VECTOR, widths[_TOKENS])
