"""The sink for stores that cannot be asked what they hold; a record beside them remembers it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bge_integrations.embed.embedder import to_lists
from bge_integrations.populate.documents import Entry, Held
from bge_integrations.populate.embedders import Embedder
from bge_integrations.populate.framework import Framework
from bge_integrations.populate.record import Record, Row
from bge_integrations.populate.sinks.base import PAGE, Pages, Sink, dense
from bge_integrations.populate.sinks.guard import Sample
from bge_integrations.stores.kinds import HASH_KEY, is_a

_NEAREST = 10
"""How many of the nearest documents are searched for the last one, whose text may be stored several times."""


class RecordedSink(Sink):
    """The sink for a store of LangChain or LlamaIndex, with a record of what it holds.

    Raises:
        ValueError: The record belongs to another store, or this one has been emptied: it does not find the document
            that was written last.
    """

    lists = True

    def __init__(self, store: Any, framework: Framework, embedder: Embedder | None, record: Record) -> None:
        super().__init__(store, framework, embedder)
        self.record = record
        last = record.fact("last")
        if last is not None and not self._finds(last):
            raise ValueError(
                f"The record {record.path or 'in memory'} knows of documents that {type(store).__name__} does not "
                "find: the store is another one, or has been emptied. Give the record that belongs to it, or delete "
                "the file to fill the store anew."
            )

    def read_fingerprint(self) -> str | None:
        """Return the fingerprint of the record, else the one kept with the store; None if there is none."""
        kept = self.record.fact("fingerprint")
        return kept if isinstance(kept, str) else super().read_fingerprint()

    def write_fingerprint(self, fingerprint: str) -> None:
        """Write a fingerprint to the record and to the store."""
        self.record.note("fingerprint", fingerprint)
        super().write_fingerprint(fingerprint)

    def sample(self, count: int) -> list[Sample]:  # noqa: ARG002 - the record has one
        """Return the document that was written last; [] if there is none."""
        last = self.record.fact("last")
        if last is None:
            return []
        vector = None if last["vector"] is None else np.asarray(last["vector"], np.float32)
        return [Sample(last["id"], last["text"], vector)]

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return the recorded documents under these ids; the texts are None."""
        return {row.id: Held(None, {HASH_KEY: row.hash}) for row in self.record.find(ids)}

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Delete the documents that are replaced, insert the new ones with their embeddings, and record them."""
        if replaced := [entry.id for entry in entries if entry.id in held]:
            self.delete(replaced)
        vectors = None if embeddings is None else dense(embeddings)
        stored = self.framework.add(self.store, entries, vectors)
        hashes = [entry.content_hash or entry.id for entry in entries]
        rows = zip(entries, hashes, stored, strict=True)
        self.record.add(Row(entry.id, digest, entry.source, str(name)) for entry, digest, name in rows)
        vector = None if vectors is None else to_lists(vectors[-1:])[0]
        self.record.note("last", {"id": str(stored[-1]), "text": entries[-1].text, "vector": vector})

    def pages(self, source: str | None) -> Pages:
        """Return the ids and sources of the recorded documents of a source, or of all if it is None."""
        key = self.framework.source_keys[0]
        for rows in self.record.all(source, PAGE):
            yield [(row.id, {HASH_KEY: row.hash} | ({key: row.source} if row.source else {})) for row in rows]

    def delete(self, ids: list[str]) -> None:
        """Delete the documents with these ids from the store and from the record.

        Raises:
            NotImplementedError: The store cannot delete.
        """
        rows = self.record.find(ids)
        stored = [row.stored for row in rows]
        try:
            self.store.delete_nodes(node_ids=stored) if self._is_llama_index else self.store.delete(stored)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{type(self.store).__name__} cannot delete {len(ids)} changed or stale documents, the first with id "
                f"{ids[0]}. Fill a new store, or take one that deletes, such as Chroma."
            ) from error
        self.record.delete(ids)

    @property
    def _is_llama_index(self) -> bool:
        return is_a(self.store, "BasePydanticVectorStore")

    def _finds(self, last: Mapping[str, Any]) -> bool:
        if self._is_llama_index:
            from llama_index.core.vector_stores.types import VectorStoreQuery

            found = self.store.query(VectorStoreQuery(query_embedding=last["vector"], similarity_top_k=_NEAREST))
            return last["id"] in (found.ids or [])
        if last["vector"] is None:
            nearest = self.store.similarity_search(last["text"], k=_NEAREST)
        else:
            nearest = self.store.similarity_search_by_vector(last["vector"], k=_NEAREST)
        return any(document.page_content == last["text"] for document in nearest)
