"""One call over several replicas of a model: its items split among them, its rows put together again in order."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from bge_integrations.inference.call import Cut, Output

T = TypeVar("T")
S = TypeVar("S")

MIN_ITEMS = 8
"""Items under which a call goes to one replica whole."""


def spread(
    items: list[T],
    replicas: Sequence[S],
    start: Callable[[S, list[T], int], Future[Output]],
    depth: Callable[[S], int],
) -> Future[Output]:
    """Starts one call on its replicas: a short one on the least busy, a long one in parts of like size on all.

    Args:
        items: Texts or pairs.
        replicas: What tells them apart.
        start: Queues some of the items, which begin at an index, on a replica.
        depth: Calls that wait for a replica.

    Returns:
        A future of all rows in the order of the items. The first error of a part is the call's, and cancels the others.
    """
    if len(replicas) == 1:
        return start(replicas[0], items, 0)
    if len(items) < MIN_ITEMS:
        return start(min(replicas, key=depth), items, 0)
    bounds = _bounds(items, len(replicas))
    parts = zip(replicas, bounds[:-1], bounds[1:], strict=True)
    return _joined([start(replica, items[first:last], first) for replica, first, last in parts if last > first])


def _bounds(items: Sequence[Any], parts: int) -> list[int]:
    """Where parts of nearly equally many characters begin and end."""
    sizes = np.cumsum([len(item) if isinstance(item, str) else sum(map(len, item)) for item in items])
    inner = np.searchsorted(sizes, sizes[-1] * np.arange(1, parts) / parts, side="left") + 1
    return [0, *np.minimum(inner, len(items)).tolist(), len(items)]


def _joined(parts: list[Future[Output]]) -> Future[Output]:
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
    return Output(rows, tuple(cuts), sum(output.tokens for output in outputs))
