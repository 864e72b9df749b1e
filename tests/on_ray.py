"""What the tests of Ray run, each in a Python of its own with a Ray of its own: `on_ray.py job folder`."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import psutil
import ray
import tiny
from chromadb.config import Settings
from serving import serving, what_it_holds

from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.ray import BgeEmbeddings, BgeReranking, VectorStoreDatasink
from bge_integrations.runtime.remote import remote_cache

EMBEDDER, RERANKER = "bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"
COUNT = 120
TEXTS = [f"Text number {n} is about {'pandas and bamboo ' * (n % 5)}." for n in range(COUNT)]
TWO_ACTORS = {"compute": ray.data.ActorPoolStrategy(size=2), "batch_size": 8, "num_cpus": 0.5}
PATIENCE = 60


def rows(blocks: int) -> ray.data.Dataset:
    return ray.data.from_items(
        [{"n": n, "text": text, "question": f"What is number {n}?"} for n, text in enumerate(TEXTS)],
        override_num_blocks=blocks,
    )


def columns(dataset: ray.data.Dataset, *names: str) -> list[np.ndarray]:
    """Columns of all rows, in the order of n."""
    found = sorted(dataset.iter_rows(), key=lambda row: row["n"])
    assert [row["n"] for row in found] == list(range(COUNT))
    return [np.stack([row[name] for row in found]) for name in names]


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    return float(np.abs(found - expected).max())


def compute(_: Path) -> dict[str, Any]:
    reranker = BgeReranker(RERANKER, normalize=False)
    options = {"model": EMBEDDER, "max_length": 12, "on_truncate": "ignore"}
    with_vectors = rows(6).map_batches(BgeEmbeddings, fn_constructor_kwargs=options, **TWO_ACTORS)
    arguments = {"model": reranker, "query_column": "question"}
    dataset = with_vectors.map_batches(
        BgeReranking, fn_constructor_kwargs=arguments, compute=ray.data.ActorPoolStrategy(size=1)
    )
    embedding, score = columns(dataset, "embedding", "score")
    pairs = [(f"What is number {n}?", text) for n, text in enumerate(TEXTS)]
    return {
        "vectors": distance(embedding, BgeEmbedder(**options).encode_documents(TEXTS)),
        "scores": distance(score, np.array(reranker.score(pairs))),
    }


def serve(folder: Path) -> dict[str, Any]:
    """Two replicas answer by HTTP, and as the cache of this process."""
    import httpx
    from ray import serve

    from bge_integrations.ray import server

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(server([EMBEDDER, RERANKER], num_replicas=2, ray_actor_options={"num_cpus": 0.5}))
    address = f"http://127.0.0.1:{port}"
    there = BgeEmbedder(EMBEDDER, cache=address)
    asked = httpx.post(f"{address}/v1/embeddings", json={"model": EMBEDDER, "input": TEXTS}, timeout=60).json()
    vectors = np.array([row["embedding"] for row in asked["data"]], np.float32)
    replicas = serve.status().applications["default"].deployments["BgeServer"].replica_states
    told = {
        "vectors": distance(there.encode_documents(TEXTS), BgeEmbedder(EMBEDDER).encode_documents(TEXTS)),
        "openai": distance(vectors, there.encode_documents(TEXTS)),
        "replicas": sum(replicas.values()),
    }
    serve.shutdown()
    return told


class Telling(BgeEmbeddings):
    """Begins when another actor is there too, and adds a column of what the actor holds after each batch."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / str(os.getpid())).touch()

    def __call__(self, batch):
        wait_for(lambda: len(list(self.folder.iterdir())) >= 2)
        embedded = super().__call__(batch)
        return embedded | {"held": np.array([json.dumps(what_it_holds())] * len(batch["text"]))}


def shared(folder: Path) -> dict[str, Any]:
    """Two actors that load the model themselves, or use a server's; what each holds, and the vectors."""
    model = tiny.make_bert_embedder(folder / "model", hidden=512, vocab_size=40_000)
    told: dict[str, Any] = {"weights": (model / "model.safetensors").stat().st_size, "workers": {}, "vectors": {}}
    options = {"model": str(model), "backend": "torch"}
    expected = BgeEmbedder(**options).encode_documents(TEXTS)
    with serving("--socket", folder / "bge.sock", "--backend", "torch", models=[model]) as server:
        environment = {"runtime_env": {"env_vars": {"BGE_CACHE": server.address}}}
        for name, kwargs, remote in (
            ("alone", options, {}),
            ("told by the environment", options, environment),
            ("given an address", options | {"cache": server.address}, {}),
        ):
            arguments = {"folder": folder / name, **kwargs}
            dataset = rows(COUNT // 8).map_batches(Telling, fn_constructor_kwargs=arguments, **TWO_ACTORS, **remote)
            embedding, held = columns(dataset, "embedding", "held")
            told["vectors"][name] = distance(embedding, expected)
            told["workers"][name] = [json.loads(each) for each in set(held.tolist())]
        told["server"] = remote_cache(server.address).stats()
    return told


def wait_for(happened: Callable[[], Any]) -> Any:
    while not (value := happened()):
        time.sleep(0.01)
    return value


def hold(folder: Path) -> None:
    """The first process to come here says who it is, and stays until it is killed."""
    with contextlib.suppress(FileExistsError), (folder / "held").open("x") as told:
        told.write(str(os.getpid()))
        told.flush()
        time.sleep(PATIENCE)


@contextlib.contextmanager
def killing(folder: Path) -> Iterator[list[int]]:
    """Kill the process that is held; give the ids of those killed."""
    killed: list[int] = []

    def kill() -> None:
        path = folder / "held"
        process = psutil.Process(int(wait_for(lambda: path.exists() and path.read_text())))
        process.kill()
        killed.append(process.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    yield killed
    thread.join(PATIENCE)


class Held(BgeEmbeddings):
    """Is held with its third batch."""

    def __init__(self, folder: Path) -> None:
        super().__init__(EMBEDDER)
        self.folder, self.batches = folder, 0

    def __call__(self, batch):
        embedded = super().__call__(batch)
        self.batches += 1
        if self.batches == 3:
            hold(self.folder)
        return embedded


def kill_actor(folder: Path) -> dict[str, Any]:
    with killing(folder) as killed:
        dataset = rows(COUNT // 8).map_batches(Held, fn_constructor_kwargs={"folder": folder}, **TWO_ACTORS)
        [embedding] = columns(dataset, "embedding")
    return {"killed": len(killed), "vectors": distance(embedding, BgeEmbedder(EMBEDDER).encode_documents(TEXTS))}


@contextlib.contextmanager
def chroma(folder: Path) -> Iterator[int]:
    """Chroma's own server, which many processes may write to; give its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("chroma"), "run", "--path", folder / "store", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: answers(port))
            yield port
        finally:
            process.terminate()


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def open_collection(port: int) -> chromadb.Collection:
    from bge_integrations.chroma import BgeEmbeddingFunction

    client = chromadb.HttpClient("127.0.0.1", port, settings=Settings(anonymized_telemetry=False))
    return client.get_or_create_collection("notes", embedding_function=BgeEmbeddingFunction(EMBEDDER))


def open_held(port: int, folder: Path) -> chromadb.Collection:
    """The collection, in a process that is held after its third write."""
    collection, writes = open_collection(port), []
    upsert = collection.upsert

    def write(**arguments: Any) -> None:
        upsert(**arguments)
        writes.append(arguments["ids"])
        if len(writes) == 3:
            hold(folder)

    collection.upsert = write
    return collection


def fill_with(open_store: Callable[[], chromadb.Collection]) -> dict[str, Any]:
    sink = VectorStoreDatasink(open_store, metadata_columns=("question",), batch_size=4)
    rows(3).write_datasink(sink)
    return {name: getattr(sink.report, name) for name in ("added", "updated", "skipped", "texts", "seconds")}


def stored(port: int) -> dict[str, Any]:
    found = open_collection(port).get(include=["documents", "metadatas", "embeddings"])
    expected = BgeEmbedder(EMBEDDER).encode_documents(found["documents"])
    pairs = {
        (metadata["question"], text) for metadata, text in zip(found["metadatas"], found["documents"], strict=True)
    }
    return {
        "rows": len(found["ids"]),
        "whole": pairs == {(f"What is number {n}?", text) for n, text in enumerate(TEXTS)},
        "vectors": distance(np.asarray(found["embeddings"], dtype=np.float32), expected),
    }


def kill_task(folder: Path) -> dict[str, Any]:
    with chroma(folder) as port:
        with killing(folder) as killed:
            first = fill_with(partial(open_held, port, folder))
        second = fill_with(partial(open_collection, port))
        return stored(port) | {"killed": len(killed), "first": first, "second": second}


if __name__ == "__main__":
    jobs = {job.__name__: job for job in (compute, kill_actor, kill_task, serve, shared)}
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as own:
        memory = {"object_store_memory": 100 * 2**20}
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=own, **memory)
        try:
            told = jobs[sys.argv[1]](Path(sys.argv[2]))
        finally:
            ray.shutdown()
    print(json.dumps(told))
