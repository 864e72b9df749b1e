"""Too many calls: async ones wait for their turn, others are refused at once."""

import asyncio
import pickle

import numpy as np
import pytest
from holding import held_forward, models, until

from bge_integrations import BgeReranker, ModelCache, OverloadedError

TEXTS = [f"text {number}" for number in range(200)]


@pytest.fixture
def cache():
    cache = ModelCache(max_waiting=4)
    yield cache
    cache.clear()


async def test_coroutines_over_the_bound_wait_and_come_in_their_order(make, bert_embedder, cache):
    embedder = make(bert_embedder)
    expected = embedder.encode_documents(TEXTS)
    order = []

    async def call(number):
        (vector,) = await embedder.aencode_documents([TEXTS[number]])
        order.append(number)
        return vector

    vectors = await asyncio.gather(*(call(number) for number in range(len(TEXTS))))
    np.testing.assert_allclose(np.stack(vectors), expected, rtol=0, atol=1e-6)
    assert all(abs(place - number) < 4 for place, number in enumerate(order))
    until(lambda: cache.stats()["models"][0]["queue_depth"] == 0)


async def test_so_do_those_that_come_while_the_model_loads(make, bert_embedder, cache):
    embedder = make(bert_embedder)
    vectors = await asyncio.gather(*(embedder.aencode_queries([text]) for text in TEXTS))
    np.testing.assert_allclose(np.concatenate(vectors), embedder.encode_queries(TEXTS), rtol=0, atol=1e-6)
    assert cache.stats()["loads"] == 1


async def test_streams_and_rerankers_wait_too(make, bert_embedder, bert_reranker, cache):
    embedder, reranker = make(bert_embedder), BgeReranker(str(bert_reranker), device="cpu", cache=cache)

    async def stream():
        return [len(vectors) async for vectors in embedder.aiter_documents(TEXTS[:20], 5)]

    assert await asyncio.gather(*(stream() for _ in range(10))) == [[5] * 4] * 10
    pairs = [("a query", text) for text in TEXTS]
    scores = await asyncio.gather(*(reranker.ascore([pair]) for pair in pairs))
    np.testing.assert_allclose(np.concatenate(scores), reranker.score(pairs), rtol=0, atol=1e-6)


async def test_a_waiting_call_that_is_cancelled_leaves(make, bert_embedder, cache):
    embedder = make(bert_embedder)
    embedder.encode_documents(["a"])
    with held_forward(cache, bert_embedder) as begun:
        calls = [asyncio.create_task(embedder.aencode_documents([text])) for text in TEXTS]
        await asyncio.to_thread(begun.wait, 30)
        for call in calls[5:]:
            call.cancel()
        await asyncio.gather(*calls[5:], return_exceptions=True)
        assert cache.stats()["models"][0]["queue_depth"] == 5
    assert [len(vectors) for vectors in await asyncio.gather(*calls[:5])] == [1] * 5
    assert all(call.cancelled() for call in calls[5:])


def test_a_call_of_a_thread_over_the_bound_is_refused_at_once(make, bert_embedder, cache, threads):
    embedder = make(bert_embedder)
    embedder.encode_documents(["a"])
    with held_forward(cache, bert_embedder) as begun:
        running = threads.submit(embedder.encode_documents, ["a"])
        assert begun.wait(30)
        pending = [embedder.submit_documents([text]) for text in TEXTS[:3]]
        with pytest.raises(OverloadedError, match="4 calls wait"):
            embedder.encode_documents(["one too many"])
        with pytest.raises(OverloadedError, match="4 calls wait"):
            embedder.submit_documents(["one too many"]).result()
    assert [len(running.result(30)), *(len(vectors) for vectors, _ in (call.result() for call in pending))] == [1] * 4
    until(lambda: [model["leases"] for model in cache.stats()["models"]] == [0])
    assert len(models(cache)) == 1


def test_the_bound_is_shown_and_kept():
    cache = ModelCache("1GiB", max_waiting=7)
    assert cache.stats()["max_waiting"] == 7
    assert "max_waiting=7" in repr(cache)
    assert pickle.loads(pickle.dumps(cache)) is cache
    rebuild, arguments = cache.__reduce__()
    name = f"{cache.name}, elsewhere"
    assert rebuild(name, *arguments[1:]).max_waiting == 7
    assert ModelCache().max_waiting == 10_000


@pytest.mark.parametrize("bound", [0, -1, True, 1.5, "10", None])
def test_what_is_no_bound(bound):
    with pytest.raises(ValueError, match="max_waiting"):
        ModelCache(max_waiting=bound)
