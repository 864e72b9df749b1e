"""LangChain's documents: copies with scores that stay the same document, and which of several are one."""

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


class ScoredMetadata(dict[str, Any]):
    """Metadata that equals other metadata when all but the scores is equal.

    A score belongs to a query, not to the document. LangChain compares documents by all of their metadata, so with
    plain dicts `MultiQueryRetriever` would give a document once for each query that found it.
    """

    def __eq__(self, other: object) -> bool:
        return _without_scores(self) == (_without_scores(other) if isinstance(other, dict) else other)

    def __ne__(self, other: object) -> bool:  # dict has its own
        return not self == other

    __hash__ = None  # like every dict


def with_scores(document: Document, **scores: float) -> Document:
    """A copy of `document` with scores in its metadata, by names that are in `SCORE_KEYS`."""
    return document.model_copy(update={"metadata": ScoredMetadata(document.metadata, **scores)})


def distinct(documents: Iterable[Document]) -> list[Document]:
    """The first of each document; `without_duplicates` says which are the same."""
    return without_duplicates(documents, identity_of)


def identity_of(document: Document) -> Identity:
    """What says whether two documents are the same."""
    return Identity(document.id, document.page_content, document.metadata)


def texts_of(documents: Sequence[Document]) -> list[str]:
    """What a model reads of documents."""
    return [document.page_content for document in documents]


def _without_scores(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key not in SCORE_KEYS}


_LOOKED_AT = 5
"""Documents that a store looks at for each that it gives: LangChain's own defaults are 20 and 4."""

_WIDER = 10
"""How many times more the next search looks at."""


def searches(store: VectorStore, k: int, given: Mapping[str, Any], *, mmr: bool = False) -> Iterator[dict[str, Any]]:
    """The arguments for one search after the other, each wider, until one gives `k` documents.

    Some stores, and every store with maximal marginal relevance, take a `fetch_k`: how many of the nearest they look
    at, 20 unless told. It has to be more than `k`. And FAISS filters only these, so that a filter finds nothing in a
    store of which it matches a small part, until `fetch_k` is the whole store.

    Args:
        store: Where to search.
        k: Documents to find.
        given: More arguments for the search. A `fetch_k` among them is the store's, and is left as it is.
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
    """Whether arguments of a call, such as a filter, reach this retriever; others would leave them out in silence."""
    while isinstance(retriever, RunnableBindingBase):
        retriever = retriever.bound
    if isinstance(retriever, BaseRetriever):
        return retriever._expects_other_args  # noqa: SLF001  it decides what invoke hands on
    return isinstance(retriever, RunnableLambda)  # which hands on everything


@cache
def _takes_fetch_k(store: type[VectorStore]) -> bool:
    return "fetch_k" in signature(store.similarity_search).parameters
