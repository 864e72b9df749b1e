"""Fills a store that keeps populate waiting in one way or another, and says on stdout when it waits."""

import asyncio
import signal
import sys
import time
from threading import Event

from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore

from bge_integrations.populate import apopulate, populate

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
KIND = sys.argv[1]
DOCUMENTS = [Document(f"text {n}") for n in range(40)]


def wait() -> None:
    """As a call into a library that no signal reaches."""
    print("waiting", flush=True)
    Event().wait(60)


class Embeddings(DeterministicFakeEmbedding):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        if KIND == "embedder":
            wait()
        if KIND == "forwards":
            import torch

            matrix = torch.ones(1000, 1000)
            print("waiting", flush=True)
            while True:  # the interpreter aborts if it ends within one
                torch.mm(matrix, matrix)
        return super().embed_documents(texts)


class Store(InMemoryVectorStore):
    def add_documents(self, *arguments: object, **keywords: object) -> list[str]:
        if KIND == "call":
            wait()
        if KIND in ("away", "terminated", "task"):
            print("waiting", flush=True)
            raise ConnectionError("away")
        return super().add_documents(*arguments, **keywords)

    def get_by_ids(self, ids: list[str], /) -> list[Document]:
        if KIND == "look-up":
            print("waiting", flush=True)
            raise ConnectionError("away")
        return super().get_by_ids(ids)


async def documents():
    for document in DOCUMENTS:
        yield document
    if KIND == "source":
        print("waiting", flush=True)
        await asyncio.sleep(60)


if KIND == "terminated":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
store = Store(Embeddings(size=4))
try:
    if KIND in ("task", "source"):
        asyncio.run(apopulate(store, documents(), batch_size=5, show_progress=False))
    else:
        populate(store, DOCUMENTS, batch_size=5, show_progress=False)
except BaseException as error:
    print(type(error).__name__, time.monotonic(), flush=True)
    raise
