"""Deletion of stale documents: the store holds them from earlier runs, and this run did not bring them."""

import logging
from collections.abc import Iterable, Iterator
from typing import Literal

from bge_integrations.populate.documents import Entry, is_ours
from bge_integrations.populate.framework import source_in
from bge_integrations.populate.record import Record, Row
from bge_integrations.populate.report import Failure
from bge_integrations.populate.retry import patiently
from bge_integrations.populate.sinks.base import PAGE, Sink

logger = logging.getLogger(__name__)

Cleanup = Literal["source", "full"]


def remember(seen: Record, entries: Iterable[Entry]) -> None:
    """Record documents that the run has brought, and their sources: one id may come from several."""
    entries = list(entries)
    seen.add(Row(entry.id, "", entry.source, entry.id) for entry in entries)
    for source in {entry.source for entry in entries if entry.source is not None}:
        seen.note(source, True)


def delete_stale(sink: Sink, cleanup: Cleanup, seen: Record, failed: Iterable[Failure]) -> int:
    """Delete the documents that populate wrote in earlier runs and that are not in `seen`; return how many.

    If a document failed, all stored documents of its source are kept. If its source is unknown, nothing is deleted.
    """
    incomplete = {failure.source for failure in failed}
    if None in incomplete:
        logger.warning("nothing is cleaned up, because the source of a document that failed is not known")
        return 0
    sources: list[str | None] = [None]
    if cleanup == "source":
        sources = [source for source in seen.noted() if source not in incomplete]
    deleted = 0
    for source in sources:
        found = (document_id for page in _pages(sink, source, incomplete) for document_id in seen.lacking(page))
        stale = list(dict.fromkeys(found))
        for start in range(0, len(stale), PAGE):
            part = stale[start : start + PAGE]
            patiently(lambda part=part: sink.delete(part))  # type: ignore[misc]
        deleted += len(stale)
    sink.reconcile()
    return deleted


def _pages(sink: Sink, source: str | None, incomplete: set[str | None]) -> Iterator[list[str]]:
    """Yield the ids of stored documents that populate wrote, page by page; skip the `incomplete` sources.

    They are those of one source, or of all if `source` is None.
    """
    for page in sink.pages(source):
        of = [(name, metadata, source_in(metadata, sink.framework.source_keys)) for name, metadata in page]
        yield [
            name
            for name, metadata, its in of
            if is_ours(name, metadata) and its not in incomplete and source in (None, its)
        ]
