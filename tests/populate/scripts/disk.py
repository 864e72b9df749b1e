"""Fills Chroma on a disk of its own kind with so many documents and says how it went: `disk.py MODEL FOLDER COUNT`."""

import sys

import chromadb
from langchain_chroma import Chroma
from langchain_core.documents import Document

from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.populate import populate

model, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
documents = [Document(f"Text number {n} is about pandas. " * 40, metadata={"n": n}) for n in range(count)]
try:
    embeddings = BgeEmbeddings(model=model, on_truncate="ignore")
    store = Chroma("notes", embedding_function=embeddings, client=chromadb.PersistentClient(folder))
    held = len(store.get()["ids"])
    report = populate(store, documents, batch_size=20)
except Exception as error:
    print("failed", type(error).__name__, " ".join(getattr(error, "__notes__", [])).replace("\n", " "))
else:
    assert (report.added, report.skipped) == (count - held, held), (report, held)
    kept = store.get(include=["documents", "embeddings"])
    assert sorted(kept["documents"]) == sorted(document.page_content for document in documents)
    assert len(kept["embeddings"]) == count
    print("whole", held < count)
