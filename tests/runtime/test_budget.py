"""Leases are counted; what is idle leaves by least recent use when room is needed; what is in use stays."""

import numpy as np
import pytest
import tiny
from holding import held_forward, models, until

from bge_integrations import BgeEmbedder, ModelCache, OverBudgetError
from bge_integrations.runtime.device import parse_budget, total_bytes


@pytest.fixture(scope="module")
def size(folders):
    """Bytes of each of the four models."""
    cache = ModelCache()
    BgeEmbedder(str(folders[0]), cache=cache, device="cpu").encode_documents(["a"])
    (entry,) = cache.stats()["models"]
    cache.clear()
    return entry["bytes"]


def leases(cache):
    return [model["leases"] for model in cache.stats()["models"]]


def test_a_lease_lasts_one_call(make, folders, cache, threads):
    embedder = make(folders[0])
    embedder.encode_documents(["a"])
    assert leases(cache) == [0]
    with held_forward(cache, folders[0]) as begun:
        calls = [threads.submit(embedder.encode_documents, ["a"]) for _ in range(3)]
        assert begun.wait(30)
        until(lambda: leases(cache) == [3])
    for call in calls:
        call.result(30)
    assert leases(cache) == [0]


def test_a_failed_call_ends_its_lease(make, folders, cache):
    embedder = make(folders[0], max_length=4, on_truncate="raise")
    embedder.encode_documents(["a"])
    with pytest.raises(ValueError, match="tokens"):
        embedder.encode_documents(["a long text of many words"])
    assert leases(cache) == [0]


@pytest.mark.parametrize("unit", ["bytes", "KiB", "kb", "fraction"])
def test_the_least_recently_used_leaves(unit, make, folders, size):
    room = int(2.5 * size)
    budget = {
        "bytes": room,
        "KiB": f"{room / 1024:.3f}KiB",
        "kb": f"{room // 1000} kb",
        "fraction": room / total_bytes("cpu"),
    }[unit]
    cache = ModelCache(budget)
    first, second, third, fourth = (make(folder, cache=cache) for folder in folders)
    for embedder in (first, second, first, third):
        embedder.encode_documents(["a"])
    assert models(cache) == [str(folders[0]), str(folders[2])]
    for embedder in (first, fourth, third):
        embedder.encode_documents(["a"])
    assert models(cache) == [str(folders[3]), str(folders[2])]
    stats = cache.stats()
    assert (stats["loads"], stats["evictions"], stats["budget"]) == (5, 3, budget)
    assert sum(model["bytes"] for model in stats["models"]) <= room


def test_a_load_waits_for_the_model_in_use(make, folders, size, threads):
    cache = ModelCache(int(1.5 * size))
    busy, newcomer = make(folders[0], cache=cache), make(folders[1], cache=cache)
    before = busy.encode_documents(["a"])
    with held_forward(cache, folders[0]) as begun:
        running = threads.submit(busy.encode_documents, ["a"])
        assert begun.wait(30)
        waiting = threads.submit(newcomer.encode_documents, ["a"])
        until(lambda: cache._residents._changed._waiters)
        assert models(cache) == [str(folders[0])]
        assert not waiting.done()
        assert not running.done()
    assert (running.result(30) == before).all()
    assert waiting.result(30).shape == (1, 32)
    assert models(cache) == [str(folders[1])]


def test_two_models_that_do_not_fit_together_take_turns(make, folders, size, threads):
    cache = ModelCache(int(1.5 * size))
    embedders = [make(folder, cache=cache) for folder in folders[:2]]
    expected = [embedder.encode_documents(["a"]) for embedder in embedders]

    def encode(n):
        return np.allclose(embedders[n % 2].encode_documents(["a"]), expected[n % 2], rtol=0, atol=1e-6)

    assert all(threads.map(encode, range(60), timeout=60))
    assert sum(model["bytes"] for model in cache.stats()["models"]) <= 1.5 * size
    assert leases(cache) == [0]


def test_what_can_never_fit_is_refused_before_it_loads(make, folders, size, tmp_path):
    cache = ModelCache(int(1.5 * size))
    make(folders[0], cache=cache).encode_documents(["a"])
    big = tiny.make_bert_embedder(tmp_path, layers=6)
    for _ in range(2):
        with pytest.raises(OverBudgetError) as error:
            make(big, cache=cache).encode_documents(["a"])
    for part in (str(big), str(folders[0]), f"{int(1.5 * size):,}", "cpu"):
        assert part in str(error.value)
    assert (models(cache), cache.stats()["loads"], cache.stats()["evictions"]) == ([str(folders[0])], 1, 0)


def test_a_smaller_dtype_fits(make, folders, size):
    cache = ModelCache(int(0.7 * size))
    with pytest.raises(OverBudgetError):
        make(folders[0], cache=cache).encode_documents(["a"])
    make(folders[0], cache=cache, dtype="bf16").encode_documents(["a"])
    (entry,) = cache.stats()["models"]
    assert entry["bytes"] < 0.6 * size


def test_a_failed_load_gives_its_room_back(make, folders, own_folder, size):
    cache = ModelCache(int(1.5 * size))
    (own_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(Exception, match="."):
        make(own_folder, cache=cache).encode_documents(["a"])
    make(folders[0], cache=cache).encode_documents(["a"])
    assert models(cache) == [str(folders[0])]


def test_budgets():
    assert parse_budget("20GiB") == 20 * 2**30
    assert parse_budget(" 1.5 tb ") == 1_500_000_000_000
    assert parse_budget("512") == 512
    assert parse_budget(0.5) == 0.5
    assert parse_budget(None) is None


@pytest.mark.parametrize("budget", [0, -1, True, 1.5, 0.0, float("nan"), "", "lots", "20 gigabytes", "0GiB", "1.2.3MB"])
def test_what_is_no_budget(budget):
    with pytest.raises(ValueError, match="is not a size"):
        ModelCache(budget)
