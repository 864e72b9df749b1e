"""What a store holds that cannot be asked: a small SQLite file beside it."""

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


@dataclass(frozen=True, slots=True)
class Row:
    """One document of a store.

    Attributes:
        id: The document's id.
        hash: The hash of its content.
        source: What it was taken from.
        stored: The store's own id of it.
    """

    id: str
    hash: str
    source: str | None
    stored: str


class Record:
    """The documents of one store, for one process at a time.

    Args:
        path: The file; it is made if it is not there. None keeps the record in memory.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._database = sqlite3.connect(str(path) if path is not None else ":memory:", check_same_thread=False)
        self._database.executescript(_TABLES)

    def find(self, ids: Iterable[str]) -> list[Row]:
        """Those of `ids` that the store holds."""
        with self._lock:
            found = [self._database.execute("SELECT * FROM documents WHERE id = ?", (name,)).fetchone() for name in ids]
        return [Row(*row) for row in found if row]

    def add(self, rows: Iterable[Row]) -> None:
        """Note documents that the store holds now."""
        values = [(row.id, row.hash, row.source, row.stored) for row in rows]
        with self._lock, self._database:
            self._database.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)", values)

    def delete(self, ids: Iterable[str]) -> None:
        """Forget documents."""
        with self._lock, self._database:
            self._database.executemany("DELETE FROM documents WHERE id = ?", [(name,) for name in ids])

    def all(self, source: str | None, page: int) -> Iterator[list[Row]]:
        """All documents, or those of a source, some at a time."""
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
        """What was noted of the store under a name, else None."""
        with self._lock:
            found = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return json.loads(found[0]) if found else None

    def note(self, name: str, value: object) -> None:
        """Note a fact that JSON knows."""
        with self._lock, self._database:
            self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, json.dumps(value)))


_in_memory: dict[int, Record] = {}


def record_of(store: object, path: str | Path | None) -> Record:
    """The record in a file, or the one in memory that lives as long as the store's object."""
    if path is not None:
        return Record(path)
    if id(store) not in _in_memory:
        _in_memory[id(store)] = Record(None)
        weakref.finalize(store, _in_memory.pop, id(store), None)
    return _in_memory[id(store)]
