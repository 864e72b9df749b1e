"""Deletion of stale documents: the store holds them from earlier runs, and this run did not bring them."""

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Literal

from bge_integrations.populate.documents import Entry, is_ours
from bge_integrations.populate.framework import source_in
from bge_integrations.populate.report import Failure
from bge_integrations.populate.retry import patiently
from bge_integrations.populate.sinks.base import PAGE, Sink

logger = logging.getLogger(__name__)

Cleanup = Literal["source", "full"]


class Seen:
    """The ids and sources that a run has brought; SQLite keeps them in a temporary file, so there may be any number."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("CREATE TABLE sources (source TEXT PRIMARY KEY) WITHOUT ROWID")

    def close(self) -> None:
        """Close the temporary file, which deletes it."""
        self._database.close()

    def add(self, entries: Iterable[Entry]) -> None:
        """Remember the ids and sources of documents that the run has brought."""
        for entry in entries:
            self._database.execute("INSERT OR IGNORE INTO ids VALUES (?)", (entry.id,))
            if entry.source is not None:
                self._database.execute("INSERT OR IGNORE INTO sources VALUES (?)", (entry.source,))

    def sources(self) -> list[str]:
        """Return all sources of the run, sorted."""
        return [source for (source,) in self._database.execute("SELECT source FROM sources ORDER BY source")]

    def lacks(self, ids: Iterable[str]) -> list[str]:
        """Return those of `ids` that the run did not bring."""
        query = "SELECT 1 FROM ids WHERE id = ?"
        return [document_id for document_id in ids if not self._database.execute(query, (document_id,)).fetchone()]


def delete_stale(sink: Sink, cleanup: Cleanup, seen: Seen, failed: Iterable[Failure]) -> int:
    """Delete the stale documents that populate wrote in earlier runs; return how many were deleted.

    If a document failed, all stored documents of its source are kept. If its source is unknown, nothing is deleted.
    """
    incomplete = {failure.source for failure in failed}
    if None in incomplete:
        logger.warning("nothing is cleaned up: of a document that failed the source is not known")
        return 0
    sources: list[str | None] = [None]
    if cleanup == "source":
        sources = [source for source in seen.sources() if source not in incomplete]
    deleted = 0
    for source in sources:
        found = (document_id for page in _pages(sink, source, incomplete) for document_id in seen.lacks(page))
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
