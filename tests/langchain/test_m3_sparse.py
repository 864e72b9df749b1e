"""`BgeM3SparseEmbeddings`, by itself and in a real Qdrant on disk."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings, SparseVector
from pydantic import ValidationError
from qdrant_client import QdrantClient, models

from bge_integrations import ModelCache, UnsupportedModelError, WrongKindError
from bge_integrations.embed.m3 import BgeM3Embedder, sparse_score
from bge_integrations.langchain import BgeEmbeddings, BgeM3SparseEmbeddings
from bge_integrations.types import SparseEmbedding

LIKE = "BAAI/bge-m3"
TEXTS = [f"A passage about {word}." for word in ("panda", "bread", "moon", "court", "river", "violin")]
QUERY = "Tell me of the panda and the moon"


@pytest.fixture
def sparse(m3: Path, cache: ModelCache) -> BgeM3SparseEmbeddings:
    return BgeM3SparseEmbeddings(model=str(m3), like=LIKE, query_instruction="query: ", cache=cache)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[QdrantClient]:
    client = QdrantClient(path=str(tmp_path / "qdrant"))
    yield client
    client.close()


def _assert_same(vector: SparseVector, expected: SparseEmbedding) -> None:
    assert vector.indices == expected.indices.tolist()
    assert vector.values == pytest.approx(expected.values.tolist(), rel=1e-5)


async def test_vectors_are_the_cores(sparse: BgeM3SparseEmbeddings, m3_embedder: BgeM3Embedder) -> None:
    expected = m3_embedder.encode_documents(TEXTS).sparse or []
    for vectors in (sparse.embed_documents(TEXTS), await sparse.aembed_documents(TEXTS)):
        for vector, one in zip(vectors, expected, strict=True):
            _assert_same(vector, one)
    (query,) = m3_embedder.encode_queries(["panda"]).sparse or []
    for vector in (sparse.embed_query("panda"), await sparse.aembed_query("panda")):
        _assert_same(vector, query)
    assert sparse.embed_query("panda").indices != sparse.embed_documents(["panda"])[0].indices
    _assert_same(sparse.embed_documents(["query: panda"])[0], query)
    assert isinstance(sparse, SparseEmbeddings)
    json.dumps(sparse.embed_query("panda").model_dump())


async def test_nothing_gives_nothing(sparse: BgeM3SparseEmbeddings) -> None:
    assert sparse.embed_documents([]) == await sparse.aembed_documents([]) == []
    with pytest.raises(TypeError, match="str"):
        sparse.embed_documents("panda")  # type: ignore[arg-type]


def test_only_the_sparse_output_is_computed(sparse: BgeM3SparseEmbeddings) -> None:
    assert sparse.embedder.outputs == ("sparse",)


def test_fields(sparse: BgeM3SparseEmbeddings) -> None:
    assert BgeM3SparseEmbeddings().model == LIKE
    with pytest.raises(ValidationError, match="outputs"):
        BgeM3SparseEmbeddings(outputs=("dense",))  # type: ignore[call-arg]
    with pytest.raises(UnsupportedModelError, match="sparse"):
        BgeM3SparseEmbeddings(model="BAAI/bge-base-en-v1.5")
    with pytest.raises(WrongKindError):
        BgeM3SparseEmbeddings(model="BAAI/bge-reranker-v2-m3")
    again = BgeM3SparseEmbeddings.model_validate(sparse.model_dump())
    assert again.model_dump() == sparse.model_dump()
    expected = sparse.embed_query("panda")
    for twin in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), again):
        _assert_same(twin.embed_query("panda"), (sparse.embedder.encode_queries(["panda"]).sparse or [])[0])
        assert twin.embed_query("panda").indices == expected.indices


async def test_qdrants_sparse_mode(
    client: QdrantClient, sparse: BgeM3SparseEmbeddings, m3_embedder: BgeM3Embedder
) -> None:
    client.create_collection("s", sparse_vectors_config={"langchain-sparse": models.SparseVectorParams()})
    store = QdrantVectorStore(client, "s", sparse_embedding=sparse, retrieval_mode=RetrievalMode.SPARSE)
    store.add_texts(TEXTS, ids=[str(uuid4()) for _ in TEXTS])
    (query,) = m3_embedder.encode_queries([QUERY]).sparse or []
    scores = {
        t: sparse_score(query, e) for t, e in zip(TEXTS, m3_embedder.encode_documents(TEXTS).sparse or [], strict=True)
    }
    expected = sorted((text for text in TEXTS if scores[text]), key=scores.__getitem__, reverse=True)
    for found in (
        store.similarity_search_with_score(QUERY, k=10),
        await store.asimilarity_search_with_score(QUERY, k=10),
    ):
        assert [document.page_content for document, _ in found] == expected
        assert [score for _, score in found] == pytest.approx([scores[text] for text in expected], rel=1e-5)


def test_qdrants_hybrid_mode_on_disk(
    tmp_path: Path, sparse: BgeM3SparseEmbeddings, m3_dense: BgeEmbeddings, cache: ModelCache
) -> None:
    documents = [Document(text, metadata={"number": number}) for number, text in enumerate(TEXTS)]
    mode = RetrievalMode.HYBRID
    path = str(tmp_path / "qdrant")
    store = QdrantVectorStore.from_documents(
        documents, m3_dense, sparse_embedding=sparse, retrieval_mode=mode, path=path, collection_name="h"
    )
    found = [document.page_content for document in store.similarity_search(QUERY, k=3)]
    for side in (RetrievalMode.DENSE, RetrievalMode.SPARSE):
        store.retrieval_mode = side
        assert store.similarity_search(QUERY, k=1)[0].page_content in found
    store.client.close()
    again = QdrantVectorStore.from_existing_collection(
        "h", m3_dense, sparse_embedding=sparse, retrieval_mode=mode, path=path
    )
    assert [document.page_content for document in again.similarity_search(QUERY, k=3)] == found
    again.client.close()
    (model,) = cache.stats()["models"]
    assert model["model"] == sparse.model


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_without_langchain_qdrant_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['langchain_qdrant'] = None\n"
        "import bge_integrations.langchain as room; room.HybridRetriever; room.BgeM3Rerank()\n"
        "from bge_integrations import MissingExtraError\n"
        "try: from bge_integrations.langchain import BgeM3SparseEmbeddings\n"
        "except MissingExtraError as error: print(error)"
    )
    assert 'pip install "bge_integrations[qdrant]"' in _run(code)


def test_qdrant_is_imported_only_where_it_is_needed() -> None:
    code = (
        "import sys, bge_integrations.langchain as room; before = 'qdrant_client' in sys.modules\n"
        "room.BgeM3SparseEmbeddings(); print(before, 'qdrant_client' in sys.modules, 'torch' in sys.modules)\n"
        "try: room.BgeM3Sparse\n"
        "except AttributeError as error: print(error)"
    )
    assert _run(code).splitlines() == [
        "False True False",
        "module 'bge_integrations.langchain' has no attribute 'BgeM3Sparse'",
    ]
