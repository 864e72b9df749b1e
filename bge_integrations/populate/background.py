"""Threads that nobody has to wait for, whether a store or an embedder ever answers them or not."""

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]


class Background(Generic[T]):
    """Does jobs in daemon threads, in their order; the threads end once it is closed, or gone, and its jobs are done.

    Python joins the threads of a `ThreadPoolExecutor` before it ends, however long they take.

    Args:
        threads: How many; each has the context variables of who made the object.
        name: What they are called.

    Attributes:
        close: Have the threads end; nobody waits for them.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        for number in range(threads):
            run = copy_context().run
            Thread(target=run, args=(_work, self._jobs), name=f"{name}_{number}", daemon=True).start()
        self.close = weakref.finalize(self, _end, self._jobs, threads)

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Have a job done."""
        future: Future[T] = Future()
        self._jobs.put((future, work))
        return future


def _end(jobs: "SimpleQueue[_Job | None]", threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)


def _work(jobs: "SimpleQueue[_Job | None]") -> None:
    while (job := jobs.get()) is not None:
        future, work = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
        del job, future, work  # and what they hold, while the next one is waited for
