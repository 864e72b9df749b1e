"""The sinks for LangChain's vector stores: one for any store, and those for stores in memory."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np

from bge_integrations.populate.documents import Entry, Held
from bge_integrations.populate.sinks.base import Pages, Sink, dense, in_pages
from bge_integrations.populate.sinks.guard import Sample, faiss_vector


class LangChainSink(Sink):
    """The sink for any vector store that answers `get_by_ids` and replaces what it holds under an id."""

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return the documents that the store holds under these ids; ids that it lacks are left out."""
        return {found.id: Held(found.page_content, found.metadata) for found in self.store.get_by_ids(ids)}

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Insert or replace documents with their embeddings."""
        self.framework.add(self.store, entries, None if embeddings is None else dense(embeddings))


class InMemorySink(LangChainSink):
    """The sink for langchain-core's `InMemoryVectorStore`."""

    takes_metadata_alone = True
    lists = True

    def sample(self, count: int) -> list[Sample]:
        """Return up to `count` stored documents with their vectors."""
        rows = islice(self.store.store.items(), count)
        return [Sample(name, row["text"], np.asarray(row["vector"], np.float32)) for name, row in rows]

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Replace the metadata of stored documents."""
        for entry in entries:
            self.store.store[entry.id] = {**self.store.store[entry.id], "metadata": dict(entry.document.metadata)}

    def pages(self, source: str | None) -> Pages:
        """Return the ids and metadata of the stored documents of a source, or of all if it is None."""
        rows = [(name, row["metadata"]) for name, row in self.store.store.items()]
        return in_pages([row for row in rows if source in (None, row[1].get("source"))])

    def delete(self, ids: list[str]) -> None:
        """Delete the documents with these ids."""
        self.store.delete(ids)


class FaissSink(LangChainSink):
    """The sink for langchain-community's `FAISS`, an index in memory beside a docstore."""

    takes_metadata_alone = True
    lists = True

    @property
    def normalises(self) -> bool:
        """Whether the store was made with `normalize_L2=True`."""
        return bool(self.store._normalize_L2)  # noqa: SLF001 - it has no public name

    def sample(self, count: int) -> list[Sample]:
        """Return up to `count` stored documents with their vectors."""
        names = dict(islice(self.store.index_to_docstore_id.items(), count))
        texts = {found.id: found.page_content for found in self.store.get_by_ids(list(names.values()))}
        return [Sample(name, texts.get(name), faiss_vector(self.store.index, row)) for row, name in names.items()]

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Delete the documents that are replaced, then insert the new ones with their embeddings."""
        replaced = [entry.id for entry in entries if entry.id in held and self.store.get_by_ids([entry.id])]
        if replaced:
            self.store.delete(replaced)
        super().write(entries, embeddings, held)

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Replace the documents in the docstore; their vectors stay as they are."""
        self.store.docstore.delete([entry.id for entry in entries])
        self.store.docstore.add({entry.id: entry.document.model_copy(update={"id": entry.id}) for entry in entries})

    def pages(self, source: str | None) -> Pages:
        """Return the ids and metadata of the stored documents of a source, or of all if it is None."""
        documents = self.store.get_by_ids(list(self.store.index_to_docstore_id.values()))
        rows = [(found.id, found.metadata) for found in documents]
        return in_pages([row for row in rows if source in (None, row[1].get("source"))])

    def delete(self, ids: list[str]) -> None:
        """Delete the documents with these ids."""
        self.store.delete(ids)
