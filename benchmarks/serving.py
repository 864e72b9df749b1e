"""The server beside the same calls in one process, and beside the plainest server: `python -m benchmarks.serving`.

It writes results-serve.md. All figures are of one run, on models of bge-base's shape with random weights.
"""

import argparse
import base64
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.harness import Jobs, Measure, compare, measure, measure_table, ratio_table
from benchmarks.models import SHAPES, make_embedder
from benchmarks.texts import Texts
from bge_integrations import BgeEmbedder

RESULTS = Path(__file__).parent
CLIENTS = 64
PROCESSES = 16
LONGEST = 250
"""Words of the longest document: OpenAI's protocol refuses texts over the model's limit."""
QUERY = "how do I wrap a paragraph to a given width?"
ALONE = """
import sys
from bge_integrations import BgeEmbedder
BgeEmbedder(sys.argv[1], cache=sys.argv[2] or None).encode_queries(["how do I wrap a paragraph?"])
print("ready", flush=True)
sys.stdin.read()
"""
"""A process that has embedded one query, in itself or by a server, and waits."""


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="texts; without it docstrings")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--texts", type=int, default=96, help="documents of a bulk call")
    parser.add_argument("--shape", default="base")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = str(make_embedder(Path(folder), SHAPES[arguments.shape]))
        fitting = [text for text in Texts(arguments.data).mixed(2 * arguments.texts) if len(text.split()) < LONGEST]
        documents = fitting[: arguments.texts]
        with serving(model, "--port", "0") as web, serving(model, "--socket", f"{folder}/bge.sock") as own:
            ratios = compare(jobs(model, web, own, documents), arguments.repetitions)
            measures = [*latencies(model, own, arguments.repetitions), memory(model, own)]
        with plain_server(model) as peer, serving(model, "--port", "0") as web:
            ratios += compare(beside_plain(model, web, peer, documents), arguments.repetitions)
    page = "\n\n".join(
        ["\n".join(ratio_table(ratios, f"bge-{arguments.shape}'s shape")), "\n".join(measure_table(measures))]
    )
    (arguments.output / "results-serve.md").write_text(page + "\n")
    print(page)


@contextlib.contextmanager
def serving(model: str, *where: str) -> Iterator[str]:
    """Start a server of the model; give its address."""
    command = [sys.executable, "-m", "bge_integrations.cli", "serve", model, "--like", "BAAI/bge-base-en-v1.5", *where]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        address = next(line.rsplit(" ", 1)[1].strip() for line in server.stderr if line.startswith("bge serves"))
        try:
            yield address
        finally:
            server.kill()


@contextlib.contextmanager
def plain_server(model: str) -> Iterator[str]:
    """Start sentence-transformers behind FastAPI, as a tutorial writes it; give its address."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.plain_server", model], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        address = server.stdout.readline().strip()
        try:
            yield address
        finally:
            server.kill()


def jobs(model: str, web: str, own: str, documents: list[str]) -> Jobs:
    """Bulk calls in several formats against one process, and many callers against one large batch."""
    here, binary = embedder(model), embedder(model, own)
    queries = [f"{QUERY} {number}" for number in range(2 * CLIENTS)]
    alone = partial(here.encode_documents, documents)
    return {
        f"{len(documents)} documents by a Unix socket": {
            "bge serve": partial(binary.encode_documents, documents), "one process": alone},
        f"{len(documents)} documents as OpenAI's JSON": {
            "bge serve": partial(openai, web, model, documents, "float"), "one process": alone},
        f"{len(documents)} documents as OpenAI's base64": {
            "bge serve": partial(openai, web, model, documents, "base64"), "one process": alone},
        f"{len(queries)} single queries of {CLIENTS} clients": {
            "bge serve": partial(each, CLIENTS, lambda query: binary.encode_queries([query]), queries),
            "one large batch in one process": partial(here.encode_queries, queries)},
    }  # fmt: skip


def beside_plain(model: str, web: str, peer: str, documents: list[str]) -> Jobs:
    """The same requests to both servers."""
    queries = [f"{QUERY} {number}" for number in range(2 * CLIENTS)]
    name = "sentence-transformers behind FastAPI"
    return {
        f"{len(queries)} single queries of {CLIENTS} clients": {
            "bge serve": partial(each, CLIENTS, lambda query: openai(web, model, [query], "float"), queries),
            name: partial(each, CLIENTS, lambda query: openai(peer, model, [query], "float"), queries)},
        f"{len(documents)} documents in one request": {
            "bge serve": partial(openai, web, model, documents, "float"),
            name: partial(openai, peer, model, documents, "float")},
    }  # fmt: skip


def latencies(model: str, own: str, repetitions: int) -> list[Measure]:
    """How much longer a lone short query takes by the socket: the difference of the medians of 100 calls each."""
    here, there, more = embedder(model), embedder(model, own), []
    for _ in range(repetitions):
        times: dict[str, list[float]] = {"here": [], "there": []}
        for _ in range(100):
            for name, where in (("here", here), ("there", there)):
                started = time.perf_counter()
                where.encode_queries([QUERY])
                times[name].append(time.perf_counter() - started)
        more.append(1e3 * (statistics.median(times["there"]) - statistics.median(times["here"])))
    return [measure("a short query by the socket, beyond one in process", "ms", more)]


def memory(model: str, own: str) -> Measure:
    """Memory (PSS) of clients and server together, against one process that holds the model itself."""
    server = next(p for p in psutil.process_iter(["cmdline"]) if own.removeprefix("unix://") in (p.cmdline() or ()))
    with waiting(model, "") as process:
        alone = pss(process.pid)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(waiting(model, own)) for _ in range(PROCESSES)]
        together = pss(server.pid) + sum(pss(client.pid) for client in clients)
    return measure(
        f"{PROCESSES} client processes and the server, memory against one process", "times", [together / alone]
    )


@contextlib.contextmanager
def waiting(model: str, address: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that embeds one query and then waits."""
    command = [sys.executable, "-c", ALONE, model, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


def pss(pid: int) -> int:
    """Bytes of a process, with its share of what it shares."""
    return int(psutil.Process(pid).memory_full_info().pss)


def embedder(model: str, address: str | None = None) -> BgeEmbedder:
    """An embedder in this process, or by a server."""
    return BgeEmbedder(model, like="BAAI/bge-base-en-v1.5", on_truncate="ignore", cache=address)


def openai(address: str, model: str, texts: list[str], encoding: str) -> np.ndarray:
    """Ask by OpenAI's protocol."""
    body = {"model": model, "input": texts, "encoding_format": encoding}
    answer = httpx.post(f"{address}/v1/embeddings", json=body, timeout=None).raise_for_status().content
    vectors = [row["embedding"] for row in json.loads(answer)["data"]]
    if encoding == "base64":
        return np.stack([np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors])
    return np.array(vectors, np.float32)


def each(clients: int, ask: "partial[object]", queries: list[str]) -> None:
    """Ask all queries, so many at a time."""
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, queries))


if __name__ == "__main__":
    main()
