"""Models leave on request, after the calls in flight, and come back at the next use."""

import asyncio
import gc
import threading
import weakref

import numpy as np
import pytest
import tiny
from holding import held_forward, models, torch_model, until

from bge_integrations import BgeReranker, ModelCache

TEXTS = [line for line in tiny.TEXT.splitlines() if line]


@pytest.fixture
def busy(make, folders, cache, threads):
    """Eight threads that encode without a pause, and the first vectors; errors show when the test ends."""
    embedder = make(folders[0])
    expected = embedder.encode_documents(TEXTS)
    done = threading.Event()

    def encode():
        count = 0
        while not done.is_set():
            np.testing.assert_allclose(embedder.encode_documents(TEXTS), expected, rtol=0, atol=1e-6)
            count += 1
        return count

    calls = [threads.submit(encode) for _ in range(8)]
    yield folders[0]
    done.set()
    assert all(call.result(30) for call in calls)


def test_unloading_under_constant_load(busy, cache, threads):
    for n in range(1, 6):
        weight = weakref.ref(torch_model(cache, busy).embeddings.word_embeddings.weight)
        assert threads.submit(cache.unload, str(busy)).result(20) == 1
        until(lambda: cache.stats()["loads"] > n and models(cache))  # noqa: B023
        gc.collect()
        assert weight() is None


def test_clearing_under_constant_load(busy, make, folders, cache, threads):
    make(folders[1]).encode_documents(["a"])
    assert threads.submit(cache.clear).result(20) == 2
    until(lambda: models(cache) == [str(busy)])


def test_several_threads_unload_at_once(busy, cache, threads):
    unloads = [threads.submit(cache.unload, str(busy)) for _ in range(4)]
    assert sum(unload.result(20) for unload in unloads) >= 1


def test_unloading_waits_for_the_calls_in_flight(make, folders, cache, threads):
    embedder = make(folders[0])
    before = embedder.encode_documents(["a"])
    with held_forward(cache, folders[0]) as begun:
        running = threads.submit(embedder.encode_documents, ["a"])
        assert begun.wait(30)
        unload = threads.submit(cache.unload, str(folders[0]))
        until(lambda: cache._residents.loaded()[0].leaving)
        later = threads.submit(embedder.encode_documents, ["a"])  # comes while it leaves: loads anew
        until(lambda: len(cache._residents._changed._waiters) == 2)
        assert not unload.done()
        assert cache.stats()["loads"] == 1  # never two copies
    assert unload.result(30) == 1
    assert (running.result(30) == before).all()
    assert (later.result(30) == before).all()
    assert cache.stats()["loads"] == 2


def test_every_name_unloads(make, own_folder, hub, cache, monkeypatch):
    monkeypatch.chdir(own_folder.parent)
    snapshot = hub("BAAI/bge-small-en-v1.5", own_folder)
    other = hub("acme/tiny", own_folder)
    for folder, names in {
        str(own_folder): [str(own_folder), f"{own_folder}/", "own", "./own"],
        str(snapshot): [str(snapshot), f"{snapshot}/", "BAAI/bge-small-en-v1.5", "Xenova/bge-small-en-v1.5"],
        str(other): [str(other), f"{other}/", "acme/tiny"],
    }.items():
        for name in names:
            make(folder).encode_documents(["a"])
            assert cache.unload(name) == 1, name
            assert models(cache) == []


def test_unloading_takes_every_dtype_and_no_other_model(make, folders, cache):
    for dtype in ("fp32", "bf16"):
        make(folders[0], dtype=dtype).encode_documents(["a"])
    make(folders[1]).encode_documents(["a"])
    assert cache.unload(str(folders[0])) == 2
    assert models(cache) == [str(folders[1])]
    assert cache.unload(str(folders[0])) == 0
    assert cache.unload("acme/unknown") == 0


def test_ctrl_c_while_it_waits_leaves_the_model_in_service(make, folders, cache, threads, monkeypatch):
    embedder = make(folders[0])
    before = embedder.encode_documents(["a"])

    def interrupted(condition):
        raise KeyboardInterrupt

    def wait_for(condition):
        next(waits)(condition)

    with held_forward(cache, folders[0]) as begun:
        running = threads.submit(embedder.encode_documents, ["a"])
        assert begun.wait(30)
        changed = cache._residents._changed
        waits = iter([changed.wait_for, interrupted])
        with monkeypatch.context() as patch:
            patch.setattr(changed, "wait_for", wait_for)
            with pytest.raises(KeyboardInterrupt):
                cache.unload(str(folders[0]))
    running.result(30)
    assert (threads.submit(embedder.encode_documents, ["a"]).result(30) == before).all()
    assert cache.stats()["loads"] == 1


@pytest.mark.parametrize("backend", ["torch", "sentence_transformers"])
def test_a_dropped_cache_frees_its_weights_and_ends_its_threads(backend, folders, make, bert_reranker):
    cache = ModelCache()
    embedder = make(folders[0], cache=cache, backend=backend)
    reranker = BgeReranker(str(bert_reranker), cache=cache, device="cpu", backend=backend)
    embedder.encode_documents(["a"])
    reranker.score([("a", "b")])
    engines = [resident.engine for resident in cache._residents.loaded()]
    weights = [weakref.ref(weight) for engine in engines for weight in engine.backend._model.parameters()]
    workers = [engine.queue.worker for engine in engines]
    assert len(weights) > 20
    assert all(worker.is_alive() for worker in workers)
    del engines, cache, embedder, reranker
    until(lambda: not any(worker.is_alive() for worker in workers))
    gc.collect()
    assert [weight() for weight in weights if weight() is not None] == []


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_finished_call_leaves_nothing_for_the_garbage_collector(asynchronous, make, folders):
    embedder = make(folders[0])
    embedder.encode_documents(["a"])
    gc.collect()
    gc.disable()
    try:
        if asynchronous:
            vectors = await embedder.aencode_documents(["a"] * 10)
        else:
            vectors = embedder.encode_documents(["a"] * 10)
        gone = weakref.ref(vectors)
        del vectors
        until(lambda: gone() is None)
    finally:
        gc.enable()


def test_dropping_an_embedder_keeps_its_model_warm(make, folders, cache):
    make(folders[0]).encode_documents(["a"])
    gc.collect()
    make(folders[0]).encode_documents(["a"])
    assert cache.stats()["loads"] == 1


def test_a_cancelled_wait_ends_the_lease_and_harms_nobody(make, folders, cache, threads):
    embedder = make(folders[0])
    before = embedder.encode_documents(["a"])

    async def give_up():
        waiting = asyncio.create_task(embedder.aencode_documents(["b"] * 10))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    with held_forward(cache, folders[0]) as begun:
        running = threads.submit(embedder.encode_documents, ["a"])
        assert begun.wait(30)
        asyncio.run(give_up())
        until(lambda: [model["leases"] for model in cache.stats()["models"]] == [1])
    assert (running.result(30) == before).all()
    assert cache.unload(str(folders[0])) == 1
