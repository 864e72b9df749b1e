"""The JSON files of a model folder, and the modules of a sentence-transformers pipeline that they list."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

AGAIN = "Download or save the folder again."
LFS_POINTER = b"version https://git-lfs"
VECTOR, _TOKENS = "sentence_embedding", "token_embeddings"
_CONFIG_OF = {"CNN": "cnn_config.json", "LSTM": "lstm_config.json"}
"""The settings files of modules that have no config.json."""
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The older notation of a Pooling module's modes, in the order in which their vectors are joined."""


def read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; return {} where there is no such file.

    Raises:
        ValueError: The file holds something else.
    """
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(  # noqa: TRY004 - the file is wrong, not an argument
            f"{path} should hold a JSON object, not {type(content).__name__}. {AGAIN}"
        )
    return content


def read_json(path: Path) -> Any:
    """Read a JSON file and return its content.

    Raises:
        ValueError: The file is a pointer of Git LFS, or is not JSON in UTF-8.
    """
    content = path.read_bytes()
    if content.startswith(LFS_POINTER):
        raise ValueError(f"{path} is a pointer of Git LFS, not the file itself. Get the files with `git lfs pull`.")
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON in UTF-8 ({error}). {AGAIN}") from error


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of modules.json: its folder, its class (by the last name alone if the library's), and its config."""

    name: str
    type: str
    config: Mapping[str, Any]

    @property
    def modes(self) -> tuple[str, ...]:
        """A Pooling module's modes, in the old or the new notation."""
        if mode := self.config.get("pooling_mode"):
            return (mode,) if isinstance(mode, str) else tuple(map(str, mode))
        return tuple(mode for flag, mode in POOLING_FLAGS.items() if self.config.get(flag)) or ("mean",)


def entries_of(path: Path) -> list[dict[str, Any]]:
    """Return the entries of modules.json in the file's order, in which they run; [] without the file."""
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


def read_modules(path: Path) -> tuple[Module, ...]:
    """Read a pipeline's modules with their configs; return () where the folder has no modules.json."""
    modules = []
    for entry in entries_of(path):
        kind = re.sub(r"^sentence_transformers\.(.*\.)?", "", entry["type"])
        config = read_object(path / entry["path"] / _CONFIG_OF.get(kind, "config.json"))
        modules.append(Module(name=entry["path"], type=kind, config=config))
    return tuple(modules)


def names_of_vectors(module: Module) -> tuple[str, str]:
    """Return the names of the vectors that a Dense or a Normalize module reads and writes."""
    source = module.config.get("module_input_name") or VECTOR
    return source, module.config.get("module_output_name") or source


def width_of(modules: tuple[Module, ...], hidden: int) -> int:
    """Compute the length of a pipeline's vectors from the width of its transformer's hidden states."""
    widths = {_TOKENS: hidden}
    for module in modules:
        config = module.config
        if module.type == "Pooling":
            widths[VECTOR] = widths[_TOKENS] * len(module.modes)
        elif module.type == "CNN":
            widths[_TOKENS] = int(config.get("out_channels", 256)) * len(config.get("kernel_sizes") or (1, 3, 5))
        elif module.type == "Dense":
            widths[names_of_vectors(module)[1]] = int(config.get("out_features", hidden))
    return widths.get(VECTOR, widths[_TOKENS])
