"""A server of `bge serve` in a process of its own, for tests that talk to it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
