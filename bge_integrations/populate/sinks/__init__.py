"""Sinks: one class for each kind of store, which reads what the store holds and writes to it."""

from pathlib import Path
from typing import Any

from bge_integrations.populate.embedders import Embedder
from bge_integrations.populate.framework import Framework, LangChain
from bge_integrations.populate.record import record_of
from bge_integrations.populate.sinks.base import Sink
from bge_integrations.populate.sinks.chroma import ChromaSink
from bge_integrations.populate.sinks.hybrid import HybridSink
from bge_integrations.populate.sinks.langchain import FaissSink, InMemorySink, LangChainSink
from bge_integrations.populate.sinks.recorded import RecordedSink
from bge_integrations.stores.kinds import find_chroma_collection, is_a
from bge_integrations.stores.replay import can_replay

__all__ = ["HybridSink", "Sink", "make_sink"]


def make_sink(store: Any, embedder: Embedder | None, record: str | Path | None) -> Sink:
    """Return the sink that reads and fills a store.

    Args:
        store: A vector store of LangChain or LlamaIndex, a `VectorStoreIndex`, or a Chroma collection.
        embedder: Computes its vectors; None if the store does that itself.
        record: File that remembers what the store holds, if the store cannot be asked; None for memory.
    """
    if is_a(store, "VectorStoreIndex", "BasePydanticVectorStore"):
        return _llama_index_sink(store, embedder, record)
    framework = LangChain()
    collection = find_chroma_collection(store)
    if collection is not None:
        return ChromaSink(store, framework, embedder, collection)
    if is_a(store, "QdrantVectorStore"):
        from bge_integrations.populate.sinks.qdrant import QdrantSink

        keys = {"text_key": store.content_payload_key, "metadata_key": store.metadata_payload_key}
        return QdrantSink(store, framework, embedder, **keys)
    if is_a(store, "LanceDB"):
        from bge_integrations.populate.sinks.lancedb import LanceSink

        columns = (store._id_key, store._text_key, store._vector_key)  # noqa: SLF001 - it has no public names for them
        return LanceSink(store, framework, embedder, columns=columns)
    replays = embedder if can_replay(store) else None
    if _leaves_out(store, "get_by_ids", "VectorStore"):
        return RecordedSink(store, framework, replays, record_of(store, record))
    kinds = {"FAISS": FaissSink, "InMemoryVectorStore": InMemorySink}
    kind = next((kinds[name] for name in kinds if is_a(store, name)), LangChainSink)
    return kind(store, framework, replays)


def _llama_index_sink(target: Any, embedder: Embedder | None, record: str | Path | None) -> Sink:
    from bge_integrations.populate.nodes import LlamaIndex
    from bge_integrations.populate.sinks.llama_index import IndexSink, NodeSink, SimpleSink

    framework: Framework = LlamaIndex()
    store = target
    if is_a(target, "VectorStoreIndex"):
        store = target.vector_store
        if not store.stores_text or target._store_nodes_override:  # noqa: SLF001 - it has no public name
            return IndexSink(target, framework, embedder)
    collection = find_chroma_collection(store)
    if collection is not None:
        return ChromaSink(store, framework, embedder, collection)
    if is_a(store, "QdrantVectorStore"):
        from bge_integrations.populate.sinks.qdrant import QdrantSink

        return QdrantSink(store, framework, embedder)
    if is_a(store, "LanceDBVectorStore"):
        from bge_integrations.populate.sinks.lancedb import LanceSink

        columns = ("id", store.text_key, store.vector_column_name)
        return LanceSink(store, framework, embedder, columns=columns, parent=store.doc_id_key)
    if is_a(store, "SimpleVectorStore"):
        return SimpleSink(store, framework, embedder)
    if _leaves_out(store, "get_nodes", "BasePydanticVectorStore"):
        return RecordedSink(store, framework, embedder, record_of(store, record))
    return NodeSink(store, framework, embedder)


def _leaves_out(store: object, method: str, base: str) -> bool:
    """Return whether a store has only its base class's version of a method, which raises."""
    owner = next((cls for cls in type(store).__mro__ if method in vars(cls)), None)
    return owner is None or owner.__name__ == base
