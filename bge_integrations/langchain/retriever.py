"""Retrieve many, rerank, keep the best: one LangChain retriever."""

from collections.abc import Iterable
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from bge_integrations.embed.collection import check_fingerprint, read_fingerprint
from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.langchain.rerank import BgeRerank, with_metadata


class RerankingRetriever(BaseRetriever):
    """Fetches candidates from a vector store or a retriever and gives the best after reranking.

    The documents that come back are copies, best first, with the floats `relevance_score` (the reranker's) and, from
    a `vector_store` that gives scores, `retrieval_score` (the store's own number: a distance or a similarity) in their
    metadata. Candidates that come twice are judged once: the same id or, without ids, the same text and source.

    The first search of a Chroma collection that another model has filled is refused, where the collection's
    fingerprint and the store's `BgeEmbeddings` tell.

    Example:
        ```python
        retriever = RerankingRetriever(
            vector_store=store, reranker=BgeRerank(model="BAAI/bge-reranker-v2-m3"), fetch_k=50, top_n=5
        )
        best = retriever.invoke("what is a panda?")
        best = retriever.invoke("what is a panda?", top_n=3)
        ```

    Raises:
        pydantic.ValidationError: Arguments that cannot go together; the message says which.
        ValueError: At a call, a `top_n` under 1 or over `fetch_k`.
        FingerprintMismatchError: At the first search, another model filled the store.
    """

    vector_store: VectorStore | None = None
    """Where candidates come from; or give `retriever`."""
    retriever: RetrieverLike | None = None
    """Where candidates come from; or give `vector_store`."""
    reranker: BgeRerank
    """Puts the candidates in order."""
    fetch_k: int = Field(default=50, ge=1)
    """Candidates to fetch. A `retriever` that is no `VectorStoreRetriever` decides that itself: leave it out there."""
    top_n: int | None = Field(default=None, ge=1)
    """Documents to give; None = the reranker's own `top_n`."""
    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More arguments for the store's search, such as `filter`."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    _checked_store: VectorStore | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_arguments(self) -> Self:
        if (self.vector_store is None) == (self.retriever is None):
            raise ValueError("Give exactly one of vector_store= and retriever=.")
        if self._store is None and ("fetch_k" in self.model_fields_set or self.search_kwargs):
            raise ValueError(
                f"fetch_k and search_kwargs cannot be handed on to {type(self.retriever).__name__}, which is no "
                "VectorStoreRetriever. Leave them out and set on that retriever how much it fetches."
            )
        if "k" in self.search_kwargs:
            raise ValueError('search_kwargs has "k". Give fetch_k= instead.')
        self._check_top_n(None)
        return self

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, top_n: int | None = None
    ) -> list[Document]:
        reranker = self._reranker(top_n)
        callbacks = run_manager.get_child()
        if self._store is not self._checked_store:
            self._check_store()
        if self.retriever is not None:
            found = self.retriever.invoke(query, {"callbacks": callbacks}, **self._fetch_arguments)
        elif self.vector_store is not None:
            try:
                found = _scored(self.vector_store.similarity_search_with_score(query, **self._fetch_arguments))
            except NotImplementedError:
                found = self.vector_store.similarity_search(query, **self._fetch_arguments)
        return reranker.compress_documents(_distinct(found), query, callbacks)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, top_n: int | None = None
    ) -> list[Document]:
        reranker = self._reranker(top_n)
        callbacks = run_manager.get_child()
        if self._store is not self._checked_store:
            await run_in_executor(None, self._check_store)
        if self.retriever is not None:
            found = await self.retriever.ainvoke(query, {"callbacks": callbacks}, **self._fetch_arguments)
        elif self.vector_store is not None:
            try:
                found = _scored(await self.vector_store.asimilarity_search_with_score(query, **self._fetch_arguments))
            except NotImplementedError:
                found = await self.vector_store.asimilarity_search(query, **self._fetch_arguments)
        return await reranker.acompress_documents(_distinct(found), query, callbacks)

    @property
    def _store(self) -> VectorStore | None:
        """The store behind either source, where there is one."""
        return self.retriever.vectorstore if isinstance(self.retriever, VectorStoreRetriever) else self.vector_store

    @property
    def _fetch_arguments(self) -> dict[str, Any]:
        return {} if self._store is None else {**self.search_kwargs, "k": self.fetch_k}

    def _reranker(self, top_n: int | None) -> BgeRerank:
        """The reranker with the `top_n` of this call."""
        return self.reranker.model_copy(update={"top_n": self._check_top_n(top_n)})

    def _check_top_n(self, top_n: int | None) -> int | None:
        """The call's `top_n`, else this retriever's, else the reranker's."""
        top_n = next((n for n in (top_n, self.top_n, self.reranker.top_n) if n is not None), None)
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n={top_n} asks for nothing. Give 1 or more.")
        if top_n is not None and self._store is not None and self.fetch_k < top_n:
            raise ValueError(
                f"fetch_k={self.fetch_k} is less than top_n={top_n}: the reranker would have too few candidates. "
                "Raise fetch_k (ten times top_n is usual) or lower top_n."
            )
        return top_n

    def _check_store(self) -> None:
        """Refuse a store that another model has filled; once a store, as hashing a model's files takes time."""
        store = self._store
        embedder = getattr(store.embeddings, "embedder", None) if store is not None else None
        if isinstance(embedder, BgeEmbedder) and read_fingerprint(store) is not None:
            check_fingerprint(store, embedder.fingerprint)
        self._checked_store = store


def _scored(found: Iterable[tuple[Document, float]]) -> list[Document]:
    return [with_metadata(document, retrieval_score=float(score)) for document, score in found]


def _distinct(documents: Iterable[Document]) -> list[Document]:
    """The first of each document."""
    firsts: dict[tuple[object, ...], Document] = {}
    for document in documents:
        source = repr(document.metadata.get("source"))
        firsts.setdefault((document.page_content, source) if document.id is None else (document.id,), document)
    return list(firsts.values())
