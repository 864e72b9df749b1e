"""Qdrant behind LangChain's or LlamaIndex's `QdrantVectorStore`."""

import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from qdrant_client import QdrantClient, models

from bge_integrations.embed.collection import HASH_KEY
from bge_integrations.populate.embedding import Embedder
from bge_integrations.populate.framework import Framework
from bge_integrations.populate.identity import Entry, Held
from bge_integrations.populate.sinks.base import PAGE, Pages, Sink, dense
from bge_integrations.populate.writing import patiently

ID_KEY = "bge_integrations:id"
"""The metadata key of a caller's own id that Qdrant does not take."""


class QdrantSink(Sink):
    """A Qdrant collection.

    Qdrant takes UUIDs and whole numbers as ids. A document without an id of its own gets the first half of its hash as
    a UUID; another id becomes the UUID (version 5) of its text, and is kept in the metadata.

    Args:
        text_key: The payload's key of the text, where metadata have a key of their own.
        metadata_key: The payload's key of the metadata; None where the payload is the metadata.
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
        self.fingerprint: str | None = None
        if not is_local(self.client):
            self.max_writers = sys.maxsize

    def guard(self, fingerprint: str, *, force: bool) -> None:
        """Refuse another model than the one that filled the collection, and keep the model's fingerprint with it."""
        super().guard(fingerprint, force=force)
        if not self.client.collection_exists(self.name):
            self.fingerprint = fingerprint

    def identify(self, document: Any, position: int) -> Entry:
        """Give a document the identity under which Qdrant keeps it."""
        entry = super().identify(document, position)
        if entry.content_hash is None:
            changes, document_id = {HASH_KEY: entry.id}, str(uuid.UUID(entry.id[:32]))
        elif _is_point_id(entry.id):
            return entry
        else:
            changes, document_id = {ID_KEY: entry.id}, str(uuid.uuid5(uuid.NAMESPACE_OID, entry.id))
        kept = entry.document.model_copy(update={"metadata": {**entry.document.metadata, **changes}})
        return replace(entry, id=document_id, document=kept, content_hash=kept.metadata[HASH_KEY])

    def look_up(self, ids: list[str]) -> dict[str, Held]:
        """Return what the collection holds of `ids`."""
        if not self.client.collection_exists(self.name):
            return {}
        found = self.client.retrieve(self.name, ids=ids, with_payload=True)
        return {str(point.id): self._held(point.payload or {}) for point in found}

    def write(self, entries: list[Entry], embeddings: Any, held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Insert or replace documents with their embeddings."""
        if self.fingerprint is not None:  # LlamaIndex makes a collection when it knows the width of a vector
            self.store._create_collection(self.name, dense(embeddings).shape[1])  # noqa: SLF001
            super().guard(self.fingerprint, force=True)
            self.fingerprint = None
        self.framework.add(self.store, entries, embeddings)

    def update_metadata(self, entries: list[Entry], held: Mapping[str, Held]) -> None:  # noqa: ARG002
        """Replace metadata."""
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
        """Return ids and metadata of what the collection holds of a source, or of all with None."""
        where = self._of(source) if source is not None else None
        offset = None
        while True:
            points, offset = patiently(partial(self.client.scroll, self.name, where, limit=PAGE, offset=offset))
            yield [(str(point.id), self._held(point.payload or {}).metadata) for point in points]
            if offset is None:
                return

    def delete(self, ids: list[str]) -> None:
        """Take documents out."""
        self.client.delete(self.name, points_selector=list(ids))

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
    """Whether a client keeps the collection in its own process, where one thread may write."""
    return type(client._client).__name__ == "QdrantLocal"  # noqa: SLF001 - a client has no public way to tell


def _is_point_id(document_id: str) -> bool:
    try:
        return str(uuid.UUID(document_id)) == document_id
    except ValueError:
        return False
