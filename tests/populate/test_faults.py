"""Real faults: a server that is killed and comes back, a disk that is full, a folder that may only be read."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import chromadb
import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document

from bge_integrations import ModelCache
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.populate import Progress, populate

DOCUMENTS = [Document(f"Text number {n} is about pandas.", metadata={"source": f"{n % 7}.md"}) for n in range(300)]
SCRIPT = Path(__file__).parent / "scripts" / "disk.py"


class Server:
    """`chroma run` on loopback, over one folder."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.start()

    def start(self) -> None:
        chroma = Path(sys.executable).with_name("chroma")
        command = [str(chroma), "run", "--path", str(self.folder), "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def client(self) -> chromadb.ClientAPI:
        """A client, once the server answers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return chromadb.HttpClient("127.0.0.1", self.port)
            except ValueError:  # what Chroma makes of a refused connection
                assert time.monotonic() < deadline, "chroma run did not come up"
                time.sleep(0.1)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.kill()


@pytest.mark.enable_socket
@pytest.mark.filterwarnings("ignore:legacy embedding function config:DeprecationWarning")
def test_a_server_is_killed_and_comes_back(tmp_path: Path, bert_embedder: Path, cache: ModelCache) -> None:
    with serving(tmp_path) as server:
        embeddings = BgeEmbeddings(model=str(bert_embedder), cache=cache)
        store = Chroma("notes", embedding_function=embeddings, client=server.client())
        kills = []

        def after(step: Progress) -> None:
            if len(kills) < step.documents // 80:
                kills.append(step.documents)
                server.kill()
                server.start()

        report = populate(store, DOCUMENTS, batch_size=10, progress=after)
        assert len(kills) == 3
        assert (report.added, report.texts, len(report.failed)) == (300, 300, 0)
        kept = store.get(include=["documents", "embeddings"])
        assert sorted(kept["documents"]) == sorted(document.page_content for document in DOCUMENTS)
        assert len(kept["embeddings"]) == 300
        assert populate(store, DOCUMENTS).skipped == 300


@pytest.mark.enable_socket
@pytest.mark.filterwarnings("ignore:legacy embedding function config:DeprecationWarning")
def test_others_write_the_first_vectors_meanwhile(tmp_path: Path, bert_embedder: Path, cache: ModelCache) -> None:
    """For some 50 ms Chroma then has documents whose vectors it cannot read."""
    embeddings = BgeEmbeddings(model=str(bert_embedder), cache=cache)
    texts = [document.page_content for document in DOCUMENTS[:50]]
    vectors = embeddings.embed_documents(texts)
    with serving(tmp_path) as server, ThreadPoolExecutor(3) as pool:
        client = server.client()
        for turn in range(10):
            store = Chroma(f"notes-{turn}", embedding_function=embeddings, client=client)
            collection = server.client().get_collection(f"notes-{turn}")
            writing = [
                pool.submit(collection.upsert, [f"{part}-{n}" for n in range(50)], vectors, documents=texts)
                for part in range(3)
            ]
            while not all(write.done() for write in writing):
                assert populate(store, []).added == 0
            assert [write.result() for write in writing] == [None] * 3


MOUNTS = {
    "full": ("mount -t tmpfs -o size=2m tmpfs $DISK", "mount -o remount,size=64m $DISK"),
    "readonly": (
        "mount -t tmpfs -o size=64m tmpfs $DISK; $FILL 20; mount -o remount,ro $DISK",
        "mount -o remount,rw $DISK",
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(290)
@pytest.mark.parametrize("fault", MOUNTS)
def test_a_disk_that_takes_nothing(fault: str, tmp_path: Path, bert_embedder: Path) -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs unshare and mounts of one's own")
    broken, mended = MOUNTS[fault]
    steps = f"set -e; {broken}; $FILL 600; {mended}; $FILL 600"
    values = {"DISK": str(tmp_path), "FILL": f"{sys.executable} {SCRIPT} {bert_embedder} {tmp_path / 'store'}"}
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", steps],
        capture_output=True, text=True, timeout=280, check=False, env={**os.environ, **values},
    )  # fmt: skip
    said = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert said[-2].startswith("failed InternalError")
    assert said[-1] == "whole True"
    if fault == "full":
        assert "while writing 20 documents" in said[-2]
        assert "start a new process" in said[-2]
