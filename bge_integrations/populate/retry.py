"""Handling of the errors of stores and models: try again, end the run, or find the one document at fault."""

import math
import re
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Event
from typing import Any, Generic, TypeVar

import tenacity

from bge_integrations.errors import BgeError, InputTooLongError, NonFiniteError, ServerUnavailableError
from bge_integrations.populate.documents import Entry
from bge_integrations.stores.kinds import is_a

T = TypeVar("T")

SECONDS = 60
"""For how many seconds a store, or the server of the models, is tried again while it cannot be reached."""

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
"""Names of error classes, of Python, httpx, requests, openai, Chroma and Qdrant, which mean that a store or service
cannot answer at the moment."""
_BUSY = (408, 429, 502, 503, 504)
"""HTTP statuses that mean the same."""
_ABOUT_CONTENT = (400, 413, 414, 422)
"""HTTP statuses that may be due to what was sent; others, such as 401, are due to the sender or to the server."""
_UNAVAILABLE = ("08", "40", "53", "55", "57")
"""SQLSTATE classes: connection, a conflict rolled back, lack of resources, locks, an operator's action (a restart)."""
_OVERTAKEN = re.compile(
    "[Ii]ncompatible transaction|[Cc]ommit conflict|[Tt]oo many concurrent writ|segment reader: Nothing found"
)
"""The messages of stores when another writer came first, for which they have no error class: LanceDB's after its
commit, and Chroma's while it writes the first vectors of a collection (for some 50 ms, seen with 1.5.9)."""
_BROKEN = ("InternalError",)
"""Names of error classes which mean that the store itself is broken, as does an HTTP status from 500 on."""
_ENDS = (MemoryError, ImportError, NotImplementedError, CancelledError)
_OUR_MODELS_REFUSALS = (InputTooLongError, NonFiniteError)
Refused = tuple[Entry, Exception]
"""A document that was refused, and the error."""
Good = Callable[[Callable[[], bool]], bool]
"""A function that tries something known to be good: it returns True if that was taken, and raises if it was refused.
Its argument is a function that tries a few documents spread over the batch and returns whether one was taken."""
ENOUGH = 8
"""How many documents are tried alone before it is assumed that none will be taken."""
_IDS = 20
"""The most ids that an error names."""


@contextmanager
def asking_until(stop: Event) -> Iterator[None]:
    """Let `patiently` try again, in this thread and those that it starts, only until `stop` is set."""
    before = _stop.set(stop)
    try:
        yield
    finally:
        _stop.reset(before)


def patiently(work: Callable[[], T], *, when: Callable[[BaseException], bool] | None = None) -> T:
    """Call `work` and return its result; try again, with growing pauses, while the store cannot be reached.

    Args:
        work: The function to call.
        when: Returns whether to try again after an error; None asks `is_away`.

    Raises:
        CancelledError: The event given to `asking_until` is set during a pause.
    """
    stop = _stop.get()

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise CancelledError

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(when or is_away),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        sleep=pause,
        stop=tenacity.stop_any(tenacity.stop_after_delay(SECONDS), tenacity.stop_when_event_set(stop)),
        reraise=True,
    )
    return retrying(work)


def ends_run(error: Exception) -> bool:
    """Return whether an error is surely no document's fault; for other errors, a trial has to tell."""
    if isinstance(error, BgeError):
        return not isinstance(error, _OUR_MODELS_REFUSALS)
    status = _status(error)
    refuses_all = bool(status) and status not in _ABOUT_CONTENT
    return refuses_all or isinstance(error, _ENDS) or is_a(error, *_BROKEN) or is_away(error)


def is_away(error: BaseException) -> bool:
    """Return whether a store cannot answer at the moment, so that asking again may help."""
    names_it = is_a(error, *_AWAY) or _OVERTAKEN.search(str(error)) is not None
    return names_it or _status(error) in _BUSY or _is_unavailable(error)


def is_server_away(error: BaseException) -> bool:
    """Return whether the server that holds the models cannot answer at the moment."""
    return isinstance(error, ServerUnavailableError)


def _status(error: BaseException) -> int:
    """Return the HTTP status of an error or of its response; 0 if it has none."""
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else 0


def _is_unavailable(error: BaseException) -> bool:
    """Return whether a database cannot answer, by the SQLSTATE; it is missing if the connection is lost."""
    driver: Any = getattr(error, "orig", None) or error  # the driver's error that SQLAlchemy wraps
    if not (hasattr(driver, "sqlstate") or hasattr(driver, "pgcode")):
        return False
    state = getattr(driver, "sqlstate", None) or getattr(driver, "pgcode", None)
    return state[:2] in _UNAVAILABLE if state else is_a(driver, "OperationalError", "InterfaceError")


class Halving:
    """An operation on batches of documents, repeated with the halves of a batch that is refused.

    A document that is refused alone is at fault if others of its batch are taken. If none is, something known to be
    good is tried; if that is refused too, nothing will be taken, and the error is raised.

    Args:
        doing: The operation in the words of an error message, such as "writing".
        collect: Go on after documents that are at fault; otherwise raise the error of the first.

    Attributes:
        fits: The most documents that were taken at a time.
        suspects: The number of documents that were refused while nothing was taken yet.
        over: The position of the first document of the batch whose error ends the run; later batches are not halved.
    """

    def __init__(self, doing: str, *, collect: bool) -> None:
        self.collect = collect
        self.fits = 0
        self.suspects = 0
        self.over: float = math.inf
        self.doing = doing

    def run(
        self, entries: list[Entry], attempt: Callable[[slice], T], refused: list[Refused], good: Good
    ) -> Iterator[tuple[slice, T]]:
        """Run the operation with a batch, or with parts of it if it is refused.

        Args:
            entries: The batch.
            attempt: Runs the operation with a part of the batch.
            refused: The list to which the documents at fault are added.
            good: Tries something that is known to be good.

        Yields:
            The parts that were taken, each with what `attempt` returned.
        """
        if entries:
            yield from _Search(self, entries, attempt, refused, good).take(slice(0, len(entries)))


@dataclass
class _Search(Generic[T]):
    """The search for the documents at fault in one batch."""

    halving: Halving
    entries: list[Entry]
    attempt: Callable[[slice], T]
    refused: list[Refused]
    good: Good
    taken: bool = False
    tried: bool = False

    def take(self, part: slice, surely_refused: bool = False) -> Generator[tuple[slice, T], None, bool]:
        """Yield what was taken, in parts; return whether `part` was taken as a whole."""
        size, middle = part.stop - part.start, (part.start + part.stop) // 2
        if size == 1 or not surely_refused:
            try:
                result = self.attempt(part)
            except Exception as error:
                self._judge(part, error)
            else:
                self.taken, self.halving.fits = True, max(self.halving.fits, size)
                yield part, result
                return True
        if size > 1:
            whole = yield from self.take(slice(part.start, middle))
            # If the part was not too large and one half was taken, the other half is the one that is refused.
            yield from self.take(slice(middle, part.stop), surely_refused=whole and size <= self.halving.fits)
        return False

    def _judge(self, part: slice, error: Exception) -> None:
        """Raise an error that ends the run; keep the error of a single document; let a larger part be halved."""
        entries = self.entries[part]
        if self.halving.over < self.entries[0].position or ends_run(error):
            raise self._ended(error, self._about(entries))
        if len(entries) > 1:
            return
        if not (self.taken or self.tried) and self._nothing_is_taken(part.start):
            raise self._ended(error, self._about(self.entries))
        if not self.halving.collect:
            raise self._ended(error, f"This is about document {entries[0].position}, id {entries[0].id}.")
        self.refused.append((entries[0], error))

    def _nothing_is_taken(self, number: int) -> bool:
        """Return whether any other document would be refused for the same reason; called once per batch."""
        self.tried = True
        others = [other for other in range(0, len(self.entries), len(self.entries) // ENOUGH or 1) if other != number]

        def try_others() -> bool:
            return self.halving.collect and any(self._takes(other) for other in others[: ENOUGH - 1])

        try:
            taken = self.good(try_others)
        except Exception:
            return True
        if taken or not self.halving.collect:
            return False
        self.halving.suspects += 1 + len(others[: ENOUGH - 1])
        return self.halving.suspects >= ENOUGH

    def _takes(self, number: int) -> bool:
        try:
            self.attempt(slice(number, number + 1))
        except Exception:
            return False
        return True

    def _ended(self, error: Exception, note: str) -> Exception:
        self.halving.over = min(self.halving.over, self.entries[0].position)
        error.add_note(note)
        return error

    def _about(self, entries: list[Entry]) -> str:
        ids = ", ".join(entry.id for entry in entries[:_IDS]) + (", ..." if len(entries) > _IDS else "")
        span = f"{entries[0].position} to {entries[-1].position}"
        return f"This happened while {self.halving.doing} {len(entries)} documents, {span} of the input: {ids}"
