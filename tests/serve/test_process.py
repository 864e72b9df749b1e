"""The server's process: it is killed, ended, started twice, left behind; its clients notice, and nothing is lost."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from serving import EMBEDDER, RERANKER, Server, serving

from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.errors import ServerUnavailableError
from bge_integrations.runtime.auto import listens, socket_path
from bge_integrations.runtime.remote import remote_cache

pytestmark = [pytest.mark.enable_socket, pytest.mark.kill]

BULK = ["many words of one long text " * 20] * 400
QUERY = "what do pandas eat?"
BGE = [sys.executable, "-m", "bge_integrations.cli"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "bge.sock"


def until(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def busy(address):
    """Whether the server computes or has calls waiting."""
    return any(model["queue_depth"] for model in remote_cache(address).stats()["models"])


def test_a_socket_is_its_owners_alone_and_goes_with_the_server(path):
    with serving("--socket", path) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        again = subprocess.run([*BGE, "serve", EMBEDDER, "--socket", path], capture_output=True, text=True, timeout=60)
        assert again.returncode == 1
        assert "A server listens at" in again.stderr
        assert server.terminate()[0] == 0
    assert not path.exists()


def test_a_killed_server_fails_its_calls_at_once_and_the_next_one_takes_its_place(path):
    with serving("--socket", path) as server, ThreadPoolExecutor(1) as pool:
        there = BgeEmbedder(EMBEDDER, cache=server.address, on_truncate="ignore")
        expected = there.encode_queries([QUERY])
        running = pool.submit(there.encode_documents, BULK)
        until(lambda: busy(server.address))
        server.kill()
        killed = time.monotonic()
        with pytest.raises(ServerUnavailableError, match="Start it with: bge serve"):
            running.result(timeout=10)
        assert time.monotonic() - killed < 1
        assert path.exists()  # nobody could remove it
    with serving("--socket", path):
        np.testing.assert_allclose(there.encode_queries([QUERY]), expected, rtol=0, atol=1e-5)


def test_ctrl_c_ends_a_waiting_client_and_its_call(path):
    script = f"""
import signal
from bge_integrations import BgeEmbedder
signal.signal(signal.SIGINT, signal.default_int_handler)
there = BgeEmbedder({EMBEDDER!r}, on_truncate="ignore")
there.encode_queries(["ready?"])
print("ready", flush=True)
there.encode_documents([{BULK[0]!r}] * 900)
"""
    with serving("--socket", path) as server:
        environment = os.environ | {"BGE_CACHE": server.address}
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              env=environment) as client:  # fmt: skip
            assert client.stdout.readline() == "ready\n"
            until(lambda: busy(server.address))
            client.send_signal(signal.SIGINT)
            interrupted = time.monotonic()
            assert "KeyboardInterrupt" in client.communicate(timeout=30)[1]
            assert time.monotonic() - interrupted < 3
        until(lambda: not busy(server.address))
        (model,) = remote_cache(server.address).stats()["models"]
        assert model["tokens"] < 900 * 120 / 2  # each text has 122 tokens


def test_sigterm_answers_what_runs_and_refuses_what_comes():
    with serving("--port", 0, "--drain", 60) as server, ThreadPoolExecutor(1) as pool:
        there = BgeEmbedder(EMBEDDER, cache=server.address, on_truncate="ignore")
        there.encode_queries([QUERY])
        running = pool.submit(there.encode_documents, BULK[:100])
        until(lambda: busy(server.address))
        server.process.terminate()
        until(lambda: not _accepts(server.address))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.address}/health")
        assert running.result(timeout=60).shape == (100, 384)
        assert server.process.wait(timeout=30) == 0


def _accepts(address):
    host, port = address.removeprefix("http://").split(":")
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_the_drain_has_an_end():
    with serving("--port", 0, "--drain", 4) as server, ThreadPoolExecutor(1) as pool:
        there = BgeEmbedder(EMBEDDER, cache=server.address, on_truncate="ignore")
        running = pool.submit(there.encode_documents, BULK * 20)
        until(lambda: busy(server.address))
        asked = time.monotonic()
        server.terminate()
        assert time.monotonic() - asked < 5
        with pytest.raises(ServerUnavailableError):
            running.result(timeout=10)


async def test_a_client_that_goes_away_cancels_its_call_within_a_batch():
    with serving("--port", 0) as server:
        there = BgeEmbedder(EMBEDDER, cache=server.address, on_truncate="ignore", max_batch_tokens=512)
        await there.aencode_queries([QUERY])
        call = asyncio.create_task(there.aencode_documents(BULK))
        await asyncio.to_thread(until, lambda: busy(server.address))
        call.cancel()
        await asyncio.to_thread(until, lambda: not busy(server.address), 5)
        with contextlib.suppress(httpx.ReadTimeout):
            body = {"model": EMBEDDER, "input": BULK[:200]}
            async with httpx.AsyncClient(timeout=0.5) as client:
                await client.post(f"{server.address}/v1/embeddings", json=body)
        await asyncio.to_thread(until, lambda: not busy(server.address), 5)


def test_a_slow_sender_holds_up_nobody():
    with serving("--port", 0) as server:
        host, port = server.address.removeprefix("http://").split(":")
        senders = [socket.create_connection((host, int(port))) for _ in range(40)]
        for sender in senders:
            sender.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{")
        assert BgeEmbedder(EMBEDDER, cache=server.address).encode_queries([QUERY]).shape == (1, 384)
        for sender in senders:
            sender.close()


def test_populate_goes_on_when_the_server_is_back(path, tmp_path):
    import chromadb
    from langchain_core.documents import Document

    from bge_integrations.chroma import BgeEmbeddingFunction
    from bge_integrations.populate import populate

    function = BgeEmbeddingFunction(EMBEDDER, cache=f"unix://{path}")
    texts = [f"text {number} {'about pandas ' * (number % 9)}" for number in range(400)]
    server = Server("--socket", path)
    servers = [server]

    def documents():
        for number, text in enumerate(texts):
            if number == 150:
                server.kill()
                threading.Timer(3, lambda: servers.append(Server("--socket", path))).start()
            yield Document(page_content=text, metadata={"source": "notes"})

    client = chromadb.PersistentClient(str(tmp_path / "store"))
    collection = client.create_collection("notes", embedding_function=function)
    try:
        report = populate(collection, documents(), batch_size=20)
    finally:
        until(lambda: len(servers) == 2)
        for one in servers:
            one.kill()
            one.process.stderr.close()
    assert (report.added, collection.count(), len(set(collection.get()["documents"]))) == (400, 400, 400)
    held = collection.get(include=["documents", "embeddings"])
    here = BgeEmbedder(EMBEDDER).encode_documents(held["documents"])
    np.testing.assert_allclose(np.array(held["embeddings"]), here, rtol=0, atol=1e-5)


class TestAuto:
    """`cache="auto"`: the user's own server."""

    SCRIPT = f"""
import sys
from bge_integrations import BgeEmbedder, BgeReranker
print(BgeEmbedder({EMBEDDER!r}, cache="auto").encode_queries(["a"]).shape)
print(len(BgeReranker({RERANKER!r}, cache="auto").score([("a", "b")])))
"""

    @pytest.fixture
    def runtime(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        yield socket_path()
        for server in self.servers(tmp_path):
            server.kill()
            server.wait()

    @staticmethod
    def servers(folder):
        return [p for p in psutil.process_iter(["cmdline"]) if "--auto" in (p.info["cmdline"] or ()) and any(
            str(folder) in word for word in p.info["cmdline"])]  # fmt: skip

    def test_of_many_who_come_at_once_one_starts_the_server(self, runtime, tmp_path):
        starters = [
            subprocess.Popen([sys.executable, "-c", self.SCRIPT], stdout=subprocess.PIPE, text=True) for _ in range(3)
        ]
        for starter in starters:
            assert starter.communicate(timeout=120)[0].split("\n")[:2] == ["(1, 384)", "1"]
        (server,) = self.servers(tmp_path)
        assert server.ppid() != os.getpid()
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o600
        assert stat.S_IMODE(runtime.parent.stat().st_mode) == 0o700

    def test_a_killed_server_is_started_again(self, runtime, tmp_path):
        embedder = BgeEmbedder(EMBEDDER, cache="auto")
        expected = embedder.encode_queries([QUERY])
        (server,) = self.servers(tmp_path)
        server.kill()
        until(lambda: not listens(runtime))
        np.testing.assert_allclose(embedder.encode_queries([QUERY]), expected, rtol=0, atol=1e-5)
        assert len(BgeReranker(RERANKER, cache="auto").rerank(QUERY, ["a", "b"])) == 2

    def test_it_leaves_when_nobody_calls(self, path):
        server = Server("--auto", "--socket", path, "--idle-exit", 1, models=())
        BgeEmbedder(EMBEDDER, cache=server.address).encode_queries([QUERY])
        assert server.process.wait(timeout=60) == 0
        server.process.stderr.close()

    def test_a_folder_that_others_may_enter_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        (tmp_path / "bge").mkdir(mode=0o755)
        with pytest.raises(ServerUnavailableError, match="can be entered by other users"):
            BgeEmbedder(EMBEDDER, cache="auto").encode_queries([QUERY])


@pytest.mark.skipif(os.getuid() != 0, reason="only root can listen as another user")
def test_another_users_socket_is_refused():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    path = folder / "bge.sock"
    listen = f"""
import os, socket, sys
os.setuid(12345)
server = socket.socket(socket.AF_UNIX)
server.bind({str(path)!r})
server.listen()
print("listens", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"listens\n"
        with pytest.raises(ServerUnavailableError, match="belongs to user 12345"):
            BgeEmbedder(EMBEDDER, cache=f"unix://{path}").encode_queries([QUERY])
        other.stdin.close()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "Name at least one model"),
        ([EMBEDDER, "--host", "0.0.0.0"], "give --api-key-file"),
        (["no/such-model-here"], "no/such-model-here"),
        ([EMBEDDER, EMBEDDER, "--port", "0"], "is given twice"),
    ],
)
def test_what_it_refuses_to_serve(arguments, why):
    run = subprocess.run([*BGE, "serve", *arguments], capture_output=True, text=True, timeout=120)
    assert run.returncode in (1, 2)
    assert why in " ".join(run.stderr.replace("│", " ").split())
