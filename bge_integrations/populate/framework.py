"""How populate handles a framework's documents: LangChain's here, LlamaIndex's nodes in `nodes.py`."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from bge_integrations.populate.documents import Entry, Held, content_hash, hashable_metadata
from bge_integrations.stores.kinds import HASH_KEY
from bge_integrations.stores.replay import Replay, replaying


class Framework(Protocol):
    """The way in which the documents of one framework are identified, stored and read back.

    Attributes:
        source_keys: Metadata keys that say what a document was taken from; the first one found counts.
    """

    source_keys: tuple[str, ...]

    def arrange(self, documents: Iterable[Any], window: int) -> Iterable[Any]:
        """Return the documents as `identify` takes them, reading at most twice `window` ahead."""

    def identify(self, document: Any, position: int) -> Entry:
        """Read a document into an `Entry`; the document itself is not changed.

        Args:
            document: The document.
            position: Its place in the input, for error messages.

        Raises:
            TypeError: It is not a document, or its metadata cannot be hashed.
            ValueError: It has no text.
        """

    def source_of(self, document: object) -> str | None:
        """Return what a document was taken from; None if that is not known or it is not a document."""

    def row(self, entry: Entry, with_text: bool = False) -> tuple[str, dict[str, Any]]:
        """Return text and metadata as the stores keep them; `with_text` puts the text into the metadata too."""

    def held(self, text: str | None, metadata: Mapping[str, Any]) -> Held:
        """Return a document as the store holds it, from its text and metadata."""

    def add(self, store: Any, entries: list[Entry], vectors: Any) -> list[str]:
        """Insert documents with vectors through the store's own method; return the store's ids for them."""

    def search(self, store: Any, vector: list[float] | None) -> object:
        """Search for the document nearest to a vector or, if it is None, to a text that the store embeds.

        Raises:
            NotImplementedError: The store has no such search.
        """


class LangChain:
    """The documents of LangChain, as populate handles them."""

    source_keys: tuple[str, ...] = ("source",)

    def arrange(self, documents: Iterable[Any], window: int) -> Iterable[Any]:  # noqa: ARG002
        """Return the documents as they are."""
        return documents

    def identify(self, document: Any, position: int) -> Entry:
        """Read a document into an `Entry`; its id is its own, else the hash of its text and metadata.

        A document that a search returned has that hash as its id.
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
        """Return the metadata's `source`; None if it is not a string."""
        return source_in(getattr(document, "metadata", None), self.source_keys)

    def row(self, entry: Entry, with_text: bool = False) -> tuple[str, dict[str, Any]]:  # noqa: ARG002
        """Return the text and the metadata."""
        return entry.text, dict(entry.document.metadata)

    def held(self, text: str | None, metadata: Mapping[str, Any]) -> Held:
        """Return a stored document as `Held`."""
        return Held(text, metadata)

    def add(self, store: Any, entries: list[Entry], vectors: Any) -> list[str]:
        """Insert documents and return the store's ids for them; if `vectors` is None, the store embeds them."""
        ids, documents = [entry.id for entry in entries], [entry.document for entry in entries]
        if vectors is None:
            return list(store.add_documents(documents, ids=ids))
        with replaying(store, Replay([entry.text for entry in entries], vectors)) as copy:
            return list(copy.add_documents(documents, ids=ids))

    def search(self, store: Any, vector: list[float] | None) -> object:
        """Search for the document nearest to a vector or, if it is None, to a text that the store embeds."""
        if vector is None:
            return store.similarity_search(PLAIN_TEXT, k=1)
        if callable(getattr(store, "similarity_search_by_vector", None)):
            return store.similarity_search_by_vector(vector, k=1)
        return store.query(query_embeddings=[vector], n_results=1)  # a Chroma collection


PLAIN_TEXT = "text"
"""A text that any model can embed."""


def without_text(position: int, document_id: str | None) -> ValueError:
    """Return the error for a document that has no text."""
    return ValueError(
        f'Document {position}, id {document_id}, has no text. Leave it out, or pass on_error="collect" to have it '
        "reported."
    )


def source_in(metadata: object, keys: tuple[str, ...]) -> str | None:
    """Return what a document was taken from, by the first of `keys` in its metadata; None if there is none."""
    if not isinstance(metadata, Mapping):
        return None
    return next((metadata[key] for key in keys if isinstance(metadata.get(key), str)), None)


def unhashable(position: int, error: TypeError) -> TypeError:
    """Return the error for metadata that cannot be hashed."""
    return TypeError(
        f"The metadata of document {position} cannot be hashed ({error}); "
        "use strings, numbers, booleans, lists and dicts of them."
    )
