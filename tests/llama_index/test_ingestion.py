"""`IngestionPipeline` with two processes, and its cache."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.ingestion.pipeline import get_transformation_hash
from llama_index.core.schema import TextNode
from llama_index_samples import TEXTS

from bge_integrations import BgeEmbedder
from bge_integrations.llama_index import BgeEmbedding

SCRIPT = """
import asyncio, json, sys
from llama_index.core import Document
from llama_index.core.ingestion import IngestionPipeline
from bge_integrations.llama_index import BgeEmbedding

if __name__ == "__main__":
    folder, method = sys.argv[1:]
    documents = [Document(text=text) for text in json.load(sys.stdin)]
    embedding = BgeEmbedding(model_name=folder)
    pipeline = IngestionPipeline(transformations=[embedding], disable_cache=True)
    if method == "run":
        embedding.get_text_embedding("the parent has used the model")
        nodes = pipeline.run(documents=documents, num_workers=2)
    else:
        nodes = asyncio.run(pipeline.arun(documents=documents, num_workers=2))
    print(json.dumps([[node.text, node.embedding] for node in nodes]))
"""


@pytest.mark.parametrize("method", ["run", "arun"])
def test_two_processes(bert_embedder: Path, tmp_path: Path, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    texts = [f"{text} {number}" for number in range(4) for text in TEXTS]
    done = subprocess.run(
        [sys.executable, str(script), str(bert_embedder), method],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [text for text, _ in rows] == texts
    expected = BgeEmbedder(str(bert_embedder)).encode_documents([text for text, _ in rows])
    np.testing.assert_allclose([vector for _, vector in rows], expected, atol=1e-5)


async def test_one_process(embedding: BgeEmbedding) -> None:
    pipeline = IngestionPipeline(transformations=[embedding], disable_cache=True)
    expected = embedding.embedder.encode_documents(TEXTS)
    for nodes in (
        pipeline.run(nodes=[TextNode(text=text) for text in TEXTS]),
        await pipeline.arun(nodes=[TextNode(text=text) for text in TEXTS]),
    ):
        np.testing.assert_allclose([node.embedding for node in nodes], expected, atol=1e-6)


def test_the_ingestion_cache_hits_and_misses(embedding: BgeEmbedding) -> None:
    def run(transformation: BgeEmbedding) -> int:
        pipeline = IngestionPipeline(transformations=[transformation], cache=cache)
        pipeline.run(nodes=[TextNode(text="a", id_="1")])
        return len(cache.cache.get_all(collection=cache.collection))

    cache = IngestionCache()
    assert run(embedding) == 1
    assert run(BgeEmbedding.from_dict(embedding.to_dict())) == 1
    assert run(embedding.model_copy(update={"document_instruction": "d: "})) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"model_name": "BAAI/bge-m3"},
        {"document_instruction": "d: "},
        {"query_instruction": "q: "},
        {"normalize": False},
        {"max_length": 100},
        {"truncate_dim": 16},
        {"dtype": "bfloat16"},
        {"backend": "torch"},
        {"revision": "v2"},
        {"like": "BAAI/bge-small-en-v1.5"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_vectors_changes_the_cache_key(embedding: BgeEmbedding, change: dict[str, object]) -> None:
    nodes = [TextNode(text="a")]
    changed = embedding.model_copy(update=change)
    assert get_transformation_hash(nodes, changed) != get_transformation_hash(nodes, embedding)


def test_retraining_a_folder_in_place_changes_the_cache_key(tmp_path: Path) -> None:
    embedding = BgeEmbedding(model_name=str(tiny.make_bert_embedder(tmp_path / "model")))
    nodes = [TextNode(text="a")]
    before = get_transformation_hash(nodes, embedding)
    assert get_transformation_hash(nodes, embedding) == before
    tiny.make_bert_embedder(tmp_path / "model", seed=1)
    assert get_transformation_hash(nodes, embedding) != before
