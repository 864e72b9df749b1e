"""A record of documents in a small SQLite file: what a store holds that cannot be asked, or what a run has brought."""

import json
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TABLES = """
CREATE TABLE IF NOT EXISTS documents (id TEXT PRIMARY KEY, hash TEXT, source TEXT, stored TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sources ON documents (source);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""

_in_memory: "dict[int, Record]" = {}
"""The records in memory, by the id of their store object."""


@dataclass(frozen=True, slots=True)
class Row:
    """One document of a store.

    Attributes:
        id: The document's id.
        hash: The hash of its content.
        source: What it was taken from; None if that is not known.
        stored: The id under which the store keeps it.
    """

    id: str
    hash: str
    source: str | None
    stored: str


class Record:
    """A record of documents, any number of them, and of facts; only one process may use it at a time.

    Args:
        path: The file, created if it does not exist; "" is a temporary file, and None keeps the record in memory.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._database = sqlite3.connect(str(path) if path is not None else ":memory:", check_same_thread=False)
        self._database.executescript(_TABLES)

    def find(self, ids: Iterable[str]) -> list[Row]:
        """Return the rows of those ids that are recorded."""
        with self._lock:
            found = [self._database.execute("SELECT * FROM documents WHERE id = ?", (name,)).fetchone() for name in ids]
        return [Row(*row) for row in found if row]

    def lacking(self, ids: Iterable[str]) -> list[str]:
        """Return those ids that are not recorded."""
        ids = list(ids)
        recorded = {row.id for row in self.find(ids)}
        return [name for name in ids if name not in recorded]

    def add(self, rows: Iterable[Row]) -> None:
        """Record documents."""
        values = [(row.id, row.hash, row.source, row.stored) for row in rows]
        with self._lock, self._database:
            self._database.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", values)

    def delete(self, ids: Iterable[str]) -> None:
        """Remove documents from the record."""
        with self._lock, self._database:
            self._database.executemany("DELETE FROM documents WHERE id = ?", [(name,) for name in ids])

    def all(self, source: str | None, page: int) -> Iterator[list[Row]]:
        """Yield the rows of one source, or all if it is None, at most `page` at a time."""
        last = ""
        query = "SELECT * FROM documents WHERE id > ? AND (? IS NULL OR source = ?) ORDER BY id LIMIT ?"
        while True:
            with self._lock:
                rows = [Row(*row) for row in self._database.execute(query, (last, source, source, page))]
            if not rows:
                return
            yield rows
            last = rows[-1].id

    def fact(self, name: str) -> Any:
        """Return the fact that was noted under a name; None if there is none."""
        with self._lock:
            found = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return json.loads(found[0]) if found else None

    def note(self, name: str, value: object) -> None:
        """Note a fact under a name; its value is anything that JSON can represent."""
        with self._lock, self._database:
            self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))

    def noted(self) -> list[str]:
        """Return the names of all facts, sorted."""
        with self._lock:
            return [name for (name,) in self._database.execute("SELECT name FROM facts ORDER BY name")]

    def close(self) -> None:
        """Close the file; a temporary one is deleted."""
        self._database.close()


def record_of(store: object, path: str | Path | None) -> Record:
    """Return the record in a file or, without a path, the one in memory that lives as long as the store object."""
    if path is not None:
        return Record(path)
    if id(store) not in _in_memory:
        _in_memory[id(store)] = Record(None)
        weakref.finalize(store, _in_memory.pop, id(store), None)
    return _in_memory[id(store)]
