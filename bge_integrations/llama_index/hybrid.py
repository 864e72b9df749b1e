"""`HybridRetriever`: dense and sparse candidates from one run of bge-m3, fused, over any vector store."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.indices.vector_store import VectorIndexRetriever, VectorStoreIndex
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent, EmbeddingStartEvent
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.utils import iter_batch
from llama_index.core.vector_stores import MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn, node_to_metadata_dict

from bge_integrations.embed.embedder import to_lists
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.errors import FingerprintMismatchError
from bge_integrations.llama_index.embedding import BgeEmbedding
from bge_integrations.llama_index.nodes import distinct
from bge_integrations.stores.fingerprint import check_fingerprint, write_fingerprint
from bge_integrations.stores.fusion import reciprocal_rank_fusion, relative_score_fusion
from bge_integrations.stores.sparse_index import SparseIndex
from bge_integrations.types import M3Embeddings

_INSERT_BATCH = 2048
"""Nodes embedded and written at a time."""

logger = logging.getLogger(__name__)
_dispatcher = get_dispatcher(__name__)


class HybridRetriever(BaseRetriever):
    """A hybrid retriever: it fuses dense results of an index's store with sparse results of a `SparseIndex`.

    One run of the model gives both vectors, for a query and for each node that `insert_nodes` adds. The score of a node
    is the fused one. Of nodes with the same text from the same source, only the best is returned.

    ```python
    index = VectorStoreIndex.from_vector_store(store, embed_model=BgeEmbedding(model_name="BAAI/bge-m3"))
    retriever = HybridRetriever(index=index, sparse_index=SparseIndex(), embedder=BgeM3Embedder())
    retriever.insert_nodes(nodes)
    retriever.retrieve("what is a panda?")
    retriever.sparse_index.save("notes.sparse.npz")
    ```

    What is deleted from the index should be deleted from the sparse index too; until then a node that neither the store
    nor the docstore has is left out, with a line in the log.

    Args:
        index: Index over any vector store. Its embedding model is not used, but if it is a `BgeEmbedding`, it must have
            the same model.
        sparse_index: The sparse vectors of the same nodes, by node id.
        embedder: bge-m3, or a fine-tune of it; its `outputs` don't matter.
        similarity_top_k: How many nodes to return.
        fetch_k: How many candidates to take from either side.
        fusion: "rrf" for reciprocal ranks, "weights" for scores that are scaled to 1 (best) ... 0 (last) on each side.
        weights: Weights of the dense and the sparse side.
        filters: Metadata that nodes must have; they must not be nested. The store applies them to all its nodes; on the
            sparse side, nodes of the `fetch_k` best that don't match are dropped, so raise that if few match.
        callback_manager: The framework's observers of the retrieval and of the embedding of its query.

    Raises:
        TypeError: `embedder` is not a `BgeM3Embedder`.
        ValueError: An argument is out of its range; at a search, the store can't give what the search needs.
        FingerprintMismatchError: At the first search or insertion, another model filled the store or the sparse index,
            or embeds for the index.
    """

    def __init__(
        self,
        *,
        index: VectorStoreIndex,
        sparse_index: SparseIndex,
        embedder: BgeM3Embedder,
        similarity_top_k: int = 4,
        fetch_k: int = 50,
        fusion: Literal["rrf", "weights"] = "rrf",
        weights: tuple[float, float] = (1.0, 1.0),
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        if not isinstance(embedder, BgeM3Embedder):
            raise TypeError(f"embedder must be a BgeM3Embedder, not {type(embedder).__name__}.")
        _check_numbers(similarity_top_k, fetch_k, weights)
        if fusion not in ("rrf", "weights"):
            raise ValueError(f'fusion={fusion!r} is unknown. Give "rrf" or "weights".')
        if filters is not None and any(isinstance(part, MetadataFilters) for part in filters.filters):
            raise ValueError("Nested filters can't be checked on what the sparse side finds: give flat filters.")
        self.index = index
        self.sparse_index = sparse_index
        self.embedder = embedder.with_outputs("dense", "sparse")
        self.similarity_top_k = similarity_top_k
        self.fetch_k = fetch_k
        self.fusion = fusion
        self.weights = tuple(weights)
        self.filters = filters
        self.object_map = index._object_map  # noqa: SLF001 - what index nodes stand for; the index fills it
        self._is_checked = False

    def insert_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False) -> None:
        """Embed nodes once for both sides and add them to the index and to the sparse index.

        Args:
            nodes: The nodes, which are not changed; an embedding that a node already has is replaced in its copy. The
                sparse index replaces ids that it has; whether the store does depends on the store.
            show_progress: Show a progress bar.
        """
        self._check_models()
        for batch in iter_batch(nodes, _INSERT_BATCH):
            ids, texts = [node.node_id for node in batch], _texts(batch)
            embeddings = self.embedder.encode_documents(texts, show_progress)
            self.index.insert_nodes(_embedded(batch, embeddings))
            fingerprint = self._claim()
            self.sparse_index.add(ids, embeddings.sparse or [], fingerprint, texts)

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False) -> None:
        """Insert nodes like `insert_nodes`, off the event loop as far as the store allows."""
        await asyncio.to_thread(self._check_models)
        for batch in iter_batch(nodes, _INSERT_BATCH):
            ids, texts = [node.node_id for node in batch], _texts(batch)
            embeddings = await self.embedder.aencode_documents(texts, show_progress)
            await self.index.ainsert_nodes(await asyncio.to_thread(_embedded, batch, embeddings))
            fingerprint = await asyncio.to_thread(self._claim)
            await asyncio.to_thread(self.sparse_index.add, ids, embeddings.sparse or [], fingerprint, texts)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if not self._is_checked:
            self._check_models()
        with self._embedding_reported(_queries(query_bundle)) as vectors:
            embeddings = self.embedder.encode_queries(_queries(query_bundle))
            vectors.extend(_lists(embeddings))
        dense = self._dense_side()._retrieve(_with_vector(query_bundle, embeddings))  # noqa: SLF001
        sparse = self._search_sparse(embeddings)
        return self._fused(dense, sparse, self._read(_missing(dense, sparse)))

    @_dispatcher.span
    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if not self._is_checked:
            await asyncio.to_thread(self._check_models)
        with self._embedding_reported(_queries(query_bundle)) as vectors:
            embeddings = await self.embedder.aencode_queries(_queries(query_bundle))
            vectors.extend(_lists(embeddings))
        dense = await self._dense_side()._aretrieve(_with_vector(query_bundle, embeddings))  # noqa: SLF001
        sparse = await asyncio.to_thread(self._search_sparse, embeddings)
        return self._fused(dense, sparse, await self._aread(_missing(dense, sparse)))

    @contextmanager
    def _embedding_reported(self, texts: list[str]) -> Iterator[list[list[float]]]:
        """Report an embedding to the framework's observers, as an embedding model does; yield the list to fill."""
        vectors: list[list[float]] = []
        model = {"class_name": type(self.embedder).__name__, "model_name": self.embedder.model}
        _dispatcher.event(EmbeddingStartEvent(model_dict=model))
        try:
            with self.callback_manager.event(CBEventType.EMBEDDING, {EventPayload.SERIALIZED: model}) as event:
                yield vectors
                event.on_end(payload={EventPayload.CHUNKS: texts, EventPayload.EMBEDDINGS: vectors})
        finally:
            _dispatcher.event(EmbeddingEndEvent(chunks=texts, embeddings=vectors))

    def _dense_side(self) -> VectorIndexRetriever:
        """Return a retriever for one query, as it holds the ids of the nodes that the index has when it is made.

        Its public `retrieve` is not used: it would follow index nodes to other ids, and report one search as two.
        """
        ids = list(self.index.index_struct.nodes_dict.values())
        return VectorIndexRetriever(self.index, self.fetch_k, filters=self.filters, node_ids=ids)

    def _search_sparse(self, embeddings: M3Embeddings) -> list[tuple[str, float]]:
        return self.sparse_index.search((embeddings.sparse or [])[0], self.fetch_k)

    def _fused(
        self, dense: list[NodeWithScore], sparse: list[tuple[str, float]], others: list[BaseNode]
    ) -> list[NodeWithScore]:
        """Return the best nodes of both sides; `others` are those that only the sparse side found."""
        nodes: dict[str, BaseNode] = {found.node_id: found.node for found in dense}
        nodes |= {node.node_id: node for node in others if self._fits(node)}
        known = [(node_id, score) for node_id, score in sparse if node_id in nodes]
        if self.fusion == "rrf":
            rankings = [[found.node_id for found in dense], [node_id for node_id, _ in known]]
            fused = reciprocal_rank_fusion(rankings, self.weights)
        else:
            fused = relative_score_fusion([self._with_scores(dense), known], self.weights)
        best = [NodeWithScore(node=nodes[node_id], score=score) for node_id, score in fused.items()]
        return distinct(best)[: self.similarity_top_k]

    def _fits(self, node: BaseNode) -> bool:
        """Return whether the filters let a node pass, by the metadata that a store would keep of it."""
        if self.filters is None:
            return True
        return build_metadata_filter_fn(lambda _: node_to_metadata_dict(node), self.filters)(node.node_id)

    def _with_scores(self, found: list[NodeWithScore]) -> list[tuple[str, float]]:
        scored = [(node.node_id, float(node.score)) for node in found if node.score is not None]
        if len(scored) < len(found):
            raise ValueError(
                f'fusion="weights" needs scores, and {type(self.index.vector_store).__name__} gives none. '
                'Take fusion="rrf".'
            )
        return scored

    def _read(self, ids: list[str]) -> list[BaseNode]:
        """Return the nodes with these ids, from the store or, if it can't look them up, from the docstore."""
        if not ids:
            return []
        try:
            nodes = self.index.vector_store.get_nodes(node_ids=ids)
        except NotImplementedError:
            nodes = self.index.docstore.get_nodes(ids, raise_error=False)
        return self._reported(nodes, ids)

    async def _aread(self, ids: list[str]) -> list[BaseNode]:
        if not ids:
            return []
        try:
            nodes = await self.index.vector_store.aget_nodes(node_ids=ids)
        except NotImplementedError:
            nodes = await self.index.docstore.aget_nodes(ids, raise_error=False)
        return self._reported(nodes, ids)

    def _reported(self, nodes: list[BaseNode], ids: list[str]) -> list[BaseNode]:
        if len(nodes) < len(ids):
            store = type(self.index.vector_store).__name__
            logger.warning(
                "%d nodes of the sparse index are neither in %s nor in the docstore, and are left out. If they are "
                "deleted, delete them from the sparse index too; if %s can't give nodes by their ids, make the index "
                "with store_nodes_override=True.",
                len(ids) - len(nodes), store, store,
            )  # fmt: skip
        return nodes

    def _check_models(self) -> None:
        """Refuse a store or an index of another model; checked once, as a fingerprint is made from the weights."""
        dense, embed_model = self.embedder.with_outputs("dense"), self.index._embed_model  # noqa: SLF001
        check_fingerprint(self.index.vector_store, dense.fingerprint)
        self.sparse_index.check_fingerprint(self._sparse_fingerprint)
        if isinstance(embed_model, BgeEmbedding) and embed_model.embedder.fingerprint != dense.fingerprint:
            raise FingerprintMismatchError(
                f"The index embeds with {embed_model.model_name}, fingerprint {embed_model.embedder.fingerprint}; the "
                f"retriever's {dense.model} has {dense.fingerprint}. Give both the same model with the same settings."
            )
        self._is_checked = True

    def _claim(self) -> str:
        """Write the dense model's fingerprint to the store, which has taken its vectors; return the sparse one's."""
        write_fingerprint(self.index.vector_store, self.embedder.with_outputs("dense").fingerprint)
        return self._sparse_fingerprint

    @property
    def _sparse_fingerprint(self) -> str:
        return self.embedder.with_outputs("sparse").fingerprint


def _check_numbers(similarity_top_k: int, fetch_k: int, weights: tuple[float, float]) -> None:
    if similarity_top_k < 1:
        raise ValueError(f"similarity_top_k={similarity_top_k} must be 1 or more.")
    if fetch_k < similarity_top_k:
        raise ValueError(f"fetch_k={fetch_k} candidates are fewer than similarity_top_k={similarity_top_k} nodes.")
    if len(weights) != 2 or any(weight < 0 or not isfinite(weight) for weight in weights) or not any(weights):
        raise ValueError(f"weights={weights}: give two numbers, for dense and sparse, 0 or more and not both 0.")


def _queries(query: QueryBundle) -> list[str]:
    """Return the texts to embed: the query's own words, for the sparse side, then those for the dense side."""
    return list(dict.fromkeys([query.query_str, *query.embedding_strs]))


def _with_vector(query: QueryBundle, embeddings: M3Embeddings) -> QueryBundle:
    """Return the query with its dense vector: its own, or the mean of its texts' vectors, as in the framework."""
    if query.embedding is not None or embeddings.dense is None:
        return QueryBundle(query.query_str, embedding=query.embedding)
    texts = _queries(query)
    rows = [texts.index(text) for text in query.embedding_strs] or [0]
    return QueryBundle(query.query_str, embedding=embeddings.dense[rows].mean(axis=0).tolist())


def _lists(embeddings: M3Embeddings) -> list[list[float]]:
    return [] if embeddings.dense is None else to_lists(embeddings.dense)


def _missing(dense: list[NodeWithScore], sparse: list[tuple[str, float]]) -> list[str]:
    """Return the ids that only the sparse side found."""
    found = {node.node_id for node in dense}
    return [node_id for node_id, _ in sparse if node_id not in found]


def _texts(nodes: Sequence[BaseNode]) -> list[str]:
    return [node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _embedded(nodes: Sequence[BaseNode], embeddings: M3Embeddings) -> list[BaseNode]:
    """Return copies of the nodes with their dense vectors, which the index then takes as they are."""
    if embeddings.dense is None:
        raise ValueError("No dense vectors to insert.")
    vectors = to_lists(embeddings.dense)
    return [node.model_copy(update={"embedding": vector}) for node, vector in zip(nodes, vectors, strict=True)]
