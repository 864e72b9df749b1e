"""What every request passes first: it is counted, and its host, its key and the size of its body are looked at."""

import hmac
import ipaddress
from collections import Counter
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bge_integrations.errors import NotAllowedError
from bge_integrations.serve.errors import BodyTooLarge, WrongHostError, refusal

OPEN = ("/", "/docs", "/health", "/openapi.json")
"""Paths that need no key: they show nothing of the models or of anybody's texts."""
OTHER = "other"
"""The path by which requests for paths that do not exist are counted."""


class Gate:
    """An ASGI application before another one; it reads bodies whole, so that a slow sender holds nothing but memory.

    Args:
        app: The application.
        keys: The keys, one of which a request has to bring; none lets everybody in.
        max_body: Most bytes of a body.
        requests: Counts the answers by path and status.
        paths: The paths by which they are counted; every other one counts as "other".
        hosts: The names that a request may ask for besides localhost and IP addresses; None lets every name pass.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        max_body: int,
        requests: Counter[tuple[str, int]],
        paths: Collection[str],
        hosts: Collection[str] | None,
    ) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]
        self._max_body = max_body
        self._requests = requests
        self._paths = paths
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, or answer with a refusal, and count the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        label, started = path if path in self._paths else OTHER, False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._requests[label, message["status"]] += 1
            await send(message)

        try:
            await self._answer(path, scope, receive, counted)
        except Exception:
            if not started:
                self._requests[label, 500] += 1
            raise

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            self._check_host(headers.get(b"host", b"").decode("latin-1"))
            if self._keys and not (scope["method"] == "GET" and path in OPEN):
                self._check_key(headers.get(b"authorization", b""))
            body = await self._body(headers.get(b"content-length", b""), receive)
        except (NotAllowedError, WrongHostError, BodyTooLarge) as error:
            await refusal(path, error)(scope, receive, send)
            return
        if body is None:
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _check_host(self, given: str) -> None:
        """Refuse a strange name: a page from elsewhere can let its own name lead a browser to this machine."""
        if self._hosts is None or not given:
            return
        try:
            name = urlsplit(f"//{given}").hostname or ""
        except ValueError:
            name = given
        if name != "localhost" and name not in self._hosts and not _is_ip_address(name):
            raise WrongHostError(
                f"This server answers for localhost, not for {name!r:.80}. Start it with --allow-host {name:.80} if "
                "that is its name."
            )

    def _check_key(self, given: bytes) -> None:
        scheme, _, key = given.partition(b" ")
        known = [hmac.compare_digest(key.strip(), one) for one in self._keys]
        if scheme.lower() != b"bearer" or not any(known):
            raise NotAllowedError(
                "This server wants a key: send the header Authorization: Bearer KEY, or set BGE_API_KEY for cache=."
            )

    async def _body(self, length: bytes, receive: Receive) -> bytes | None:
        """Return the body; None if the client went away while it was sent."""
        if length.isdigit() and int(length[:20]) > self._max_body:
            raise self._too_large()
        parts, size = list[bytes](), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body:
                raise self._too_large()
            if not message.get("more_body"):
                return b"".join(parts)

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"The body is larger than {self._max_body:,} bytes. Send fewer texts at a time.")


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
