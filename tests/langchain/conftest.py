"""A tiny bge-m3 as the core's embedder and as LangChain's embeddings."""

from pathlib import Path

import pytest

from bge_integrations import ModelCache
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.langchain import BgeEmbeddings


@pytest.fixture
def m3_embedder(m3: Path, cache: ModelCache) -> BgeM3Embedder:
    return BgeM3Embedder(str(m3), like="BAAI/bge-m3", query_instruction="query: ", cache=cache)


@pytest.fixture
def m3_dense(m3: Path, cache: ModelCache) -> BgeEmbeddings:
    """The same model for stores."""
    return BgeEmbeddings(model=str(m3), like="BAAI/bge-m3", query_instruction="query: ", cache=cache)
