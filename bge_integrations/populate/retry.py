"""What a store's or a model's error means: ask again later, end the run, or find the one document at fault."""

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

from bge_integrations.errors import BgeError, InputTooLongError, NonFiniteError
from bge_integrations.populate.documents import Entry
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


Refused = tuple[Entry, Exception]
"""A document that was not taken, and why."""
Good = Callable[[Callable[[], bool]], bool]
"""Tries what is no document's fault: raises where that is refused, and is True where it was taken. It gets what tries a
few documents spread over the batch, and tells whether one was taken."""

ENOUGH = 8
"""Documents that are tried alone before nothing is believed to be taken."""
_IDS = 20
"""Ids that an error names at most."""


class Halving:
    """Does one thing with batches of documents, and with halves of those that are refused.

    A document that is refused alone is at fault if others of its batch are taken. If none is, something known to be
    good is tried: where that is refused too, nothing will be taken, and the error is raised.

    Args:
        doing: What is being done, as "the store was to take".
        collect: Go on after documents that are at fault; otherwise the error of the first is raised.

    Attributes:
        fits: The most documents that were taken at a time.
        suspects: Documents that were refused while nothing was taken yet.
        over: Where the batch begins whose error ends the run; none that comes after it is halved.
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
        """Do it with a batch.

        Args:
            entries: The batch.
            attempt: Does it with a part of the batch.
            refused: Gets the documents that are at fault.
            good: Tries something that is known to be good.

        Yields:
            The parts that were taken, with what `attempt` gave.
        """
        if entries:
            yield from _Search(self, entries, attempt, refused, good).take(slice(0, len(entries)))


@dataclass
class _Search(Generic[T]):
    """One batch on its way."""

    halving: Halving
    entries: list[Entry]
    attempt: Callable[[slice], T]
    refused: list[Refused]
    good: Good
    taken: bool = False
    tried: bool = False

    def take(self, part: slice, surely_refused: bool = False) -> Generator[tuple[slice, T], None, bool]:
        """Yield what was taken of a part; return whether it was taken as a whole."""
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
            # If it was not too large and one half was taken, it is the other half that is refused.
            yield from self.take(slice(middle, part.stop), surely_refused=whole and size <= self.halving.fits)
        return False

    def _judge(self, part: slice, error: Exception) -> None:
        """Raise what ends the run, and keep what a document was refused for; a larger part is to be halved."""
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
        """Whether what a document was refused for would be said of any other too; it is asked once a batch."""
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
