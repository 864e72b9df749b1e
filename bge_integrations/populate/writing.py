"""Writes that a store refuses: tried again where it may yet take them, and halved where it may take a part."""

from collections.abc import Callable
from typing import Any, TypeVar

import tenacity

from bge_integrations.embed.places import is_a
from bge_integrations.populate.identity import Entry

T = TypeVar("T")
Refused = tuple[Entry, Exception]
"""A document that was not taken, and why."""

SECONDS = 60
"""How long a write is tried again while the store cannot be reached."""

_AWAY = (
    "ConnectionError",
    "TimeoutError",
    "TransportError",
    "RateLimitError",
    "ResponseHandlingException",
    "ResourceExhaustedResponse",
)
"""Classes of errors, by name, that mean that a store cannot answer at the moment: of Python, httpx, Chroma, Qdrant."""
_BUSY = (408, 429, 502, 503, 504)
"""HTTP statuses that mean the same."""
_REFUSED = ("ValueError", "TypeError", "ChromaError", "UnexpectedResponse")
"""Classes of errors that mean that a store does not take what it was given, or not so much of it."""
_BROKEN = ("InternalError",)
"""Classes of errors among those that mean that the store itself is in trouble, as does an HTTP status from 500 on."""

_IDS = 20
"""Ids that an error names at most."""


def patiently(work: Callable[[], T]) -> T:
    """Does some work of a store; again, with growing pauses, while it cannot be reached."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_away),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
        stop=tenacity.stop_after_delay(SECONDS),
        reraise=True,
    )
    return retrying(work)


def in_parts(write: Callable[[list[Entry], Any], None], entries: list[Entry], embeddings: Any) -> list[Refused]:
    """Writes documents with their embeddings, in halves where the store refuses them all.

    Returns:
        The documents that the store refuses by themselves, with the reasons.
    """
    if not entries:
        return []
    try:
        patiently(lambda: write(entries, embeddings))
    except Exception as error:
        if not _is_refusal(error):
            error.add_note(_what_was_written(entries))
            raise
        if len(entries) == 1:
            return [(entries[0], error)]
    else:
        return []
    middle = len(entries) // 2
    parts = (slice(0, middle), slice(middle, None))
    return [
        refused
        for part in parts
        for refused in in_parts(write, entries[part], None if embeddings is None else embeddings[part])
    ]


def _what_was_written(entries: list[Entry]) -> str:
    ids = ", ".join(entry.id for entry in entries[:_IDS]) + (", ..." if len(entries) > _IDS else "")
    first, last = entries[0].position, entries[-1].position
    return f"This happened while the store was to take {len(entries)} documents, {first} to {last} of the input: {ids}"


def _is_away(error: BaseException) -> bool:
    return is_a(error, *_AWAY) or _status(error) in _BUSY


def _is_refusal(error: Exception) -> bool:
    return is_a(error, *_REFUSED) and not (is_a(error, *_BROKEN) or _is_away(error) or _status(error) >= 500)


def _status(error: BaseException) -> int:
    """The HTTP status that an error carries, or its response; 0 without."""
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else 0
