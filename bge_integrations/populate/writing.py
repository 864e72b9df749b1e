"""What a store's errors mean: it is away and asked again, nothing will be taken, or a document may be at fault."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event
from typing import Any, TypeVar

import tenacity

from bge_integrations.errors import BgeError, InputTooLongError, NonFiniteError
from bge_integrations.stores.kinds import is_a

T = TypeVar("T")

SECONDS = 60
"""How long a store is asked again while it cannot be reached."""

_stop: ContextVar[Event] = ContextVar("stop", default=Event())  # noqa: B039 - nobody sets the default

_AWAY = (
    "ConnectionError",
    "TimeoutError",
    "Timeout",
    "TransportError",
    "APIConnectionError",
    "RateLimitError",
    "ResponseHandlingException",
    "ResourceExhaustedResponse",
)
"""Classes of errors, by name, that mean that a store or service cannot answer at the moment: of Python, httpx,
requests, openai, Chroma, Qdrant."""
_BUSY = (408, 429, 502, 503, 504)
"""HTTP statuses that mean the same."""
_ABOUT_CONTENT = (400, 413, 414, 422)
"""HTTP statuses that may be about what was sent; others, such as 401, are about who sends it, or about the server."""
_UNAVAILABLE = ("08", "40", "53", "55", "57")
"""Classes of SQLSTATE: connection, a conflict rolled back, resources, locks, what an operator does (a restart)."""
_OVERTAKEN = re.compile("[Ii]ncompatible transaction|[Cc]ommit conflict|[Tt]oo many concurrent writ")
"""What LanceDB says when another writer's commit came first; it has no class of errors for that."""
_BROKEN = ("InternalError",)
"""Classes of errors that mean that the store itself is in trouble, as does an HTTP status from 500 on."""
_ENDS = (MemoryError, ImportError, NotImplementedError, CancelledError)
_OUR_MODELS_REFUSALS = (InputTooLongError, NonFiniteError)


@contextmanager
def asking_until(stop: Event) -> Iterator[None]:
    """Has stores asked again, by this thread and those that it starts, until something is set."""
    before = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(before)


def patiently(work: Callable[[], T]) -> T:
    """Does some work of a store; again, with growing pauses, while it cannot be reached.

    Raises:
        CancelledError: Something is set that ends the asking (`asking_until`).
    """
    stop = _stop.get()

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise CancelledError

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_away),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        sleep=pause,
        stop=tenacity.stop_any(tenacity.stop_after_delay(SECONDS), tenacity.stop_when_event_set(stop)),
        reraise=True,
    )
    return retrying(work)


def ends_run(error: Exception) -> bool:
    """Whether an error surely is no document's fault; of others, a trial tells."""
    if isinstance(error, BgeError):
        return not isinstance(error, _OUR_MODELS_REFUSALS)
    status = _status(error)
    refuses_all = bool(status) and status not in _ABOUT_CONTENT
    return refuses_all or isinstance(error, _ENDS) or is_a(error, *_BROKEN) or _is_away(error)


def _is_away(error: BaseException) -> bool:
    names_it = is_a(error, *_AWAY) or _OVERTAKEN.search(str(error)) is not None
    return names_it or _status(error) in _BUSY or _is_unavailable(error)


def _status(error: BaseException) -> int:
    """The HTTP status that an error carries, or its response; 0 without."""
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else 0


def _is_unavailable(error: BaseException) -> bool:
    """Whether a database cannot answer, by its SQLSTATE; it gives none where the connection is lost."""
    driver: Any = getattr(error, "orig", None) or error  # what SQLAlchemy wraps
    if not (hasattr(driver, "sqlstate") or hasattr(driver, "pgcode")):
        return False
    state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    return state[:2] in _UNAVAILABLE if state else is_a(driver, "OperationalError", "InterfaceError")
