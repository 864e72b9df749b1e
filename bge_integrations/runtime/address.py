"""Addresses of servers, as the argument `cache=` takes them; `cache_at` in `cache.py` says when they count."""

from functools import partial
from urllib.parse import unquote, urlsplit, urlunsplit

from bge_integrations.runtime.auto import socket_path, start_server
from bge_integrations.runtime.cache import CacheArgument, ModelCache
from bge_integrations.runtime.request import Cache

AUTO = "auto"
_keys: dict[str, str] = {}
"""The keys that addresses of this process had, by address: no object holds one, so no dump, pickle or repr shows it."""


def checked_cache(cache: object) -> CacheArgument:
    """Return the argument `cache=` as an object keeps it: an address without the key that may be in it.

    Raises:
        TypeError: It is neither a cache nor an address.
        ValueError: The address is none that can be reached.
    """
    if cache is None or isinstance(cache, ModelCache):
        return cache
    if not isinstance(cache, str):
        raise TypeError(
            f'cache= must be a ModelCache, an address such as "http://127.0.0.1:8080", or "auto", not {cache!r:.60}.'
        )
    from bge_integrations.runtime import remote  # noqa: F401  now, so that what is forked later shares its memory

    if cache == AUTO:
        return cache
    address, key = _split(cache)
    if key:
        _keys[address] = key
    return address


def cache_behind(place: str) -> Cache:
    """Return the cache of a server.

    Raises:
        ValueError: It is no address.
        ServerUnavailableError: The folder for the socket of "auto" belongs to another user.
    """
    from bge_integrations.runtime.remote import remote_cache

    if place == AUTO:
        path = socket_path()
        return remote_cache(f"unix://{path}", start=partial(start_server, path))
    address, key = _split(place)
    return remote_cache(address, key or _keys.get(address))


def _split(address: str) -> tuple[str, str | None]:
    """Return an address without the key in it, and the key."""
    parts = urlsplit(address)
    if parts.scheme == "unix" and parts.path.startswith("/") and not parts.netloc:
        return address, None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f'cache="{address}" is no address. Possible are "http://host:port", "https://host", '
            '"unix:///path/of.sock" and "auto"; a key may stand before the host, as in "http://:KEY@host:port".'
        )
    key = parts.password or parts.username
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")), unquote(key) if key else None
