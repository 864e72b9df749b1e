"""What the protocols share: the choice of the side, the formats of numbers, and JSON answers that hold arrays."""

import base64
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import Response
from pydantic import BeforeValidator, Field

from bge_integrations.inference.batch import Rows
from bge_integrations.runtime.user import off_loop

InputType = Annotated[
    Literal["query", "search_query", "document", "passage", "search_document", "classification", "clustering"] | None,
    Field(description="Queries get the model's query instruction; every other text is a document."),
]
Dimensions = Annotated[int | None, Field(gt=0, description="Leading numbers to keep, for models trained for that.")]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[
    list[str],
    Field(min_length=1, description="One text, or a list of texts."),
    BeforeValidator(_listed, json_schema_input_type=str | Annotated[list[str], Field(min_length=1)]),
]
"""The texts of a request; a message about a wrong one has its index."""


def is_query(input_type: str | None) -> bool:
    """Return whether a request's texts are queries."""
    return input_type in ("query", "search_query", "retrieval.query")


def numbers_of(vectors: Rows, kind: str) -> list[Any]:
    """Return each vector in a number format.

    Args:
        vectors: The vectors, float32.
        kind: "float"; "base64" of little-endian float32 numbers; "int8", 127 times the number, and "uint8", 128 more;
            "ubinary", the signs, eight in a byte, and "binary", 128 less.
    """
    if kind == "float":
        return list(vectors)
    if kind == "base64":
        return [base64.b64encode(row).decode() for row in np.ascontiguousarray(vectors, dtype="<f4")]
    if kind in ("int8", "uint8"):
        scaled = np.clip(np.rint(vectors * 127), -127, 127).astype(np.int16)
        return list(scaled if kind == "int8" else scaled + 128)
    bits = np.packbits(vectors > 0, axis=1)
    return list(bits if kind == "ubinary" else bits.astype(np.int16) - 128)


async def json_reply(data: Callable[[], object], *, items: int) -> Response:
    """Answer with JSON that may hold numpy arrays; `data` runs in a thread for more items than are quick to write."""
    body = await off_loop(items, lambda: orjson.dumps(data(), option=orjson.OPT_SERIALIZE_NUMPY))
    return Response(body, media_type="application/json")
