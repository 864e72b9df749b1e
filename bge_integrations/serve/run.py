"""The process of `bge serve`: its sockets, its way to end, and when it leaves by itself."""

import asyncio
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from bge_integrations.process import give_freed_memory_back
from bge_integrations.runtime.auto import exclusive, listens

_LEAVING_SECONDS = 2
"""Seconds that the end of the process takes after its last answer."""
_BACKLOG = 2048
_TRIM_SECONDS = 10
"""Seconds between two times that a busy process hands freed memory back to the system."""


class AddressTakenError(ValueError):
    """Another server listens there."""


def run(app: FastAPI, listener: socket.socket, *, drain: int, idle_exit: float | None = None) -> None:
    """Serve until SIGTERM or SIGINT: what runs is answered, what comes then is refused.

    Args:
        app: The application.
        listener: The socket to listen on; it is closed at the end.
        drain: Seconds within which the process ends, whatever still runs.
        idle_exit: Seconds without a request after which the server leaves; None lets it stay.
    """
    config = uvicorn.Config(
        app, access_log=False, lifespan="on", log_level="warning", ws="none",
        timeout_graceful_shutdown=max(1, drain - _LEAVING_SECONDS),
    )  # fmt: skip
    server = _Server(config)

    async def serve() -> None:
        beside = [asyncio.create_task(_give_memory_back(server))]
        if idle_exit:
            beside.append(asyncio.create_task(_leave_when_idle(server, idle_exit)))
        await server.serve(sockets=[listener])
        for task in beside:
            task.cancel()

    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(serve())


def listen_on_port(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a host's port; port 0 takes a free one.

    Raises:
        AddressTakenError: The port is taken, or the host is none of this machine.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
    except OSError as error:
        raise AddressTakenError(f"The server can't listen on {host}:{port}: {error}.") from error


def listen_on_path(path: Path) -> socket.socket:
    """Return a Unix socket that listens at a path and that only this user may open (mode 0600).

    A socket that a killed server left behind is replaced.

    Raises:
        AddressTakenError: A server listens there, or the file is no socket.
    """
    with exclusive(path.with_suffix(".lock")):
        if path.exists() and not stat.S_ISSOCK(path.stat().st_mode):
            raise AddressTakenError(f"{path} is a file, not a socket. Choose another path.")
        if listens(path):
            raise AddressTakenError(f"A server listens at {path} already.")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
        return listener


class _Server(uvicorn.Server):
    """A server that ends by SIGTERM or SIGINT like any other program; uvicorn's own would then die of the signal."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {which: signal.signal(which, self.handle_exit) for which in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for which, handler in before.items():
                signal.signal(which, handler)


async def _give_memory_back(server: uvicorn.Server) -> None:
    """Hand freed memory to the system: the gaps between blocks grow as long as sizes vary."""
    calls = 0
    while True:
        await asyncio.sleep(_TRIM_SECONDS)
        if calls != server.server_state.total_requests:
            calls = server.server_state.total_requests
            await asyncio.to_thread(give_freed_memory_back)


async def _leave_when_idle(server: uvicorn.Server, seconds: float) -> None:
    calls, since = -1, time.monotonic()
    while True:
        await asyncio.sleep(min(1.0, seconds / 4))
        state = server.server_state
        if state.total_requests != calls or state.tasks:
            calls, since = state.total_requests, time.monotonic()
        elif time.monotonic() - since >= seconds:
            server.should_exit = True
            return
