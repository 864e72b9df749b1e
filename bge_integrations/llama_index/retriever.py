"""`RerankingRetriever`: it fetches many candidates from a vector store and returns the most relevant ones."""

import asyncio
from copy import copy
from dataclasses import replace
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.vector_store import VectorIndexRetriever, VectorStoreIndex
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.vector_stores import MetadataFilters
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from bge_integrations.llama_index.embedding import BgeEmbedding
from bge_integrations.llama_index.nodes import distinct
from bge_integrations.stores.fingerprint import check_fingerprint, read_fingerprint

_FETCH_K = 50

_dispatcher = get_dispatcher(__name__)


class RerankingRetriever(BaseRetriever):
    """A retriever that fetches `fetch_k` candidates, drops duplicates and returns the best `top_n` after reranking.

    Two candidates are duplicates if they have the same id, or the same text from the same source. If the embedding
    model is a `BgeEmbedding`, the first retrieval checks that it is the model which filled the collection.

    ```python
    retriever = RerankingRetriever(index=index, reranker=BgeRerank(model="BAAI/bge-reranker-v2-m3", top_n=5))
    nodes = retriever.retrieve("what is a panda?")
    ```

    Args:
        index: The index that candidates come from; give it or one of the next two.
        vector_store: A filled vector store, queried with `Settings.embed_model`, as the framework does for a bare one.
        retriever: A `VectorIndexRetriever` returns its own `similarity_top_k` candidates or, on a copy, `fetch_k`. Any
            other retriever decides itself how many.
        reranker: Scores the candidates: a `BgeRerank`, a `BgeM3Rerank` or any other node postprocessor.
        fetch_k: How many candidates to retrieve (default 50, or what `retriever` says).
        top_n: How many nodes to return; None for what the reranker says.
        filters: Metadata that candidates must have; not with `retriever`.
        callback_manager: The framework's observers of the retrieval and of its parts: the search, the embedding of the
            query, the reranking. None leaves each part its own. A `retriever` that is no `VectorIndexRetriever` keeps
            its own.

    Raises:
        TypeError: `reranker` is no node postprocessor.
        ValueError: Not exactly one of `index`, `vector_store` and `retriever` is given, there are fewer candidates than
            nodes to return, or the retriever can't take `fetch_k` or `filters`.
    """

    def __init__(
        self,
        *,
        reranker: BaseNodePostprocessor,
        index: VectorStoreIndex | None = None,
        vector_store: BasePydanticVectorStore | None = None,
        retriever: BaseRetriever | None = None,
        fetch_k: int | None = None,
        top_n: int | None = None,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        if not isinstance(reranker, BaseNodePostprocessor):
            raise TypeError(f"reranker must be a node postprocessor such as BgeRerank, not {type(reranker).__name__}.")
        sources = [source for source in (index, vector_store, retriever) if source is not None]
        if len(sources) != 1:
            raise ValueError("Pass exactly one of index=, vector_store= and retriever=.")
        self.top_n = top_n
        self.reranker = _told(reranker, top_n, callback_manager)
        self.candidates = _candidates(sources[0], fetch_k, filters)
        self._collection_is_checked = False
        if isinstance(self.candidates, VectorIndexRetriever):
            keeps_its_own = retriever is not None and fetch_k is None
            _check_top_n(top_n if keeps_its_own else getattr(self.reranker, "top_n", top_n), self.candidates)
            if callback_manager is not None:
                _observe(self.candidates, callback_manager)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._check_collection()
        query = replace(query_bundle)
        found = self.candidates.retrieve(query)
        return self.reranker.postprocess_nodes(distinct(found), query)[: self.top_n]

    @_dispatcher.span
    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if not self._collection_is_checked:
            await asyncio.to_thread(self._check_collection)
        query = replace(query_bundle)
        found = await self.candidates.aretrieve(query)
        return (await self.reranker.apostprocess_nodes(distinct(found), query))[: self.top_n]

    def _check_collection(self) -> None:
        """Refuse a collection of another model; checked once, as the model's fingerprint is made from its weights."""
        if self._collection_is_checked or not isinstance(self.candidates, VectorIndexRetriever):
            return
        embed_model = self.candidates._embed_model  # noqa: SLF001 - neither has a public name
        store = self.candidates._vector_store  # noqa: SLF001
        if isinstance(embed_model, BgeEmbedding) and read_fingerprint(store) is not None:
            check_fingerprint(store, embed_model.embedder.fingerprint)
            self._collection_is_checked = True


def _candidates(
    source: VectorStoreIndex | BasePydanticVectorStore | BaseRetriever,
    fetch_k: int | None,
    filters: MetadataFilters | None,
) -> BaseRetriever:
    """Return the retriever of the candidates, set to the number of candidates to fetch."""
    if isinstance(source, BasePydanticVectorStore):
        source = VectorStoreIndex.from_vector_store(source)
    if isinstance(source, VectorStoreIndex):
        return source.as_retriever(similarity_top_k=_FETCH_K if fetch_k is None else fetch_k, filters=filters)
    if filters is not None:
        raise ValueError(
            "filters= goes with index= or vector_store=. With retriever=, give the filters to that retriever."
        )
    if isinstance(source, VectorIndexRetriever):
        own = copy(source)
        own.similarity_top_k = source.similarity_top_k if fetch_k is None else fetch_k
        return own
    if fetch_k is not None:
        raise ValueError(
            f"fetch_k={fetch_k} can't be passed on to a {type(source).__name__}: "
            "set how many nodes it gives on that retriever, or pass a VectorIndexRetriever or index=."
        )
    return source


def _told(
    reranker: BaseNodePostprocessor, top_n: int | None, callback_manager: CallbackManager | None
) -> BaseNodePostprocessor:
    """Return the reranker, or a copy with this retriever's `top_n` and `callback_manager` where they are given."""
    if top_n is not None and top_n < 1:
        raise ValueError(f"top_n={top_n}: it must be at least 1.")
    told: dict[str, Any] = {} if callback_manager is None else {"callback_manager": callback_manager}
    if top_n is not None and "top_n" in type(reranker).model_fields:
        told["top_n"] = top_n
    return reranker.model_copy(update=told) if told else reranker


def _observe(candidates: VectorIndexRetriever, callback_manager: CallbackManager) -> None:
    """Make the retriever, and a copy of its embedding model, report to the observers too."""
    candidates.callback_manager = callback_manager
    embed_model = candidates._embed_model  # noqa: SLF001 - it has no public name
    candidates._embed_model = embed_model.model_copy(update={"callback_manager": callback_manager})  # noqa: SLF001


def _check_top_n(top_n: int | None, candidates: VectorIndexRetriever) -> None:
    fetch_k = candidates.similarity_top_k
    if fetch_k < (top_n or 1):
        raise ValueError(
            f"fetch_k={fetch_k} candidates are fewer than top_n={top_n} nodes to return. Raise fetch_k, or the "
            "similarity_top_k of the retriever that was given, or lower top_n."
        )
