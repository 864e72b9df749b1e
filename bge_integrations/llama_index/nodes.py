"""Helpers for found nodes: duplicates, copies, and scores, which belong to the query and leave a node the same."""

from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

from llama_index.core.schema import BaseNode, ImageNode, IndexNode, MetadataMode, NodeWithScore

from bge_integrations.stores.fusion import Identity, without_duplicates

RETRIEVAL_SCORE = "retrieval_score"
_HIDING = ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys")


def distinct(found: list[NodeWithScore]) -> list[NodeWithScore]:
    """Return the first of each group of nodes with the same id, or with the same text and source."""
    return without_duplicates(found, lambda hit: _identity(hit.node))


def copied(node: BaseNode) -> BaseNode:
    """Return a copy that shares neither metadata nor lists with the node."""
    return node.model_copy(
        update={
            "metadata": deepcopy(node.metadata),
            "relationships": dict(node.relationships),
            **{name: list(getattr(node, name)) for name in _HIDING},
        }
    )


def with_retrieval_score(node: BaseNode, score: float) -> BaseNode:
    """Return a copy with the score in its metadata, hidden from embedding models and LLMs, and with the same `hash`.

    The first score stays, as a later reranking is given the score of an earlier one. A key of that name that the node
    does not hide was not set here, and stays too.
    """
    copy = copied(node)
    is_scored = isinstance(copy, _Scored)  # a plain node that hides the key was stored after an earlier search
    if RETRIEVAL_SCORE in copy.metadata and (is_scored or RETRIEVAL_SCORE not in copy.excluded_embed_metadata_keys):
        return copy
    copy.metadata[RETRIEVAL_SCORE] = float(score)
    for name in _HIDING:
        if RETRIEVAL_SCORE not in getattr(copy, name):
            getattr(copy, name).append(RETRIEVAL_SCORE)
    if not is_scored:
        object.__setattr__(copy, "__class__", _scored(type(node)))
    return copy


def _identity(node: BaseNode) -> Identity:
    """Return what tells nodes apart; image and index nodes, which are more than their text, count by id alone."""
    text = "" if isinstance(node, IndexNode | ImageNode) else node.get_content(metadata_mode=MetadataMode.NONE)
    return Identity(node.node_id, text, node.metadata)


class _Scored:
    """A mixin for node classes whose `hash` leaves the score out, as docstores and fusions tell nodes apart by it."""

    __slots__ = ()

    if not TYPE_CHECKING:  # the class that it is mixed into has the other members

        @property
        def hash(self) -> str:
            own = {key: value for key, value in self.metadata.items() if key != RETRIEVAL_SCORE}
            return super(_Scored, self.model_copy(update={"metadata": own})).hash

        def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
            kind = next(base for base in type(self).__bases__ if base is not _Scored)
            return _blank, (kind,), self.__getstate__()


@cache
def _scored(kind: type[BaseNode]) -> type[BaseNode]:
    """Return the subclass for nodes with scores; it keeps the class's name, which stores and dumps go by."""
    names = ("__module__", "__qualname__", "__doc__")
    metaclass: Any = type(kind)
    scored: type[BaseNode] = metaclass(kind.__name__, (_Scored, kind), {name: getattr(kind, name) for name in names})
    return scored


def _blank(kind: type[BaseNode]) -> BaseNode:
    """Return an empty node with a score, for unpickling to fill."""
    scored = _scored(kind)
    return scored.__new__(scored)
