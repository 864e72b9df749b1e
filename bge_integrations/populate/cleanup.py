"""Stale documents: what a store holds of the sources of a run, or in all, and the run did not bring."""

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
    """The ids and sources of a run, however many: SQLite keeps them in a temporary file of its own."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")
        self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self._database.execute("CREATE TABLE sources (source TEXT PRIMARY KEY) WITHOUT ROWID")

    def close(self) -> None:
        """Delete the file."""
        self._database.close()

    def add(self, entries: Iterable[Entry]) -> None:
        """Note documents of the run."""
        for entry in entries:
            self._database.execute("INSERT OR IGNORE INTO ids VALUES (?)", (entry.id,))
            if entry.source is not None:
                self._database.execute("INSERT OR IGNORE INTO sources VALUES (?)", (entry.source,))

    def sources(self) -> list[str]:
        """All sources seen."""
        return [source for (source,) in self._database.execute("SELECT source FROM sources ORDER BY source")]

    def lacks(self, ids: Iterable[str]) -> list[str]:
        """Those ids that the run did not bring."""
        query = "SELECT 1 FROM ids WHERE id = ?"
        return [document_id for document_id in ids if not self._database.execute(query, (document_id,)).fetchone()]


def delete_stale(sink: Sink, cleanup: Cleanup, seen: Seen, failed: Iterable[Failure]) -> int:
    """Delete the stale documents among those that populate wrote; return how many they were.

    A source of which a document failed keeps all it had. Where a failed document's source is unknown, all keep theirs.
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
    """Ids of what populate wrote, of one source or, with None, of all that are complete."""
    for page in sink.pages(source):
        of = [(name, metadata, source_in(metadata, sink.framework.source_keys)) for name, metadata in page]
        yield [
            name
            for name, metadata, its in of
            if is_ours(name, metadata) and its not in incomplete and source in (None, its)
        ]
