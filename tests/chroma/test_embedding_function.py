"""BgeEmbeddingFunction in a real Chroma on disk."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.utils.embedding_functions import known_embedding_functions

from bge_integrations import BgeEmbedder, FingerprintMismatchError, ModelCache, UnknownModelError, WrongKindError
from bge_integrations.chroma import BgeEmbeddingFunction

TEXTS = ["Pandas eat bamboo.", "Paris is the capital of France.", "The whale is a mammal."]


@pytest.fixture
def client(tmp_path: Path) -> chromadb.ClientAPI:
    return chromadb.PersistentClient(str(tmp_path / "store"))


def test_vectors_are_the_cores(bert_embedder: Path, cache: ModelCache) -> None:
    function = BgeEmbeddingFunction(str(bert_embedder), query_instruction="find: ", cache=cache)
    core = BgeEmbedder(str(bert_embedder), query_instruction="find: ", cache=cache)
    documents, queries = function(TEXTS), function.embed_query(TEXTS)
    np.testing.assert_allclose(documents, core.encode_documents(TEXTS), atol=1e-6)
    np.testing.assert_allclose(queries, core.encode_queries(TEXTS), atol=1e-6)
    assert {(vector.dtype, vector.shape) for vector in [*documents, *queries]} == {(np.dtype("float32"), (core.dim,))}
    assert np.abs(np.array(documents) - np.array(queries)).max() > 1e-3


def test_collection_uses_both_paths(client: chromadb.ClientAPI, bert_embedder: Path) -> None:
    function = BgeEmbeddingFunction(str(bert_embedder), query_instruction="find the animal: ")
    collection = client.create_collection("notes", embedding_function=function)
    collection.add(ids=["0", "1", "2"], documents=TEXTS)
    stored = collection.get(ids=["1"], include=["embeddings"])["embeddings"]
    np.testing.assert_allclose(stored, function.embedder.encode_documents(TEXTS[1:2]), atol=1e-6)

    found = collection.query(query_texts=["mammal"], n_results=3)
    query = function.embedder.encode_queries(["mammal"])[0]
    distances = 1 - function.embedder.encode_documents([TEXTS[int(i)] for i in found["ids"][0]]) @ query
    np.testing.assert_allclose(found["distances"][0], distances, atol=1e-5)
    assert collection.configuration["hnsw"]["space"] == "cosine"


def test_survives_reopening_in_another_process(bert_embedder: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    function = BgeEmbeddingFunction(str(bert_embedder), query_instruction="find: ", max_length=64, device="cpu")
    collection = chromadb.PersistentClient(store).create_collection("notes", embedding_function=function)
    collection.add(ids=["0", "1", "2"], documents=TEXTS)
    expected = collection.query(query_texts=["mammal"], n_results=2)
    code = """
import chromadb, json, sys
import bge_integrations.chroma
collection = chromadb.PersistentClient(sys.argv[1]).get_collection("notes")
collection.add(ids=["3"], documents=["x"])
print(json.dumps([collection.query(query_texts=["mammal"], n_results=2, include=["distances"]),
    collection.configuration["embedding_function"].get_config()]))
"""
    out = subprocess.run([sys.executable, "-c", code, store], capture_output=True, text=True, check=True).stdout
    found, config = json.loads(out)
    assert found["ids"] == expected["ids"]
    np.testing.assert_allclose(found["distances"], expected["distances"], atol=1e-6)
    assert config == function.get_config()


def test_config_round_trip(bert_embedder: Path) -> None:
    arguments: dict[str, Any] = {
        "query_instruction": "q: ",
        "document_instruction": "d: ",
        "normalize": False,
        "max_length": 32,
        "truncate_dim": 16,
        "on_truncate": "ignore",
        "revision": "main",
    }
    function = BgeEmbeddingFunction(str(bert_embedder), **arguments)
    config = json.loads(json.dumps(function.get_config()))
    again = BgeEmbeddingFunction.build_from_config(config)
    assert again.get_config() == config
    assert {name: getattr(again.embedder, name) for name in arguments} == arguments
    assert known_embedding_functions["bge_integrations"] is BgeEmbeddingFunction
    assert not function.is_legacy()


def test_secrets_and_placement_stay_out_of_the_collection(client: chromadb.ClientAPI, bert_embedder: Path) -> None:
    function = BgeEmbeddingFunction(
        str(bert_embedder), token="hf_secret", trust_remote_code=True, device="cpu", local_files_only=True
    )
    collection = client.create_collection("notes", embedding_function=function)
    kept = json.dumps(collection.configuration_json)
    assert "hf_secret" not in kept
    assert not {"token", "trust_remote_code", "device", "local_files_only", "cache"} & function.get_config().keys()


def test_secrets_are_not_read_from_a_collection(bert_embedder: Path) -> None:
    config = {"model": str(bert_embedder), "trust_remote_code": True, "token": "hf_other", "device": "cuda:7"}
    embedder = BgeEmbeddingFunction.build_from_config(config).embedder
    assert embedder.trust_remote_code is False
    assert embedder.token is None
    assert embedder.device is None


@pytest.mark.parametrize("config", [{}, {"model": "x", "surprise": 1}])
def test_unknown_configuration_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model|surprise"):
        BgeEmbeddingFunction.build_from_config(config)


def test_another_model_is_refused(client: chromadb.ClientAPI, bert_embedder: Path, xlmr_embedder: Path) -> None:
    function = BgeEmbeddingFunction(str(bert_embedder))
    collection = client.create_collection("notes", embedding_function=function)
    with pytest.raises(FingerprintMismatchError, match=r"model='.*bert-embedder.*model='.*xlmr-embedder"):
        collection.modify(configuration={"embedding_function": BgeEmbeddingFunction(str(xlmr_embedder))})


@pytest.mark.parametrize(
    "change", [{"max_length": 16}, {"normalize": False}, {"truncate_dim": 8}, {"document_instruction": "d: "}]
)
def test_other_settings_of_documents_are_refused(bert_embedder: Path, change: dict[str, Any]) -> None:
    old, new = BgeEmbeddingFunction(str(bert_embedder)), BgeEmbeddingFunction(str(bert_embedder), **change)
    with pytest.raises(FingerprintMismatchError, match=next(iter(change))):
        new.validate_config_update(old.get_config(), new.get_config())


def test_settings_of_queries_may_change(bert_embedder: Path) -> None:
    old = BgeEmbeddingFunction(str(bert_embedder), query_instruction="a: ").get_config()
    new = BgeEmbeddingFunction(str(bert_embedder), query_instruction="b: ", on_truncate="raise")
    new.validate_config_update(old, new.get_config())


def test_bad_input(bert_embedder: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"bge-small-en-v1\.5"):
        BgeEmbeddingFunction("BAAI/bge-small-en-v15")
    with pytest.raises(TypeError, match="surprise"):
        BgeEmbeddingFunction(str(bert_embedder), surprise=1)  # type: ignore[call-arg]
    with pytest.raises(WrongKindError, match="BgeReranker"):
        BgeEmbeddingFunction("BAAI/bge-reranker-base")
    function = BgeEmbeddingFunction(str(bert_embedder))
    with pytest.raises(TypeError, match="1"):
        function(["x", None])  # type: ignore[list-item]
    assert len(function(["", "   "])) == 2
