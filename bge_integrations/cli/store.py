"""The store of `bge index` and `bge ask`: one Chroma collection in a folder, which remembers its model."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chromadb
import numpy as np
from chromadb.errors import NotFoundError
from numpy.typing import NDArray

from bge_integrations.stores.fusion import Identity, without_duplicates

if TYPE_CHECKING:
    from langchain_chroma import Chroma
    from langchain_core.embeddings import Embeddings

_COLLECTION = "bge"
_MODEL_KEY = "bge_integrations:model"
_PAGE = 5000

Passage = tuple[Identity, float]
"""A stored chunk and its distance to the question."""


def filled_collection(directory: Path) -> chromadb.Collection | None:
    """Return the collection that `bge index` has filled in a folder; None where it has filled nothing there."""
    if not (directory / "chroma.sqlite3").is_file():
        return None
    try:
        collection = chromadb.PersistentClient(str(directory)).get_collection(_COLLECTION, embedding_function=None)
    except NotFoundError:
        return None
    return collection if model_of(collection) else None


def model_of(collection: chromadb.Collection) -> str:
    """Return the model that `bge index` has filled a collection with; "" for any other collection."""
    return str((collection.metadata or {}).get(_MODEL_KEY, ""))


def remembered_model(directory: Path) -> str | None:
    """Return the model that `bge index` has filled a folder with; None where it has filled nothing there."""
    collection = filled_collection(directory)
    return model_of(collection) if collection else None


def nearest(collection: chromadb.Collection, vector: NDArray[np.float32], k: int) -> list[Passage]:
    """Return the chunks nearest to a vector, nearest first, those with the same text of the same file once."""
    include: Any = ["documents", "metadatas", "distances"]
    query: Any = [vector]
    found: Any = collection.query(query_embeddings=query, n_results=k, include=include)
    columns = (found[name][0] for name in ("ids", *include))
    passages = [(Identity(name, text, facts), distance) for name, text, facts, distance in zip(*columns, strict=True)]
    return without_duplicates(passages, lambda passage: passage[0])


def open_store(directory: Path, model: str, embeddings: "Embeddings") -> "Chroma":
    """Open the folder's collection; make it, with cosine distance, if it does not exist.

    Args:
        directory: The folder.
        model: The model that a new collection remembers.
        embeddings: That model's embeddings.
    """
    from langchain_chroma import Chroma

    return Chroma(
        _COLLECTION,
        embedding_function=embeddings,
        client=chromadb.PersistentClient(str(directory)),
        collection_metadata={_MODEL_KEY: model},
        collection_configuration={"hnsw": {"space": "cosine"}},
    )


def delete_gone(store: "Chroma", emptied: Iterable[Path], folders: Iterable[Path]) -> int:
    """Delete the chunks of files that have no text any more or are gone; return the number of chunks deleted.

    Args:
        store: The store.
        emptied: Files that hold no text now.
        folders: The folders, or files, below which to look for stored files that no longer exist.
    """
    without_text, roots = {str(file) for file in emptied}, [folder.resolve() for folder in folders]
    if not without_text and not roots:
        return 0
    held = list(_ids_and_sources(store))
    sources = {source for _, source in held}
    below = (source for source in sources if any(Path(source).is_relative_to(root) for root in roots))
    gone = sources & without_text | {source for source in below if not Path(source).is_file()}
    ids = [chunk_id for chunk_id, source in held if source in gone]
    for start in range(0, len(ids), _PAGE):
        store.delete(ids[start : start + _PAGE])
    return len(ids)


def _ids_and_sources(store: "Chroma") -> Iterator[tuple[str, str]]:
    """Yield the id and the source of each chunk, read in pages: SQLite cannot return those of a large store at once."""
    offset = 0
    while ids := (page := store.get(limit=_PAGE, offset=offset, include=["metadatas"]))["ids"]:
        offset += len(ids)
        yield from ((name, str(held.get("source"))) for name, held in zip(ids, page["metadatas"], strict=True) if held)
