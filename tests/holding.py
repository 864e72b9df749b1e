"""Looks into a cache from a test, and holds what it does back until the test lets go."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bge_integrations import ModelCache
from bge_integrations.runtime import loader

REVISION = "0123456789abcdef0123456789abcdef01234567"


def torch_model(cache: ModelCache, folder: Path | str) -> Any:
    """The loaded transformers model of a folder or id."""
    (resident,) = [r for r in cache._residents.loaded() if r.key.model == str(folder)]
    return resident.engine.backend._model


def models(cache: ModelCache) -> list[str]:
    return [model["model"] for model in cache.stats()["models"]]


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)


@contextmanager
def held_forward(cache: ModelCache, folder: Path | str) -> Iterator[threading.Event]:
    """Holds a model's forwards back until the block ends; gives an event that is set once one has begun."""
    begun, go = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        begun.set()
        assert go.wait(60)

    handle = torch_model(cache, folder).base_model.register_forward_pre_hook(hold)
    try:
        yield begun
    finally:
        handle.remove()
        go.set()


@contextmanager
def held_loads() -> Iterator[None]:
    """Lets no weights load until the block ends."""
    with loader._one_load:
        yield
