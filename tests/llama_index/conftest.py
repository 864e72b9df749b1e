"""The LlamaIndex classes over the tiny models."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index_samples import TEXTS, Recorder

from bge_integrations import BgeM3Embedder, ModelCache
from bge_integrations.llama_index import BgeEmbedding, BgeRerank


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    dispatcher = get_dispatcher()
    before = dispatcher.event_handlers
    recorder = Recorder()
    dispatcher.event_handlers = [*before, recorder]
    yield recorder
    dispatcher.event_handlers = before


@pytest.fixture
def embedding(bert_embedder: Path, cache: ModelCache) -> BgeEmbedding:
    return BgeEmbedding(model_name=str(bert_embedder), query_instruction="query: ", cache=cache)


@pytest.fixture
def reranker(bert_reranker: Path, cache: ModelCache) -> BgeRerank:
    return BgeRerank(model=str(bert_reranker), cache=cache)


@pytest.fixture(scope="session")
def m3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_m3(tmp_path_factory.mktemp("m3"))


@pytest.fixture
def m3(m3_folder: Path, cache: ModelCache) -> BgeM3Embedder:
    return BgeM3Embedder(str(m3_folder), like="BAAI/bge-m3", query_instruction="query: ", cache=cache)


@pytest.fixture
def nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(
            node=TextNode(
                id_=f"n{number}",
                text=text,
                metadata={"page": number, "tags": ["a", "b"]},
                excluded_embed_metadata_keys=["tags"],
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book")},
                embedding=[0.5, 0.25],
            ),
            score=0.9 - number / 10,
        )
        for number, text in enumerate(TEXTS)
    ]
