"""What LlamaIndex's observers see: one span and one pair of events a call, of every part of a retrieval."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index_samples import TEXTS, Recorder

from bge_integrations import BgeM3Embedder, ModelCache
from bge_integrations.llama_index import (
    BgeEmbedding,
    BgeM3Rerank,
    BgeM3SparseEmbedding,
    BgeRerank,
    HybridRetriever,
    RerankingRetriever,
)
from bge_integrations.stores.sparse_index import SparseIndex

QUERY = "where do pandas live?"
CALLS: dict[str, Callable[[BaseEmbedding], Any]] = {
    "query": lambda model: model.get_query_embedding("x"),
    "text": lambda model: model.get_text_embedding("x"),
    "batch": lambda model: model.get_text_embedding_batch(["x", "y"]),
    "queries": lambda model: model.get_agg_embedding_from_queries(["x", "y"]),
    "call": lambda model: model([TextNode(text="x"), TextNode(text="y")]),
    "async query": lambda model: asyncio.run(model.aget_query_embedding("x")),
    "async text": lambda model: asyncio.run(model.aget_text_embedding("x")),
    "async batch": lambda model: asyncio.run(model.aget_text_embedding_batch(["x", "y"])),
    "async queries": lambda model: asyncio.run(model.aget_agg_embedding_from_queries(["x", "y"])),
    "async call": lambda model: asyncio.run(model.acall([TextNode(text="x"), TextNode(text="y")])),
}


@pytest.fixture
def spans() -> Iterator[SimpleSpanHandler]:
    dispatcher = get_dispatcher()
    before = dispatcher.span_handlers
    spans = SimpleSpanHandler()
    dispatcher.span_handlers = [*before, spans]
    yield spans
    dispatcher.span_handlers = before


@pytest.fixture
def debug() -> LlamaDebugHandler:
    return LlamaDebugHandler(print_trace_on_end=False)


def public(spans: SimpleSpanHandler) -> Counter[str]:
    """How often each public method has a span."""
    names = [span.id_.rsplit("-", 5)[0].split(".")[-1] for span in spans.completed_spans]
    spans.completed_spans.clear()
    return Counter(name for name in names if not name.startswith("_get") and not name.startswith("_aget"))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("cached", [False, True])
def test_embedding_is_seen_as_the_frameworks_own(
    embedding: BgeEmbedding,
    spans: SimpleSpanHandler,
    recorder: Recorder,
    debug: LlamaDebugHandler,
    call: Callable[[BaseEmbedding], Any],
    cached: bool,
) -> None:
    seen = []
    for model in (MockEmbedding(embed_dim=3), embedding):
        model.callback_manager = CallbackManager([debug])
        model.embeddings_cache = SimpleKVStore() if cached else None
        call(model)
        names = Counter(event.class_name() for event in recorder.events)
        seen.append((public(spans), names, len(debug.get_event_pairs(CBEventType.EMBEDDING))))
        recorder.events.clear()
        debug.flush_event_logs()
    assert seen[0] == seen[1]


def test_sparse_embedding_has_one_span_a_call(m3_folder: Path, cache: ModelCache, spans: SimpleSpanHandler) -> None:
    sparse = BgeM3SparseEmbedding(model_name=str(m3_folder), like="BAAI/bge-m3", cache=cache)
    sparse.get_query_embedding("x")
    sparse.get_text_embedding_batch(["x", "y"])
    asyncio.run(sparse.aget_query_embedding("x"))
    asyncio.run(sparse.aget_text_embedding_batch(["x", "y"]))
    assert set(public(spans).values()) == {1}


@pytest.mark.parametrize("kind", ["BgeRerank", "BgeM3Rerank"])
async def test_reranking_events_lie_in_a_span_of_the_reranker(
    reranker: BgeRerank,
    m3_folder: Path,
    cache: ModelCache,
    nodes: list[NodeWithScore],
    recorder: Recorder,
    spans: SimpleSpanHandler,
    kind: str,
) -> None:
    chosen = reranker if kind == "BgeRerank" else BgeM3Rerank(str(m3_folder), like="BAAI/bge-m3", cache=cache)
    for given in (nodes, []):
        chosen.postprocess_nodes(given, query_str=QUERY)
        await chosen.apostprocess_nodes(given, query_str=QUERY)
    names = [event.span_id.rsplit("-", 5)[0] for event in recorder.events]
    sync, asynchronous = [f"{kind}._postprocess_nodes"] * 2, [f"{kind}._apostprocess_nodes"] * 2
    assert names == [*sync, *asynchronous] * 2
    assert public(spans) == {"_postprocess_nodes": 2, "_apostprocess_nodes": 2}


async def test_a_retrievers_callback_manager_reaches_its_parts(
    embedding: BgeEmbedding, reranker: BgeRerank, debug: LlamaDebugHandler
) -> None:
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS if text], embed_model=embedding)
    own, parts = index.as_retriever(), (embedding, reranker)
    before = [part.callback_manager for part in (*parts, own)]
    manager = CallbackManager([debug])
    for source in ({"index": index}, {"retriever": own}):
        retriever = RerankingRetriever(**source, reranker=reranker, callback_manager=manager)
        for retrieve in (
            retriever.retrieve,
            lambda query, retriever=retriever: asyncio.run(retriever.aretrieve(query)),
        ):
            await asyncio.to_thread(retrieve, QUERY)
            counts = {kind: len(debug.get_event_pairs(CBEventType(kind))) for kind in ("embedding", "reranking")}
            assert counts == {"embedding": 1, "reranking": 1}
            retrievals = debug.get_event_pairs(CBEventType.RETRIEVE)
            assert [len(pair) for pair in retrievals] == [2, 2]  # the whole, and the search in it
            debug.flush_event_logs()
    assert all(part.callback_manager is one for part, one in zip((*parts, own), before, strict=True))


async def test_starts_have_ends_where_a_part_fails(
    embedding: BgeEmbedding, reranker: BgeRerank, debug: LlamaDebugHandler
) -> None:
    lenient = embedding.model_copy(update={"on_truncate": "ignore"})
    index = VectorStoreIndex([TextNode(text="word " * 600)], embed_model=lenient)
    manager = CallbackManager([debug])
    strict = reranker.model_copy(update={"on_truncate": "raise"})
    retriever = RerankingRetriever(index=index, reranker=strict, callback_manager=manager)
    with pytest.raises(ValueError, match="512"):
        retriever.retrieve(QUERY)
    with pytest.raises(ValueError, match="512"):
        await retriever.aretrieve(QUERY)
    pairs = [pair for kind in CBEventType for pair in debug.get_event_pairs(kind) if kind != CBEventType.EXCEPTION]
    assert len(pairs) == 2 * 4
    assert all(len(pair) == 2 for pair in pairs)


async def test_hybrid_retrieval_reports_its_embedding(
    m3: BgeM3Embedder, recorder: Recorder, debug: LlamaDebugHandler, spans: SimpleSpanHandler
) -> None:
    index = VectorStoreIndex([], embed_model=MockEmbedding(embed_dim=4), store_nodes_override=True)
    manager = CallbackManager([debug])
    retriever = HybridRetriever(index=index, sparse_index=SparseIndex(), embedder=m3, callback_manager=manager)
    retriever.insert_nodes([TextNode(text=text) for text in TEXTS if text])
    spans.completed_spans.clear()
    recorder.events.clear()
    for kind in ("retrieve", "aretrieve"):
        await asyncio.to_thread(retriever.retrieve, QUERY) if kind == "retrieve" else await retriever.aretrieve(QUERY)
        assert [event.class_name() for event in recorder.events] == [
            "RetrievalStartEvent",
            "EmbeddingStartEvent",
            "EmbeddingEndEvent",
            "RetrievalEndEvent",
        ]
        assert recorder.events[2].chunks == [QUERY]
        assert len(recorder.events[2].embeddings[0]) == m3.dim
        for event in (CBEventType.RETRIEVE, CBEventType.EMBEDDING):
            assert [len(pair) for pair in debug.get_event_pairs(event)] == [2]
        assert public(spans)[kind] == 1
        debug.flush_event_logs()
        recorder.events.clear()


async def test_a_query_engine_sees_sync_and_async_alike(
    embedding: BgeEmbedding, reranker: BgeRerank, recorder: Recorder
) -> None:
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS if text], embed_model=embedding)
    engine = index.as_query_engine(llm=MockLLM(), node_postprocessors=[reranker])
    seen = []
    for query in (engine.query, lambda text: asyncio.run(engine.aquery(text))):
        recorder.events.clear()
        await asyncio.to_thread(query, QUERY)
        names = [event.class_name() for event in recorder.events]
        seen.append([name for name in names if not name.startswith("LLM")])  # MockLLM's are other ones
    assert seen[0] == seen[1]
    assert seen[0].count("ReRankStartEvent") == seen[0].count("ReRankEndEvent") == 1
