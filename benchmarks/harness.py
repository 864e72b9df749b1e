"""Calls that take turns, and what is made of their times."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Call = Callable[[], object]
Jobs = Mapping[str, Mapping[str, Call]]
"""Job -> name -> call; the first call of a job is ours."""


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is than a peer: median, least and most of the repetitions."""

    job: str
    ours: str
    peer: str
    median: float
    low: float
    high: float
    ours_seconds: float


@dataclass(frozen=True)
class Measure:
    """One quantity: median, least and most of the repetitions."""

    name: str
    unit: str
    median: float
    low: float
    high: float


def seconds_of(calls: Mapping[str, Call], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each call in each repetition, all taking turns; a round before loads and warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if repetition:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def compare(jobs: Jobs, repetitions: int) -> list[Ratio]:
    """Each job's first call against each of its others."""
    ratios = []
    for job, calls in jobs.items():
        seconds = seconds_of(calls, repetitions)
        ours, *peers = calls
        for peer in peers:
            faster = [theirs / mine for theirs, mine in zip(seconds[peer], seconds[ours], strict=True)]
            middle = statistics.median(faster)
            ratios.append(Ratio(job, ours, peer, middle, min(faster), max(faster), statistics.median(seconds[ours])))
            print(ratios[-1], file=sys.stderr)
    return ratios


def measure(name: str, unit: str, values: list[float]) -> Measure:
    """The middle and the spread of some repetitions."""
    result = Measure(name, unit, statistics.median(values), min(values), max(values))
    print(result, file=sys.stderr)
    return result


def ratio_table(ratios: list[Ratio], model: str) -> list[str]:
    """Lines of Markdown."""
    return [
        f"| job ({model}) | against | times faster (spread) |",
        "| --- | --- | --- |",
        *(f"| {r.job} | {r.peer} | {r.median:.2f} ({r.low:.2f} to {r.high:.2f}) |" for r in ratios),
    ]


def measure_table(measures: list[Measure]) -> list[str]:
    """Lines of Markdown."""
    return [
        "| what | measured (spread) |",
        "| --- | --- |",
        *(f"| {m.name} | {m.median:.4g} ({m.low:.4g} to {m.high:.4g}) {m.unit} |" for m in measures),
    ]
