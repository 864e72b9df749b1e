"""Connections to one server for coroutines, which share an event loop.

It is a module of its own because a process whose calls all wait needs no asyncio, which takes 7 MB and 70 ms.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from concurrent.futures import Future

from bge_integrations.runtime.connections import (
    CONNECT_SECONDS,
    MOST_FREE,
    Address,
    Answer,
    BrokenError,
    Exchange,
    UnreachableError,
    check_user,
)

_HANDSHAKE_SECONDS = 5.0
"""Seconds more for a TLS handshake, which a busy server begins only when it gets round to it."""


class LoopConnections:
    """Connections for the coroutines of one event loop."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._free: list[_Connection] = []

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes, *, anew: bool) -> Answer:
        """See `Connections`."""
        connection = (None if anew else self._take()) or await self._open()
        try:
            answer = await connection.answer_to(connection.exchange.ask(method, path, headers, body))
        except BaseException:
            connection.close()
            raise
        if connection.exchange.can_go_on() and len(self._free) < MOST_FREE:
            self._free.append(connection)
        else:
            connection.close()
        return answer

    async def outcome(self, future: "Future[None]") -> None:
        """See `Connections`."""
        await asyncio.wrap_future(future)

    def close(self) -> None:
        """See `Connections`."""
        while self._free:
            self._free.pop().close()

    def _take(self) -> "_Connection | None":
        while self._free:
            if (connection := self._free.pop()).is_open():
                return connection
        return None

    async def _open(self) -> "_Connection":
        loop, where = asyncio.get_running_loop(), self._address
        seconds = CONNECT_SECONDS + (_HANDSHAKE_SECONDS if where.secure else 0)

        def make() -> _Connection:
            return _Connection(Exchange(where))

        try:
            async with asyncio.timeout(seconds):
                if where.socket is None:
                    return (await loop.create_connection(make, where.host, where.port, ssl=where.secure or None))[1]
                transport, connection = await loop.create_unix_connection(make, where.socket)
        except TimeoutError:
            raise UnreachableError(f"no answer within {seconds} s") from None
        except OSError as error:
            raise UnreachableError(str(error)) from None
        check_user(transport.get_extra_info("socket"), where.socket, connection.close)
        return connection


class _Connection(asyncio.Protocol):
    """One connection of an event loop."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[Answer] | None = None

    def answer_to(self, request: bytes) -> Awaitable[Answer]:
        """Send a request, and return its answer."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def is_open(self) -> bool:
        return not self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  for mypy
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # nothing was asked
            return
        try:
            if (answer := self.exchange.read(data)) is not None:
                self._answer.set_result(answer)
        except BrokenError as error:
            self._answer.set_exception(error)

    def eof_received(self) -> None:
        self.data_received(b"")

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(BrokenError(repr(error)))
