"""While the interpreter ends, a call works or says that it can't; it never hangs, and nothing gets lost in silence."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # starts processes of its own

SCRIPT = Path(__file__).parent / "scripts" / "exits.py"
ENVIRONMENT = dict(os.environ)
"""A copy for scripts that start beside other tests: pytest changes the process's own at each, and that may be within an
exec."""
ONE = "(1, 32)"

WAYS = {  # way: what each call came to
    "before": {  # in a hook that was registered before the package was imported, and so runs after its own
        "sync": "ClosedError",
        "async": "ClosedError",
        "long async": "ClosedError",
        "stream": "ClosedError",
        "not loaded": "ClosedError",
        "thread": "ClosedError",
        "in a thread": "joined",
    },
    "after": {
        "threading": ONE,
        "concurrent": "joined",
        "thread": "None",
        "not loaded": "1",
        "multiprocessing": ONE,
        "finalize": ONE,
        "atexit": ONE,
        "__del__": "ClosedError",
    },
    "join": {"waiting": "ClosedError", "in time": "True"},  # a hook that waits for a thread that waits for a call
    "pool": {f"text {number}": ONE for number in range(50)} | {"pair": "1"},
    "others": {},
}


def run(way, *folders):
    command = [sys.executable, SCRIPT, way, *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, env=ENVIRONMENT)


@pytest.fixture(scope="module")
def runs(bert_embedder, bert_reranker):
    """Every script, two at a time, begun with the first test."""
    with ThreadPoolExecutor(2) as pool:
        yield {way: pool.submit(run, way, bert_embedder, bert_reranker) for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
def test_a_call_at_the_end(way, runs):
    script = runs[way].result(120)
    assert (script.returncode, script.stderr) == (0, "")
    assert dict(line.split(": ") for line in script.stdout.splitlines()) == WAYS[way]


GEVENT = """
import sys, threading
import gevent.monkey
way, folder = sys.argv[1:]
if way == "before":
    gevent.monkey.patch_all()
from bge_integrations import BgeEmbedder
embedder = BgeEmbedder(folder, device="cpu")
if way == "after use":
    embedder.encode_documents(["a"])
if way != "before":
    gevent.monkey.patch_all()
shapes = []
threads = [threading.Thread(target=lambda: shapes.append(embedder.encode_documents(["a"]).shape)) for _ in range(4)]
if way == "before":
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(embedder.encode_documents(["a"]).shape, len(shapes))
"""


@pytest.mark.parametrize("way", ["before", "after", "after use"])
def test_gevent(way, bert_embedder):
    """It works where threads were patched before the import; patched later, they would wait for ever."""
    pytest.importorskip("gevent")
    script = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GEVENT, way, str(bert_embedder)],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    if way == "before":
        assert (script.returncode, script.stdout) == (0, "(1, 32) 4\n"), script.stderr
    else:
        assert script.returncode != 0
        assert "RuntimeError: Threads were monkey-patched after bge_integrations was imported" in script.stderr
        assert "gevent.monkey.patch_all()" in script.stderr
