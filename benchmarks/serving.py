"""The server beside the same calls in one process, and beside other servers: `python -m benchmarks.serving`.

It writes results-serve.md. All figures are of one run, on models of bge-base's shape with random weights.
"""

import argparse
import base64
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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
INFINITY = RESULTS.parent / "build" / "benchmarks" / "infinity"
"""Where `make bench-serve` puts infinity: it needs older packages than ours."""
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
FORKED = """
import os, sys
from bge_integrations import BgeEmbedder
embedder = BgeEmbedder(sys.argv[1], cache=sys.argv[2])
for _ in range(int(sys.argv[3])):
    if os.fork() == 0:
        embedder.encode_queries(["how do I wrap a paragraph?"])
        os.write(1, f"{os.getpid()}\\n".encode())
        sys.stdin.read()
        os._exit(0)
sys.stdin.read()
"""
"""A process that forks others which do so, as a web server does that loads the application first."""


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
        with waiting(model, ""):  # it writes the graph
            pass
        with waiting(model, "") as process:  # like the server below it shares the file of weights with none
            alone = pss(process.pid)
        with serving(model, "--socket", f"{folder}/bge.sock") as own:
            measures = memory(model, own, alone)
        with serving(model, "--port", "0") as web, serving(model, "--socket", f"{folder}/bge.sock") as own:
            ratios = compare(jobs(model, web, own, documents), arguments.repetitions)
            measures = [*latencies(model, own, arguments.repetitions), *measures]
        with others(model) as peers, serving(model, "--port", "0") as web:
            agree(model, web, peers, documents)
            ratios += compare(beside(model, web, peers, documents), arguments.repetitions)
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


@contextlib.contextmanager
def infinity(model: str) -> Iterator[str]:
    """Start infinity with its own defaults; give its address once it answers, which is when it has loaded the model.

    It takes no port of the system's choice. Its warm-up of 64 texts of 512 tokens is left out: `compare` has its own.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(INFINITY / "bin" / "infinity_emb"), "v2", "--model-id", model, "--engine", "torch"]
    command += ["--device", "cpu", "--dtype", "float32", "--no-model-warmup"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--url-prefix", "/v1", "--log-level", "warning"]
    with tempfile.TemporaryDirectory() as home, (Path(home) / "log").open("w+") as log:
        environment = os.environ | {"INFINITY_HOME": home, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        with subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server:
            try:
                while not healthy(f"http://127.0.0.1:{port}/health"):
                    assert server.poll() is None, (Path(home) / "log").read_text()
                    time.sleep(0.1)
                yield f"http://127.0.0.1:{port}"
            finally:
                server.kill()


def healthy(address: str) -> bool:
    """Ask whether a server is there already."""
    try:
        return httpx.get(address, verify=False).is_success
    except httpx.TransportError:
        return False


@contextlib.contextmanager
def others(model: str) -> Iterator[dict[str, str]]:
    """Start the other servers; give their addresses."""
    with contextlib.ExitStack() as stack:
        peers = {"sentence-transformers behind FastAPI": stack.enter_context(plain_server(model))}
        if (INFINITY / ".ready").exists():
            peers["infinity"] = stack.enter_context(infinity(model))
        else:
            print("infinity could not be installed, or not yet by make bench-serve: no rows of it", file=sys.stderr)
        yield peers


def agree(model: str, web: str, peers: dict[str, str], documents: list[str]) -> None:
    """See that all servers give the same normalised vectors."""
    ours = openai(web, model, documents, "float")
    for name, address in peers.items():
        theirs = openai(address, model, documents, "float")
        cosines = (ours * theirs).sum(1)
        assert np.abs(cosines - 1).max() < 1e-4, f"{name}: {cosines}"
        print(f"{name}: vectors differ by at most {np.abs(ours - theirs).max():.1e}", file=sys.stderr)


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


def beside(model: str, web: str, peers: dict[str, str], documents: list[str]) -> Jobs:
    """The same requests to all servers; infinity takes up to 2,048 texts in one."""
    queries = [f"{QUERY} {number}" for number in range(2 * CLIENTS)]
    servers = {"bge serve": web} | peers
    return {
        f"{len(queries)} single queries of {CLIENTS} clients": {
            name: partial(each, CLIENTS, partial(one, address, model), queries) for name, address in servers.items()},
        f"{len(documents)} documents in one request": {
            name: partial(openai, address, model, documents, "float") for name, address in servers.items()},
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


def memory(model: str, own: str, alone: int) -> list[Measure]:
    """Memory (PSS) of clients and server together, against the bytes of one process that holds the model itself."""
    server = next(
        p for p in psutil.process_iter(["cmdline"]) if own.removeprefix("unix://") in (p.info["cmdline"] or ())
    )
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(waiting(model, own)) for _ in range(PROCESSES)]
        started = pss(server.pid) + sum(pss(client.pid) for client in clients)
        own_bytes = [psutil.Process(client.pid).memory_full_info().uss / 1e6 for client in clients]
    command = [sys.executable, "-c", FORKED, model, own, str(PROCESSES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        forked = [int(parent.stdout.readline()) for _ in range(PROCESSES)]
        together = pss(server.pid) + sum(pss(pid) for pid in (parent.pid, *forked))
        parent.communicate()
    name = f"{PROCESSES} client processes and the server, memory against one process"
    return [
        measure("a client process, memory that it shares with none", "MB", own_bytes),
        measure(f"{name}: each started by itself", "times", [started / alone]),
        measure(f"{name}: forked after the import", "times", [together / alone]),
    ]


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
    # A context of TLS, which http:// does not use, takes 40 ms a request in this process, which all clients share.
    answer = httpx.post(f"{address}/v1/embeddings", json=body, timeout=None, verify=False).raise_for_status()
    vectors = [row["embedding"] for row in json.loads(answer.content)["data"]]
    if encoding == "base64":
        return np.stack([np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors])
    return np.array(vectors, np.float32)


def one(address: str, model: str, text: str) -> np.ndarray:
    """Ask for one text."""
    return openai(address, model, [text], "float")


def each(clients: int, ask: Callable[[str], object], queries: list[str]) -> None:
    """Ask all queries, so many at a time."""
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, queries))


if __name__ == "__main__":
    main()
