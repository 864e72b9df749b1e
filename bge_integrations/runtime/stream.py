"""A stream of a call's output to the caller: the same for sync and async callers, with or without a bar."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from operator import length_hint
from types import TracebackType
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from bge_integrations.inference.batch import Cut, Output, Rows
from bge_integrations.process import awaited, wait

R = TypeVar("R")

_AT_ONCE = 256
"""Most texts, pairs or token vectors whose results are made on the event loop itself: some 1 ms of work."""


class Stream(Generic[R]):
    """An iterable, sync or async, that feeds items to an engine in chunks and yields each chunk's result, in order.

    The next chunk is queued before the first is awaited, so that the device never waits for the caller.

    Args:
        items: Any iterable, read as it is needed.
        start: Function that queues a chunk, which begins at an index. Its third argument is True for async callers:
            their chunk waits for admission where too many calls wait.
        size: Number of items of a chunk.
        convert: Function that turns a chunk's rows into what is yielded.
        report: Function that is called at the end with the items that were cut, if any were.
        bar: Whether to show a tqdm bar.
    """

    def __init__(
        self,
        items: Iterable[Any],
        start: Callable[[list[Any], int, bool], Future[Output]],
        size: int,
        *,
        convert: Callable[[Rows], R],
        report: Callable[[list[Cut]], None],
        bar: bool = False,
    ) -> None:
        self._items = iter(items)
        self._start = start
        self._size = size
        self._convert = convert
        self._report = report
        self._queued: deque[Future[Output]] = deque()
        self._read = self._done = 0
        self._cuts: list[Cut] = []
        self._bar = tqdm(total=length_hint(items) or None, unit="text") if bar else None

    def __iter__(self) -> Iterator[R]:
        with self:
            while (future := self._next(patient=False)) is not None:
                yield self._taken(wait(future))

    async def __aiter__(self) -> AsyncIterator[R]:
        with self:
            while (future := self._next(patient=True)) is not None:
                yield self._taken(await awaited(future))

    def __enter__(self) -> "Stream[R]":
        return self

    def __exit__(self, error: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        for future in self._queued:
            future.cancel()
        if self._bar is not None:
            self._bar.close()
        if self._cuts and error in (None, GeneratorExit):
            self._report(self._cuts)

    def _next(self, *, patient: bool) -> Future[Output] | None:
        while len(self._queued) < 2 and (chunk := list(islice(self._items, self._size))):
            self._queued.append(self._start(chunk, self._read, patient))
            self._read += len(chunk)
        return self._queued.popleft() if self._queued else None

    def _taken(self, output: Output) -> R:
        self._cuts += [Cut(self._done + cut.index, cut.full_length) for cut in output.cuts]
        self._done += len(output.rows)
        if self._bar is not None:
            self._bar.update(len(output.rows))
        return self._convert(output.rows)


async def off_loop(items: int, function: Callable[..., R], *arguments: object) -> R:
    """Call a function on so many items and return its result: for many, in a thread, so that the event loop goes on."""
    if items <= _AT_ONCE:
        return function(*arguments)
    try:
        running = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    except RuntimeError:  # the interpreter ends, and no executor takes work any more
        return function(*arguments)
    return await running
