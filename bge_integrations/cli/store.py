"""The store of `bge index` and `bge ask`: one Chroma collection in a folder, which remembers its model."""

from pathlib import Path

import chromadb
from chromadb.errors import NotFoundError
from langchain_chroma import Chroma
from langchain_core.embeddings import Embeddings

_COLLECTION = "bge"
_MODEL_KEY = "bge_integrations:model"


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
