"""Arrays to builtin lists of floats, as the frameworks want them."""

import asyncio

import numpy as np
from numpy.typing import NDArray

_SLICE = 1 << 14
"""Numbers converted at a stretch: under 1 ms, during which no other thread runs."""


def to_lists(vectors: NDArray[np.float32]) -> list[list[float]]:
    """Rows as lists of builtin floats; lets other threads run in between."""
    rows = max(1, _SLICE // max(1, vectors.shape[1]))
    lists: list[list[float]] = []
    for start in range(0, len(vectors), rows):
        lists += vectors[start : start + rows].tolist()
    return lists


async def ato_lists(vectors: NDArray[np.float32]) -> list[list[float]]:
    """As `to_lists`, off the event loop where it takes long."""
    if vectors.size <= _SLICE:
        return to_lists(vectors)
    return await asyncio.to_thread(to_lists, vectors)
