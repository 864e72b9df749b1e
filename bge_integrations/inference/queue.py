"""The micro-batching queue: one worker thread a model, one future a call.

When the device is free the worker takes what waits, up to the token budget, and runs it: no timer, so a lone request
waits for nobody, and load makes batches grow by themselves. Calls take turns by batch, so a live query never waits for
a bulk job to end.
"""

import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager

import numpy as np

from bge_integrations.errors import ClosedError, DeviceLostError, InputTooLongError, NonFiniteError, OverloadedError
from bge_integrations.inference.backends.base import Backend, DeviceMemoryError, Launched
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.batching import BatchSize
from bge_integrations.inference.call import Call, Item, Output, Rows
from bge_integrations.inference.device_lock import DeviceLock
from bge_integrations.inference.threads import PackageThread

logger = logging.getLogger(__name__)

MAX_WAITING_CALLS = 10_000
LOOKAHEAD = 8
"""Batches' worth of tokens that a call keeps tokenized: enough to sort by length, little enough to hold."""
CLEAN_BATCHES = 16
"""Batches without an out-of-memory after which the budget that one had halved is doubled again."""

_Batch = tuple[list[Item], Launched]


class Queue:
    """Runs calls on one backend.

    Args:
        backend: Where batches run.
        device: The device's lock; a forward holds it.
        max_waiting: Calls among which batches are made. One more raises `OverloadedError`, or waits for its turn to be
            one of them, as the call says.
    """

    def __init__(self, backend: Backend, device: DeviceLock, *, max_waiting: int = MAX_WAITING_CALLS) -> None:
        self._backend = backend
        self._device = device
        self._max_waiting = max_waiting
        self._condition = threading.Condition()
        self._calls: list[Call] = []
        self._outside: OrderedDict[Future[Output], Call] = OrderedDict()  # they wait to be among the calls
        self._closed = False
        self._worker: threading.Thread | None = None
        self._launched: _Batch | None = None
        self._turn = 0
        self._budget: int | None = None
        self._failed_at = self._clean = 0
        self.batches = self.tokens = self.truncated = 0

    @property
    def depth(self) -> int:
        """Calls that wait or run."""
        return len(self._calls) + len(self._outside)

    @property
    def worker(self) -> threading.Thread | None:
        """The thread that computes, once a call has come."""
        return self._worker

    def submit(self, call: Call) -> None:
        """Adds a call; its future tells the rest. Never blocks.

        Raises:
            OverloadedError: Too many calls wait, and the call does not queue for admission.
            ClosedError: The queue is closed, or no thread can be started for it.
        """
        with self._condition:
            if self._closed:
                raise ClosedError("The model was unloaded while the call waited; call again to load it anew.")
            if not call.patient and self.depth >= self._max_waiting:
                self._drop_done()
            full = self.depth >= self._max_waiting
            if full and not call.patient:
                raise OverloadedError(
                    f"{self.depth} calls wait for this model already. Try again later, send fewer at a time, or await "
                    "the async methods, which wait for their turn; ModelCache(max_waiting=...) sets the bound."
                )
            if self._worker is None:
                worker = PackageThread("bge-engine", self._work)
                worker.start()
                self._worker = worker
            if full:
                self._outside[call.future] = call
            else:
                self._admit(call)
        if full:
            call.future.add_done_callback(self._forget)

    def _drop_done(self) -> None:
        self._calls[:] = [call for call in self._calls if not call.done]

    def _admit(self, call: Call) -> None:
        call.last_turn = self._turn
        self._calls.append(call)
        self._condition.notify()

    def _forget(self, cancelled: "Future[Output]") -> None:
        with self._condition:
            self._outside.pop(cancelled, None)

    def close(self) -> None:
        """Ends the worker after its running batch; calls that still wait get `ClosedError`."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def join(self, timeout: float | None = None) -> None:
        """Waits for the worker to end."""
        worker = self._worker
        if worker is not None and worker is not threading.current_thread():
            worker.join(timeout)

    def _work(self) -> None:
        try:
            while self._step():
                pass
        finally:
            with self._condition:
                waiting = [*self._calls, *self._outside.values()]
                self._calls.clear()
                self._outside.clear()
            for call in waiting:
                call.fail(ClosedError("The model was closed while the call waited."))

    def _step(self) -> bool:
        """Runs one batch; False when the queue is closed.

        While a device goes on by itself with one, the next is tokenized and launched, and only then waited for the one.
        """
        calls = self._next_calls()
        before, self._launched = self._launched, None
        self._turn += 1
        if items := self._assemble(self._in_turn(calls)):
            self._launched = self._launch(items)
        if before:
            self._collect(*before)
        return bool(calls or before)

    def _next_calls(self) -> list[Call]:
        """Waits for calls, unless a batch is under way; none when the queue is closed."""
        with self._condition:
            while True:
                # This may let go of the last user of the model, and so close the queue from within.
                self._drop_done()
                while self._outside and len(self._calls) < self._max_waiting:
                    self._admit(self._outside.popitem(last=False)[1])
                if self._closed:
                    return []
                if self._calls or self._launched:
                    return list(self._calls)
                self._condition.wait()

    def _in_turn(self, calls: list[Call]) -> list[Call]:
        """Least served first, and of those the shortest, so a fresh query passes every bulk job.

        Every other batch begins with the call that waited longest, so fresh queries can't starve a bulk job.
        """
        calls.sort(key=lambda call: (call.served, len(call.texts)))
        if calls and self._turn % 2:
            longest_waiting = min(calls, key=lambda call: call.last_turn)
            calls.remove(longest_waiting)
            calls.insert(0, longest_waiting)
        return calls

    def _assemble(self, calls: Sequence[Call]) -> list[Item]:
        """Takes texts, call after call, until the budget is full; a call that can't be tokenized fails alone."""
        size, items, limit = BatchSize(self._backend.padded), list[Item](), self._budget or sys.maxsize
        for call in calls:
            if items and (call.alone or items[0].call.alone or call.head != items[0].call.head):
                continue
            try:
                call.refill(LOOKAHEAD * call.max_batch_tokens)
            except BaseException as error:  # a panic in the tokenizer is no Exception
                call.fail(error)
                continue
            shared = min(limit, call.max_batch_tokens)
            before = len(items)
            while (item := call.peek()) and size.fits(len(item.encoding), shared):
                items.append(call.take())
                size = size.with_text(len(item.encoding))
            if len(items) > before:
                limit = shared
                call.served += sum(len(item.encoding) for item in items[before:])
                call.last_turn = self._turn
            if size.tokens >= limit:
                break
        return items

    def _launch(self, items: list[Item]) -> _Batch | None:
        """Computes a batch, or has the device do it; what is still to be collected."""
        with self._told(items):
            rows = self._forward(items)
            if isinstance(rows, Launched):
                return items, rows
            self._deliver(items, rows)
        return None

    def _collect(self, items: list[Item], launched: Launched) -> None:
        with self._told(items):
            self._deliver(items, launched.rows())

    def _deliver(self, items: list[Item], rows: Rows) -> None:
        rows = self._finite(items, rows)
        self._count(items)
        for call, chosen in _by_call(items).items():
            call.alone = False
            try:
                call.deliver([items[i].index for i in chosen], rows[chosen])
            except BaseException as error:  # such as no memory for its rows; the others have theirs
                call.fail(error)

    @contextmanager
    def _told(self, items: list[Item]) -> Iterator[None]:
        """Makes the batch smaller after an out-of-memory, and gives any other error to the call that caused it."""
        try:
            yield
        except DeviceMemoryError as error:
            self._halve(items, error)
        except BaseException as error:  # whatever it is, the worker lives on
            self._blame(items, error)

    def _blame(self, items: Sequence[Item], error: BaseException) -> None:
        """Gives an error to the call it came from: those that shared the batch run once more, each alone."""
        calls = _by_call(items)
        if len(calls) == 1 or isinstance(error, DeviceLostError | SystemExit):
            for call in calls:
                call.fail(error)
            return
        logger.warning("a batch of %d calls failed, so each of them runs alone: %s", len(calls), error)
        for call, chosen in calls.items():
            call.alone = True
            call.put_back([items[i] for i in chosen])

    def _forward(self, items: Sequence[Item], *, exact: bool = False) -> Rows | Launched:
        batch = TokenBatch.of([item.encoding for item in items])
        with self._device:
            return self._backend.run(batch, items[0].call.head, exact=exact)

    def _finite(self, items: Sequence[Item], rows: Rows) -> Rows:
        """Recomputes rows with NaN or infinity in float32; a call whose row stays so fails, the others go on."""
        bad = _not_finite(rows)
        if not bad:
            return rows
        logger.warning("%d of %d rows were not finite; computing them again in float32", len(bad), len(rows))
        again = self._forward([items[i] for i in bad], exact=True)
        rows[bad] = again.rows() if isinstance(again, Launched) else again
        for i in _not_finite(rows[bad]):
            item = items[bad[i]]
            item.call.fail(NonFiniteError(f"The model gives NaN or infinity for text {item.position}, in float32 too."))
        return rows

    def _halve(self, items: Sequence[Item], error: DeviceMemoryError) -> None:
        """After an out-of-memory: half the tokens from now on, and the same texts again."""
        if len(items) == 1:
            (item,) = items
            failure = InputTooLongError(
                f"Text {item.position} has {len(item.encoding)} tokens, and a forward over it alone does not fit the "
                f"device's memory. Set a smaller max_length, or free memory on the device. ({error})"
            )
            failure.__cause__ = error
            item.call.fail(failure)
            return
        size = BatchSize(self._backend.padded)
        for item in items:
            size = size.with_text(len(item.encoding))
        self._budget, self._clean = max(1, size.tokens // 2), 0
        self._failed_at = size.tokens
        logger.warning("out of memory at %d tokens a batch; going on with %d", size.tokens, self._budget)
        for call, chosen in _by_call(items).items():
            call.put_back([items[i] for i in chosen])

    def _count(self, items: Sequence[Item]) -> None:
        self.batches += 1
        self.tokens += sum(len(item.encoding) for item in items)
        self.truncated += sum(len(item.encoding) < item.encoding.full_length for item in items)
        if self._budget is not None:
            self._clean += 1
            if self._clean == CLEAN_BATCHES:
                grown = 2 * self._budget
                self._budget, self._clean = (grown if grown < 2 * self._failed_at else None), 0


def _not_finite(rows: Rows) -> list[int]:
    """The rows that hold NaN or infinity."""
    if rows.dtype != object:
        return [int(i) for i in np.flatnonzero(~np.isfinite(rows).all(axis=1))]
    numbers = ([getattr(output, "values", output) for output in row] for row in rows)
    return [i for i, outputs in enumerate(numbers) if not all(np.isfinite(output).all() for output in outputs)]


def _by_call(items: Sequence[Item]) -> dict[Call, list[int]]:
    """Positions in `items` of each call's texts."""
    positions: dict[Call, list[int]] = {}
    for position, item in enumerate(items):
        positions.setdefault(item.call, []).append(position)
    return positions
