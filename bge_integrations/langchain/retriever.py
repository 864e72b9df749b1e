"""A LangChain retriever that fetches many candidates, reranks them and keeps the best."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun, Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from pydantic import ConfigDict, Field, InstanceOf, PrivateAttr, model_validator

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.langchain.fields import Live
from bge_integrations.langchain.retrieval import distinct, searches, takes_arguments, with_scores
from bge_integrations.stores.fingerprint import check_fingerprint, read_fingerprint

_FETCH_K = 50


class RerankingRetriever(BaseRetriever):
    """A retriever that fetches candidates from a store or another retriever, reranks them and returns the best.

    It returns copies of the documents, best first, with the floats `relevance_score` (the reranker's) and, from a
    `vector_store` that gives scores, `retrieval_score` (the store's own number: a distance or a similarity) in their
    metadata. A copy equals its original, so that a `MultiQueryRetriever` returns each document once. Candidates with
    the same id, or with the same text from the same source, are scored once.

    A call can set its own `top_n`, its own `fetch_k`, and arguments for the store's search, such as a filter.

    The first search of a Chroma collection that another model has filled is refused, if the collection has a
    fingerprint and the store's embeddings are `BgeEmbeddings`.

    Example:
        ```python
        retriever = RerankingRetriever(
            vector_store=store, reranker=BgeRerank(model="BAAI/bge-reranker-v2-m3"), fetch_k=50, top_n=5
        )
        best = retriever.invoke("what is a panda?")
        best = retriever.invoke("what is a panda?", top_n=3, filter={"language": "en"})
        ```

    Raises:
        pydantic.ValidationError: Arguments cannot be combined; the message says which.
        ValueError: At a call, `top_n` is under 1 or over `fetch_k`, or arguments would not reach the search.
        FingerprintMismatchError: At the first search, another model filled the store.
    """

    vector_store: Annotated[VectorStore | None, Live()] = None
    """The store that candidates come from; None if `retriever` is given."""
    retriever: Annotated[RetrieverLike | None, Live()] = None
    """The retriever that candidates come from; None if `vector_store` is given."""
    reranker: Annotated[InstanceOf[BaseDocumentCompressor], Live()]
    """The reranker of the candidates: a `BgeRerank`, a `BgeM3Rerank` or any other document compressor."""
    fetch_k: int | None = Field(default=None, ge=1)
    """Candidates to fetch; None = the `k` of a `VectorStoreRetriever` that has one in its `search_kwargs`, else 50.
    Any other `retriever` decides that itself, so leave `fetch_k` out."""
    top_n: int | None = Field(default=None, ge=1)
    """Number of documents to return; None = the reranker's own `top_n`, or all that a reranker without one returns."""
    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More arguments for the store's search, such as `filter`. Some stores have a `fetch_k` of their own: how many
    documents they look at before they filter. If you leave it out, it is chosen so that enough are found."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    _checked_store: VectorStore | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_arguments(self) -> Self:
        if (self.vector_store is None) == (self.retriever is None):
            raise ValueError("Give exactly one of vector_store= and retriever=.")
        self._plan(None, None, {})
        return self

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        top_n: int | None = None,
        fetch_k: int | None = None,
        **search_kwargs: Any,
    ) -> list[Document]:
        top_n, plan = self._plan(top_n, fetch_k, search_kwargs)
        if self._store is not self._checked_store:
            self._check_store()
        callbacks = run_manager.get_child()
        found: list[Document] = []
        for arguments in plan:
            found = self._search(query, arguments, callbacks)
            if len(found) >= arguments.get("k", 0):
                break
        if not found:
            return []
        return _best(self._reranker(top_n).compress_documents(distinct(found), query, callbacks), top_n)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        top_n: int | None = None,
        fetch_k: int | None = None,
        **search_kwargs: Any,
    ) -> list[Document]:
        top_n, plan = self._plan(top_n, fetch_k, search_kwargs)
        if self._store is not self._checked_store:
            await run_in_executor(None, self._check_store)
        callbacks = run_manager.get_child()
        found: list[Document] = []
        for arguments in plan:
            found = await self._asearch(query, arguments, callbacks)
            if len(found) >= arguments.get("k", 0):
                break
        if not found:
            return []
        return _best(await self._reranker(top_n).acompress_documents(distinct(found), query, callbacks), top_n)

    def _search(self, query: str, arguments: dict[str, Any], callbacks: Callbacks) -> list[Document]:
        if self.retriever is not None:
            return self.retriever.invoke(query, {"callbacks": callbacks}, **arguments)
        store: Any = self.vector_store
        try:
            return _scored(store.similarity_search_with_score(query, **arguments))
        except NotImplementedError:
            return list(store.similarity_search(query, **arguments))

    async def _asearch(self, query: str, arguments: dict[str, Any], callbacks: Callbacks) -> list[Document]:
        if self.retriever is not None:
            return await self.retriever.ainvoke(query, {"callbacks": callbacks}, **arguments)
        store: Any = self.vector_store
        try:
            return _scored(await store.asimilarity_search_with_score(query, **arguments))
        except NotImplementedError:
            return list(await store.asimilarity_search(query, **arguments))

    @property
    def _store(self) -> VectorStore | None:
        """The vector store behind `vector_store` or `retriever`; None if there is none."""
        return self.retriever.vectorstore if isinstance(self.retriever, VectorStoreRetriever) else self.vector_store

    def _plan(
        self, top_n: int | None, fetch_k: int | None, search_kwargs: dict[str, Any]
    ) -> tuple[int | None, Iterator[dict[str, Any]]]:
        """Return the call's `top_n`, and the arguments of the searches to run until one finds enough."""
        search_kwargs = {**self.search_kwargs, **search_kwargs}
        fetch_k = self.fetch_k if fetch_k is None else fetch_k
        asked = self.top_n if top_n is None else top_n
        top_n = getattr(self.reranker, "top_n", None) if asked is None else asked
        if top_n is not None and top_n < 1:
            raise ValueError(f"top_n={top_n} must be 1 or more.")
        if "k" in search_kwargs:
            raise ValueError("k= is no argument here. Give fetch_k= for the candidates, or top_n= for the results.")
        store = self._store
        if store is None:
            self._check_handed_on(fetch_k, search_kwargs)
            return top_n, iter([search_kwargs])
        inner = self.retriever if isinstance(self.retriever, VectorStoreRetriever) else None
        own = inner.search_kwargs if inner else {}
        if fetch_k is None and "k" in own:
            k = own["k"]
            _check_enough("The retriever's own k", k, asked)
        else:
            k = _FETCH_K if fetch_k is None else fetch_k
            _check_enough("fetch_k", k, top_n)
        mmr = inner is not None and inner.search_type == "mmr"
        return top_n, searches(store, k, {**own, **search_kwargs}, mmr=mmr)

    def _check_handed_on(self, fetch_k: int | None, search_kwargs: dict[str, Any]) -> None:
        """Refuse arguments that a retriever without a store would silently ignore."""
        lost = [] if fetch_k is None else [f"fetch_k={fetch_k}"]
        lost += [] if takes_arguments(self.retriever) else [f"search_kwargs {name}=" for name in search_kwargs]
        if lost:
            raise ValueError(
                f"{', '.join(lost)} cannot be handed on to {type(self.retriever).__name__}, which decides itself what "
                "it fetches. Set that on the retriever, or give its store as vector_store=."
            )

    def _reranker(self, top_n: int | None) -> BaseDocumentCompressor:
        """Return the reranker, with the `top_n` of this call if it has that field."""
        has_one = "top_n" in type(self.reranker).model_fields
        return self.reranker.model_copy(update={"top_n": top_n}) if has_one else self.reranker

    def _check_store(self) -> None:
        """Refuse a store that another model filled; checked once per store, as hashing a model's files takes time."""
        store = self._store
        embedder = getattr(store.embeddings, "embedder", None) if store is not None else None
        if isinstance(embedder, BgeEmbedder) and read_fingerprint(store) is not None:
            check_fingerprint(store, embedder.fingerprint)
        self._checked_store = store


def _check_enough(name: str, candidates: int, top_n: int | None) -> None:
    if candidates < (top_n or 1):
        raise ValueError(
            f"{name}={candidates} is less than top_n={top_n or 1}: the reranker would have too few candidates. "
            "Fetch more (ten times top_n is usual) or lower top_n."
        )


def _scored(found: Iterable[tuple[Document, float]]) -> list[Document]:
    return [with_scores(document, retrieval_score=float(score)) for document, score in found]


def _best(documents: Sequence[Document], top_n: int | None) -> list[Document]:
    """Return copies of the first `top_n` documents that equal their originals, whatever their scores.

    Compressors of other packages may return more documents, and copies whose scores make them unequal.
    """
    return [with_scores(document) for document in documents[:top_n]]
