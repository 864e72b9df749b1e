"""What a document is: the id under which a store keeps it, and the hash that tells whether it has changed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from bge_integrations.embed.collection import HASH_KEY


class Document(Protocol):
    """What is read of a LangChain `Document`."""

    @property
    def id(self) -> str | None:
        """The caller's own id."""

    @property
    def page_content(self) -> str:
        """The text."""

    @property
    def metadata(self) -> Mapping[Any, Any]:
        """Whatever else is known of it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One document on its way into a store.

    Attributes:
        id: The document's own id, else the hash of its content.
        document: A copy to store; with an id of its own its metadata keep the content hash.
        content_hash: The hash to compare with the stored one; None where the id is the hash.
        position: Its place in the input.
    """

    id: str
    document: Any
    content_hash: str | None
    position: int


def identify(document: Any, position: int) -> Entry:
    """Give a document its identity; the document itself stays as it is.

    Args:
        document: A LangChain `Document`.
        position: Its place in the input, for error messages.

    Raises:
        TypeError: Not a document, or metadata that have no stable form (give the document an id then).
    """
    if not isinstance(getattr(document, "page_content", None), str):
        raise TypeError(f"Document {position} is {document!r:.80}; it needs a page_content, a str, and metadata.")
    try:
        digest = content_hash(document)
    except TypeError as error:
        raise TypeError(
            f"The metadata of document {position} cannot be hashed ({error}); "
            "use strings, numbers, booleans, lists and dicts of them."
        ) from error
    if document.id is None:
        return Entry(digest, document, None, position)
    metadata = {**document.metadata, HASH_KEY: digest}
    return Entry(document.id, document.model_copy(update={"metadata": metadata}), digest, position)


def source_of(document: object) -> str | None:
    """The document's `source` among its metadata, where it has one that is a string."""
    metadata = getattr(document, "metadata", None)
    source = metadata.get("source") if isinstance(metadata, Mapping) else None
    return source if isinstance(source, str) else None


def content_hash(document: Document) -> str:
    """Hash text and metadata (the source among them, not a hash kept before): the same on every run and machine.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: Metadata hold something that JSON does not know.
    """
    metadata = {key: value for key, value in document.metadata.items() if key != HASH_KEY}
    content = json.dumps([document.page_content, metadata], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
