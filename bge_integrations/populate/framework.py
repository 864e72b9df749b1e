"""What the documents of a framework are like: LangChain's here, LlamaIndex's nodes in `nodes.py`."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from bge_integrations.populate.documents import Entry, Held, content_hash, hashable_metadata
from bge_integrations.stores.kinds import HASH_KEY
from bge_integrations.stores.replay import Replay, replaying


class Framework(Protocol):
    """Documents of one framework, and how its stores take them.

    Attributes:
        source_keys: Keys of the metadata that say what a document was taken from, the first of them first.
    """

    source_keys: tuple[str, ...]

    def arrange(self, documents: Iterable[Any], window: int) -> Iterable[Any]:
        """Give the documents as they are to be identified, reading at most `window` ahead."""

    def identify(self, document: Any, position: int) -> Entry:
        """Give a document its identity; the document itself stays as it is.

        Args:
            document: The document.
            position: Its place in the input, for error messages.

        Raises:
            TypeError: Not a document, or metadata that have no stable form.
            ValueError: It has no text.
        """

    def source_of(self, document: object) -> str | None:
        """What a document was taken from, where that is known; of anything else, None."""

    def row(self, entry: Entry, with_text: bool = False) -> tuple[str, dict[str, Any]]:
        """Give text and metadata as the framework's stores keep them; `with_text`, the text in the metadata too."""

    def held(self, text: str | None, metadata: Mapping[str, Any]) -> Held:
        """Give a document of a store back."""

    def add(self, store: Any, entries: list[Entry], vectors: Any) -> list[str]:
        """Insert documents with vectors through the store's own method; return the store's ids of them."""

    def search(self, store: Any, vector: list[float] | None) -> object:
        """Look for what is near to a vector; without one, to a text that the store embeds.

        Raises:
            NotImplementedError: The store has no such method.
        """


class LangChain:
    """LangChain's `Document`s."""

    source_keys: tuple[str, ...] = ("source",)

    def arrange(self, documents: Iterable[Any], window: int) -> Iterable[Any]:  # noqa: ARG002
        """Give the documents."""
        return documents

    def identify(self, document: Any, position: int) -> Entry:
        """Give a document its identity: its own id, else the hash of text and metadata, the source among them.

        A document that a search gave back has that hash as its id.
        """
        text = getattr(document, "page_content", None)
        if not isinstance(text, str):
            raise TypeError(f"Document {position} is {document!r:.80}; it needs a page_content, a str, and metadata.")
        if not text.strip():
            raise without_text(position, document.id)
        try:
            digest = content_hash(text, hashable_metadata(document.metadata))
        except TypeError as error:
            raise unhashable(position, error) from error
        source = self.source_of(document)
        if document.id in (None, digest):
            return Entry(digest, document, text, source, None, position)
        kept = document.model_copy(update={"metadata": {**document.metadata, HASH_KEY: digest}})
        return Entry(document.id, kept, text, source, digest, position)

    def source_of(self, document: object) -> str | None:
        """Give the metadata's `source`, where it is a string."""
        return source_in(getattr(document, "metadata", None), self.source_keys)

    def row(self, entry: Entry, with_text: bool = False) -> tuple[str, dict[str, Any]]:  # noqa: ARG002
        """Give text and metadata."""
        return entry.text, dict(entry.document.metadata)

    def held(self, text: str | None, metadata: Mapping[str, Any]) -> Held:
        """Give a document of a store back."""
        return Held(text, metadata)

    def add(self, store: Any, entries: list[Entry], vectors: Any) -> list[str]:
        """Insert documents; without vectors, the store embeds them."""
        ids, documents = [entry.id for entry in entries], [entry.document for entry in entries]
        if vectors is None:
            return list(store.add_documents(documents, ids=ids))
        with replaying(store, Replay([entry.text for entry in entries], vectors)) as copy:
            return list(copy.add_documents(documents, ids=ids))

    def search(self, store: Any, vector: list[float] | None) -> object:
        """Look for what is near to a vector; without one, to a text that the store embeds."""
        if vector is None:
            return store.similarity_search(PLAIN_TEXT, k=1)
        if callable(getattr(store, "similarity_search_by_vector", None)):
            return store.similarity_search_by_vector(vector, k=1)
        return store.query(query_embeddings=[vector], n_results=1)  # a Chroma collection


PLAIN_TEXT = "text"
"""What any model embeds."""


def without_text(position: int, document_id: str | None) -> ValueError:
    """Name a document that has no text."""
    return ValueError(
        f'Document {position}, id {document_id}, has no text. Leave it out, or pass on_error="collect" to have it '
        "reported."
    )


def source_in(metadata: object, keys: tuple[str, ...]) -> str | None:
    """Read what a document was taken from off its metadata."""
    if not isinstance(metadata, Mapping):
        return None
    return next((metadata[key] for key in keys if isinstance(metadata.get(key), str)), None)


def unhashable(position: int, error: TypeError) -> TypeError:
    """Name metadata that have no stable form."""
    return TypeError(
        f"The metadata of document {position} cannot be hashed ({error}); "
        "use strings, numbers, booleans, lists and dicts of them."
    )
