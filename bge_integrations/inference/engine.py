"""The engine of one loaded model: a call gives texts and a plan, gets a future, and a worker thread runs batches.

When the device is free the worker takes the waiting texts, up to the token budget, and runs them. There is no timer: a
lone request runs at once, and under load batches grow by themselves. Calls take turns by batch, so a live query never
waits for a bulk job to end.
"""

import logging
import sys
import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import lru_cache
from operator import attrgetter
from time import monotonic
from typing import Any

import numpy as np

from bge_integrations.errors import ClosedError, DeviceLostError, InputTooLongError, NonFiniteError, OverloadedError
from bge_integrations.inference.backends.base import Backend, DeviceMemoryError, Launched
from bge_integrations.inference.batch import (
    BatchSize,
    Call,
    Item,
    Limits,
    Output,
    Rows,
    TokenBatch,
    by_call,
    not_finite,
)
from bge_integrations.inference.plan import Bound, PairPlan, Plan
from bge_integrations.inference.stats import BOUNDS, EngineStats, stats_of
from bge_integrations.inference.tokenize import TextTokenizer
from bge_integrations.process import DeviceLock, PackageThread, device_lock

logger = logging.getLogger(__name__)

MAX_WAITING_CALLS = 10_000
LOOKAHEAD = 8
"""A call keeps this many batches' worth of tokens tokenized: enough to sort by length, few enough for memory."""
CLEAN_BATCHES = 16
"""After this many batches without an out-of-memory error, a budget that such an error halved is doubled again."""

_Batch = tuple[list[Item], Launched, float]


class Engine:
    """The tokenizer, backend and queue of one loaded model.

    Args:
        tokenizer: The model's tokenizer.
        backend: The model's weights on a device.
        device: The device's name; forwards on one device take turns.
        max_batch_tokens: Most tokens of a forward where a call names no limit.
        max_waiting: Most calls that may wait.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        backend: Backend,
        *,
        device: str,
        max_batch_tokens: int,
        max_waiting: int = MAX_WAITING_CALLS,
    ) -> None:
        self.tokenizer = tokenizer
        self.backend = backend
        self.max_batch_tokens = max_batch_tokens
        self.queue = Queue(backend, device_lock(device), max_waiting=max_waiting)
        self._bound: Callable[[Plan], Bound] = lru_cache(maxsize=256)(lambda plan: plan.bind(tokenizer))

    def submit(
        self,
        items: Sequence[Any],
        plan: Plan,
        *,
        max_batch_tokens: int | None = None,
        refuse_long: bool = False,
        first: int = 0,
        patient: bool = False,
        future: "Future[Output] | None" = None,
        release: Callable[[Future[Output]], object] = lambda _: None,
    ) -> "Future[Output]":
        """Queue texts or pairs.

        Args:
            items: Texts for a `TextPlan`, pairs for a `PairPlan`; at least one.
            plan: How they are tokenized, and what is kept of the forward.
            max_batch_tokens: Most tokens of a forward that computes some of them; None takes the engine's.
            refuse_long: Refuse an item over the plan's limit instead of cutting it.
            first: The index by which messages name the first item.
            patient: Wait for admission, instead of being refused, when too many calls wait.
            future: The future that receives the output or an error; None makes one.
            release: Called with the future, right before the future is answered.

        Returns:
            A future of the rows that the plan's head describes and of the items that were cut. It fails with a
            ValueError for an item with a token that has no embedding in the model, and with `InputTooLongError` for an
            item that is refused; other calls that share its batches do not fail.

        Raises:
            ValueError: There are no items, or the plan leaves them no room.
            OverloadedError: Too many calls wait, and the call is not `patient`.
            ClosedError: The engine is closed.
        """
        if not items:
            raise ValueError("An engine needs at least one text.")
        bound = self._bound(plan)
        limits = Limits(
            "pair" if isinstance(plan, PairPlan) else "text", plan.max_length if refuse_long else None,
            self.backend.vocabulary, self.tokenizer.name,
        )  # fmt: skip
        call = Call(
            items, bound.encode, limits.check, bound.head, max_batch_tokens or self.max_batch_tokens, first, patient,
            plan.max_length, future or Future(), release,
        )  # fmt: skip
        self.queue.submit(call)
        return call.future

    @property
    def stats(self) -> EngineStats:
        return stats_of(self.queue)

    def close(self) -> None:
        """End the worker after its running batch; calls that wait get `ClosedError`."""
        self.queue.close()

    def join(self, timeout: float | None = None) -> None:
        """Wait for a closed engine's worker to end, then free the weights."""
        self.queue.join(timeout)
        self.backend.close()


class Queue:
    """The queue of one backend's calls, with the thread that runs them in batches.

    Args:
        backend: The backend that runs the batches.
        device: The device's lock; a forward holds it.
        max_waiting: Most calls from which batches are made. A further call raises `OverloadedError`, or, if it is
            `patient`, waits until it is admitted.
    """

    def __init__(self, backend: Backend, device: DeviceLock, *, max_waiting: int = MAX_WAITING_CALLS) -> None:
        self._backend = backend
        self._device = device
        self._max_waiting = max_waiting
        self._condition = threading.Condition()
        self._calls: list[Call] = []
        self._outside: OrderedDict[Future[Output], Call] = OrderedDict()  # patient calls that wait for admission
        self._closed = False
        self._worker: threading.Thread | None = None
        self._launched: _Batch | None = None
        self._turn = 0
        self._budget: int | None = None
        self._failed_at = self._clean = 0
        self.batches = self.tokens = self.truncated = 0
        self.waits, self.forwards = [0] * (len(BOUNDS) + 1), [0] * (len(BOUNDS) + 1)
        self.waited = self.computed = 0.0

    @property
    def depth(self) -> int:
        """The number of calls that wait or run."""
        return len(self._calls) + len(self._outside)

    @property
    def worker(self) -> threading.Thread | None:
        """The thread that computes; None before the first call."""
        return self._worker

    def submit(self, call: Call) -> None:
        """Add a call without blocking; its future receives the output or an error.

        Raises:
            OverloadedError: Too many calls wait, and the call is not `patient`.
            ClosedError: The queue is closed, or no thread can be started for it.
        """
        with self._condition:
            if self._closed:
                raise ClosedError("The model was unloaded while the call waited; call again to load it anew.")
            full = len(self._calls) + len(self._outside) >= self._max_waiting
            if full and not call.patient:
                self._calls[:] = [waiting for waiting in self._calls if not waiting.future.done()]
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

    def _admit(self, call: Call) -> None:
        call.last_turn = self._turn
        self._calls.append(call)
        self._condition.notify()

    def _forget(self, cancelled: "Future[Output]") -> None:
        with self._condition:
            self._outside.pop(cancelled, None)

    def close(self) -> None:
        """End the worker after its running batch; calls that still wait get `ClosedError`."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the worker to end."""
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
        """Run one batch; return False when the queue is closed and nothing is left to collect.

        While the device computes one batch, the next is tokenized and launched; only then is the first one collected.
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
        """Wait for calls, unless the device is computing a batch; return none when the queue is closed."""
        with self._condition:
            while True:
                # Dropping a call may release the last user of the model, and so close this queue from within.
                self._calls[:] = [call for call in self._calls if not call.future.done()]
                while self._outside and len(self._calls) < self._max_waiting:
                    self._admit(self._outside.popitem(last=False)[1])
                if self._closed:
                    return []
                if self._calls or self._launched:
                    return list(self._calls)
                self._condition.wait()

    def _in_turn(self, calls: list[Call]) -> list[Call]:
        """Sort calls, the least served and then the shortest first, so that a fresh query passes every bulk job.

        Every other batch begins with the call that waited longest, so fresh queries can't starve a bulk job.
        """
        if len(calls) < 2:
            return calls
        calls.sort(key=lambda call: (call.served, len(call.texts)))
        if self._turn % 2:
            longest_waiting = min(calls, key=attrgetter("last_turn"))
            calls.remove(longest_waiting)
            calls.insert(0, longest_waiting)
        return calls

    def _assemble(self, calls: Sequence[Call]) -> list[Item]:
        """Take texts, call after call, until the budget is full; a call that can't be tokenized fails alone."""
        size, items, limit = BatchSize(self._backend.padded), list[Item](), self._budget or sys.maxsize
        for call in calls:
            if items and (call.alone or items[0].call.alone or call.head != items[0].call.head):
                continue
            try:
                call.refill(LOOKAHEAD * call.max_batch_tokens)
            except BaseException as error:  # a panic in the tokenizer is not an Exception
                call.fail(error)
                continue
            shared, fresh = min(limit, call.max_batch_tokens), not call.served
            if taken := call.take(size, shared):
                items += taken
                limit = shared
                call.last_turn = self._turn
                if fresh:
                    waited = monotonic() - call.queued
                    self.waits[bisect_left(BOUNDS, waited)] += 1
                    self.waited += waited
            if size.tokens >= limit:
                break
        return items

    def _launch(self, items: list[Item]) -> _Batch | None:
        """Run a batch; return it if its rows are still to be collected from the device, else None."""
        started = monotonic()
        try:
            rows = self._forward(items)
            if isinstance(rows, Launched):
                return items, rows, started
            self._deliver(items, rows, started)
        except BaseException as error:  # the worker survives every error
            self._blame(items, error)
        return None

    def _collect(self, items: list[Item], launched: Launched, started: float) -> None:
        try:
            self._deliver(items, launched.rows(), started)
        except BaseException as error:
            self._blame(items, error)

    def _deliver(self, items: list[Item], rows: Rows, started: float) -> None:
        if rows.dtype == object or not np.isfinite(rows).all():
            rows = self._finite(items, rows)
        self.forwards[bisect_left(BOUNDS, seconds := monotonic() - started)] += 1
        self.computed += seconds
        self._count(items)
        for call, positions in by_call(items).items():
            call.alone = False
            try:
                call.deliver(items, positions, rows)
            except BaseException as error:  # no memory for its rows, for example; other calls get theirs
                call.fail(error)

    def _blame(self, items: Sequence[Item], error: BaseException) -> None:
        """Fail the call that an error came from: calls that shared the batch run once more, each alone.

        After an out-of-memory error the same texts run again in smaller batches.
        """
        if isinstance(error, DeviceMemoryError):
            self._halve(items, error)
            return
        calls = by_call(items)
        if len(calls) == 1 or isinstance(error, DeviceLostError | SystemExit):
            for call in calls:
                call.fail(error)
            return
        logger.warning("a batch of %d calls failed, so each of them runs alone: %s", len(calls), error)
        for call, chosen in calls.items():
            call.alone = True
            call.put_back([items[i] for i in chosen])

    def _forward(self, items: Sequence[Item], *, exact: bool = False) -> Rows | Launched:
        batch = TokenBatch.of(map(attrgetter("encoding"), items))
        with self._device:
            return self._backend.run(batch, items[0].call.head, exact=exact)

    def _finite(self, items: Sequence[Item], rows: Rows) -> Rows:
        """Compute rows with NaN or infinity again in float32; only a call with a row that stays so fails."""
        if not (bad := not_finite(rows)):
            return rows
        logger.warning("%d of %d rows were not finite; computing them again in float32", len(bad), len(rows))
        again = self._forward([items[i] for i in bad], exact=True)
        rows[bad] = again.rows() if isinstance(again, Launched) else again
        for i in not_finite(rows[bad]):
            item = items[bad[i]]
            item.call.fail(NonFiniteError(f"The model gives NaN or infinity for text {item.position}, in float32 too."))
        return rows

    def _halve(self, items: Sequence[Item], error: DeviceMemoryError) -> None:
        """Halve the token budget after an out-of-memory error and queue the same texts again; a lone text fails."""
        if len(items) == 1:
            (item,) = items
            failure = InputTooLongError(
                f"Text {item.position} has {item.length} tokens, and a forward over it alone does not fit the "
                f"device's memory. Set a smaller max_length, or free memory on the device. ({error})"
            )
            failure.__cause__ = error
            item.call.fail(failure)
            return
        size = BatchSize(self._backend.padded)
        for item in items:
            size.add(item.length)
        self._budget, self._clean = max(1, size.tokens // 2), 0
        self._failed_at = size.tokens
        logger.warning("out of memory at %d tokens per batch; going on with %d", size.tokens, self._budget)
        for call, chosen in by_call(items).items():
            call.put_back([items[i] for i in chosen])

    def _count(self, items: Sequence[Item]) -> None:
        self.batches += 1
        for item in items:
            self.tokens += item.length
            self.truncated += item.length < item.encoding.full_length
        if self._budget is not None:
            self._clean += 1
            if self._clean == CLEAN_BATCHES:
                grown = 2 * self._budget
                self._budget, self._clean = (grown if grown < 2 * self._failed_at else None), 0
