"""Weight files: how many bytes they take, and which one is damaged."""

import json
import math
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.errors import MissingWeightsError
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.modules import AGAIN, LFS_POINTER

Tensors = Mapping[str, NDArray[Any]]
"""Tensors by their names in the checkpoint."""

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_FLOATS = ("F64", "F32", "F16", "BF16")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
)  # fmt: skip
_OTHERS = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "*.index.json")
_VOCABULARIES = ("*.txt", "*.model")
"""Patterns of the files that a tokenizer is made of where there is no tokenizer.json."""
_VOCABULARIES_OF_ANY_KIND = ("tokenizer.json", "*vocab*", "*.model", "*.tiktoken", "*.bpe")


def loaded_bytes(files: Iterable[Path], dtype: str) -> int:
    """Return the number of bytes that the weights take once loaded as `dtype`.

    Raises:
        MissingWeightsError: A safetensors file is truncated or not valid, or a file is a Git LFS pointer.
    """
    files = tuple(files)
    refuse_pointers(files)
    return sum(_safetensors_bytes(f, dtype) if f.suffix == ".safetensors" else f.stat().st_size for f in files)


def _safetensors_bytes(file: Path, dtype: str) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            views = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118 - it is no mapping
            return int(sum(math.prod(view.get_shape()) * _item_bytes(view.get_dtype(), dtype) for view in views))
    except SafetensorError as error:
        size = file.stat().st_size
        raise MissingWeightsError(
            f"{file} is truncated, or no safetensors file: it has {size} bytes ({error}). Download it again."
        ) from error


def read_tensors(files: Iterable[Path]) -> Tensors:
    """Read the float tensors of safetensors files; those in bfloat16 become float32, for numpy has no bfloat16."""
    tensors = dict[str, NDArray[Any]]()
    for file in files:
        content = np.fromfile(file, np.uint8)
        start = 8 + int(content[:8].view("<u8")[0])
        for name, facts in json.loads(content[8:start].tobytes()).items():
            if facts.get("dtype") in _FLOATS:
                first, last = facts["data_offsets"]
                numbers = _floats(content[start + first : start + last], facts["dtype"])
                tensors[name] = numbers.reshape(facts["shape"])
    return tensors


def _floats(content: NDArray[np.uint8], stored: str) -> NDArray[Any]:
    if stored == "BF16":  # the upper half of a float32
        return (content.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return content.view({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[stored])


def _item_bytes(stored: str, dtype: str) -> float:
    """Return the bytes of one number that is stored as, say, "F16" or "I64"; floats are loaded as `dtype`."""
    if stored in _FLOATS:
        return _ITEM_BYTES[dtype]
    bits = re.search(r"\d+", stored)
    return int(bits[0]) / 8 if bits else 1


def refuse_pointers(files: Iterable[Path]) -> None:
    """Raise `MissingWeightsError` for a file that Git LFS has not fetched yet."""
    for file in files:
        with file.open("rb") as stream:
            is_pointer = stream.read(len(LFS_POINTER)) == LFS_POINTER
        if is_pointer:
            raise MissingWeightsError(
                f"{file} is a Git LFS pointer, not the file that it stands for. Run `git lfs pull` in the folder, or "
                "download it again."
            )


def tokenizer_files(folder: Folder) -> list[Path]:
    """Return the files that a tokenizer is read from."""
    where = folder.tokenizer_path
    return _found(where, _TOKENIZER if (where / "tokenizer.json").is_file() else (*_TOKENIZER, *_VOCABULARIES))


def refuse_missing_vocabulary(folder: Folder) -> None:
    """Raise `MissingWeightsError` for a folder without a vocabulary, for which transformers would make an empty one."""
    where = folder.tokenizer_path
    if not _found(where, _VOCABULARIES_OF_ANY_KIND):
        raise MissingWeightsError(
            f"{where} has no vocabulary: neither tokenizer.json nor another file that a tokenizer is made of. "
            "Download the folder again, or save the tokenizer there with save_pretrained()."
        )
    if not _found(where, ("tokenizer.json", "merges.txt")) and _found(where, ("vocab.json",)):
        raise MissingWeightsError(f"{where} lacks merges.txt beside vocab.json. Download the folder again.")


def refuse_damaged(folder: Folder) -> None:
    """Raise an error that names the damaged file, if there is one, after a model could not be loaded.

    Raises:
        MissingWeightsError: A weight file is damaged, or a file is a Git LFS pointer.
        ValueError: A JSON or text file is damaged.
    """
    for file in _read_files(folder):
        refuse_pointers([file])
        try:
            _read(file)
        except pickle.UnpicklingError as error:
            raise MissingWeightsError(
                f"{file} holds more than tensors, or is damaged. Nothing is unpickled, for that can run any code: use "
                "a copy with safetensors."
            ) from error
        except Exception as error:
            problem = f"{file} is damaged ({type(error).__name__}: {error!s:.300}). {AGAIN}"
            raise (ValueError if file.suffix in (".json", ".txt") else MissingWeightsError)(problem) from error


def _found(where: Path, patterns: Iterable[str]) -> list[Path]:
    return [file for pattern in patterns for file in sorted(where.glob(pattern))]


def _read_files(folder: Folder) -> Iterator[Path]:
    """Yield the files that a load reads, in its order; of weights in two formats, safetensors."""
    yield from _found(folder.path, _OTHERS)
    yield from tokenizer_files(folder)
    yield from folder.weights()
    for module in folder.modules:
        inside = folder.root / module.name
        if module.name and inside != folder.path:
            yield from sorted(inside.glob("*.json"))
            yield from sorted(inside.glob("*.safetensors")) or sorted(inside.glob("*.bin"))
    yield from folder.heads.values()


def _read(file: Path) -> None:
    """Read a file as far as its format tells whether it is whole; raises whatever its reader raises."""
    if file.suffix == ".json":
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"it should hold a JSON object, not {type(content).__name__}")
        if file.name == "tokenizer.json":
            from tokenizers import Tokenizer

            Tokenizer.from_file(str(file))
    elif file.suffix == ".txt":
        file.read_text(encoding="utf-8")
    elif file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, framework="numpy"):
            pass
    elif file.suffix in (".bin", ".pt") and not file.with_suffix(".xml").is_file():  # beside a graph it is OpenVINO's
        import torch

        torch.load(file, map_location="cpu", weights_only=True)
