"""A server of `bge serve` in a process of its own, for tests that talk to it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from bge_integrations import default_cache

EMBEDDER, RERANKER = "bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"


class Server:
    """A running server; `address` is what `cache=` takes."""

    def __init__(self, *arguments, models=(EMBEDDER, RERANKER), **environment):
        command = [sys.executable, "-m", "bge_integrations.cli", "serve", *map(str, models), *map(str, arguments)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("BGE_")} | environment
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
        said = []
        for line in self.process.stderr:
            said.append(line)
            if found := re.search(r"bge serves .* at (\S+)$", line):
                self.address = found[1]
                return
        self.process.stderr.close()
        raise AssertionError(f"it ended with {self.process.wait()} and said: {''.join(said)}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def terminate(self):
        """Send SIGTERM, and return the exit code and what the server has said since it started."""
        self.process.send_signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


@contextmanager
def serving(*arguments, **named) -> Iterator[Server]:
    """Start a server, and end it afterwards."""
    server = Server(*arguments, **named)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
        server.process.stderr.close()


def what_it_holds():
    """What this process, a worker that has embedded, holds: its private bytes, whether torch is there, its models."""
    private = psutil.Process().memory_full_info().uss
    models = len(default_cache().stats()["models"])
    return {"worker": os.getpid(), "private": private, "torch": "torch" in sys.modules, "models": models}


def assert_that_workers_share(told):
    """Two workers that load hold a model each; two that use the server hold none, and less by its weights at least."""
    alone = told["workers"].pop("alone")
    assert told["workers"].keys() == {"told by the environment", "given an address"}
    for workers in (alone, *told["workers"].values()):
        assert len({one["worker"] for one in workers}) == 2
        for one in workers:
            assert (one["models"], one["torch"]) == ((1, True) if workers is alone else (0, False))
    least = min(one["private"] for one in alone) - told["weights"]
    most = max(one["private"] for workers in told["workers"].values() for one in workers)
    assert most < least, told
    assert max(told["vectors"].values()) < 1e-5
    assert (told["server"]["loads"], len(told["server"]["models"])) == (1, 1)
