"""What the runtime's tests share: embedders on one device, folders to change, a hub's cache on disk."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tiny
from holding import REVISION

from bge_integrations import BgeEmbedder, ModelCache


@pytest.fixture
def make(cache: ModelCache) -> Callable[..., BgeEmbedder]:
    """Makes an embedder on the CPU in the test's own cache."""

    def make(folder: Path | str, **arguments: Any) -> BgeEmbedder:
        return BgeEmbedder(str(folder), **({"cache": cache, "device": "cpu"} | arguments))

    return make


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four embedders of one shape with different weights."""
    return [tiny.make_bert_embedder(tmp_path_factory.mktemp(f"seed{seed}"), seed=seed) for seed in range(4)]


@pytest.fixture
def own_folder(tmp_path: Path, bert_embedder: Path) -> Path:
    """A copy of the BERT embedder that a test may change."""
    return shutil.copytree(bert_embedder, tmp_path / "own")


@pytest.fixture
def hub(tmp_path: Path) -> Callable[[str, Path], Path]:
    """Puts a model into a hub's cache folder under an id; returns its snapshot."""

    def put(repository: str, folder: Path) -> Path:
        home = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(REVISION)
        return shutil.copytree(folder, home / "snapshots" / REVISION)

    return put
