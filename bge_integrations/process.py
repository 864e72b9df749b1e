"""This package's threads and locks, and what happens to them when the process forks or ends.

The hooks for a fork stand at the end of this file. What a forked child does with models, and what ends first when the
process ends, is in `runtime/cache.py` (`_after_fork_in_child`, `_at_exit`).
"""

import contextlib
import ctypes
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from pathlib import Path
from queue import SimpleQueue
from time import monotonic, sleep  # Python's own, also where gevent replaces them after this import
from typing import Any, Generic, TypeVar

from bge_integrations.errors import ClosedError

T = TypeVar("T")
_Job = tuple["Future[Any]", Callable[[], Any]]

ending = threading.Event()
"""An event that is set once the interpreter begins to end."""

GRACE_SECONDS = 1.0
"""Seconds for which calls that the interpreter's end cut short get no answer: most waiting threads die meanwhile."""
_STOP_SECONDS = 1.5
"""Seconds that the end of the process waits for this package's threads."""
_STORE_SECONDS = 0.5
"""Seconds that it waits for threads of `Background`, which may be in a call of a store that never returns."""
_TEAM_SECONDS = 0.05
"""Seconds that a fork gives the threads that OpenMP had started for a thread that has finished: they go with it."""
_FORK_SECONDS = 2.0
"""Seconds that a fork waits for running forwards."""

_Lock = threading.Lock
_threads: set["PackageThread"] = set()
_locks: "weakref.WeakSet[ForkSafeLock]" = weakref.WeakSet()
_ended: deque[int] = deque(maxlen=64)
"""The system's ids of this package's threads that have finished last; some may still be on their way out."""
_late: list[tuple["Future[Any]", Any, BaseException | None]] = []
_ENDED = (
    "The interpreter is ending, and the model's threads have ended already. Exit hooks run in reverse order: register "
    "yours after importing bge_integrations, or call before the script ends."
)


class PackageThread(threading.Thread):
    """A daemon thread of this package; `stop_threads` ends only threads of this class.

    Attributes:
        finished: Set once its work is done; at the end of the interpreter the thread lives on a while to answer calls.
        patience: The most seconds that anything waits for it to stop.
    """

    patience = _STOP_SECONDS

    def __init__(self, name: str, target: Callable[..., object], *args: Any) -> None:
        super().__init__(name=name, target=target, args=args, daemon=True)
        self.finished = threading.Event()

    def start(self) -> None:
        """Start the thread.

        Raises:
            ClosedError: Python starts no more threads.
        """
        _threads.add(self)
        try:
            super().start()
        except RuntimeError as error:
            _threads.discard(self)
            raise ClosedError(f"No thread can be started for the model: {error}.") from error

    def run(self) -> None:
        """Do the thread's work, then answer the calls that the end of the interpreter left without an answer."""
        try:
            super().run()
        finally:
            self.finished.set()
            _threads.discard(self)
            _ended.append(threading.get_native_id())
            if ending.is_set():
                _answer_late()


class ForkSafeLock:
    """A lock that is free in a forked child, where the parent's thread that may hold it does not exist."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def renew(self) -> None:
        """Replace the lock by a free one."""
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class DeviceLock:
    """A fair mutual exclusion lock for one device, first come first served, used as a context manager.

    Without it an embedder and a reranker on one device fight over its cores and memory, and `threading.Lock`, which is
    not fair, would let a bulk job of one starve a live query of the other.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Event] = deque()

    def acquire(self, seconds: float | None = None) -> bool:
        """Wait for the device, for ever or so many seconds; return whether the lock was acquired."""
        with self._guard:
            if not self._held:
                self._held = True
                return True
            turn = threading.Event()
            self._waiting.append(turn)
        if turn.wait(seconds):
            return True
        with self._guard:
            if turn.is_set():
                return True
            self._waiting.remove(turn)
            return False

    def release(self, *_: object) -> None:
        """Release the lock, to the thread that has waited longest if there is one."""
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False

    __enter__ = acquire
    __exit__ = release


_devices: dict[str, DeviceLock] = {}
_naming_devices = ForkSafeLock()
_forking = threading.local()


def device_lock(device: str) -> DeviceLock:
    """Return the process's one lock of `device`, which a forward holds while it runs."""
    with _naming_devices:
        return _devices.setdefault(device, DeviceLock())


def answer(future: "Future[T]", result: Any, error: BaseException | None, *, late: bool = False) -> None:
    """Give a call's future its result or error, unless it has one; once the interpreter ends, only after a delay.

    A thread that got its answer at that time would go on, and most would die with a traceback. An exit hook may wait
    for such a thread, though, so an answer has to come in the end.
    """
    if ending.is_set() and not late:
        _late.append((future, result, ClosedError(_ENDED) if isinstance(error, SystemExit) else error))
    elif not future.done() and future.set_running_or_notify_cancel():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def wait(future: "Future[T]") -> T:
    """Wait for the future and return its result; an interrupt while waiting cancels the work."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


async def awaited(future: "Future[T]") -> T:
    """Await the future and return its result; cancelling the wait cancels the work.

    It does what `asyncio.wrap_future` does, without the reference cycle, which would keep the rows in memory until a
    garbage collection.
    """
    import asyncio  # 7 MB and 70 ms, for those that await

    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def wake() -> None:
        if not done.done():
            done.set_result(None)

    def finish(_: "Future[T]") -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(finish)
    try:
        await done
    except asyncio.CancelledError:
        future.cancel()
        raise
    return future.result()


def refuse_lost_threads() -> None:
    """Refuse a call that would wait for ever, because no thread of this package could answer it.

    Raises:
        ClosedError: The interpreter is ending.
        RuntimeError: gevent or eventlet has replaced the locks that threads and this package wait for.
    """
    if threading.Lock is not _Lock:
        raise RuntimeError(
            "Threads were monkey-patched after bge_integrations was imported, so a call would wait for ever. Call "
            "gevent.monkey.patch_all() (or eventlet.monkey_patch()) before importing it."
        )
    if ending.is_set():
        if threading.current_thread().daemon:  # it most likely dies before anybody reads its error
            sleep(GRACE_SECONDS)
        raise ClosedError(_ENDED)


def despite_shutdown(load: Callable[[], T]) -> T:
    """Load a model even for threads that Python waits for while it ends, such as those of a ThreadPoolExecutor.

    No executor takes work by then, and transformers reads tensors in one unless it is told not to.
    """
    try:
        return load()
    except RuntimeError as error:
        if not is_of_shutdown(error):
            raise
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        return load()
    except RuntimeError as error:
        if is_of_shutdown(error):
            ending.wait(GRACE_SECONDS)  # where nobody waits for the load, the process is gone by then
        raise


def give_freed_memory_back() -> None:
    """Hand the memory that glibc keeps between blocks in use to the system; elsewhere do nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def is_of_shutdown(error: BaseException) -> bool:
    """Return whether the error means that Python refuses a thread or an executor because it is ending."""
    return isinstance(error, RuntimeError) and "shutdown" in str(error)


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
            PackageThread(f"{name}_{number}", copy_context().run, _work, self._jobs) for number in range(threads)
        ]
        self.close = weakref.finalize(self, _let_end, self._jobs, threads)
        for thread in self._threads:
            thread.patience = _STORE_SECONDS
            thread.start()

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """Queue a job and return the future of its result."""
        future: Future[T] = Future()
        self._jobs.put((future, work))
        return future

    def stop(self, seconds: float) -> None:
        """End the threads even within a job, between two operations of Python; wait up to `seconds` for that."""
        self.close()
        _interrupt(self._threads, seconds)


def _work(jobs: "SimpleQueue[_Job | None]") -> None:
    with contextlib.suppress(SystemExit):  # raised by `_interrupt` between two jobs
        while (job := jobs.get()) is not None:
            future, work = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)
            del job, future, work  # frees what they hold while the thread waits for the next job


def _let_end(jobs: "SimpleQueue[_Job | None]", threads: int) -> None:
    for _ in range(threads):
        jobs.put(None)


def stop_threads() -> None:
    """End the package's threads wherever they are in Python code: between two operations or within an import.

    A thread that still computes or imports while the interpreter is taken down would abort the process.
    """
    report = sys.unraisablehook
    # Python would report a SystemExit that reaches a thread in one of its own callbacks, such as the import lock's.
    sys.unraisablehook = lambda raised: None if raised.exc_type is SystemExit else report(raised)
    running = list(_threads)
    _interrupt(running, _STOP_SECONDS)
    if running and getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
        # After Ctrl-C Python ends by SIGINT, but it forgets to if a thread runs exec() meanwhile, as imports do.
        with contextlib.suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")  # noqa: S102


def _interrupt(threads: list[PackageThread], seconds: float) -> None:
    def is_awaited(thread: PackageThread) -> bool:
        waits = monotonic() - started < min(seconds, thread.patience)
        return waits and thread.is_alive() and not thread.finished.is_set()

    started = monotonic()
    while working := list(filter(is_awaited, threads)):
        for thread in working:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        working[0].finished.wait(0.02)


def _answer_late() -> None:
    until = monotonic() + GRACE_SECONDS
    while (left := until - monotonic()) > 0:
        with contextlib.suppress(SystemExit):
            sleep(left)
    while True:
        try:
            future, result, error = _late.pop()
        except IndexError:
            return
        answer(future, result, error, late=True)


def hold_devices() -> None:
    """Wait before a fork, though not for ever, until no forward runs, and let none begin.

    Wait for finished threads to be gone, too: each hands memory back to Intel's MKL on its way out, under a lock that a
    child forked at that moment would find held for ever.
    """
    deadline = monotonic() + _FORK_SECONDS
    _forking.held = [lock for lock in list(_devices.values()) if lock.acquire(max(0.0, deadline - monotonic()))]
    if _ended:
        sleep(_TEAM_SECONDS)
    while _ended:
        thread = _ended.popleft()
        while Path(f"/proc/self/task/{thread}").exists() and monotonic() < deadline:
            sleep(0.001)


def let_devices_go() -> None:
    """Let forwards go on in the parent after a fork."""
    for lock in _forking.held:
        lock.release()


def renew_locks() -> None:
    """Make every lock of this package free in the child after a fork."""
    for lock in list(_locks):
        lock.renew()
    _devices.clear()
    _ended.clear()


os.register_at_fork(before=hold_devices, after_in_parent=let_devices_go, after_in_child=renew_locks)
