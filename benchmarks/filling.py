"""populate into Chroma on disk, beside what its two halves take alone."""

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from benchmarks.harness import Measure, measure
from benchmarks.models import SHAPES, make_embedder
from benchmarks.texts import Texts
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.populate import populate

COUNT, BATCH, DIM = 6_000, 512, 384
CORES = os.cpu_count() or 1


class AtAFixedRate(Embeddings):
    """Vectors computed beforehand, given out at so many texts a second, whoever else wants the cores."""

    def __init__(self, rate: float) -> None:
        self._seconds = 1 / rate
        self._vectors = np.random.default_rng(0).standard_normal((BATCH, DIM), dtype=np.float32)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors, when it is time."""
        time.sleep(len(texts) * self._seconds)
        return self._vectors[: len(texts)].tolist()

    def embed_query(self, text: str) -> list[float]:
        """A vector."""
        return self.embed_documents([text])[0]


def measure_filling(folder: Path, texts: Texts, repetitions: int) -> list[Measure]:
    """How long a run takes against the longest of: embedding alone, writing alone, all their work on all cores."""
    small = BgeEmbeddings(model=str(make_embedder(folder / "filling", SHAPES["small"])), on_truncate="ignore")
    jobs: dict[str, tuple[Embeddings, int]] = {
        f"vectors at {rate:,} texts/s": (AtAFixedRate(rate), COUNT) for rate in (500, 1_500, 4_000)
    } | {"bge-small's shape": (small, COUNT // 4)}
    measures = []
    for name, (embeddings, count) in jobs.items():
        documents = [Document(f"{n}: {text}") for n, text in enumerate(texts.of_words(count, 40))]
        populate(_store(embeddings), documents[:BATCH])
        ratios = [_ratio(embeddings, documents) for _ in range(repetitions)]
        measures.append(
            measure(f"populate into Chroma, {name}: of the longest part alone (< 1.15)", "times as long", ratios)
        )
    return measures


def _ratio(embeddings: Embeddings, documents: list[Document]) -> float:
    parts = [documents[start : start + BATCH] for start in range(0, len(documents), BATCH)]
    vectors: list[Any] = []

    def embed() -> None:
        vectors.extend(embeddings.embed_documents([document.page_content for document in part]) for part in parts)

    collection = _store(embeddings)._collection  # noqa: SLF001

    def write() -> None:
        for number, (part, rows) in enumerate(zip(parts, vectors, strict=True)):
            ids = [f"{number}-{n}" for n in range(len(part))]
            collection.upsert(ids, embeddings=rows, documents=[document.page_content for document in part])

    embedding, embedding_work = _times(embed)
    writing, writing_work = _times(write)
    store = _store(embeddings)
    whole, _ = _times(lambda: populate(store, documents, show_progress=False))
    return whole / max(embedding, writing, (embedding_work + writing_work) / CORES)


def _times(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds, and those that the cores have worked."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, worked


def _store(embeddings: Embeddings) -> Chroma:
    client = chromadb.PersistentClient(tempfile.mkdtemp())
    return Chroma("filling", embedding_function=embeddings, client=client)
