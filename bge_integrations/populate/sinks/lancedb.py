"""The sink for LanceDB tables, with the columns of LangChain's `LanceDB` or LlamaIndex's `LanceDBVectorStore`."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from bge_integrations.populate.documents import Entry, Held
from bge_integrations.populate.embedders import Embedder
from bge_integrations.populate.framework import Framework
from bge_integrations.populate.sinks.base import PAGE, Pages, Sink, dense
from bge_integrations.populate.sinks.guard import Sample
from bge_integrations.stores.kinds import HASH_KEY, open_lance_table

logger = logging.getLogger(__name__)

_KEY = b"lance-schema:unenforced-primary-key"
"""The metadata key with which LanceDB marks a column as the table's key."""


class LanceSink(Sink):
    """The sink for a LanceDB table, which it creates if the store has none yet.

    The first batch decides which keys metadata may have, as LanceDB keeps them in a column of a fixed type. `source`
    and the content hash are always among them; a document with another key is refused.

    Args:
        columns: The names of the columns of ids, texts and vectors.
        parent: The name of LlamaIndex's column for the id of a node's document; None for LangChain.
    """

    takes_metadata_alone = True
    lists = True

    def __init__(
        self,
        store: Any,
        framework: Framework,
        embedder: Embedder | None,
        *,
        columns: tuple[str, str, str],
        parent: str | None = None,
    ) -> None:
        super().__init__(store, framework, embedder)
        self.id, self.text, self.vector = columns
        self.parent = parent
        self._has_key = False

    def sample(self, count: int) -> list[Sample]:
        """Return up to `count` documents of the table with their vectors; [] if there is no table."""
        if self._table is None:
            return []
        rows = self._rows(None, [self.text, "metadata", self.vector], limit=count)
        return [
            Sample(
                row[self.id],
                self.framework.held(row[self.text], _present(row["metadata"])).text,
                np.asarray(row[self.vector], np.float32),
            )
            for row in rows
        ]

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return the documents that the table holds under these ids; ids that it lacks are left out."""
        if self._table is None:
            return {}
        rows = self._healed(self._rows(_among(self.id, ids), [self.text, "metadata"], limit=None))
        return {row[self.id]: self.framework.held(row[self.text], _present(row["metadata"])) for row in rows}

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Insert or replace documents with their embeddings."""
        vectors = dense(embeddings)
        rows = [
            {**self._row(entry), self.vector: vector.tolist()} for entry, vector in zip(entries, vectors, strict=True)
        ]
        table = self._table
        if table is None:
            table = self._create(rows, vectors.shape[1])
        self._keep_ids_unique(table)
        merge = table.merge_insert(self.id).when_matched_update_all().when_not_matched_insert_all()
        merge.execute(self._fitting(rows, table.schema))

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Replace the metadata of stored documents; their vectors are read and written back."""
        table = self._table
        where = _among(self.id, [entry.id for entry in entries])
        stored = self._rows(where, [self.vector], limit=None)
        vectors = {row[self.id]: row[self.vector] for row in stored}
        rows = [{**self._row(entry), self.vector: vectors[entry.id]} for entry in entries]
        table.merge_insert(self.id).when_matched_update_all().execute(self._fitting(rows, table.schema))

    def pages(self, source: str | None) -> Pages:
        """Return the ids and metadata of the stored documents of a source, or of all if it is None."""
        if self._table is None:
            return
        keys = [field.name for field in self._table.schema.field("metadata").type]
        quoted = "" if source is None else _quoted(source)
        where = " OR ".join(f"metadata.`{key}` = {quoted}" for key in self.framework.source_keys if key in keys)
        offset = 0
        while rows := self._rows(where if quoted else None, ["metadata"], offset=offset):
            offset += len(rows)
            yield [(row[self.id], _present(row["metadata"])) for row in rows]

    def delete(self, ids: list[str]) -> None:
        """Delete the documents with these ids."""
        if (table := self._table) is not None:
            table.delete(_among(self.id, ids))

    @property
    def _table(self) -> Any:
        return open_lance_table(self.store)

    def _rows(
        self, where: str | None, columns: list[str], limit: int | None = PAGE, offset: int = 0
    ) -> list[dict[str, Any]]:
        query = self._table.search().select([self.id, *columns]).with_row_id(True).limit(limit).offset(offset)
        return list((query.where(where) if where else query).to_list())

    def _healed(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the latest row of each id; delete the others, which writers add to a table without a key."""
        latest = {row[self.id]: row for row in sorted(rows, key=lambda row: int(row["_rowid"]))}
        if surplus := [row for row in rows if row is not latest[row[self.id]]]:
            numbers = ", ".join(str(row["_rowid"]) for row in surplus)
            # Compacting the table renumbers its rows: then this deletes nothing, and the next run deletes them.
            self._table.delete(f"{_among(self.id, [row[self.id] for row in surplus])} AND _rowid IN ({numbers})")
            logger.info("deleting %d rows of the LanceDB table whose ids occur in a later row", len(surplus))
        return list(latest.values())

    def _keep_ids_unique(self, table: Any) -> None:
        """Make the ids the table's key; only then does LanceDB notice that two writers add the same one."""
        if self._has_key or any(key.startswith(_KEY) for field in table.schema for key in field.metadata or ()):
            self._has_key = True
            return
        try:
            if table.schema.field(self.id).nullable:
                table.alter_columns({"path": self.id, "nullable": False})
            table.set_unenforced_primary_key(self.id)
        except (ValueError, NotImplementedError) as error:
            logger.warning(
                "The ids of this LanceDB table cannot be made its key (%s): fill it from one process at a time, or two "
                "may add the same document.", error,
            )  # fmt: skip
        self._has_key = True

    def _row(self, entry: Entry) -> dict[str, Any]:
        text, metadata = self.framework.row(entry, with_text=True)
        row = {self.id: entry.id, self.text: text, "metadata": metadata}
        return row | ({self.parent: entry.document.ref_doc_id} if self.parent else {})

    def _create(self, rows: list[dict[str, Any]], width: int) -> Any:
        """Create the store's table, still empty, with columns that fit the rows; return it."""
        always = {"source": "", HASH_KEY: ""}
        inferred = pa.Table.from_pylist([{**row, "metadata": {**always, **row["metadata"]}} for row in rows]).schema
        vector = pa.field(self.vector, pa.list_(pa.float32(), width))
        schema = inferred.set(inferred.get_field_index(self.vector), vector)
        schema = schema.set(schema.get_field_index(self.id), pa.field(self.id, pa.string(), False, {_KEY: b"true"}))
        connection, name = self.store._connection, self.store._table_name  # noqa: SLF001 - they have no public names
        try:
            table = connection.create_table(name, schema=schema)
        except ValueError:
            table = connection.open_table(name)  # another writer was faster
        self.store._table = table  # noqa: SLF001
        return table

    def _fitting(self, rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        """Return the rows as a table of this schema.

        Raises:
            ValueError: A document's metadata has a key that the table has no place for.
        """
        known = {field.name for field in schema.field("metadata").type}
        for row in rows:
            if unknown := sorted(set(row["metadata"]) - known):
                raise ValueError(
                    f"The LanceDB table has no place for the metadata {', '.join(unknown)} of document {row[self.id]}: "
                    f"its first documents had {', '.join(sorted(known))}. Make a new table whose first documents have "
                    "all keys, or leave these out."
                )
        return pa.Table.from_pylist(rows, schema=schema)


def _present(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return metadata without the keys that are None because only other documents have them."""
    return {key: value for key, value in (metadata or {}).items() if value is not None}


def _among(column: str, ids: list[str]) -> str:
    return f"`{column}` IN ({', '.join(map(_quoted, ids))})"


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
