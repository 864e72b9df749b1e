"""Our calls beside the peers', interleaved in one run; writes benchmarks/results.md and results.json.

Each figure is a ratio within one repetition, so that a noisy machine slows both sides; the table gives the median and
the spread of all repetitions. Weights are random, of the real shape: speed does not depend on their values.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from benchmarks.models import SMALL, make_embedder, make_reranker
from benchmarks.texts import mixed_texts
from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.inference.backends.pytorch import TorchBackend
from bge_integrations.inference.engine import Engine
from bge_integrations.inference.heads import Dense
from bge_integrations.inference.tokenize import TextTokenizer
from bge_integrations.runtime.device import default_batch_tokens

RESULTS = Path(__file__).parent
QUERY = "how do I wrap a paragraph to a given width?"
LIBRARIES = ("torch", "transformers", "sentence-transformers", "openvino")
Jobs = list[tuple[str, dict[str, Callable[[], object]]]]


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is than a peer: median, least and most of the repetitions."""

    job: str
    ours: str
    peer: str
    median: float
    low: float
    high: float
    ours_seconds: float


def main() -> None:
    """Measure every job and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--texts", type=int, default=96)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ratios = measure(Path(folder), arguments.texts, arguments.repetitions)
    machine = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch with {torch.get_num_threads()} threads",
        "versions": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "command": f"python -m benchmarks --repetitions {arguments.repetitions} --texts {arguments.texts}",
    }
    (RESULTS / "results.json").write_text(
        json.dumps(machine | {"ratios": [asdict(r) for r in ratios]}, indent=1) + "\n"
    )
    table = markdown(ratios, machine)
    (RESULTS / "results.md").write_text(table)
    print(table)


def measure(folder: Path, count: int, repetitions: int) -> list[Ratio]:
    """Every job of ours beside its peers, on one embedder and one reranker of the bge-small shape."""
    embedder_folder = make_embedder(folder / "embedder", SMALL)
    reranker_folder = make_reranker(folder / "reranker", SMALL)
    embedder = BgeEmbedder(str(embedder_folder), backend="torch", query_instruction="", on_truncate="ignore")
    reranker = BgeReranker(str(reranker_folder), backend="torch", on_truncate="ignore")
    padded = padded_engine(embedder_folder)
    tokenize = partial(padded.tokenizer.texts, max_length=512)
    library, cross_encoder = SentenceTransformer(str(embedder_folder)), CrossEncoder(str(reranker_folder))
    texts, pairs = mixed_texts(count), [(QUERY, text) for text in mixed_texts(50, seed=1)]
    queries = [f"{QUERY} {i}" for i in range(count)]

    def from_threads(call: Callable[[str], object]) -> None:
        with ThreadPoolExecutor(64) as pool:
            list(pool.map(call, queries))

    jobs: Jobs = [
        (
            f"{count} documents of mixed lengths",
            {
                "bge_integrations (packed)": lambda: embedder.encode_documents(texts),
                "the same, padded": lambda: padded.submit(texts, tokenize, head=Dense()).result(),
                "sentence-transformers, batch 32": lambda: library.encode(texts),
                "sentence-transformers, batch 8": lambda: library.encode(texts, batch_size=8),
            },
        ),
        (
            "reranking 50 passages",
            {
                "bge_integrations": lambda: reranker.score(pairs),
                "CrossEncoder.predict": lambda: cross_encoder.predict(pairs),
            },
        ),
        (
            f"{count} single queries from 64 threads",
            {
                "bge_integrations": lambda: from_threads(lambda q: embedder.encode_queries([q])),
                "sentence-transformers": lambda: from_threads(library.encode),
                "bge_integrations, one batch": lambda: embedder.encode_queries(queries),
            },
        ),
        (
            f"{count} single queries, one caller",
            {
                "bge_integrations": lambda: [embedder.encode_queries([q]) for q in queries],
                "sentence-transformers": lambda: [library.encode(q) for q in queries],
            },
        ),
    ]
    for dtype in ("float32", "bfloat16", "int8"):
        jobs += openvino_jobs(dtype, embedder_folder, reranker_folder, texts, pairs, library, cross_encoder, embedder)
    return [ratio for job, calls in jobs for ratio in compare(job, calls, repetitions)]


def openvino_jobs(
    dtype: str,
    embedder_folder: Path,
    reranker_folder: Path,
    texts: list[str],
    pairs: list[tuple[str, str]],
    library: SentenceTransformer,
    cross_encoder: CrossEncoder,
    packed: BgeEmbedder,
) -> Jobs:
    """The same work on `backend="openvino"`, beside the libraries' default calls and our own torch backend."""
    arguments = {"backend": "openvino", "dtype": dtype, "on_truncate": "ignore"}
    embedder = BgeEmbedder(str(embedder_folder), query_instruction="", **arguments)
    reranker = BgeReranker(str(reranker_folder), **arguments)
    queries = [f"{QUERY} {i}" for i in range(len(texts))]
    ours, torchs = f"bge_integrations, openvino {dtype}", "bge_integrations, torch float32"
    return [
        (
            f"{len(texts)} documents, openvino {dtype}",
            {
                ours: lambda: embedder.encode_documents(texts),
                "sentence-transformers, batch 32": lambda: library.encode(texts),
                torchs: lambda: packed.encode_documents(texts),
            },
        ),
        (
            f"reranking 50 passages, openvino {dtype}",
            {ours: lambda: reranker.score(pairs), "CrossEncoder.predict": lambda: cross_encoder.predict(pairs)},
        ),
        (
            f"{len(texts)} single queries, one caller, openvino {dtype}",
            {
                ours: lambda: [embedder.encode_queries([q]) for q in queries],
                "sentence-transformers": lambda: [library.encode(q) for q in queries],
                torchs: lambda: [packed.encode_queries([q]) for q in queries],
            },
        ),
    ]


def padded_engine(folder: Path) -> Engine:
    """The reference path over the same weights, to show that packing pays."""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).to(device)
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(folder).backend_tokenizer, with_types=True)
    backend = TorchBackend(model, packed=False, engine="padded")
    return Engine(tokenizer, backend, device="benchmark", max_batch_tokens=default_batch_tokens(device))


def compare(job: str, calls: dict[str, Callable[[], object]], repetitions: int) -> list[Ratio]:
    """The first call against each of the others, all taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(repetitions + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if repetition:  # the first round loads and warms up
                seconds[name].append(time.perf_counter() - started)
    ours, *peers = calls
    ratios = []
    for peer in peers:
        faster = [theirs / mine for theirs, mine in zip(seconds[peer], seconds[ours], strict=True)]
        middle = statistics.median(faster)
        ratios.append(Ratio(job, ours, peer, middle, min(faster), max(faster), statistics.median(seconds[ours])))
    return ratios


def markdown(ratios: list[Ratio], machine: dict[str, object]) -> str:
    """The table as README shows it."""
    lines = ["| job (bge-small shape) | against | times faster (spread) |", "| --- | --- | --- |"]
    lines += [f"| {r.job} | {r.peer} | {r.median:.2f} ({r.low:.2f} to {r.high:.2f}) |" for r in ratios]
    return "\n".join([*lines, "", f"{machine['machine']}; {machine['versions']}; `{machine['command']}`", ""])


if __name__ == "__main__":
    main()
