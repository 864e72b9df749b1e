"""The end of the process: a thread that still computes or imports then would abort the interpreter."""

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from bge_integrations.inference.threads import GRACE_SECONDS, ending, package_threads

T = TypeVar("T")

_SECONDS = 1.5


def stop_threads() -> None:
    """Ends the package's threads wherever they are in Python code: between two operations or within an import."""
    report = sys.unraisablehook
    # Where a thread happens to be in a callback of the interpreter's own, such as the import lock's, Python would say.
    sys.unraisablehook = lambda raised: None if raised.exc_type is SystemExit else report(raised)
    working = running = package_threads()
    deadline = time.monotonic() + _SECONDS
    while working and time.monotonic() < deadline:
        for thread in working:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        working[0].finished.wait(0.02)
        working = [thread for thread in working if thread.is_alive() and not thread.finished.is_set()]
    if running and getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
        # Python ends by SIGINT after Ctrl-C, but forgets that where a thread runs exec() meanwhile, as imports do.
        with contextlib.suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")  # noqa: S102


def despite_shutdown(load: Callable[[], T]) -> T:
    """Loads a model, also for threads that Python waits for while it ends, such as those of a ThreadPoolExecutor.

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


def is_of_shutdown(error: BaseException) -> bool:
    """Whether Python refuses a thread or an executor because it ends."""
    return isinstance(error, RuntimeError) and "shutdown" in str(error)
