"""Threads that nobody has to wait for, whether a store or an embedder ever answers them or not."""

import atexit
import ctypes
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]

_SECONDS = 0.5
"""How long threads are stopped at the end of the process."""
_threads: "weakref.WeakSet[Thread]" = weakref.WeakSet()


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
        self._threads = [
            Thread(target=copy_context().run, args=(_work, self._jobs), name=f"{name}_{number}", daemon=True)
            for number in range(threads)
        ]
        self.close = weakref.finalize(self, _end, self._jobs, threads)
        for thread in self._threads:
            _threads.add(thread)
            thread.start()

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Have a job done."""
        future: Future[T] = Future()
        self._jobs.put((future, work))
        return future

    def stop(self, seconds: float) -> None:
        """End the threads within their jobs, between two operations of Python, and wait so long for that."""
        self.close()
        _stop(self._threads, seconds)


def _work(jobs: "SimpleQueue[_Job | None]") -> None:
    with suppress(SystemExit):  # from `_stop`, between two jobs
        while (job := jobs.get()) is not None:
            future, work = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            del job, future, work  # and what they hold, while the next one is waited for


def _end(jobs: "SimpleQueue[_Job | None]", threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)


def _stop(threads: list[Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (alive := [thread for thread in threads if thread.is_alive()]) and time.monotonic() < deadline:
        for thread in alive:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        alive[0].join(0.02)


@atexit.register
def _stop_all() -> None:
    """A thread that is in the middle of a forward, say, when the interpreter goes would abort the process."""
    _stop(list(_threads), _SECONDS)
