"""One copy of the weights, whoever uses it and however it is named."""

import copy
import gc
import os
import threading

import numpy as np
import pytest
import tiny
import torch
from holding import held_loads, models, torch_model, until

from bge_integrations import BgeReranker, ModelCache, default_cache
from bge_integrations.embed.embedder import FolderEmbedder

TEXTS = [line for line in tiny.TEXT.splitlines() if line]


def test_sixteen_threads_load_once(make, bert_embedder, cache, threads):
    together = threading.Barrier(16)

    def encode(_):
        together.wait()
        return make(bert_embedder).encode_documents(TEXTS)

    vectors = list(threads.map(encode, range(16)))
    assert cache.stats()["loads"] == 1
    assert len(models(cache)) == 1
    for other in vectors[1:]:
        np.testing.assert_allclose(other, vectors[0], rtol=0, atol=1e-6)


def test_threads_that_name_one_model_differently_load_it_once(make, bert_embedder, cache, threads):
    names = [{}, {"dtype": "float32"}, {"backend": "torch"}, {"like": "BAAI/bge-small-en"}, {"revision": "main"}] * 3
    with held_loads():
        calls = [threads.submit(make(bert_embedder, **name).encode_documents, ["a"]) for name in names]
        until(lambda: len(cache._loaders) == 5)
    assert {call.result(30).shape for call in calls} == {(1, 32)}
    assert cache.stats()["loads"] == 1


def test_five_objects_hold_one_set_of_weights(make, cache, tmp_path):
    folder = tiny.make_bert_embedder(tmp_path, hidden=56, heads=7)  # no other test has this width
    plain = make(folder)
    others = [
        make(folder, query_instruction="Find: ", document_instruction="Passage: "),
        make(folder, max_length=8, on_truncate="ignore", normalize=False, max_batch_tokens=64, truncate_dim=8),
        copy.deepcopy(plain),
        FolderEmbedder(str(folder), cache=cache, device="cpu"),
    ]
    for embedder in (plain, *others):
        embedder.encode_documents(TEXTS)
        embedder.encode_queries(TEXTS)
    (entry,) = cache.stats()["models"]
    assert cache.stats()["loads"] == 1
    gc.collect()
    words = torch_model(cache, folder).embeddings.word_embeddings.weight
    alive = [o for o in gc.get_objects() if type(o) is torch.nn.Parameter and o.shape == words.shape]
    assert [weight is words for weight in alive] == [True]
    own = sum(p.numel() * p.element_size() for p in torch_model(cache, folder).parameters())
    assert own <= entry["bytes"] < own + 10_000  # and a few buffers of positions


def test_an_embedder_and_a_reranker_are_two_entries(make, bert_embedder, bert_reranker, cache):
    make(bert_embedder).encode_documents(["a"])
    scores = [
        BgeReranker(str(bert_reranker), cache=cache, device="cpu", normalize=n).score([("a", "b")]) for n in (0, 1)
    ]
    assert scores[0] != scores[1]
    assert models(cache) == [str(bert_embedder), str(bert_reranker)]


@pytest.mark.parametrize(
    ("argument", "names"),
    [("device", ["cpu", torch.device("cpu"), "cpu:0"]), ("dtype", [None, "fp32", "float32", "float", torch.float32])],
)
def test_every_name_of_a_device_or_dtype_is_one_key(argument, names, make, bert_embedder, cache):
    for name in names:
        make(bert_embedder, **{argument: name}).encode_documents(["a"])
    (entry,) = cache.stats()["models"]
    assert (entry["device"], entry["dtype"], cache.stats()["loads"]) == ("cpu", "float32", 1)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="the best device is no CPU")
def test_no_device_is_the_best_device(make, bert_embedder, cache):
    for device in (None, "cpu"):
        make(bert_embedder, device=device).encode_documents(["a"])
    assert cache.stats()["loads"] == 1


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (("cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 0)), "cuda:0"),
        (("cuda:1", torch.device("cuda:1")), "cuda:1"),
        (("mps", torch.device("mps")), "mps"),
    ],
)
def test_devices_have_one_name_without_being_touched(names, name, make, bert_embedder):
    assert {make(bert_embedder, device=device).device for device in names} == {name}


def test_another_dtype_or_backend_is_another_entry(make, bert_embedder, cache):
    plain = make(bert_embedder).encode_documents(TEXTS)
    half = make(bert_embedder, dtype="bf16").encode_documents(TEXTS)
    theirs = make(bert_embedder, backend="sentence_transformers").encode_documents(TEXTS)
    assert {(m["backend"], m["dtype"]) for m in cache.stats()["models"]} == {
        ("torch", "float32"),
        ("torch", "bfloat16"),
        ("sentence_transformers", "float32"),
    }
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, plain, rtol=0, atol=0.05)
    np.testing.assert_allclose(theirs, plain, rtol=0, atol=1e-5)


def test_every_path_of_a_folder_is_one_key(make, own_folder, cache, monkeypatch):
    (own_folder.parent / "link").symlink_to(own_folder)
    monkeypatch.chdir(own_folder.parent)
    for name in (own_folder, f"{own_folder}/", "own", "./own", "link", os.path.relpath(own_folder)):
        make(name).encode_documents(["a"])
    assert models(cache) == [str(own_folder.resolve())]
    assert cache.stats()["loads"] == 1


def test_an_absolute_path_survives_a_change_of_directory(make, own_folder, cache, monkeypatch):
    monkeypatch.chdir(own_folder.parent)
    embedder = make("own")
    before = embedder.encode_documents(["a"])
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(embedder.encode_documents(["a"]), before)
    assert cache.stats()["loads"] == 1


def test_caches_are_apart(bert_embedder, make, cache):
    other = ModelCache()
    make(bert_embedder).encode_documents(["a"])
    make(bert_embedder, cache=other).encode_documents(["a"])
    assert (cache.stats()["loads"], other.stats()["loads"]) == (1, 1)
    make(bert_embedder, cache=None).encode_documents(["a"])
    assert str(bert_embedder) in [model["model"] for model in default_cache().stats()["models"]]
    default_cache().unload(str(bert_embedder))
    assert other.clear() == 1


def test_statistics_are_builtins(make, bert_embedder, cache):
    make(bert_embedder, max_length=4, on_truncate="ignore").encode_documents(["a long text of many words", "a"])
    stats = cache.stats()
    (entry,) = stats.pop("models")
    assert stats == {"loads": 1, "evictions": 0, "budget": None, "max_waiting": 10_000}
    assert entry["revision"].startswith("local-")
    del entry["revision"], entry["bytes"], entry["queue_depth"]
    assert [entry.pop(f"{what}_seconds")["count"] for what in ("queue", "forward")] == [1, 1]
    assert entry == {
        "model": str(bert_embedder),
        "backend": "torch",
        "device": "cpu",
        "dtype": "float32",
        "engine": "packed",
        "leases": 0,
        "batches": 1,
        "tokens": 7,
        "truncations": 1,
    }
