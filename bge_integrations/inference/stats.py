"""What an engine counts, as logs, dashboards and Prometheus read it."""

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bge_integrations.inference.engine import Queue

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histograms' buckets, in seconds."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The calls that wait in an engine or run, and what it has done so far.

    Attributes:
        queue_depth: Calls that wait or run.
        batches: Forwards.
        tokens: Tokens computed.
        truncations: Texts that were cut.
        queue_seconds: How long calls waited for their first forward, as `histogram` gives it.
        forward_seconds: How long forwards took, with their wait for the device.
    """

    queue_depth: int
    batches: int
    tokens: int
    truncations: int
    queue_seconds: dict[str, Any]
    forward_seconds: dict[str, Any]


def stats_of(queue: "Queue") -> EngineStats:
    """Return what a queue has counted so far."""
    return EngineStats(
        queue.depth,
        queue.batches,
        queue.tokens,
        queue.truncated,
        histogram(queue.waits, queue.waited),
        histogram(queue.forwards, queue.computed),
    )


def histogram(counts: list[int], seconds: float) -> dict[str, Any]:
    """Return how many durations there were, their sum, and how many are at most as long as each bound.

    Args:
        counts: The number of durations in each bucket.
        seconds: Their sum.

    Returns:
        `count`, `sum`, and `buckets`, a list of (bound, count); durations over the last bound are in `count` alone.
    """
    totals = list(accumulate(counts))
    return {
        "count": totals[-1],
        "sum": seconds,
        "buckets": list(zip(BOUNDS, totals[:-1], strict=True)),
    }
