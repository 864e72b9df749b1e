"""The event loop goes on while a model loads and while a large call runs."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from holding import held_loads

from bge_integrations import BgeM3Embedder, BgeReranker

SCRIPT = Path(__file__).parent / "scripts" / "ticker.py"
TEXTS = [line for line in tiny.TEXT.splitlines() if line]


def run(*folders):
    """One thread of OpenMP, so that a second core is left to the event loop where others use the machine too."""
    script = subprocess.run(
        [sys.executable, SCRIPT, *map(str, folders)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    return json.loads(script.stdout)


@pytest.fixture(scope="module")
def slips(bert_embedder, m3):
    return run(bert_embedder, m3)


def test_a_ticker_slips_no_more_while_the_first_model_loads_than_while_torch_is_imported(slips):
    torch_alone = run()
    assert torch_alone > 0.02
    assert slips["first load"] < max(0.3, 2 * torch_alone)


def test_a_ticker_does_not_slip_while_20_000_texts_are_embedded(slips):
    assert slips["20,000 texts"] < 0.05


def test_a_ticker_does_not_slip_while_scores_are_made(slips):
    assert slips["m3's scores"] < 0.02


async def test_many_results_are_made_as_few_are(bert_reranker, m3, cache):
    reranker = BgeReranker(str(bert_reranker), device="cpu", cache=cache, max_length=16, on_truncate="ignore")
    documents = [f"{n} {TEXTS[n % len(TEXTS)]}" for n in range(600)]
    assert await reranker.arerank("panda", documents, top_n=50) == reranker.rerank("panda", documents, top_n=50)
    assert await reranker.ascore([("panda", text) for text in documents]) == reranker.score(
        [("panda", text) for text in documents]
    )
    embedder = BgeM3Embedder(str(m3), like="BAAI/bge-m3", device="cpu", cache=cache, max_length=8, on_truncate="ignore")
    many, few = await embedder.aencode_documents(documents), embedder.encode_documents(documents[-10:])
    np.testing.assert_allclose(many.dense[-10:], few.dense, rtol=0, atol=1e-6)
    pairs = [("panda", text) for text in documents[:40]]
    scores, expected = await embedder.ascore(pairs), embedder.score(pairs)
    for name, values in scores.items():
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-6)


async def test_the_loop_is_free_while_a_load_waits(make, bert_embedder, threads):
    embedder = make(bert_embedder)
    with held_loads():
        waiting = asyncio.create_task(embedder.aencode_documents(TEXTS))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
    vectors = await waiting
    np.testing.assert_allclose(vectors, embedder.encode_documents(TEXTS), rtol=0, atol=1e-6)


async def test_a_call_cancelled_before_the_load_ends_harms_nobody(make, bert_embedder, cache):
    embedder = make(bert_embedder)
    with held_loads():
        calls = [asyncio.create_task(embedder.aencode_documents(TEXTS)) for _ in range(3)]
        await asyncio.sleep(0)
        calls[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[1]
    assert (await calls[0]).shape == (await calls[2]).shape == (len(TEXTS), 32)
    assert cache.stats()["loads"] == 1
    assert cache.stats()["models"][0]["leases"] == 0


def test_a_cache_outlives_event_loops(make, bert_embedder, cache):
    embedder = make(bert_embedder)
    for _ in range(3):
        assert asyncio.run(embedder.aencode_queries(["a"])).shape == (1, 32)
    assert cache.stats()["loads"] == 1
