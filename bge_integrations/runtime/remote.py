"""A cache that lives in another process: the client of `bge serve`.

A call that waits asks the server in its own thread; for all others one thread of the process waits, and only that needs
asyncio, so it is imported there.
"""

import atexit
import contextlib
import json
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from bge_integrations import errors
from bge_integrations.errors import InputTooLongError, ServerUnavailableError
from bge_integrations.inference.batch import Output
from bge_integrations.process import Background, ForkSafeLock, PackageThread, refuse_lost_threads, wait
from bge_integrations.runtime.connections import (
    Address,
    BlockingConnections,
    BrokenError,
    Connections,
    UnreachableError,
)
from bge_integrations.runtime.replicas import joined
from bge_integrations.runtime.request import ModelSource, Options, Request, TextOptions
from bge_integrations.runtime.wire import about, pack_request, to_json, unpack_output

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

PART_ITEMS = 1024
PART_CHARACTERS = 1 << 19
"""A longer call travels in parts of at most so many texts and characters, so that neither side holds it as a whole."""
_PARTS_UNDER_WAY = 2
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
        self._address = Address(address)
        self._blocking = BlockingConnections(self._address)

    @cached_property
    def _shared(self) -> Connections:
        from bge_integrations.runtime.loop_connections import LoopConnections

        return LoopConnections(self._address)

    def submit(self, request: Request) -> "Future[Output]":
        """Send a call and return the future of its output, without waiting; cancelling it cancels the call there.

        The future fails with the error that the server reports, or with `ServerUnavailableError`.
        """
        import asyncio

        parts, gate = list(_parts(request)), asyncio.Semaphore(_PARTS_UNDER_WAY)
        futures = [_spawn(self._computed(part, gate)) for part in parts]
        return futures[0] if len(futures) == 1 else joined(futures)

    def run(self, request: Request) -> Output:
        """Run a call from this thread and return its output; an interrupt cancels it there."""
        if sum(1 for _ in _parts(request)) == 1:
            with contextlib.suppress(_TooMuchError):  # it is sent in parts
                return unpack_output(self._asked("POST", "/bge/submit", pack_request(request)))
        return wait(self.submit(request))

    def describe(self, source: ModelSource, options: Options) -> dict[str, Any]:
        """Return how the server found a model and runs it, and the settings of calls with these options."""
        facts: dict[str, Any] = json.loads(self._asked("POST", "/bge/describe", to_json(about(source, options))))
        return facts

    def fingerprint(self, source: ModelSource, options: TextOptions) -> str:
        """Return a hash of everything that decides vectors of these options; the server reads its weight files."""
        return str(json.loads(self._asked("POST", "/bge/fingerprint", to_json(about(source, options)))))

    def depth(self, source: ModelSource) -> int:  # noqa: ARG002
        """Return 0: the server itself divides calls among its devices."""
        return 0

    def stats(self) -> dict[str, Any]:
        """Return what `ModelCache.stats` returns, of the server."""
        stats: dict[str, Any] = json.loads(self._asked("GET", "/bge/stats", b""))
        return stats

    def close(self) -> None:
        """Close the connections that no call uses."""
        self._blocking.close()
        if "_shared" in vars(self):
            self._shared.close()

    def __repr__(self) -> str:
        return f"RemoteCache({self.address!r})"

    def _asked(self, method: str, path: str, body: bytes) -> bytes:
        """Send a request from this thread and return the body of the answer."""
        if self._address.secure:
            return wait(_spawn(self._send_on_loop(method, path, body)))
        refuse_lost_threads()
        return _at_once(self._send(self._blocking, method, path, body))

    async def _computed(self, part: Request, gate: "asyncio.Semaphore") -> Output:
        import asyncio

        async with gate:
            try:
                return unpack_output(await self._send_on_loop("POST", "/bge/submit", pack_request(part)))
            except _TooMuchError as error:
                if len(part.items) == 1:
                    raise InputTooLongError(str(error)) from None
        halves = [self._computed(half, gate) for half in _parts(part, most=(len(part.items) + 1) // 2)]
        return await asyncio.wrap_future(joined([_spawn(half) for half in halves]))

    async def _send_on_loop(self, method: str, path: str, body: bytes) -> bytes:
        """Send a request as `_send` does, over the shared connections, which only the loop's thread makes and uses."""
        return await self._send(self._shared, method, path, body)

    async def _send(self, connections: Connections, method: str, path: str, body: bytes) -> bytes:
        """Send a request and return the body of the answer.

        A request that a broken connection cut off is sent once more: it changes nothing on the server, and a
        connection that was kept open may be one to a server that has been restarted meanwhile.
        """
        headers = {"content-type": "application/json"}
        if key := self._key or os.environ.get("BGE_API_KEY"):
            headers["authorization"] = f"Bearer {key}"
        for last in (False, True):
            try:
                status, answer = await connections.request(method, path, headers, body, anew=last)
            except UnreachableError as error:
                if last or not self._start:
                    raise self._unavailable(f"cannot be reached ({error})") from None
                await connections.outcome(Background[None](1, "bge-start").submit(self._start))
            except BrokenError as error:
                if last:
                    raise self._unavailable(f"went away before it answered ({error})") from None
            else:
                break
        if status == 200:
            return answer
        raise self._error(status, answer)

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
        import asyncio

        self.loop = asyncio.new_event_loop()
        self.thread = PackageThread("bge-client", self.loop.run_forever)
        self.thread.start()

    def stop(self) -> None:
        def end() -> None:
            _close()
            self.loop.stop()

        self.loop.call_soon_threadsafe(end)
        self.thread.finished.wait(_STOP_SECONDS)


_naming = ForkSafeLock()
_remotes: dict[tuple[str, str | None], RemoteCache] = {}
_loops: list[_Loop] = []
_abandoned: list[object] = []


def remote_cache(address: str, key: str | None = None, start: Callable[[], None] | None = None) -> RemoteCache:
    """Return the process's one client of a server; the arguments are those of `RemoteCache`."""
    with _naming:
        return _remotes.get((address, key)) or _remotes.setdefault((address, key), RemoteCache(address, key, start))


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, and return its result."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a coroutine over blocking connections has suspended")


def _spawn(work: Coroutine[Any, Any, T]) -> "Future[T]":
    try:
        refuse_lost_threads()
        with _naming:
            if not _loops:
                _loops.append(_Loop())
        import asyncio

        return asyncio.run_coroutine_threadsafe(work, _loops[0].loop)
    except BaseException:
        work.close()
        raise


def _close() -> None:
    for remote in list(_remotes.values()):
        remote.close()


def _at_exit() -> None:
    if _loops:
        _loops[0].stop()
    else:
        _close()


def _after_fork_in_child() -> None:
    _abandoned.extend((dict(_remotes), list(_loops)))  # closing the parent's connections here would warn
    _remotes.clear()
    _loops.clear()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork_in_child)
