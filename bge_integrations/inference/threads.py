"""The threads that this package starts: which they are, and what becomes of them when the interpreter ends."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from time import monotonic, sleep  # as they are now: gevent may patch the module's own later
from typing import Any, TypeVar

from bge_integrations.errors import ClosedError

T = TypeVar("T")

ending = threading.Event()
"""Set once the interpreter begins to end."""

GRACE_SECONDS = 1.0
"""How long calls that the end cut short go without an answer: most threads that wait for one die with the process."""

_Lock = threading.Lock
_alive: set["PackageThread"] = set()
_late: list[tuple["Future[Any]", Any, BaseException | None]] = []
_ENDED = (
    "The interpreter is ending, and the model's threads have ended already. Exit hooks run in reverse order: register "
    "yours after importing bge_integrations, or call before the script ends."
)


class PackageThread(threading.Thread):
    """A daemon thread of this package; those of others are never touched.

    Attributes:
        finished: Set once its work is done; at the end of the interpreter it lives on a while to answer calls.
    """

    def __init__(self, name: str, target: Callable[..., object], *args: Any) -> None:
        super().__init__(name=name, target=target, args=args, daemon=True)
        self.finished = threading.Event()

    def start(self) -> None:
        """Starts it.

        Raises:
            ClosedError: Python starts no more threads.
        """
        _alive.add(self)
        try:
            super().start()
        except RuntimeError as error:
            _alive.discard(self)
            raise ClosedError(f"No thread can be started for the model: {error}.") from error

    def run(self) -> None:
        """Works, and answers what the end of the interpreter left without an answer."""
        try:
            super().run()
        finally:
            self.finished.set()
            _alive.discard(self)
            if ending.is_set():
                _answer_late()


def package_threads() -> list[PackageThread]:
    """Those that work now."""
    return list(_alive)


def answer(future: "Future[T]", result: T | None, error: BaseException | None) -> None:
    """Gives a call's future its result or error; once the interpreter ends, only after a grace.

    A thread that gets its answer then goes on, and most would die with a traceback of their own. An exit hook may wait
    for such a thread, though, so that there has to be an answer in the end.
    """
    if ending.is_set():
        _late.append((future, result, ClosedError(_ENDED) if isinstance(error, SystemExit) else error))
    else:
        _settle(future, result, error)


def refuse_lost_threads() -> None:
    """Refuses a call that would wait for ever, as no thread of this package can work for it.

    Raises:
        ClosedError: The interpreter ends.
        RuntimeError: gevent or eventlet have replaced the locks that threads and this package wait for.
    """
    if threading.Lock is not _Lock:
        raise RuntimeError(
            "Threads were monkey-patched after bge_integrations was imported, so a call would wait for ever. Call "
            "gevent.monkey.patch_all() (or eventlet.monkey_patch()) before importing it."
        )
    if ending.is_set():
        if threading.current_thread().daemon:  # it most likely dies before anybody reads what it has to say
            sleep(GRACE_SECONDS)
        raise ClosedError(_ENDED)


def _answer_late() -> None:
    until = monotonic() + GRACE_SECONDS
    while (left := until - monotonic()) > 0:
        with suppress(SystemExit):
            sleep(left)
    while True:
        try:
            late = _late.pop()
        except IndexError:
            return
        _settle(*late)


def _settle(future: "Future[T]", result: Any, error: BaseException | None) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
