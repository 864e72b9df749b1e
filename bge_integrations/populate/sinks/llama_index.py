"""The sinks for LlamaIndex's other vector stores, and for indexes that keep their nodes in a docstore."""

from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import MetadataMode
from numpy.typing import NDArray

from bge_integrations.populate.documents import Entry, Held
from bge_integrations.populate.embedders import Embedder
from bge_integrations.populate.framework import Framework
from bge_integrations.populate.nodes import with_vectors
from bge_integrations.populate.sinks.base import Pages, Sink, dense, in_pages
from bge_integrations.populate.sinks.guard import Sample, faiss_vector
from bge_integrations.stores.kinds import find_chroma_collection, is_a


class NodeSink(Sink):
    """The sink for any vector store with `get_nodes` and `delete_nodes`."""

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return the nodes that the store holds under these ids; ids that it lacks are left out."""
        nodes = self.store.get_nodes(node_ids=ids)
        return {node.node_id: Held(node.get_content(MetadataMode.EMBED), node.metadata) for node in nodes}

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Delete the nodes that are replaced, then insert the new ones with their embeddings."""
        if replaced := [entry.id for entry in entries if entry.id in held]:
            self.store.delete_nodes(node_ids=replaced)
        self.framework.add(self.store, entries, dense(embeddings))


class SimpleSink(NodeSink):
    """The sink for LlamaIndex's `SimpleVectorStore` alone, which keeps vectors and metadata but no texts."""

    lists = True

    def sample(self, count: int) -> list[Sample]:
        """Return up to `count` stored vectors; the texts are None."""
        return [Sample(name, None, _vector(vector)) for name, vector in islice(_simple(self.store).items(), count)]

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return the metadata that the store holds under these ids; the texts are None."""
        data = self.store.data
        return {name: Held(None, data.metadata_dict.get(name, {})) for name in ids if name in data.embedding_dict}

    def pages(self, source: str | None) -> Pages:  # noqa: ARG002 - the caller checks the sources again
        """Return the ids and metadata of all stored nodes, whatever their source."""
        data = self.store.data
        return in_pages([(name, data.metadata_dict.get(name, {})) for name in data.embedding_dict])

    def delete(self, ids: list[str]) -> None:
        """Delete the nodes with these ids."""
        self.store.delete_nodes(node_ids=ids)


class IndexSink(Sink):
    """The sink for a `VectorStoreIndex` that keeps its nodes in its docstore, such as one over FAISS.

    The caller saves the index: `index.storage_context.persist(...)`.
    """

    takes_metadata_alone = True
    lists = True

    def __init__(self, index: VectorStoreIndex, framework: Framework, embedder: Embedder | None) -> None:
        super().__init__(index, framework, embedder)
        self.index = index
        self._inside = set(index.index_struct.nodes_dict.values())  # the docstore may hold other nodes too

    def sample(self, count: int) -> list[Sample]:
        """Return up to `count` nodes; with vectors if the vector store is FAISS, Chroma or the simple one."""
        names = dict(islice(self.index.index_struct.nodes_dict.items(), count))  # keyed by the vector store's own ids
        held, vectors = self.look_up(list(names.values())), _vectors(self.index.vector_store, list(names))
        return [
            Sample(name, held[name].text if name in held else None, vectors.get(row)) for row, name in names.items()
        ]

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return the nodes that the index holds under these ids; ids that it lacks are left out."""
        nodes = self.index.docstore.get_nodes([name for name in ids if name in self._inside], raise_error=False)
        return {node.node_id: Held(node.get_content(MetadataMode.EMBED), node.metadata) for node in nodes}

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:
        """Delete the nodes that are replaced, then insert the new ones with their embeddings."""
        if replaced := [entry.id for entry in entries if entry.id in held]:
            self.delete(replaced)
        self.index.insert_nodes(with_vectors(entries, dense(embeddings)))
        self._inside.update(entry.id for entry in entries)

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Replace the nodes in the docstore, and the metadata that the vector store keeps beside their vectors."""
        self.index.docstore.add_documents([entry.document for entry in entries], allow_update=True)
        data = getattr(self.index.vector_store, "data", None)
        for entry in entries:
            if data is not None and entry.id in data.metadata_dict:
                _, metadata = self.framework.row(entry)
                data.metadata_dict[entry.id] = {key: metadata[key] for key in metadata if key != "_node_content"}

    def pages(self, source: str | None) -> Pages:  # noqa: ARG002 - the caller checks the sources again
        """Return the ids and metadata of all nodes of the index, whatever their source."""
        nodes = self.index.docstore.get_nodes(sorted(self._inside), raise_error=False)
        return in_pages([(node.node_id, {**node.metadata, "ref_doc_id": node.ref_doc_id}) for node in nodes])

    def delete(self, ids: list[str]) -> None:
        """Delete the nodes with these ids.

        Raises:
            NotImplementedError: The index's vector store cannot delete (FAISS).
        """
        try:
            self.index.delete_nodes(ids, delete_from_docstore=True)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{type(self.index.vector_store).__name__} cannot delete {len(ids)} changed or stale nodes, the "
                f"first with id {ids[0]}. Build the index again, or use a store that can delete, such as Chroma."
            ) from error
        self._inside.difference_update(ids)


def _vectors(store: Any, rows: list[str]) -> dict[str, NDArray[np.float32]]:
    """Return the vectors that a vector store keeps under its own ids; {} if it cannot be asked for them."""
    if is_a(store, "SimpleVectorStore"):
        return {row: _vector(_simple(store)[row]) for row in rows if row in _simple(store)}
    if is_a(store, "FaissVectorStore"):
        found = ((row, faiss_vector(store.client, int(row))) for row in rows)
        return {row: vector for row, vector in found if vector is not None}
    if (collection := find_chroma_collection(store)) is not None:
        kept = collection.get(ids=rows, include=["embeddings"])
        return {row: _vector(vector) for row, vector in zip(kept["ids"], kept["embeddings"], strict=True)}
    return {}


def _simple(store: Any) -> dict[str, list[float]]:
    return store.data.embedding_dict  # type: ignore[no-any-return]


def _vector(numbers: Any) -> NDArray[np.float32]:
    return np.asarray(numbers, np.float32)
