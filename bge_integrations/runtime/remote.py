"""A cache that lives in another process: the client of `bge serve`.

One thread of the process waits for all answers, so that a call holds no thread of its own.
"""

import asyncio
import atexit
import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import httpcore

from bge_integrations import errors
from bge_integrations.errors import InputTooLongError, ServerUnavailableError
from bge_integrations.inference.batch import Output
from bge_integrations.process import Background, ForkSafeLock, PackageThread, refuse_lost_threads, wait
from bge_integrations.runtime.replicas import joined
from bge_integrations.runtime.request import ModelSource, Options, Request, TextOptions
from bge_integrations.runtime.wire import about, pack_request, to_json, unpack_output

T = TypeVar("T")

PART_ITEMS = 1024
PART_CHARACTERS = 1 << 19
"""A longer call travels in parts of at most so many texts and characters, so that neither side holds it as a whole."""
_PARTS_UNDER_WAY = 2
_CONNECT_SECONDS = 0.9
"""Seconds after which a machine that does not answer at all counts as unreachable."""
_TOO_MUCH = ("BodyTooLarge", "TooManyTextsError")
"""The server's errors after which a call is sent in smaller parts."""
_STOP_SECONDS = 1.0
"""Seconds that the end of the process waits for connections to close."""
_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (*vars(errors).values(), ValueError, TypeError)
    if isinstance(kind, type) and issubclass(kind, Exception)
}
"""The errors that an answer may name."""


class RemoteCache:
    """The models of a server, with the methods of `ModelCache` by which embedders and rerankers use it.

    Args:
        address: "http://host:port", "https://..." or "unix:///path/of.sock".
        key: The server's key, if it wants one; None takes that of the environment, `BGE_API_KEY`.
        start: Starts the server, if nothing listens at the address.
    """

    def __init__(self, address: str, key: str | None = None, start: Callable[[], None] | None = None) -> None:
        self.address = address
        self._key = key
        self._start = start
        parts = urlsplit(address)
        self._socket = unquote(parts.path) if parts.scheme == "unix" else None
        self._base = "http://localhost" if self._socket else address.rstrip("/")
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=None, max_keepalive_connections=64, keepalive_expiry=None, uds=self._socket,
            network_backend=_OwnSocket(),
        )  # fmt: skip

    def submit(self, request: Request) -> "Future[Output]":
        """Send a call and return the future of its output, without waiting; cancelling it cancels the call there.

        The future fails with the error that the server reports, or with `ServerUnavailableError`.
        """
        parts, gate = list(_parts(request)), asyncio.Semaphore(_PARTS_UNDER_WAY)
        futures = [_spawn(self._computed(part, gate)) for part in parts]
        return futures[0] if len(futures) == 1 else joined(futures)

    def describe(self, source: ModelSource, options: Options) -> dict[str, Any]:
        """Return how the server found a model and runs it, and the settings of calls with these options."""
        facts: dict[str, Any] = json.loads(self._ask("/bge/describe", about(source, options)))
        return facts

    def fingerprint(self, source: ModelSource, options: TextOptions) -> str:
        """Return a hash of everything that decides vectors of these options; the server reads its weight files."""
        return str(json.loads(self._ask("/bge/fingerprint", about(source, options))))

    def depth(self, source: ModelSource) -> int:  # noqa: ARG002
        """Return 0: the server itself divides calls among its devices."""
        return 0

    def stats(self) -> dict[str, Any]:
        """Return what `ModelCache.stats` returns, of the server."""
        stats: dict[str, Any] = json.loads(wait(_spawn(self._send("GET", "/bge/stats", b""))))
        return stats

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    def __repr__(self) -> str:
        return f"RemoteCache({self.address!r})"

    def _ask(self, path: str, data: object) -> bytes:
        return wait(_spawn(self._send("POST", path, to_json(data))))

    async def _computed(self, part: Request, gate: asyncio.Semaphore) -> Output:
        async with gate:
            try:
                return unpack_output(await self._send("POST", "/bge/submit", pack_request(part)))
            except _TooMuchError as error:
                if len(part.items) == 1:
                    raise InputTooLongError(str(error)) from None
        halves = [self._computed(half, gate) for half in _parts(part, most=(len(part.items) + 1) // 2)]
        return await asyncio.wrap_future(joined([_spawn(half) for half in halves]))

    async def _send(self, method: str, path: str, body: bytes) -> bytes:
        """Send a request and return the body of the answer.

        A request that a broken connection cut off is sent once more: it changes nothing on the server, and a
        connection that was kept open may be one to a server that has been restarted meanwhile.
        """
        headers: dict[str | bytes, str | bytes] = {"content-type": "application/json"}
        if key := self._key or os.environ.get("BGE_API_KEY"):
            headers["authorization"] = f"Bearer {key}"
        for last in (False, True):
            try:
                response = await self._pool.request(
                    method, self._base + path, headers=headers, content=body,
                    extensions={"timeout": {"connect": _CONNECT_SECONDS}},
                )  # fmt: skip
            except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError) as error:
                if last or not self._start:
                    raise self._unavailable(f"cannot be reached ({error})") from None
                await asyncio.wrap_future(Background[None](1, "bge-start").submit(self._start))
            except (httpcore.NetworkError, httpcore.ProtocolError) as error:
                if last:
                    raise self._unavailable(f"went away before it answered ({error!r})") from None
            else:
                break
        if response.status == 200:
            return response.content
        raise self._error(response.status, response.content)

    def _unavailable(self, what: str) -> ServerUnavailableError:
        return ServerUnavailableError(f"The server at {self.address} {what}. Start it with: bge serve MODEL...")

    def _error(self, status: int, body: bytes) -> Exception:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            error = json.loads(body)["error"]
            kind, message = error["type"], str(error["message"])
            if kind in _TOO_MUCH:
                return _TooMuchError(message)
            return _ERRORS.get(kind, errors.BgeError)(message)
        return self._unavailable(f"answered with HTTP status {status}: {body[:200].decode(errors='replace')}")


class _TooMuchError(Exception):
    """A request is larger than the server takes."""


class _OwnSocket(httpcore.AnyIOBackend):
    """Opens connections; refuses a Unix socket behind which a process of another user listens."""

    async def connect_unix_socket(self, path: str, *arguments: Any, **named: Any) -> httpcore.AsyncNetworkStream:
        stream = await super().connect_unix_socket(path, *arguments, **named)
        if (user := _user_behind(stream.get_extra_info("socket"), path)) != os.getuid():
            await stream.aclose()
            raise OSError(f"its process belongs to user {user}, not to {os.getuid()}, so texts are not sent to it")
        return stream


def _user_behind(connected: socket.socket, path: str) -> int:
    if hasattr(socket, "SO_PEERCRED"):
        credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])
    return Path(path).stat().st_uid


def _parts(request: Request, most: int = PART_ITEMS) -> Iterator[Request]:
    """Split a call into calls of at most `most` items, and of little more than `PART_CHARACTERS` characters."""
    first, characters = 0, 0
    for index, item in enumerate(request.items):
        size = len(item) if isinstance(item, str) else sum(map(len, item))
        if index > first and (index - first == most or characters + size > PART_CHARACTERS):
            yield _part(request, first, index)
            first, characters = index, 0
        characters += size
    yield _part(request, first, len(request.items))


def _part(request: Request, first: int, last: int) -> Request:
    items: Sequence[Any] = request.items[first:last]
    return replace(request, items=items, first=request.first + first)


class _Loop:
    """The event loop on which this process waits for servers, and its thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = PackageThread("bge-client", self.loop.run_forever)
        self.thread.start()

    def stop(self) -> None:
        async def close() -> None:
            await asyncio.gather(*(remote.close() for remote in _remotes.values()), return_exceptions=True)
            self.loop.stop()

        asyncio.run_coroutine_threadsafe(close(), self.loop)
        self.thread.finished.wait(_STOP_SECONDS)


_naming = ForkSafeLock()
_remotes: dict[tuple[str, str | None], RemoteCache] = {}
_loops: list[_Loop] = []
_abandoned: list[object] = []


def remote_cache(address: str, key: str | None = None, start: Callable[[], None] | None = None) -> RemoteCache:
    """Return the process's one client of a server; the arguments are those of `RemoteCache`."""
    with _naming:
        return _remotes.get((address, key)) or _remotes.setdefault((address, key), RemoteCache(address, key, start))


def _spawn(work: Coroutine[Any, Any, T]) -> "Future[T]":
    try:
        refuse_lost_threads()
        with _naming:
            if not _loops:
                _loops.append(_Loop())
        return asyncio.run_coroutine_threadsafe(work, _loops[0].loop)
    except BaseException:
        work.close()
        raise


def _at_exit() -> None:
    for loop in _loops:
        loop.stop()


def _after_fork_in_child() -> None:
    _abandoned.extend((dict(_remotes), list(_loops)))  # closing the parent's connections here would warn
    _remotes.clear()
    _loops.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
