"""Helpers that LangChain's retrievers and rerankers share: scores in metadata, duplicates, arguments of searches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any

from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.vectorstores import VectorStore

from bge_integrations.stores.fusion import Identity, without_duplicates
from bge_integrations.stores.kinds import SCORE_KEYS

_LOOKED_AT = 5
"""How many documents a store looks at for each that it returns; LangChain's own defaults are 20 and 4."""
_WIDER = 10
"""How many times more documents the next search looks at."""


class ScoredMetadata(dict[str, Any]):
    """Metadata that equals other metadata if all but the scores is equal.

    A score belongs to a query, not to the document. LangChain compares documents by all of their metadata, so with
    plain dicts `MultiQueryRetriever` would return a document once for each query that found it.
    """

    def __eq__(self, other: object) -> bool:
        return _without_scores(self) == (_without_scores(other) if isinstance(other, dict) else other)

    def __ne__(self, other: object) -> bool:  # dict has its own
        return not self == other

    __hash__ = None  # like every dict


def with_scores(document: Document, **scores: float) -> Document:
    """Return a copy of `document` with scores in its metadata, under names that are in `SCORE_KEYS`."""
    return document.model_copy(update={"metadata": ScoredMetadata(document.metadata, **scores)})


def distinct(documents: Iterable[Document]) -> list[Document]:
    """Return the first of each group of documents that `without_duplicates` counts as the same."""
    return without_duplicates(documents, identity_of)


def identity_of(document: Document) -> Identity:
    """Return what decides whether two documents are the same: id, text and metadata."""
    return Identity(document.id, document.page_content, document.metadata)


def texts_of(documents: Sequence[Document]) -> list[str]:
    """Return the texts that a model reads, one per document."""
    return [document.page_content for document in documents]


def _without_scores(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in SCORE_KEYS}


def searches(store: VectorStore, k: int, given: Mapping[str, Any], *, mmr: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the arguments of one search after another, each wider, for a caller that stops once it has `k` documents.

    Some stores, and every store with maximal marginal relevance, take a `fetch_k`: how many of the nearest documents
    they look at, 20 by default. It has to be more than `k`. FAISS filters only these, so that a filter which matches
    few documents of the store may find none until `fetch_k` covers the whole store.

    Args:
        store: Where to search.
        k: Documents to find.
        given: More arguments for the search. A `fetch_k` among them is the store's own, and is left as it is.
        mmr: Whether the search is by maximal marginal relevance.
    """
    arguments = {**given, "k": k}
    if "fetch_k" in given or not (mmr or _takes_fetch_k(type(store))):
        yield arguments
        return
    looked_at = k * _LOOKED_AT
    yield {**arguments, "fetch_k": looked_at}
    held = len(getattr(store, "index_to_docstore_id", ())) if given.get("filter") is not None else 0
    while looked_at < held:
        looked_at = min(looked_at * _WIDER, held)
        yield {**arguments, "fetch_k": looked_at}


def takes_arguments(retriever: object) -> bool:
    """Return whether arguments of a call, such as a filter, reach this retriever; others silently ignore them."""
    while isinstance(retriever, RunnableBindingBase):
        retriever = retriever.bound
    if isinstance(retriever, BaseRetriever):
        return retriever._expects_other_args  # noqa: SLF001  it decides what invoke hands on
    return isinstance(retriever, RunnableLambda)  # it hands on everything


@cache
def _takes_fetch_k(store: type[VectorStore]) -> bool:
    return "fetch_k" in signature(store.similarity_search).parameters
