"""The form in which calls and outputs travel between processes: JSON for texts, numpy's own format for vectors.

An output is a line of JSON, followed by arrays as `numpy.save` writes them (`.npy`): no copy into Python numbers, no
pickle, nothing to install, and any program with numpy can read it. The texts of a call are JSON, as they are shorter
than their vectors.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from bge_integrations.inference.batch import Cut, Output, Rows
from bge_integrations.runtime.request import ModelSource, Options, Request
from bge_integrations.types import SparseEmbedding

ARRAYS = "application/vnd.bge.arrays"
"""The media type of an output."""


def to_json(data: object) -> bytes:
    """Write data as JSON in UTF-8; half a surrogate pair, which UTF-8 has no bytes for, becomes an escape."""
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(data, separators=(",", ":")).encode()


def about(source: ModelSource, options: Options) -> dict[str, Any]:
    """Return a model and options as data; tokens and what decides the device stay out of it."""
    return {
        "model": source.model,
        "path": None if source.path is None else str(source.path),
        "kind": source.kind,
        "revision": source.revision,
        "dtype": source.dtype,
        "like": source.like,
        "cache_folder": source.cache_folder,
        "local_files_only": source.local_files_only,
        "pooling_optional": source.pooling_optional,
        "options": {"type": type(options).__name__, **asdict(options)},  # type: ignore[call-overload]
    }


def pack_request(request: Request) -> bytes:
    """Write a call."""
    return to_json(
        about(request.source, request.options)
        | {
            "items": list(request.items),
            "max_batch_tokens": request.max_batch_tokens,
            "refuse_long": request.refuse_long,
            "first": request.first,
            "patient": request.patient,
        }
    )


def pack_output(output: Output) -> bytes:
    """Write a call's output."""
    body = io.BytesIO()
    columns = _columns(output.rows)
    cuts = [(cut.index, cut.full_length) for cut in output.cuts]
    head = {"columns": columns, "cuts": cuts, "tokens": output.tokens, "max_length": output.max_length}
    body.write(to_json(head) + b"\n")
    for index, name in enumerate(columns or ()):
        _write_column(body, name, list(output.rows[:, index]))
    if columns is None:
        np.save(body, output.rows, allow_pickle=False)
    return body.getvalue()


def unpack_output(body: bytes) -> Output:
    """Read what `pack_output` has written.

    Raises:
        ValueError: It is something else.
    """
    data = io.BytesIO(body)
    head = json.loads(data.readline())
    if head["columns"] is None:
        rows = _array(data)
    else:
        columns = [_read_column(data, name) for name in head["columns"]]
        rows = np.empty((len(columns[0]), len(columns)), dtype=object)
        for index, column in enumerate(columns):
            for row, value in enumerate(column):
                rows[row, index] = value
    cuts = tuple(Cut(index, full_length) for index, full_length in head["cuts"])
    return Output(rows, cuts, head["tokens"], head["max_length"])


def _columns(rows: Rows) -> list[str] | None:
    """Return the names of the outputs of bge-m3 in rows of objects; None for rows of numbers."""
    if rows.dtype != object:
        return None
    return [
        "sparse" if isinstance(value, SparseEmbedding) else "dense" if value.ndim == 1 else "colbert"
        for value in rows[0]
    ]


def _write_column(body: io.BytesIO, name: str, values: list[Any]) -> None:
    if name == "dense":
        arrays: Sequence[Any] = (np.stack(values),)
    elif name == "sparse":
        joined = (np.concatenate([getattr(value, part) for value in values]) for part in ("indices", "values"))
        arrays = (_lengths(values), *joined)
    else:
        arrays = (_lengths(values), np.concatenate(values))
    for array in arrays:
        np.save(body, array, allow_pickle=False)


def _read_column(data: io.BytesIO, name: str) -> list[Any]:
    if name == "dense":
        return list(_array(data))
    ends = np.cumsum(_array(data))[:-1]
    if name == "sparse":
        indices, values = (np.split(_array(data), ends) for _ in range(2))
        return list(map(SparseEmbedding, indices, values))
    return np.split(_array(data), ends)


def _lengths(values: list[Any]) -> Any:
    return np.array([len(value) for value in values], dtype=np.int64)


def _array(data: io.BytesIO) -> Any:
    return np.load(data, allow_pickle=False)
