"""Coroutines, threads and cancellation give what the serial call gives."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny

from bge_integrations import BgeEmbedder

LINES = tiny.TEXT.strip().splitlines()
MANY = [f"{line} {number}" for number in range(10_000 // len(LINES) + 1) for line in LINES][:10_000]


@pytest.fixture
def embedder(bert_embedder, cache):
    def make(**arguments):
        return BgeEmbedder(str(bert_embedder), cache=cache, on_truncate="ignore", **arguments)

    return make


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def batches(cache):
    return sum(model["batches"] for model in cache.stats()["models"])


async def test_coroutines_give_what_calls_give(embedder):
    model = embedder(query_instruction="q: ", document_instruction="d: ")
    close(await model.aencode_queries(LINES), model.encode_queries(LINES))
    close(await model.aencode_documents(LINES, show_progress=True), model.encode_documents(LINES))
    assert (await model.aencode_queries([])).shape == (0, 32)


async def test_many_coroutines_at_once(embedder):
    model = embedder()
    expected = model.encode_documents(LINES)
    order = random.Random(1).choices(range(len(LINES)), k=200)
    rows = await asyncio.gather(*(model.aencode_documents([LINES[i]]) for i in order))
    close(np.concatenate(rows), expected[order])


async def test_sync_calls_work_inside_a_running_loop(embedder):
    model = embedder()
    close(model.encode_documents(LINES), await model.aencode_documents(LINES))


async def test_bad_input_is_refused_when_awaited(embedder, cache):
    for bad in ("text", [None], None):
        with pytest.raises(TypeError):
            await embedder().aencode_documents(bad)
    assert cache.stats()["loads"] == 0


async def test_cancelling_a_long_call_stops_it_within_a_batch(embedder, cache, until):
    model = embedder(max_batch_tokens=256)
    expected = await model.aencode_documents(LINES)
    before = batches(cache)
    task = asyncio.create_task(model.aencode_documents(MANY))
    await asyncio.to_thread(until, lambda: batches(cache) >= before + 3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    at_cancel = batches(cache)
    close(await model.aencode_documents(LINES[:1]), expected[:1])
    assert batches(cache) <= at_cancel + 2  # the one that ran, and the query's
    assert cache.stats()["models"][0]["queue_depth"] <= 1
    assert len(MANY) == 10_000
    assert at_cancel < 1000  # of some 2,500


async def test_a_call_cancelled_while_the_model_loads(embedder, cache):
    model = embedder()
    task = asyncio.create_task(model.aencode_documents(MANY))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await model.aencode_documents(LINES)).shape == (len(LINES), 32)
    assert cache.stats()["loads"] == 1
    assert batches(cache) < 5


async def test_a_timeout_leaves_the_model_usable(embedder):
    model = embedder(max_batch_tokens=64)
    expected = await model.aencode_documents(LINES)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await model.aencode_documents(MANY)
    close(await model.aencode_documents(LINES), expected)


async def test_cancelling_one_call_leaves_the_others_alone(embedder):
    model = embedder(max_batch_tokens=512)
    tasks = [asyncio.create_task(model.aencode_documents(MANY[:400])) for _ in range(6)]
    await asyncio.sleep(0.01)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError | np.ndarray) for result in done[::2])
    expected = model.encode_documents(MANY[:400])
    for result in done[1::2]:
        close(result, expected)


@pytest.mark.parametrize("fixture", ["bert_embedder", "xlmr_embedder"])
def test_32_threads_with_settings_of_their_own(fixture, request, cache):
    """No thread sees another's max_length or instruction, and the tokenizer is never "already borrowed"."""
    folder = str(request.getfixturevalue(fixture))
    settings = [
        {"max_length": 6},
        {"max_length": 19, "query_instruction": "question: "},
        {"query_instruction": "Represent this sentence for searching relevant passages: "},
        {"document_instruction": "passage: ", "normalize": False, "max_length": 40},
        {"truncate_dim": 8, "max_batch_tokens": 30},
    ]
    models = [BgeEmbedder(folder, cache=cache, on_truncate="ignore", **setting) for setting in settings]
    calls = [call for model in models for call in (model.encode_queries, model.encode_documents)]
    texts = [*LINES[:12], "", "panda " * 100]
    expected = [call(texts) for call in calls]
    start = threading.Barrier(32)

    def work(seed):
        choose = random.Random(seed)
        start.wait()
        worst = 0.0
        for _ in range(100):
            which, rows = choose.randrange(len(calls)), choose.choices(range(len(texts)), k=choose.randint(1, 2))
            vectors = calls[which]([texts[row] for row in rows])
            scale = max(1.0, np.abs(expected[which]).max())
            worst = max(worst, np.abs(vectors - expected[which][rows]).max() / scale)
        return worst

    with ThreadPoolExecutor(32) as pool:
        worst = list(pool.map(work, range(32)))
    assert max(worst) < 1e-6
    assert cache.stats()["loads"] == 1
