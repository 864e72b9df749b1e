"""The server of `cache="auto"`: each user of a machine has one, and whoever needs it first starts it."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bge_integrations import __version__
from bge_integrations.errors import ServerUnavailableError

_START_SECONDS = 60
"""Seconds within which a new server has to listen; the models load later."""


def start_server(path: Path) -> None:
    """Start this user's server, unless one listens behind the socket.

    Of several processes that come at once, one starts the server and the others wait for it.

    Raises:
        ServerUnavailableError: The server does not start; the message has the end of its log.
    """
    with exclusive(path.with_suffix(".starting")):
        if not listens(path):
            _start(path)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that processes share by its file; the system frees it when its holder is killed."""
    import fcntl  # Windows has none, and no Unix sockets in Python either

    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def socket_path() -> Path:
    """Return the path of this user's socket; its folder, which only the user may enter, is made.

    The version is part of the name, so a server of another version is not used.

    Raises:
        ServerUnavailableError: The folder belongs to another user.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) / "bge" if runtime else Path(tempfile.gettempdir()) / f"bge-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise ServerUnavailableError(
            f"{folder} can be entered by other users, so no socket is used in it. Remove it, or set XDG_RUNTIME_DIR."
        )
    return folder / f"bge-{__version__}.sock"


def listens(path: Path) -> bool:
    """Return whether a process listens behind a Unix socket; a file that a killed server left behind does not."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _start(path: Path) -> None:
    log = path.with_suffix(".log")
    command = [sys.executable, "-m", "bge_integrations.cli", "serve", "--auto", "--socket", str(path)]
    with log.open("w") as output:
        server = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while not listens(path):
        if server.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace")[-2000:]
            raise ServerUnavailableError(f'No server could be started for cache="auto"; {log} says: {said}')
        time.sleep(0.05)
    server.returncode = 0  # it outlives this process, and nobody waits for it
