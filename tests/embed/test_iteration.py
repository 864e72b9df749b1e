"""Any number of documents, read as they are needed."""

import itertools

import numpy as np
import pytest
import tiny

from bge_integrations import BgeEmbedder

LINES = tiny.TEXT.strip().splitlines()


@pytest.fixture
def embedder(bert_embedder, cache):
    return BgeEmbedder(str(bert_embedder), cache=cache)


class Reader:
    """An endless iterable that counts what was taken from it."""

    def __init__(self):
        self.taken = 0

    def __iter__(self):
        for number in itertools.count():
            self.taken += 1
            yield f"panda {number}"


def idle(cache):
    return all(model["leases"] == model["queue_depth"] == 0 for model in cache.stats()["models"])


@pytest.mark.parametrize("size", [1, 7, len(LINES), 1024])
def test_chunks_put_together_are_the_whole(size, embedder):
    whole = embedder.encode_documents(LINES)
    parts = list(embedder.iter_documents((line for line in LINES), chunk_size=size))
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert 0 < len(parts[-1]) <= size
    assert {part.dtype for part in parts} == {np.dtype(np.float32)}
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-6)


async def test_async_chunks_are_the_same(embedder):
    parts = [part async for part in embedder.aiter_documents((line for line in LINES), chunk_size=4)]
    whole = await embedder.aencode_documents(LINES)
    assert [len(part) for part in parts[:-1]] == [4] * (len(parts) - 1)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-6)


def test_reads_at_most_two_chunks_ahead(embedder):
    reader = Reader()
    chunks = embedder.iter_documents(reader, chunk_size=5)
    assert reader.taken == 0
    for given, _ in enumerate(itertools.islice(chunks, 20)):
        assert 5 * (given + 1) <= reader.taken <= 5 * (given + 3)


async def test_async_reads_at_most_two_chunks_ahead(embedder):
    reader, given = Reader(), 0
    async for _ in embedder.aiter_documents(reader, chunk_size=5):
        given += 1
        assert 5 * given <= reader.taken <= 5 * (given + 2)
        if given == 20:
            break


def test_an_early_stop_leaves_nothing_queued(embedder, cache, until):
    for _ in embedder.iter_documents(Reader(), chunk_size=2000):
        break
    until(lambda: idle(cache))
    assert cache.stats()["models"][0]["tokens"] < 2 * 2000 * 16
    assert embedder.encode_documents(LINES).shape == (len(LINES), 32)


async def test_an_async_early_stop_leaves_nothing_queued(embedder, cache, until):
    chunks = embedder.aiter_documents(Reader(), chunk_size=2000)
    await anext(chunks)
    await chunks.aclose()
    until(lambda: idle(cache))
    assert (await embedder.aencode_documents(LINES)).shape == (len(LINES), 32)


def test_an_iterator_that_is_never_read_costs_nothing(embedder, cache):
    reader = Reader()
    chunks = embedder.iter_documents(reader)
    del chunks
    assert (reader.taken, cache.stats()["loads"]) == (0, 0)


def test_an_early_stop_still_tells_of_cut_texts(embedder):
    chunks = embedder.iter_documents(["panda " * 600, "a", "b", "c"], chunk_size=1)
    next(chunks)
    with pytest.warns(UserWarning, match=r"cut 1 text\(s\)"):
        chunks.close()


def test_an_error_of_the_iterable_is_the_callers(embedder, cache, until):
    def broken():
        yield from LINES[:5]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(embedder.iter_documents(broken(), chunk_size=2))
    until(lambda: idle(cache))
    assert len(list(embedder.iter_documents(LINES, chunk_size=2))) == (len(LINES) + 1) // 2


@pytest.mark.parametrize("bad", [None, 5, b"bytes", ["nested"]])
def test_a_bad_element_is_named_by_its_place_in_the_whole(bad, embedder):
    with pytest.raises(TypeError, match=r"texts\[5\] is"):
        list(embedder.iter_documents(["a"] * 5 + [bad], chunk_size=2))


def test_a_surrogate_is_named_by_its_place_in_the_whole(embedder):
    with pytest.raises(ValueError, match="Text 5 holds a lone surrogate"):
        list(embedder.iter_documents(["a"] * 5 + ["\ud800"], chunk_size=2))


def test_bad_arguments_are_refused_at_once(embedder, cache):
    for bad in ("text", b"text", None, 5):
        with pytest.raises(TypeError, match="texts must be a list of strings"):
            embedder.iter_documents(bad)
        with pytest.raises(TypeError, match="texts must be a list of strings"):
            embedder.aiter_documents(bad)
    for bad in (0, -1, True, 1.5, "10", None):
        with pytest.raises(ValueError, match="chunk_size="):
            embedder.iter_documents(LINES, chunk_size=bad)
    assert cache.stats()["loads"] == 0
