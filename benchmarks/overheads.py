"""What the package adds to the models' own work, and how it grows."""

import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from benchmarks.harness import Measure, measure
from benchmarks.models import SHAPES, make_embedder
from benchmarks.texts import Texts
from bge_integrations import BgeEmbedder
from bge_integrations.langchain import BgeEmbeddings

SIZES = (1_000, 10_000, 100_000)


def measure_overheads(folder: Path, texts: Texts, repetitions: int) -> list[Measure]:
    """Absolute figures; what each should stay under stands in its name."""
    model = str(make_embedder(folder / "overheads", SHAPES["small"]))
    return [
        measure("import bge_integrations beyond numpy's import (< 50)", "ms", import_times(repetitions)),
        measure("a second object and its first call, beyond the same call of the first (< 5)", "ms",
                second_object_times(model, 8 * repetitions)),
        measure("lists for LangChain, part of embed_documents (< 5)", "%", list_shares(model, texts, repetitions)),
        *growth(str(make_embedder(folder / "growth", SHAPES["tiny"])), texts),
    ]  # fmt: skip


def import_times(repetitions: int) -> list[float]:
    """Milliseconds that a new interpreter takes longer."""

    def seconds(module: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return time.perf_counter() - started

    pairs = [(seconds("bge_integrations"), seconds("numpy")) for _ in range(repetitions + 1)]
    return [1e3 * (ours - numpy) for ours, numpy in pairs[1:]]


def second_object_times(model: str, repetitions: int) -> list[float]:
    """Milliseconds, the median of eight pairs a repetition: a forward's own time drifts by more."""
    first = BgeEmbedder(model)
    first.encode_queries(["warm up"] * 8)

    def seconds(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    extra = []
    for _ in range(repetitions):
        alone = seconds(lambda: first.encode_queries(["what is a panda?"]))
        extra.append(1e3 * (seconds(lambda: BgeEmbedder(model).encode_queries(["what is a panda?"])) - alone))
    return [statistics.median(extra[start : start + 8]) for start in range(0, repetitions, 8)]


def list_shares(model: str, texts: Texts, repetitions: int) -> list[float]:
    """Percent of a document batch that goes into builtin lists."""
    embedder, documents = BgeEmbeddings(model=model, on_truncate="ignore"), texts.mixed(96)
    vectors = BgeEmbedder(model, on_truncate="ignore").encode_documents(documents)
    shares = []
    for _ in range(repetitions):
        started = time.perf_counter()
        embedder.embed_documents(documents)
        whole = time.perf_counter() - started
        started = time.perf_counter()
        vectors.tolist()
        shares.append(100 * (time.perf_counter() - started) / whole)
    return shares


def growth(model: str, texts: Texts) -> list[Measure]:
    """Texts a second and peak memory of `iter_documents` over a generator, in three parts of each size.

    The model is so small that most of the time is the package's own.
    """
    embedder = BgeEmbedder(model, on_truncate="ignore")
    process, pieces = psutil.Process(), texts.of_words(2_000, 24)
    for _ in embedder.iter_documents(pieces):
        pass
    measures = []
    for size in SIZES:
        gc.collect()
        before, rates, memory = process.memory_info().rss, [], []

        def documents(count: int) -> Iterator[str]:
            return (f"{pieces[number % len(pieces)]} {number}" for number in range(count))

        for _ in range(3):
            started, done = time.perf_counter(), 0
            for vectors in embedder.iter_documents(documents(size // 3)):
                done += len(vectors)
                memory.append((process.memory_info().rss - before) / 2**20)
            rates.append(done / (time.perf_counter() - started))
        measures += [
            measure(f"iter_documents over {size:,} short texts, 2 layers of width 32", "texts/s", rates),
            measure("the same, memory beyond that before", "MiB", memory),
        ]
    return measures
