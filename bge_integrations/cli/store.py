"""The store of `bge index` and `bge ask`: one Chroma collection in a folder, which remembers its model."""

from collections.abc import Iterable
from pathlib import Path

import chromadb
from chromadb.errors import NotFoundError
from langchain_chroma import Chroma
from langchain_core.embeddings import Embeddings

_COLLECTION = "bge"
_MODEL_KEY = "bge_integrations:model"
_PAGE = 1000


def remembered_model(directory: Path) -> str | None:
    """Return the model with which `bge index` filled a folder, or None where it has filled nothing there."""
    if not (directory / "chroma.sqlite3").is_file():
        return None
    try:
        collection = chromadb.PersistentClient(str(directory)).get_collection(_COLLECTION)
    except NotFoundError:
        return None
    model = (collection.metadata or {}).get(_MODEL_KEY)
    return model if isinstance(model, str) else None


def open_store(directory: Path, model: str, embeddings: Embeddings) -> Chroma:
    """Open the folder's collection, made with cosine distance if it is not there.

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


def gone_sources(store: Chroma, emptied: Iterable[Path], folders: Iterable[Path]) -> set[str]:
    """Return the sources in a store of which there is no text any more.

    Args:
        store: The store.
        emptied: Files that hold no text now.
        folders: Where to look for files that are not there any more.
    """
    without_text, roots = {str(file) for file in emptied}, [folder.resolve() for folder in folders]
    if not without_text and not roots:
        return set()
    held = {str(metadata["source"]) for metadata in store.get(include=["metadatas"])["metadatas"] if metadata}
    missing = (source for source in held if any(Path(source).is_relative_to(root) for root in roots))
    return held & without_text | {source for source in missing if not Path(source).is_file()}


def delete_sources(store: Chroma, sources: Iterable[str]) -> int:
    """Delete the chunks of sources; return how many they were."""
    deleted = 0
    for source in sources:
        ids = store.get(where={"source": source}, include=[])["ids"]
        for start in range(0, len(ids), _PAGE):
            store.delete(ids[start : start + _PAGE])
        deleted += len(ids)
    return deleted
