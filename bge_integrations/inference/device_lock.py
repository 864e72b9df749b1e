"""One forward at a time on a device, first come first served.

Without it an embedder and a reranker on one device fight over its cores and memory, and `threading.Lock`, which is not
fair, would let a bulk job of one starve a live query of the other.
"""

import threading
from collections import deque


class DeviceLock:
    """A fair mutual exclusion lock, used as a context manager."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def __exit__(self, *_: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False


_guard = threading.Lock()
_locks: dict[str, DeviceLock] = {}


def device_lock(device: str) -> DeviceLock:
    """The process's one lock of `device`."""
    with _guard:
        return _locks.setdefault(device, DeviceLock())


def forget_device_locks() -> None:
    """In a forked child: the parent's threads that hold locks do not exist here."""
    global _guard, _locks
    _guard, _locks = threading.Lock(), {}
