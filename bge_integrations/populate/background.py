"""Background threads that do not keep the process from ending, even if a store or embedder never answers."""

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
"""How many seconds it may take to stop the threads at the end of the process."""
_threads: "weakref.WeakSet[Thread]" = weakref.WeakSet()


class Background(Generic[T]):
    """A queue of jobs that daemon threads do in order; they end when it is closed or deleted and its jobs are done.

    A `ThreadPoolExecutor` would not do: Python waits for its threads before it ends, however long they take.

    Args:
        threads: The number of threads; each has the context variables of the code that made the object.
        name: The first part of the threads' names.

    Attributes:
        close: A function that lets the threads end after their jobs, without waiting for them.
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
        """Queue a job and return the future of its result."""
        future: Future[T] = Future()
        self._jobs.put((future, work))
        return future

    def stop(self, seconds: float) -> None:
        """End the threads even within a job, between two operations of Python; wait up to `seconds` for that."""
        self.close()
        _stop(self._threads, seconds)


def _work(jobs: "SimpleQueue[_Job | None]") -> None:
    with suppress(SystemExit):  # raised by `_stop` between two jobs
        while (job := jobs.get()) is not None:
            future, work = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            del job, future, work  # frees what they hold while the thread waits for the next job


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
    """Stop all threads: one that is in a forward pass, say, when the interpreter ends would abort the process."""
    _stop(list(_threads), _SECONDS)
