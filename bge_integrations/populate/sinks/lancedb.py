"""LanceDB tables behind LangChain's `LanceDB` or LlamaIndex's `LanceDBVectorStore`, in the columns that they read."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]

from bge_integrations.embed.collection import HASH_KEY
from bge_integrations.embed.places import open_lance_table
from bge_integrations.populate.embedding import Embedder
from bge_integrations.populate.framework import Framework
from bge_integrations.populate.identity import Entry, Held
from bge_integrations.populate.sinks.base import PAGE, Pages, Sink, dense


class LanceSink(Sink):
    """A LanceDB table; a store whose table is not there yet gets one.

    The first batch decides which keys metadata may have, for LanceDB keeps them in a column of a fixed type. `source`
    and the content hash are always among them; a document with another key is refused.

    Args:
        columns: The names of the columns of ids, texts and vectors.
        parent: LlamaIndex's column of the document that a node is a part of.
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
        self.fingerprint: str | None = None

    def guard(self, fingerprint: str, *, force: bool) -> None:
        """Refuse another model than the one that filled the table, and keep the model's fingerprint with it."""
        super().guard(fingerprint, force=force)
        self.fingerprint = fingerprint

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return what the table holds of `ids`."""
        if self._table is None:
            return {}
        rows = self._rows(_among(self.id, ids), [self.text, "metadata"], limit=len(ids))
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
        merge = table.merge_insert(self.id).when_matched_update_all().when_not_matched_insert_all()
        merge.execute(self._fitting(rows, table.schema))

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Replace metadata; the vectors are read and written back."""
        table = self._table
        where = _among(self.id, [entry.id for entry in entries])
        stored = self._rows(where, [self.vector], limit=len(entries))
        vectors = {row[self.id]: row[self.vector] for row in stored}
        rows = [{**self._row(entry), self.vector: vectors[entry.id]} for entry in entries]
        table.merge_insert(self.id).when_matched_update_all().execute(self._fitting(rows, table.schema))

    def pages(self, source: str | None) -> Pages:
        """Return ids and metadata of what the table holds of a source, or of all with None."""
        keys = [field.name for field in self._table.schema.field("metadata").type]
        quoted = "" if source is None else _quoted(source)
        where = " OR ".join(f"metadata.`{key}` = {quoted}" for key in self.framework.source_keys if key in keys)
        offset = 0
        while rows := self._rows(where if quoted else None, ["metadata"], offset=offset):
            offset += len(rows)
            yield [(row[self.id], _present(row["metadata"])) for row in rows]

    def delete(self, ids: list[str]) -> None:
        """Take documents out."""
        self._table.delete(_among(self.id, ids))

    @property
    def _table(self) -> Any:
        return open_lance_table(self.store)

    def _rows(self, where: str | None, columns: list[str], limit: int = PAGE, offset: int = 0) -> list[dict[str, Any]]:
        query = self._table.search().select([self.id, *columns]).limit(limit).offset(offset)
        return list((query.where(where) if where else query).to_list())

    def _row(self, entry: Entry) -> dict[str, Any]:
        text, metadata = self.framework.row(entry, with_text=True)
        row = {self.id: entry.id, self.text: text, "metadata": metadata}
        return row | ({self.parent: entry.document.ref_doc_id} if self.parent else {})

    def _create(self, rows: list[dict[str, Any]], width: int) -> Any:
        """Make an empty table with the fingerprint, so that no document is ever there without it."""
        always = {"source": "", HASH_KEY: ""}
        inferred = pa.Table.from_pylist([{**row, "metadata": {**always, **row["metadata"]}} for row in rows]).schema
        vector = pa.field(self.vector, pa.list_(pa.float32(), width))
        schema = inferred.set(inferred.get_field_index(self.vector), vector)
        self.store._table = self.store._connection.create_table(self.store._table_name, schema=schema)  # noqa: SLF001
        if self.fingerprint is not None:
            super().guard(self.fingerprint, force=True)
        return self._table

    def _fitting(self, rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        """Rows of a table's own type.

        Raises:
            ValueError: Metadata have a key that the table has no place for.
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
    """Metadata without the keys that only other documents have."""
    return {key: value for key, value in (metadata or {}).items() if value is not None}


def _among(column: str, ids: list[str]) -> str:
    return f"`{column}` IN ({', '.join(map(_quoted, ids))})"


def _quoted(text: str) -> str:
    escaped = text.replace("'", "''")
    return f"'{escaped}'"
