"""BgeM3SparseEmbeddingFunction: the core's vectors, what a schema keeps of it, and what a local Chroma refuses."""

import json
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb import K, Knn, Schema, Search
from chromadb.api.types import SparseEmbeddingFunction, SparseVectorIndexConfig, VectorIndexConfig
from chromadb.errors import InvalidArgumentError
from chromadb.utils.embedding_functions import sparse_known_embedding_functions

from bge_integrations import (
    BgeM3Embedder,
    FingerprintMismatchError,
    MissingWeightsError,
    ModelCache,
    UnsupportedModelError,
    WrongKindError,
)
from bge_integrations.chroma import BgeEmbeddingFunction, BgeM3SparseEmbeddingFunction

M3 = str(Path(__file__).parent.parent / "golden" / "models" / "m3")
LIKE = "BAAI/bge-m3"
TEXTS = ["Pandas eat bamboo.", "Paris is the capital of France.", ""]


@pytest.fixture
def function(cache: ModelCache) -> BgeM3SparseEmbeddingFunction:
    return BgeM3SparseEmbeddingFunction(M3, like=LIKE, query_instruction="find: ", cache=cache)


def test_vectors_are_the_cores(function: BgeM3SparseEmbeddingFunction, cache: ModelCache) -> None:
    core = BgeM3Embedder(M3, like=LIKE, query_instruction="find: ", cache=cache)
    for given, expected in (
        (function(TEXTS), core.encode_documents(TEXTS).sparse),
        (function.embed_query(TEXTS), core.encode_queries(TEXTS).sparse),
    ):
        assert [vector.indices for vector in given] == [vector.indices.tolist() for vector in expected]
        for vector, other in zip(given, expected, strict=True):
            assert vector.values == pytest.approx(other.values.tolist(), abs=1e-6)
        assert json.dumps([vector.to_dict() for vector in given])
    assert function(TEXTS)[0] != function.embed_query(TEXTS)[0]
    assert isinstance(function, SparseEmbeddingFunction)


def test_a_dense_function_shares_the_weights(function: BgeM3SparseEmbeddingFunction, cache: ModelCache) -> None:
    function(TEXTS)
    BgeEmbeddingFunction(M3, like=LIKE, cache=cache)(TEXTS)
    assert len(cache.stats()["models"]) == 1


def test_config_round_trip() -> None:
    arguments: dict[str, Any] = {
        "like": LIKE,
        "query_instruction": "q: ",
        "document_instruction": "d: ",
        "max_length": 32,
        "on_truncate": "ignore",
        "revision": "main",
    }
    function = BgeM3SparseEmbeddingFunction(M3, **arguments, token="hf_secret", trust_remote_code=True, device="cpu")
    config = json.loads(json.dumps(function.get_config()))
    assert config == {"model": M3, **arguments}
    again = BgeM3SparseEmbeddingFunction.build_from_config(
        {**config, "token": "hf_other", "trust_remote_code": True, "device": "cuda:7"}
    )
    assert again.get_config() == config
    assert (again.embedder.token, again.embedder.trust_remote_code, again.embedder.device) == (None, False, None)
    assert again.embedder.outputs == ("sparse",)
    assert sparse_known_embedding_functions["bge_integrations_m3_sparse"] is BgeM3SparseEmbeddingFunction


def test_a_schema_keeps_it(function: BgeM3SparseEmbeddingFunction) -> None:
    kept = json.dumps(schema_with(function).serialize_to_json())
    again = Schema.deserialize_from_json(json.loads(kept)).keys["bge"].sparse_vector.sparse_vector_index.config
    assert again.source_key == "#document"
    assert again.embedding_function.get_config() == function.get_config()
    assert again.embedding_function(TEXTS) == function(TEXTS)


@pytest.mark.parametrize("config", [{}, {"model": "x", "surprise": 1}, {"model": "x", "normalize": True}])
def test_unknown_configuration_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"model|surprise|normalize"):
        BgeM3SparseEmbeddingFunction.build_from_config(config)


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"max_length": 16}, {"document_instruction": "d: "}, {"revision": "v2"}]
)
def test_other_settings_of_documents_are_refused(
    function: BgeM3SparseEmbeddingFunction, change: dict[str, Any]
) -> None:
    with pytest.raises(FingerprintMismatchError, match=next(iter(change))):
        function.validate_config_update(function.get_config(), {**function.get_config(), **change})


def test_settings_of_queries_may_change(function: BgeM3SparseEmbeddingFunction) -> None:
    change = {"query_instruction": "b: ", "on_truncate": "raise"}
    function.validate_config_update(function.get_config(), {**function.get_config(), **change})


def test_bad_input(function: BgeM3SparseEmbeddingFunction, xlmr_embedder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="sparse"):
        BgeM3SparseEmbeddingFunction("BAAI/bge-small-en-v1.5")
    with pytest.raises(WrongKindError, match="reranker"):
        BgeM3SparseEmbeddingFunction("BAAI/bge-reranker-v2-m3")
    with pytest.raises(TypeError, match="outputs"):
        BgeM3SparseEmbeddingFunction(outputs=("dense",))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="1"):
        function(["x", None])  # type: ignore[list-item]
    with pytest.raises(MissingWeightsError, match="sparse_linear"):
        BgeM3SparseEmbeddingFunction(str(xlmr_embedder), like=LIKE)(TEXTS)


def schema_with(function: BgeM3SparseEmbeddingFunction) -> Schema:
    dense = BgeEmbeddingFunction(M3, like=LIKE)
    return (
        Schema()
        .create_index(VectorIndexConfig(embedding_function=dense, space="cosine"))
        .create_index(SparseVectorIndexConfig(source_key=K.DOCUMENT, embedding_function=function), key="bge")
    )


def test_a_local_chroma_takes_no_sparse_vectors(tmp_path: Path, function: BgeM3SparseEmbeddingFunction) -> None:
    """Once this fails, the docstring and the README can say something better."""
    client = chromadb.PersistentClient(str(tmp_path))
    with pytest.raises(InvalidArgumentError, match="not enabled in local"):
        client.create_collection("notes", schema=schema_with(function))
    collection = client.create_collection("notes", embedding_function=BgeEmbeddingFunction(M3, like=LIKE))
    with pytest.raises(TypeError, match="metadatas"):
        collection.add(ids=["0"], documents=TEXTS[:1], metadatas=[{"bge": function(TEXTS)[0]}])
    with pytest.raises(NotImplementedError, match="Local"):
        collection.search(Search().rank(Knn(query=function.embed_query(["pandas"])[0], key="bge")))
