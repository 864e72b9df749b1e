"""One forward at a time on a device, first come first served.

Without it an embedder and a reranker on one device fight over its cores and memory, and `threading.Lock`, which is not
fair, would let a bulk job of one starve a live query of the other.
"""

import threading
import time
from collections import deque


class DeviceLock:
    """A fair mutual exclusion lock, used as a context manager."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Event] = deque()

    def acquire(self, seconds: float | None = None) -> bool:
        """Waits for its turn, for ever or so many seconds; returns whether it came."""
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

    def release(self) -> None:
        """Passes it on."""
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


_guard = threading.Lock()
_locks: dict[str, DeviceLock] = {}
_forking = threading.local()

_FORK_SECONDS = 2.0
"""How long a fork waits for the forwards that run."""


def device_lock(device: str) -> DeviceLock:
    """The process's one lock of `device`."""
    with _guard:
        return _locks.setdefault(device, DeviceLock())


def hold_devices() -> None:
    """Before a fork: waits, though not for ever, until no forward runs, and lets none begin."""
    deadline = time.monotonic() + _FORK_SECONDS
    locks = list(_locks.values())
    _forking.held = [lock for lock in locks if lock.acquire(max(0.0, deadline - time.monotonic()))]


def let_devices_go() -> None:
    """After a fork, in the parent: forwards go on."""
    for lock in _forking.held:
        lock.release()


def forget_device_locks() -> None:
    """In a forked child: the parent's threads that hold locks do not exist here."""
    global _guard, _locks
    _guard, _locks = threading.Lock(), {}
