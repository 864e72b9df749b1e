"""Leases are counted; what is idle leaves by least recent use when room is needed; what is in use stays."""

import asyncio
import threading

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


@pytest.fixture
def endless():
    """Texts for a bulk job that lasts until the test ends."""
    done = threading.Event()

    def texts():
        while not done.is_set():
            yield "some text to embed"

    yield texts
    done.set()


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_load_is_served_between_two_chunks_of_bulk_jobs(jobs, make, folders, size, threads, endless):
    cache = ModelCache(int(1.5 * size))
    bulk, live = make(folders[0], cache=cache), make(folders[1], cache=cache)
    chunks = [0] * jobs

    def run(job):
        for vectors in bulk.iter_documents(endless(), 32):
            assert vectors.shape == (32, 32)
            chunks[job] += 1

    running = [threads.submit(run, job) for job in range(jobs)]
    until(lambda: min(chunks) > 1)
    for _ in range(2):
        assert threads.submit(live.encode_documents, ["a"]).result(30).shape == (1, 32)
        before = list(chunks)
        until(lambda: all(now > then + 2 for now, then in zip(chunks, before, strict=True)))  # noqa: B023
    assert not any(job.done() for job in running)
    assert sum(model["bytes"] for model in cache.stats()["models"]) <= 1.5 * size


async def test_a_load_is_served_between_two_chunks_of_an_async_bulk_job(make, folders, size, endless):
    cache = ModelCache(int(1.5 * size))
    bulk, live = make(folders[0], cache=cache), make(folders[1], cache=cache)
    live_call = None
    count = 0
    async for _ in bulk.aiter_documents(endless(), 32):
        count += 1
        if count == 2:
            live_call = asyncio.create_task(live.aencode_documents(["a"]))
        if live_call and live_call.done():
            break
    assert (await live_call).shape == (1, 32)


def test_bulk_jobs_of_three_models_in_room_for_one_all_go_on(make, folders, size, threads, endless):
    cache = ModelCache(int(1.5 * size))
    chunks = [0, 0, 0]

    def run(number):
        for _ in make(folders[number], cache=cache).iter_documents(endless(), 8):
            chunks[number] += 1

    for number in range(3):
        threads.submit(run, number)
    until(lambda: min(chunks) >= 8, 60)
    assert cache.stats()["evictions"] >= 3
    assert len(models(cache)) <= 1


@pytest.fixture
def lease():
    """Keeps a model busy, without a forward that would keep the device from others, until it is released."""

    def lease(cache, folder):
        (key,) = [resident.key for resident in cache._residents.loaded() if resident.key.model == str(folder)]
        return cache._residents.lease_if_ready(key, "the test")

    return lease


def test_a_model_that_fits_beside_all_waits_for_no_other(make, folders, size, threads, lease):
    cache = ModelCache(int(1.7 * size))
    busy, newcomer = make(folders[0], cache=cache), make(folders[1], cache=cache)
    small = make(folders[2], cache=cache, dtype="bf16")
    busy.encode_documents(["a"])
    leased = lease(cache, folders[0])
    waiting = threads.submit(newcomer.encode_documents, ["a"])
    until(lambda: leased.leaving)
    assert threads.submit(small.encode_documents, ["a"]).result(30).shape == (1, 32)
    assert not waiting.done()
    cache._residents.release(leased, "the test")
    assert waiting.result(30).shape == (1, 32)
    assert set(models(cache)) == {str(folders[1]), str(folders[2])}


def test_a_model_that_was_to_leave_stays_where_room_comes_otherwise(make, folders, size, threads, lease):
    cache = ModelCache(int(2.5 * size))
    first, second, newcomer = (make(folder, cache=cache) for folder in folders[:3])
    before = first.encode_documents(["a"])
    second.encode_documents(["a"])
    leased, other = lease(cache, folders[0]), lease(cache, folders[1])
    waiting = threads.submit(newcomer.encode_documents, ["a"])
    until(lambda: leased.leaving)
    cache._residents.release(other, "the test")
    assert cache.unload(str(folders[1])) == 1
    assert waiting.result(30).shape == (1, 32)
    assert not leased.leaving
    assert (threads.submit(first.encode_documents, ["a"]).result(30) == before).all()
    cache._residents.release(leased, "the test")
    assert (cache.stats()["loads"], cache.stats()["evictions"]) == (3, 0)


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
