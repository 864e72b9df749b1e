"""langchain-chroma on disk, filled and read through `BgeEmbeddings`."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from bge_integrations import ModelCache
from bge_integrations.langchain import BgeEmbeddings


def _store(folder: Path, embeddings: BgeEmbeddings) -> Chroma:
    return Chroma(
        collection_name="documents",
        embedding_function=embeddings,
        persist_directory=str(folder),
        collection_metadata={"hnsw:space": "cosine"},
    )


@pytest.fixture
def embeddings(minilm: Path, cache: ModelCache) -> BgeEmbeddings:
    return BgeEmbeddings(model=str(minilm), cache=cache)


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path: Path, embeddings: BgeEmbeddings) -> Iterator[VectorStore]:
        store = _store(tmp_path, embeddings)
        yield store
        store.delete_collection()


async def test_a_store_opened_again_finds_what_was_written(tmp_path: Path, embeddings: BgeEmbeddings) -> None:
    documents = [
        Document("The giant panda eats bamboo for twelve hours a day.", id="panda", metadata={"source": "zoo.txt"}),
        Document("Bread needs flour, water, salt and yeast.", id="bread"),
        Document("Two astronauts walked on the moon in 1969.", id="moon"),
    ]
    _store(tmp_path, embeddings).add_documents(documents)
    store = _store(tmp_path, embeddings)
    for question, answer in {
        "What do pandas eat?": "panda",
        "How do I bake?": "bread",
        "Lunar landing": "moon",
    }.items():
        best, score = store.similarity_search_with_relevance_scores(question, k=1)[0]
        assert best.id == answer
        assert 0 <= score <= 1
        assert [document.id for document in await store.asimilarity_search(question, k=1)] == [answer]
    stored = store.get(["panda"], include=["embeddings", "documents", "metadatas"])
    np.testing.assert_allclose(stored["embeddings"], embeddings.embed_documents([documents[0].page_content]), atol=1e-5)
    assert stored["metadatas"] == [{"source": "zoo.txt"}]
