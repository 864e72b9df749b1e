"""A list of devices: a replica and a worker each, same vectors, order kept, errors reach the caller."""

import asyncio
import copy
import pickle
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import numpy as np
import pytest
import tiny

from bge_integrations import BgeEmbedder, BgeM3Embedder, BgeReranker, InputTooLongError
from bge_integrations.inference.batch import Cut, Output
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.llama_index import BgeEmbedding
from bge_integrations.runtime.device import normalize_devices
from bge_integrations.runtime.replicas import spread
from bge_integrations.runtime.request import Request

TEXTS = [line for line in tiny.TEXT.splitlines() if line]
TWO = ["cpu", "cpu"]


@pytest.fixture
def embedder(bert_embedder, cache):
    def make(device, **arguments):
        return BgeEmbedder(str(bert_embedder), device=device, cache=cache, **arguments)

    return make


def work(cache):
    """Texts' tokens that each replica has computed."""
    return {model["device"]: model["tokens"] for model in cache.stats()["models"]}


def test_two_replicas_give_the_same_vectors_in_order(embedder, cache):
    expected = embedder("cpu").encode_documents(TEXTS)
    two = embedder(TWO)
    np.testing.assert_allclose(two.encode_documents(TEXTS), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(asyncio.run(two.aencode_documents(TEXTS)), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(np.concatenate(list(two.iter_documents(TEXTS, 10))), expected, atol=1e-6, rtol=0)
    assert cache.stats()["loads"] == 2
    assert sorted(work(cache)) == ["cpu", "cpu:1"]


def test_a_long_call_is_shared_fairly(embedder, cache):
    texts = [text for text in TEXTS for _ in range(20)]
    embedder(TWO).encode_documents(texts)
    one, other = work(cache).values()
    assert 0.8 < one / other < 1.25


def test_short_calls_go_to_the_least_busy(embedder, cache):
    two = embedder(TWO)
    two.encode_queries(["a"])
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda text: two.encode_queries([text])[0], TEXTS * 4))
    np.testing.assert_allclose(rows, two.encode_queries(TEXTS * 4), atol=1e-5, rtol=0)
    assert min(work(cache).values()) > 0


def test_rerankers_and_m3(xlmr_reranker, m3, cache):
    pairs = [*zip(TEXTS, reversed(TEXTS), strict=True)]
    one, two = (BgeReranker(str(xlmr_reranker), device=device, cache=cache) for device in ("cpu", TWO))
    assert two.score(pairs) == pytest.approx(one.score(pairs), abs=1e-6)
    one, two = (BgeM3Embedder(str(m3), like="BAAI/bge-m3", device=device, cache=cache) for device in ("cpu", TWO))
    for first, second in zip(one.encode_queries(TEXTS).colbert, two.encode_queries(TEXTS).colbert, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6, rtol=0)


def test_messages_count_texts_as_the_caller_does(embedder):
    long = "panda " * 600
    two = embedder(TWO, on_truncate="raise")
    with pytest.raises(InputTooLongError, match="text 19 has"):
        two.encode_documents([*["a" * 50] * 19, long])
    with pytest.raises(ValueError, match="Text 13 holds a lone surrogate"):
        two.encode_documents([*["a"] * 13, "\ud800", "a"])
    with pytest.warns(UserWarning, match=r"cut 2 text\(s\) to 512 tokens \(index 0, 15;"):
        embedder(TWO).encode_documents([long, *["a"] * 14, long])
    assert len(two.encode_documents(["a"] * 20)) == 20


def test_frameworks_take_a_list(bert_embedder, cache):
    for framework in (
        BgeEmbeddings(model=str(bert_embedder), device=TWO, cache=cache),
        BgeEmbedding(model_name=str(bert_embedder), device=TWO, cache=cache),
    ):
        assert framework.embedder.device == ("cpu", "cpu:1")


def test_objects_with_several_devices_are_configuration(embedder):
    two = embedder(TWO)
    for other in (copy.deepcopy(two), pickle.loads(pickle.dumps(two))):
        assert other.device == ("cpu", "cpu:1")
        assert other.encode_documents(TEXTS).shape == (len(TEXTS), 32)


@pytest.mark.parametrize("device", [[], ["cuda:0", "cuda"], [None, "cpu"], ["mps", "mps"]])
def test_lists_that_are_none(device):
    with pytest.raises(ValueError, match="device="):
        normalize_devices(device)
    with pytest.raises(ValueError, match="device="):
        BgeEmbedder("BAAI/bge-base-en-v1.5", device=device)


def test_one_device_in_a_list_is_that_device(embedder):
    assert embedder(["cpu"]).device == "cpu"
    assert normalize_devices(["cuda", "cuda:1"]) == ("cuda:0", "cuda:1")


def request(items):
    return Request(source="a", options=None, items=items)


class Parts:
    """Calls that a test ends by hand."""

    def __init__(self):
        self.futures = {}

    def submit(self, request):
        return self.futures.setdefault(request.source, Future())

    def call(self, items):
        return spread(request(items), ["a", "b"], self)


def output(count, *cuts):
    return Output(np.zeros((count, 1)), tuple(Cut(index, 9) for index in cuts), tokens=9 * count)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_rows_are_joined_when_the_last_part_is_there(order):
    parts = Parts()
    whole = parts.call(["x"] * 10)
    for replica in order:
        assert not whole.done()
        parts.futures[replica].set_result(output(5, 1))
    assert (len(whole.result().rows), [cut.index for cut in whole.result().cuts]) == (10, [1, 6])


@pytest.mark.parametrize(("failing", "other"), ["ab", "ba"])
def test_the_first_error_ends_the_call_and_the_other_part(failing, other):
    parts = Parts()
    whole = parts.call(["x"] * 10)
    parts.futures[failing].set_exception(ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        whole.result(timeout=0)
    assert parts.futures[other].cancelled()


def test_cancelling_the_call_cancels_its_parts():
    parts = Parts()
    whole = parts.call(["x"] * 10)
    assert whole.cancel()
    assert all(future.cancelled() for future in parts.futures.values())
    with pytest.raises(CancelledError):
        whole.result()


@pytest.mark.parametrize(
    "lengths", [[1] * 8, [100, *[1] * 20], [*[1] * 20, 100], [0] * 9, [5, 90, 5, 90, 5, 90, 5, 90]]
)
def test_no_item_is_lost(lengths):
    seen = []

    class Done:
        def submit(self, part):
            seen.append((part.first, part.items))
            done = Future()
            done.set_result(output(len(part.items)))
            return done

    items = ["x" * length for length in lengths]
    assert len(spread(request(items), ["a", "b", "c"], Done()).result().rows) == len(items)
    assert [item for _, part in sorted(seen) for item in part] == items
