"""What a document is: the id under which a store keeps it, and the hash that tells whether it has changed."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bge_integrations.stores.kinds import HASH_KEY, SCORE_KEYS

_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One document or node on its way into a store.

    Attributes:
        id: Its own id, else one made of its content.
        document: A copy to store; its metadata may keep the content hash.
        text: What the model reads.
        source: What it was taken from; None where that is not known.
        content_hash: The hash to compare with the stored one; None where the id is the hash.
        position: Its place in the input.
    """

    id: str
    document: Any
    text: str
    source: str | None
    content_hash: str | None
    position: int


def storable(entry: Entry) -> Entry:
    """Give a document back whose id and source can be kept anywhere.

    Raises:
        ValueError: One of them is not valid Unicode.
    """
    for name, value in (("id", entry.id), ("source", entry.source or "")):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"The {name} of document {entry.position}, {value!r:.80}, is not valid Unicode."
            ) from error
    return entry


@dataclass(frozen=True, slots=True)
class Held:
    """A document as a store holds it; its text is None where the store does not tell."""

    text: str | None
    metadata: Mapping[str, Any]


def content_hash(*content: object) -> str:
    """Hash what JSON knows: the same on every run and machine.

    Returns:
        64 hexadecimal digits.

    Raises:
        TypeError: There is something that JSON does not know.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hashable_metadata(metadata: Mapping[Any, Any]) -> dict[Any, Any]:
    """Leave out what is no part of the document: the hash that was kept before, and the scores of a search."""
    return {key: value for key, value in metadata.items() if key != HASH_KEY and key not in SCORE_KEYS}


def is_ours(document_id: str, metadata: Mapping[str, Any]) -> bool:
    """Whether populate has put a document into a store."""
    return bool(metadata.get(HASH_KEY)) or _DIGEST.fullmatch(document_id) is not None
