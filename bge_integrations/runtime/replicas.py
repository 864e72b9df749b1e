"""One call over several replicas of a model: its items are split among them, its rows joined again in order."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np

from bge_integrations.inference.batch import Cut, Output
from bge_integrations.runtime.request import Cache, ModelSource, Request

MIN_ITEMS = 8
"""Number of items below which a whole call goes to one replica."""


def run(request: Request, replicas: Sequence[ModelSource], cache: Cache) -> Future[Output]:
    """Run one call on the model's one device, or spread it over several."""
    if len(replicas) == 1:
        return cache.submit(replace(request, source=replicas[0]))
    return spread(request, replicas, cache)


def spread(request: Request, replicas: Sequence[ModelSource], cache: Cache) -> Future[Output]:
    """Run one call on several replicas: a short one on the least busy, a long one in parts of like size on all.

    Returns:
        A future of all rows in the order of the items. The first error of a part becomes the call's and cancels the
        other parts.
    """
    items = request.items
    if len(items) < MIN_ITEMS:
        return cache.submit(replace(request, source=min(replicas, key=cache.depth)))
    bounds = _bounds(items, len(replicas))
    parts = zip(replicas, bounds[:-1], bounds[1:], strict=True)
    return joined(
        [
            cache.submit(replace(request, source=source, items=items[first:last], first=request.first + first))
            for source, first, last in parts
            if last > first
        ]
    )


def _bounds(items: Sequence[Any], parts: int) -> list[int]:
    """Return the indices at which parts of nearly equally many characters begin and end."""
    sizes = np.cumsum([len(item) if isinstance(item, str) else sum(map(len, item)) for item in items])
    inner = np.searchsorted(sizes, sizes[-1] * np.arange(1, parts) / parts, side="left") + 1
    return [0, *np.minimum(inner, len(items)).tolist(), len(items)]


def joined(parts: list[Future[Output]]) -> Future[Output]:
    """Return one future of all parts' rows, in order."""
    outcome: Future[Output] = Future()
    lock, left, settled = threading.Lock(), len(parts), False

    def finish(part: Future[Output]) -> None:
        nonlocal left, settled
        error = None if part.cancelled() else part.exception()
        with lock:
            left -= 1
            if settled or (left and error is None):
                return
            settled = True
        if not outcome.set_running_or_notify_cancel():
            return
        if error is None:
            outcome.set_result(_in_order([part.result() for part in parts]))
        else:
            outcome.set_exception(error)
            _cancel(parts)

    def cancel(done: Future[Output]) -> None:
        if done.cancelled():
            _cancel(parts)

    outcome.add_done_callback(cancel)
    for part in parts:
        part.add_done_callback(finish)
    return outcome


def _cancel(parts: Sequence[Future[Output]]) -> None:
    for part in parts:
        part.cancel()


def _in_order(outputs: Sequence[Output]) -> Output:
    cuts, first = list[Cut](), 0
    for output in outputs:
        cuts += [Cut(first + cut.index, cut.full_length) for cut in output.cuts]
        first += len(output.rows)
    rows = np.concatenate([output.rows for output in outputs])
    return Output(rows, tuple(cuts), sum(output.tokens for output in outputs), outputs[0].max_length)
