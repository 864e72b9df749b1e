"""The end of the process: a thread that still computes or imports then would abort the interpreter."""

import contextlib
import ctypes
import sys
import threading
import time
from collections.abc import Iterable

ending = threading.Event()
"""Set once the interpreter begins to end."""

_SECONDS = 1.5


def stop(threads: Iterable[threading.Thread]) -> None:
    """Ends threads wherever they are in Python code: between two operations of a forward, or within an import."""
    report = sys.unraisablehook
    # Where a thread happens to be in a callback of the interpreter's own, such as the import lock's, Python would say.
    sys.unraisablehook = lambda raised: None if raised.exc_type is SystemExit else report(raised)
    alive = running = [thread for thread in threads if thread.is_alive()]
    deadline = time.monotonic() + _SECONDS
    while alive and time.monotonic() < deadline:
        for thread in alive:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        alive[0].join(0.02)
        alive = [thread for thread in alive if thread.is_alive()]
    if running and getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
        # Python ends by SIGINT after Ctrl-C, but forgets that where a thread runs exec() meanwhile, as imports do.
        with contextlib.suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")  # noqa: S102
