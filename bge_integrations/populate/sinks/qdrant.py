"""The sink for Qdrant collections behind LangChain's or LlamaIndex's `QdrantVectorStore`."""

import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from bge_integrations.populate.documents import Entry, Held
from bge_integrations.populate.embedders import Embedder
from bge_integrations.populate.framework import Framework
from bge_integrations.populate.retry import patiently
from bge_integrations.populate.sinks.base import PAGE, Pages, Sink, dense
from bge_integrations.populate.sinks.guard import Sample
from bge_integrations.stores.kinds import HASH_KEY

ID_KEY = "bge_integrations:id"
"""The metadata key that keeps a document's own id if Qdrant does not take it as an id."""


class QdrantSink(Sink):
    """The sink for a Qdrant collection.

    Qdrant takes UUIDs and whole numbers as ids. A document without an id of its own gets the first half of its hash as
    a UUID. An id that is no UUID is replaced by a UUID (version 5) made from it, and kept in the metadata. Where the
    collection keeps the fingerprint is in `stores/fingerprint.py`, as for all stores.

    Args:
        text_key: The payload's key of the text; None if the text is part of the metadata.
        metadata_key: The payload's key of the metadata; None if the payload is the metadata.
    """

    takes_metadata_alone = True
    lists = True

    def __init__(
        self,
        store: Any,
        framework: Framework,
        embedder: Embedder | None,
        *,
        text_key: str | None = None,
        metadata_key: str | None = None,
    ) -> None:
        super().__init__(store, framework, embedder)
        self.client: QdrantClient = store.client
        self.name: str = store.collection_name
        self.text_key = text_key
        self.metadata_key = metadata_key
        if not is_local(self.client):
            self.max_writers = sys.maxsize

    def identify(self, document: Any, position: int) -> Entry:
        """Read a document into an `Entry`, with the UUID under which Qdrant keeps it."""
        entry = super().identify(document, position)
        if entry.content_hash is None:
            changes, document_id = {HASH_KEY: entry.id}, str(uuid.UUID(entry.id[:32]))
        elif _is_point_id(entry.id):
            return entry
        else:
            changes, document_id = {ID_KEY: entry.id}, str(uuid.uuid5(uuid.NAMESPACE_OID, entry.id))
        kept = entry.document.model_copy(update={"metadata": {**entry.document.metadata, **changes}})
        return replace(entry, id=document_id, document=kept, content_hash=kept.metadata[HASH_KEY])

    @property
    def normalises(self) -> bool:
        """Whether the store scales vectors to length 1, as Qdrant does for the cosine distance."""
        return self.client.collection_exists(self.name) and self._params.distance == models.Distance.COSINE

    def sample(self, count: int) -> list[Sample]:
        """Return up to `count` documents with their vectors; [] if there is no collection."""
        if not self.client.collection_exists(self.name):
            return []
        points, _ = self.client.scroll(self.name, limit=count, with_payload=True, with_vectors=True)
        return [
            Sample(str(point.id), self._held(point.payload or {}).text, self._dense_of(point.vector))
            for point in points
        ]

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return the documents that the collection holds under these ids; ids that it lacks are left out."""
        if not self.client.collection_exists(self.name):
            return {}
        found = self.client.retrieve(self.name, ids=ids, with_payload=True)
        return {str(point.id): self._held(point.payload or {}) for point in found}

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Insert or replace documents with their embeddings.

        Raises:
            LookupError: The collection does not exist, and LangChain's store does not create it.
        """
        if not self.client.collection_exists(self.name):
            self._create(entries, embeddings)
        self.framework.add(self.store, entries, None if embeddings is None else dense(embeddings))

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Replace the metadata of stored documents."""
        operations: list[models.UpdateOperation] = []
        for entry in entries:
            _, metadata = self.framework.row(entry, with_text=True)
            if self.metadata_key:
                change = models.SetPayload(payload={self.metadata_key: metadata}, points=[entry.id])
                operations.append(models.SetPayloadOperation(set_payload=change))
            else:
                change = models.SetPayload(payload=metadata, points=[entry.id])
                operations.append(models.OverwritePayloadOperation(overwrite_payload=change))
        self.client.batch_update_points(self.name, update_operations=operations)

    def pages(self, source: str | None) -> Pages:
        """Return the ids and metadata of the stored documents of a source, or of all if it is None."""
        where = self._of(source) if source is not None else None
        offset = None
        while self.client.collection_exists(self.name):
            points, offset = patiently(partial(self.client.scroll, self.name, where, limit=PAGE, offset=offset))
            yield [(str(point.id), self._held(point.payload or {}).metadata) for point in points]
            if offset is None:
                return

    def delete(self, ids: list[str]) -> None:
        """Delete the documents with these ids."""
        if self.client.collection_exists(self.name):
            self.client.delete(self.name, points_selector=list(ids))

    def _create(self, entries: list[Entry], embeddings: Any) -> None:
        """Create the collection through LlamaIndex's store, which does not notice when its collection is deleted."""
        if not hasattr(self.store, "_create_collection"):
            raise LookupError(
                f"There is no Qdrant collection {self.name!r} for {len(entries)} documents. Make it, with "
                "client.create_collection(...) or QdrantVectorStore.construct_instance(...), and open the store again."
            )
        self.store._create_collection(self.name, dense(embeddings).shape[1])  # noqa: SLF001

    @property
    def _vector_name(self) -> str:
        own = "vector_name" if hasattr(self.store, "vector_name") else "dense_vector_name"  # LangChain's, LlamaIndex's
        return str(getattr(self.store, own))

    @property
    def _params(self) -> Any:
        """Qdrant's settings for the dense vectors, which have a name or are the only ones."""
        params = self.client.get_collection(self.name).config.params.vectors
        return params.get(self._vector_name) if isinstance(params, dict) else params

    def _dense_of(self, vectors: Any) -> NDArray[np.float32] | None:
        vector = vectors.get(self._vector_name) if isinstance(vectors, dict) else vectors
        return None if vector is None else np.asarray(vector, np.float32)

    def _held(self, payload: dict[str, Any]) -> Held:
        text = payload.get(self.text_key) if self.text_key else None
        metadata = payload.get(self.metadata_key) if self.metadata_key else payload
        return self.framework.held(text, metadata or {})

    def _of(self, source: str) -> models.Filter:
        prefix = f"{self.metadata_key}." if self.metadata_key else ""
        match = models.MatchValue(value=source)
        return models.Filter(
            should=[models.FieldCondition(key=prefix + key, match=match) for key in self.framework.source_keys]
        )


def is_local(client: QdrantClient) -> bool:
    """Return whether a client keeps the collection in this process, where only one thread may write."""
    return type(client._client).__name__ == "QdrantLocal"  # noqa: SLF001 - a client has no public way to tell


def _is_point_id(document_id: str) -> bool:
    try:
        return str(uuid.UUID(document_id)) == document_id
    except ValueError:
        return False
