"""A soak of the server: clients of every kind, some of which leave halfway: `python -m benchmarks.soak_server`.

Each answer is compared with what this process computes beforehand. The server's memory (USS) is sampled throughout: the
median of the last quarter of the time over that of the second quarter says whether it grows.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.models import SHAPES, make_embedder, make_reranker
from benchmarks.texts import Texts
from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.errors import OverloadedError
from bge_integrations.runtime.auto import listens
from bge_integrations.runtime.remote import remote_cache

SHAPE: dict[str, Any] = SHAPES["small"] | {"num_hidden_layers": 1, "intermediate_size": 384, "initializer_range": 0.1}
"""Long vectors for little work; the weights' range keeps those of different texts apart."""
POOL, MOST_TEXTS, MOST_WORDS = 400, 64, 200
Ask = Callable[[list[int]], Awaitable[str]]
QUERY = "how do I wrap a paragraph to a given width?"
CLOSE = 1e-5
PATIENCE, SAMPLED_EVERY = 120.0, 5.0
"""Seconds after which a call without an answer counts as lost, and between two looks at the memory."""


class Clients:
    """Clients of a server behind a Unix socket, which check what they get and count what becomes of their calls."""

    def __init__(self, path: Path, embedder: Path, reranker: Path) -> None:
        draw, words = random.Random(0), Texts(None)
        lengths = [round(MOST_WORDS ** draw.random()) for _ in range(POOL)]
        self.texts = [words.of_words(1, length, seed=seed)[0] for seed, length in enumerate(lengths)]
        options: dict[str, Any] = {"on_truncate": "ignore", "backend": "torch"}
        self.vectors = BgeEmbedder(str(embedder), **options).encode_documents(self.texts)
        self.scores = np.array(BgeReranker(str(reranker), **options).score([(QUERY, text) for text in self.texts]))
        self.embedder = BgeEmbedder(str(embedder), cache=f"unix://{path}", **options)
        self.reranker = BgeReranker(str(reranker), cache=f"unix://{path}", **options)
        self.path, self.calls = path, Counter({"wrong": 0, "lost": 0})

    async def run(self, seed: int, end: float) -> None:
        """Call as one client, until the end; every fifth call is cancelled if it takes long."""
        draw = random.Random(seed)
        transport = httpx.AsyncHTTPTransport(uds=str(self.path))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=None) as http:
            asks: list[Ask] = [self.by_cache, self.reranked, partial(self.by_openai, http), self.broken_off]
            while time.monotonic() < end:
                (ask,) = draw.choices(asks, (6, 4, 6, 2))
                rows = draw.choices(range(POOL), k=round(MOST_TEXTS ** draw.random()))
                cancelled = draw.uniform(0.01, 1) if draw.random() < 0.2 else None
                self.calls[await outcome(ask(rows), cancelled)] += 1

    async def by_cache(self, rows: list[int]) -> str:
        """Embed by `cache=`."""
        return compared("by cache=", await self.embedder.aencode_documents(self.of(rows)), self.vectors[rows])

    async def reranked(self, rows: list[int]) -> str:
        """Score by `cache=`."""
        scores = await self.reranker.ascore([(QUERY, text) for text in self.of(rows)])
        return compared("by cache=, of a reranker", np.array(scores), self.scores[rows])

    async def by_openai(self, http: httpx.AsyncClient, rows: list[int]) -> str:
        """Embed by OpenAI's protocol."""
        answer = await http.post("/v1/embeddings", json={"model": self.embedder.model, "input": self.of(rows)})
        if answer.status_code == 429:
            raise OverloadedError(answer.text)
        vectors = [row["embedding"] for row in answer.raise_for_status().json()["data"]]
        return compared("as OpenAI's JSON", np.array(vectors), self.vectors[rows])

    async def broken_off(self, rows: list[int]) -> str:
        """Close the connection within the request or, every other time, within the answer."""
        body = json.dumps({"model": self.embedder.model, "input": self.of(rows)}).encode()
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: "
        whole = rows[0] % 2 == 0
        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            writer.write(f"{head}{len(body)}\r\n\r\n".encode() + body[: len(body) // (1 if whole else 2)])
            await writer.drain()
            if whole and not (await reader.readexactly(12)).endswith((b"200", b"429")):
                return "wrong"
        finally:
            writer.transport.abort()
        return f"broken off within the {'answer' if whole else 'request'}"

    def of(self, rows: list[int]) -> list[str]:
        """The texts of some rows."""
        return [self.texts[row] for row in rows]


def compared(how: str, got: NDArray[Any], expected: NDArray[Any]) -> str:
    """What became of a call that was answered."""
    right = got.shape == expected.shape and np.abs(got - expected).max() <= CLOSE
    return f"answered {how}" if right else "wrong"


async def outcome(call: Awaitable[str], cancelled: float | None) -> str:
    """What becomes of a call, which may be cancelled after some seconds."""
    try:
        async with asyncio.timeout(cancelled or PATIENCE):
            return await call
    except TimeoutError:
        return "cancelled" if cancelled else "lost"
    except OverloadedError:
        return "refused"
    except Exception as error:
        print(f"lost: {error!r}", file=sys.stderr)
        return "lost"


@contextlib.contextmanager
def serving(path: Path, log: Path, *models: Path) -> Iterator[psutil.Process]:
    """Start a server behind a Unix socket; give its process."""
    command = [sys.executable, "-m", "bge_integrations.cli", "serve", *map(str, models), "--socket", str(path)]
    command += ["--backend", "torch"]
    with log.open("w") as output, subprocess.Popen(command, stderr=output) as server:
        try:
            while not listens(path):
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
            yield psutil.Process(server.pid)
        finally:
            server.kill()


async def observed(clients: Clients, number: int, server: psutil.Process, seconds: float) -> list[float]:
    """Let so many clients call for some seconds; give the server's memory meanwhile."""
    memory, end = list[float](), time.monotonic() + seconds
    calls = asyncio.gather(*(clients.run(seed, end) for seed in range(number)))
    while time.monotonic() < end:
        await asyncio.sleep(min(SAMPLED_EVERY, seconds / 8))
        memory.append(server.memory_full_info().uss / 2**20)
    await calls
    return memory


def soak(seconds: float, number: int) -> dict[str, object]:
    """Let so many clients call a server for some seconds; give what became of the calls, and of its memory."""
    with tempfile.TemporaryDirectory() as name:
        path, log = Path(name, "bge.sock"), Path(name, "log")
        models = make_embedder(Path(name, "embedder"), SHAPE), make_reranker(Path(name, "reranker"), SHAPE)
        clients = Clients(path, *models)
        with serving(path, log, *models) as server:
            memory = asyncio.run(observed(clients, number, server, seconds))
            stats = remote_cache(f"unix://{path}").stats
            idle = time.monotonic() + 10
            while (left := sum(model["leases"] for model in stats()["models"])) and time.monotonic() < idle:
                time.sleep(0.1)
        logged = log.read_text().splitlines()[1:]
    print(*logged[-20:], sep="\n", file=sys.stderr)
    quarter = len(memory) // 4
    before, after = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[3 * quarter :])
    clients.calls["still running on the server ten seconds later"] = left
    return {f"calls {what}": count for what, count in sorted(clients.calls.items())} | {
        "lines that the server logged": len(logged),
        "memory of the server, second quarter of the time": f"{before:.1f} MiB",
        "memory of the server, last quarter": f"{after:.1f} MiB, {after / before:.3f} times as much",
    }


def main() -> None:
    """Soak, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--output", type=Path, help="folder for results-serve-soak.md")
    arguments = parser.parse_args()
    rows = soak(60 * arguments.minutes, arguments.clients)
    head = [f"| {arguments.clients} clients, {arguments.minutes:g} minutes | measured |", "| --- | --- |"]
    page = "\n".join([*head, *(f"| {what} | {measured} |" for what, measured in rows.items())])
    if arguments.output:
        (arguments.output / "results-serve-soak.md").write_text(page + "\n")
    print(page)


if __name__ == "__main__":
    main()
