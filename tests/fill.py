"""Fills a store in a process of its own, for tests that kill it."""

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

COUNT, BATCH = 400, 8


def fill(kind: str, model: Path, folder: Path, told: Connection) -> None:
    """Fill a store on disk; tell after each batch how many documents are done and how many texts were embedded."""
    import torch
    from langchain_core.documents import Document

    from bge_integrations.populate import populate

    torch.set_num_threads(1)
    documents = [
        Document(f"Text number {n} is about pandas.", metadata={"source": f"{n % 7}.md"}) for n in range(COUNT)
    ]
    store = open_store(kind, model, folder)
    populate(store, documents, batch_size=BATCH, progress=lambda step: told.send((step.documents, step.texts)))


def open_store(kind: str, model: Path, folder: Path) -> Any:
    """One of LangChain's stores over a folder."""
    from bge_integrations.langchain import BgeEmbeddings

    embeddings = BgeEmbeddings(model=str(model))
    if kind == "chroma":
        from langchain_chroma import Chroma

        return Chroma("notes", embedding_function=embeddings, persist_directory=str(folder))
    if kind == "lancedb":
        import lancedb
        from langchain_community.vectorstores import LanceDB

        return LanceDB(connection=lancedb.connect(str(folder)), embedding=embeddings)
    from langchain_qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder))
    if not client.collection_exists("notes"):
        size = models.VectorParams(size=embeddings.embedder.dim, distance=models.Distance.COSINE)
        client.create_collection("notes", vectors_config=size)
    return QdrantVectorStore(client, "notes", embedding=embeddings)


def stored_texts(kind: str, store: Any) -> list[str]:
    """All texts of a store, read past this package."""
    if kind == "chroma":
        return list(store.get()["documents"])
    if kind == "lancedb":
        return list(store.get_table().to_arrow()["text"].to_pylist())
    points, _ = store.client.scroll("notes", limit=10 * COUNT)
    return [point.payload["page_content"] for point in points]
