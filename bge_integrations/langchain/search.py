"""How stores and retrievers of LangChain are asked for so many candidates."""

from collections.abc import Iterator, Mapping
from functools import cache
from inspect import signature
from typing import Any

from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.vectorstores import VectorStore

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
