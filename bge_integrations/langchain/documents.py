"""LangChain's documents: copies with scores that stay the same document, and which of several are one."""

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document

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
