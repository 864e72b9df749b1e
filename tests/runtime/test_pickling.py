"""Objects hold configuration only: they travel to other processes and find, or load, the model there."""

import copy
import multiprocessing
import pickle
import subprocess
import sys

import cloudpickle
import numpy as np
import pytest
import tiny

from bge_integrations import BgeEmbedder, BgeReranker, ModelCache, default_cache

TEXTS = [line for line in tiny.TEXT.splitlines() if line]
ROUND_TRIPS = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "cloudpickle": lambda thing: pickle.loads(cloudpickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}
SETTINGS = {"query_instruction": "Find: ", "max_length": 64, "normalize": False, "truncate_dim": 16, "dtype": "bf16"}


@pytest.mark.parametrize("trip", ROUND_TRIPS)
def test_round_trips_share_the_model(trip, make, bert_embedder, bert_reranker, cache):
    embedder = make(bert_embedder, on_truncate="ignore", **SETTINGS)
    reranker = BgeReranker(str(bert_reranker), normalize=False, cache=cache, device="cpu")
    vectors, scores = embedder.encode_queries(TEXTS), reranker.score([("a", "b")])
    again, reranker_again = ROUND_TRIPS[trip](embedder), ROUND_TRIPS[trip](reranker)
    np.testing.assert_array_equal(again.encode_queries(TEXTS), vectors)
    assert reranker_again.score([("a", "b")]) == scores
    assert {name: getattr(again, name) for name in SETTINGS} == SETTINGS | {"dtype": "bfloat16"}
    assert again.cache is cache
    assert cache.stats()["loads"] == 2


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_they_are_small_with_the_model_loaded(dumps, make, bert_embedder, bert_reranker, cache):
    embedder = make(bert_embedder)
    embedder.encode_documents(TEXTS)
    for thing in (
        embedder,
        BgeEmbedder("BAAI/llm-embedder", task="qa"),
        BgeEmbedder("BAAI/bge-m3"),
        BgeReranker("BAAI/bge-reranker-v2-m3"),
        cache,
    ):
        assert len(dumps(thing)) < 10_000


def test_no_token_is_shown(bert_embedder, tmp_path):
    embedder = BgeEmbedder(str(bert_embedder), token="hf_secret")
    reranker = BgeReranker("acme/reranker", token="hf_secret", local_files_only=True, cache_folder=str(tmp_path))
    for thing in (embedder, reranker, embedder._sources[0], default_cache(), str(embedder.describe())):
        assert "secret" not in repr(thing)
    with pytest.raises(LookupError) as error:
        reranker.score([("a", "b")])
    assert "secret" not in str(error.value)
    assert embedder.token == "hf_secret"


def test_a_cache_pickles_as_its_name(cache):
    named = ModelCache("1GiB", name="of this test")
    assert pickle.loads(pickle.dumps(named)) is named
    assert copy.deepcopy({"cache": named})["cache"] is named
    assert pickle.loads(pickle.dumps(cache)) is cache
    assert pickle.loads(pickle.dumps(default_cache())) is default_cache()
    with pytest.raises(ValueError, match="of this test"):
        ModelCache(name="of this test")


def test_a_named_cache_is_one_object_in_another_process(make, bert_embedder):
    cache = ModelCache("1GiB", name="of two processes")
    pickles = [pickle.dumps(make(bert_embedder, cache=cache)) for _ in range(2)] + [pickle.dumps(default_cache())]
    code = (
        "import pickle, sys, bge_integrations\n"
        f"one, other, default = map(pickle.loads, {pickles!r})\n"
        "assert one is not other and one.cache is other.cache\n"
        "assert default is bge_integrations.default_cache()\n"
        "assert (one.cache.name, one.cache.budget) == ('of two processes', '1GiB')\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_spawned_workers_encode(make, bert_embedder):
    embedder = make(bert_embedder, cache=None)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        parts = pool.map(embedder.encode_documents, [TEXTS[:3], TEXTS[3:6]], chunksize=1)
    np.testing.assert_allclose(np.concatenate(parts), embedder.encode_documents(TEXTS[:6]), rtol=0, atol=1e-6)
