"""How many bytes a model will take, and whether its files are whole, read from the headers alone."""

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path

from bge_integrations.errors import MissingWeightsError
from bge_integrations.runtime.damage import refuse_pointers

_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_FLOATS = ("F64", "F32", "F16", "BF16")


def loaded_bytes(files: Iterable[Path], dtype: str) -> int:
    """Bytes the weights take once loaded as `dtype`.

    Raises:
        MissingWeightsError: A safetensors file is truncated or not one, or a file is a Git LFS pointer.
    """
    files = tuple(files)
    refuse_pointers(files)
    return sum(_safetensors_bytes(f, dtype) if f.suffix == ".safetensors" else f.stat().st_size for f in files)


def _safetensors_bytes(file: Path, dtype: str) -> int:
    """Reads the header: 8 bytes of length, then JSON with dtype, shape and offsets of every tensor."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length) if length < size else b"")
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    except (struct.error, ValueError, KeyError) as error:
        raise MissingWeightsError(
            f"{file} is not a whole safetensors file ({size} bytes). Download it again."
        ) from error
    if size < expected:
        raise MissingWeightsError(
            f"{file} is truncated: it has {size} bytes, and its header promises {expected}. Download it again."
        )
    return sum(
        math.prod(entry["shape"]) * _ITEM_BYTES[dtype]
        if entry["dtype"] in _FLOATS
        else entry["data_offsets"][1] - entry["data_offsets"][0]
        for entry in tensors
    )
