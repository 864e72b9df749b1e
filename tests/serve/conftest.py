"""Servers that the tests of the protocols share, and the core's own embedder and reranker of the same models."""

import pytest
from serving import EMBEDDER, RERANKER, serving

from bge_integrations import BgeEmbedder, BgeReranker


@pytest.fixture(scope="session")
def server():
    """The address of a server of the two packaged models."""
    with serving("--port", "0", "--allow-host", "gpu-box") as server:
        yield server.address


@pytest.fixture(scope="session")
def m3_server(m3):
    """The address of a server of a tiny bge-m3."""
    with serving("--port", "0", "--like", "BAAI/bge-m3", models=[m3]) as server:
        yield server.address


@pytest.fixture(scope="session")
def embedder():
    return BgeEmbedder(EMBEDDER, device="cpu", on_truncate="ignore")


@pytest.fixture(scope="session")
def reranker():
    return BgeReranker(RERANKER, device="cpu", on_truncate="ignore")
