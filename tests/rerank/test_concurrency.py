"""Coroutines, threads and cancellation give what the serial call gives."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny

from bge_integrations import BgeReranker

LINES = tiny.TEXT.strip().splitlines()
PAIRS = [(query, passage) for query in LINES[:4] for passage in LINES]


@pytest.fixture
def reranker(xlmr_reranker, cache):
    def make(**arguments):
        return BgeReranker(str(xlmr_reranker), cache=cache, on_truncate="ignore", **arguments)

    return make


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def batches(cache):
    return sum(model["batches"] for model in cache.stats()["models"])


async def test_coroutines_give_what_calls_give(reranker):
    model = reranker()
    close(await model.ascore(PAIRS), model.score(PAIRS))
    close(await model.ascore(PAIRS, show_progress=True), model.score(PAIRS))
    for top_n in (None, 3):
        assert await model.arerank(LINES[0], LINES, top_n) == model.rerank(LINES[0], LINES, top_n)
    assert await model.arerank(LINES[0], []) == []
    assert await model.ascore([]) == []


async def test_many_coroutines_at_once(reranker):
    model = reranker()
    expected = {query: model.rerank(query, LINES, top_n=5) for query in LINES[:5]}
    queries = random.Random(1).choices(LINES[:5], k=60)
    for query, results in zip(
        queries, await asyncio.gather(*(model.arerank(query, LINES, top_n=5) for query in queries)), strict=True
    ):
        assert [result.index for result in results] == [result.index for result in expected[query]]
        close([result.score for result in results], [result.score for result in expected[query]])


async def test_cancelling_and_timing_out_leave_the_model_usable(reranker, cache):
    model = reranker(max_batch_tokens=256)
    expected = await model.arerank(LINES[0], LINES)
    before = batches(cache)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await model.arerank(LINES[0], [f"{line} {number}" for number in range(300) for line in LINES])
    task = asyncio.create_task(model.ascore(PAIRS * 50))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    at_cancel = batches(cache)
    results = await model.arerank(LINES[0], LINES)
    assert batches(cache) <= at_cancel + 2 + before
    close([result.logit for result in results], [result.logit for result in expected])


@pytest.mark.parametrize("fixture", ["bert_reranker", "xlmr_reranker"])
def test_32_threads_with_settings_of_their_own(fixture, request, cache):
    folder = str(request.getfixturevalue(fixture))
    settings = [
        {"max_length": 20},
        {"max_length": 40, "query_max_length": 4},
        {"query_instruction": "question: ", "document_instruction": "passage: "},
        {"max_batch_tokens": 60},
    ]
    models = [BgeReranker(folder, cache=cache, on_truncate="ignore", **setting) for setting in settings]
    pairs = random.Random(0).sample(PAIRS, 12)
    expected = np.array([model.score(pairs) for model in models])
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    start = threading.Barrier(32)

    def work(seed):
        choose = random.Random(seed)
        start.wait()
        worst = 0.0
        for _ in range(100):
            which, rows = choose.randrange(len(models)), choose.choices(range(len(pairs)), k=choose.randint(1, 2))
            scores = models[which].score([pairs[row] for row in rows])
            worst = max(worst, np.abs(np.array(scores) - expected[which][rows]).max())
        return worst

    with ThreadPoolExecutor(32) as pool:
        worst = list(pool.map(work, range(32)))
    assert max(worst) < 1e-6
    assert cache.stats()["loads"] == 1
