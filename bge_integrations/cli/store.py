"""The store of `bge index` and `bge ask`: one Chroma collection in a folder, which remembers its model."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import chromadb
from chromadb.errors import NotFoundError
from langchain_chroma import Chroma
from langchain_core.embeddings import Embeddings

_COLLECTION = "bge"
_MODEL_KEY = "bge_integrations:model"
_PAGE = 5000


def remembered_model(directory: Path) -> str | None:
    """Return the model with which `bge index` filled a folder; None where it has filled nothing there."""
    if not (directory / "chroma.sqlite3").is_file():
        return None
    try:
        collection = chromadb.PersistentClient(str(directory)).get_collection(_COLLECTION)
    except NotFoundError:
        return None
    model = (collection.metadata or {}).get(_MODEL_KEY)
    return model if isinstance(model, str) else None


def open_store(directory: Path, model: str, embeddings: Embeddings) -> Chroma:
    """Open the folder's collection; make it, with cosine distance, if it does not exist.

    Args:
        directory: The folder.
        model: The model that a new collection remembers.
        embeddings: That model's embeddings.
    """
    return Chroma(
        _COLLECTION,
        embedding_function=embeddings,
        client=chromadb.PersistentClient(str(directory)),
        collection_metadata={_MODEL_KEY: model},
        collection_configuration={"hnsw": {"space": "cosine"}},
    )


def delete_gone(store: Chroma, emptied: Iterable[Path], folders: Iterable[Path]) -> int:
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


def _ids_and_sources(store: Chroma) -> Iterator[tuple[str, str]]:
    """Yield the id and the source of each chunk, read in pages: SQLite cannot return those of a large store at once."""
    offset = 0
    while ids := (page := store.get(limit=_PAGE, offset=offset, include=["metadatas"]))["ids"]:
        offset += len(ids)
        yield from ((name, str(held.get("source"))) for name, held in zip(ids, page["metadatas"], strict=True) if held)
