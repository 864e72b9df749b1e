"""LlamaIndex's nodes: how they get their ids, and how LlamaIndex's stores keep them."""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, RelatedNodeInfo
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from bge_integrations.embed.embedder import to_lists
from bge_integrations.populate.documents import Entry, Held, content_hash, hashable_metadata
from bge_integrations.populate.framework import source_in, unhashable, without_text
from bge_integrations.stores.kinds import HASH_KEY

_HIDING = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")
"""The attributes of a node that list the metadata keys hidden from models."""

_NONE = "None"
"""The document id that LlamaIndex's stores keep for a node that has no document."""


class LlamaIndex:
    """The nodes and documents of LlamaIndex, as populate handles them.

    A node keeps its own id, unless the id is random and so would differ on the next run. A random id is replaced by one
    made from the content, also in the nodes that refer to it. An id is random if it is a UUID of version 4 that nobody
    gave, or that a node parser gave.
    """

    source_keys: tuple[str, ...] = ("source", "file_path", "ref_doc_id")

    def arrange(self, documents: Iterable[Any], window: int) -> Iterator[Any]:
        """Yield copies of the nodes with their final ids, in relationships too; read at most two windows ahead.

        A relationship keeps the old id if its node never comes, or is more than one window away.
        """
        reader = iter(documents)
        before: dict[str, str] = {}
        block, names = self._window(reader, window)
        while block:
            following, next_names = self._window(reader, window)
            around = {**before, **names, **next_names}
            yield from (_renamed(node, names, around) if isinstance(node, BaseNode) else node for node in block)
            before, block, names = names, following, next_names

    def identify(self, document: Any, position: int) -> Entry:
        """Read a node into an `Entry`; its text is what LlamaIndex embeds, metadata included."""
        if not isinstance(document, BaseNode):
            raise TypeError(f"Document {position} is {document!r:.80}; it needs to be a node of LlamaIndex.")
        bare = _without_hash(document)
        text = bare.get_content(metadata_mode=MetadataMode.EMBED)
        if not text.strip():
            raise without_text(position, document.node_id)
        try:
            digest = self._digest(bare)
        except TypeError as error:
            raise unhashable(position, error) from error
        hidden = {name: [*getattr(bare, name), HASH_KEY] for name in _HIDING}
        kept = bare.model_copy(update={"metadata": {**bare.metadata, HASH_KEY: digest}, **hidden})
        return Entry(document.node_id, kept, text, self.source_of(document), digest, position)

    def source_of(self, document: object) -> str | None:
        """Return the metadata's `source` or `file_path`, else the id of the node's document; None if there is none."""
        if not isinstance(document, BaseNode):
            return None
        return source_in({**document.metadata, "ref_doc_id": document.ref_doc_id}, self.source_keys)

    def row(self, entry: Entry, with_text: bool = False) -> tuple[str, dict[str, Any]]:
        """Return the text and the metadata, which include the whole node."""
        metadata = node_to_metadata_dict(entry.document, remove_text=not with_text, flat_metadata=True)
        known = {key: "" if value is None else value for key, value in metadata.items()}
        return entry.document.get_content(metadata_mode=MetadataMode.NONE), known

    def held(self, text: str | None, metadata: Mapping[str, Any]) -> Held:
        """Return a stored node as `Held`, with the text that was embedded."""
        try:
            node = metadata_dict_to_node(dict(metadata), text=text)
        except ValueError:  # LlamaIndex did not write this row
            return Held(text, metadata)
        own = {**metadata, "ref_doc_id": None if metadata.get("ref_doc_id") == _NONE else metadata.get("ref_doc_id")}
        return Held(node.get_content(metadata_mode=MetadataMode.EMBED), own)

    def add(self, store: Any, entries: list[Entry], vectors: Any) -> list[str]:
        """Insert nodes with their vectors; return the store's ids for them."""
        return list(store.add(with_vectors(entries, vectors)))

    def search(self, store: Any, vector: list[float] | None) -> object:
        """Search a store, or the store of an index, for the node nearest to a vector."""
        inner = getattr(store, "vector_store", store)  # the store of an index
        return inner.query(VectorStoreQuery(query_embedding=vector, similarity_top_k=1))

    def _window(self, reader: Iterator[Any], size: int) -> tuple[list[Any], dict[str, str]]:
        """Read up to `size` nodes; return them with the new ids of those whose own ids are random."""
        block, names = list(islice(reader, size)), dict[str, str]()
        for node in block:
            if isinstance(node, BaseNode) and _has_random_id(node):
                try:
                    names[node.node_id] = str(uuid.UUID(self._digest(_without_hash(node))[:32]))
                except TypeError:
                    continue  # `identify` reports it
        return block, names

    def _digest(self, node: BaseNode) -> str:
        source = self.source_of(node)
        return content_hash(
            node.get_content(metadata_mode=MetadataMode.NONE),
            node.get_content(metadata_mode=MetadataMode.EMBED),
            hashable_metadata(node.metadata),
            None if source is None or _is_random(source) else source,
        )


def with_vectors(entries: list[Entry], vectors: Any) -> list[BaseNode]:
    """Return copies of the nodes that carry their vectors, as LlamaIndex's stores expect."""
    rows = zip(entries, to_lists(vectors), strict=True)
    return [entry.document.model_copy(update={"embedding": vector}) for entry, vector in rows]


def _has_random_id(node: BaseNode) -> bool:
    parsed = NodeRelationship.SOURCE in node.relationships
    return _is_random(node.node_id) and (parsed or "id_" not in node.model_fields_set)


def _is_random(node_id: str) -> bool:
    try:
        return uuid.UUID(node_id).version == 4
    except ValueError:
        return False


def _without_hash(node: BaseNode) -> BaseNode:
    """Return the node without the content hash that populate adds."""
    if HASH_KEY not in node.metadata:
        return node
    hidden = {name: [key for key in getattr(node, name) if key != HASH_KEY] for name in _HIDING}
    metadata = {key: value for key, value in node.metadata.items() if key != HASH_KEY}
    return node.model_copy(update={"metadata": metadata, **hidden})


def _renamed(node: BaseNode, own: Mapping[str, str], around: Mapping[str, str]) -> BaseNode:
    """Return a copy of the node with its new id, and with the new ids of the nodes that it refers to."""
    relationships: dict[NodeRelationship, Any] = {
        kind: [_pointing(one, around) for one in related] if isinstance(related, list) else _pointing(related, around)
        for kind, related in node.relationships.items()
    }
    return node.model_copy(update={"id_": own.get(node.node_id, node.node_id), "relationships": relationships})


def _pointing(related: RelatedNodeInfo, names: Mapping[str, str]) -> RelatedNodeInfo:
    return related.model_copy(update={"node_id": names.get(related.node_id, related.node_id)})
