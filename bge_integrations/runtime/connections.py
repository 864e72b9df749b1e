"""HTTP to one server, over connections that stay open: h11 writes and reads the messages, sockets carry them.

A call that waits has a blocking socket, as the way to another thread and back takes a good part of what asking a server
costs at all; the other calls share an event loop (`loop_connections.py`).
"""

import os
import socket
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import h11

Answer = tuple[int, bytes]
"""The status and the body of an answer."""

CONNECT_SECONDS = 0.9
"""Seconds after which a machine that does not answer at all counts as unreachable."""
MOST_FREE = 64
"""Most connections that are kept open while no request uses them."""
_READ_BYTES = 1 << 18


class UnreachableError(Exception):
    """Nothing answers at the address."""


class BrokenError(Exception):
    """The connection ended before the whole answer came."""


class Address:
    """The parts of an address: "http://host:port", "https://..." or "unix:///path/of.sock"."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.secure = parts.scheme == "https"
        self.socket = unquote(parts.path) if parts.scheme == "unix" else None
        self.host, self.port = parts.hostname or "", parts.port or (443 if self.secure else 80)
        self.prefix = "" if self.socket else parts.path.rstrip("/")
        self.name = "localhost" if self.socket else parts.netloc


class Exchange:
    """The messages of one connection, without the connection itself; one request at a time."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._http = h11.Connection(h11.CLIENT)
        self._status, self._content = 0, list[bytes]()

    def ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """Return the bytes of a request."""
        sent = {"host": self._address.name, "content-length": str(len(body)), **headers}
        self._status, self._content = 0, []
        head = h11.Request(method=method, target=self._address.prefix + path, headers=list(sent.items()))
        parts = [self._http.send(event) for event in (head, h11.Data(data=body), h11.EndOfMessage())]
        return b"".join(part for part in parts if part)

    def read(self, data: bytes) -> Answer | None:
        """Take bytes of the answer, and return it once it is whole; no bytes mean that no more come.

        Raises:
            BrokenError: It ended early, or is no HTTP.
        """
        try:
            self._http.receive_data(data)
            while (event := self._http.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                elif isinstance(event, h11.Data):
                    self._content.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    return self._status, b"".join(self._content)
                elif isinstance(event, h11.ConnectionClosed):
                    raise BrokenError("the server closed the connection")
        except h11.RemoteProtocolError as error:
            raise BrokenError(repr(error)) from None
        return None

    def can_go_on(self) -> bool:
        """Make the connection ready for another request, unless the server is about to close it."""
        if self._http.our_state is self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            return True
        return False


class Connections(Protocol):
    """Connections to one server."""

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes, *, anew: bool) -> Answer:
        """Send a request and return its answer; giving up on it closes its connection.

        Args:
            method: The method.
            path: The path.
            headers: Headers besides Host and Content-Length.
            body: The body.
            anew: Whether to open a connection even if one is free.

        Raises:
            UnreachableError: No connection can be opened.
            BrokenError: The connection ended before the answer did.
        """

    async def outcome(self, future: "Future[None]") -> None:
        """Wait for a future."""

    def close(self) -> None:
        """Close the connections that no request uses."""


class BlockingConnections:
    """Connections for calls that wait in their own thread; what they return never suspends."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._free: list[tuple[socket.socket, Exchange]] = []

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes, *, anew: bool) -> Answer:
        """See `Connections`."""
        connected, exchange = (None if anew else self._take()) or self._open()
        try:
            connected.sendall(exchange.ask(method, path, headers, body))
            while (answer := exchange.read(connected.recv(_READ_BYTES))) is None:
                pass
        except OSError as error:
            connected.close()
            raise BrokenError(repr(error)) from None
        except BaseException:
            connected.close()
            raise
        if exchange.can_go_on() and len(self._free) < MOST_FREE:
            self._free.append((connected, exchange))
        else:
            connected.close()
        return answer

    async def outcome(self, future: "Future[None]") -> None:
        """See `Connections`."""
        future.result()

    def close(self) -> None:
        """See `Connections`."""
        free, self._free = self._free, []
        for connected, _ in free:
            connected.close()

    def _take(self) -> tuple[socket.socket, Exchange] | None:
        while True:
            try:
                free = self._free.pop()
            except IndexError:
                return None
            try:
                free[0].recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:  # nothing to read: it is open
                return free
            except OSError:
                pass
            free[0].close()

    def _open(self) -> tuple[socket.socket, Exchange]:
        where = self._address
        try:
            if where.socket is None:
                connected = socket.create_connection((where.host, where.port), CONNECT_SECONDS)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                connected = _connected(where.socket)
        except OSError as error:
            raise UnreachableError(str(error)) from None
        connected.settimeout(None)
        check_user(connected, where.socket, connected.close)
        return connected, Exchange(where)


def _connected(path: str) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX)
    connected.settimeout(CONNECT_SECONDS)
    try:
        connected.connect(path)
    except OSError:
        connected.close()
        raise
    return connected


def check_user(connected: socket.socket, path: str | None, close: Callable[[], None]) -> None:
    """Refuse a Unix socket behind which a process of another user listens."""
    if path is not None and (user := _user_behind(connected, path)) != os.getuid():
        close()
        raise UnreachableError(f"its process belongs to user {user}, not to {os.getuid()}, so texts are not sent to it")


def _user_behind(connected: socket.socket, path: str) -> int:
    if hasattr(socket, "SO_PEERCRED"):
        credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])
    return Path(path).stat().st_uid
