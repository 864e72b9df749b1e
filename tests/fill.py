"""Fills a store in a process of its own, for tests that kill it."""

from multiprocessing.connection import Connection
from pathlib import Path

COUNT, BATCH = 400, 8


def fill(model: Path, folder: Path, told: Connection) -> None:
    """Fill Chroma on disk; tell after each batch how many documents are done and how many texts were embedded."""
    import chromadb
    import torch
    from langchain_chroma import Chroma
    from langchain_core.documents import Document

    from bge_integrations.langchain import BgeEmbeddings
    from bge_integrations.populate import populate

    torch.set_num_threads(1)
    documents = [
        Document(f"Text number {n} is about pandas.", metadata={"source": f"{n % 7}.md"}) for n in range(COUNT)
    ]
    embeddings = BgeEmbeddings(model=str(model))
    store = Chroma("notes", embedding_function=embeddings, client=chromadb.PersistentClient(str(folder)))
    populate(store, documents, batch_size=BATCH, progress=lambda step: told.send((step.documents, step.texts)))
