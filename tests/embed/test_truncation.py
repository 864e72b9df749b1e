"""Texts over the limit: cut as asked, and never silently."""

import asyncio
import re
import warnings

import numpy as np
import pytest

from bge_integrations import BgeEmbedder, InputTooLongError

LONG, LONGER = "a " * 30, "a " * 600
TEXTS = ["a", LONG, "b", LONGER]


@pytest.fixture
def embedder(bert_embedder, cache):
    def make(**arguments):
        return BgeEmbedder(str(bert_embedder), cache=cache, **arguments)

    return make


def every_way(model):
    """Each public way to embed documents, by name."""

    async def aiterated(texts):
        return [rows async for rows in model.aiter_documents(texts, chunk_size=2)]

    return {
        "queries": model.encode_queries,
        "documents": model.encode_documents,
        "with a bar": lambda texts: model.encode_documents(texts, show_progress=True),
        "async": lambda texts: asyncio.run(model.aencode_documents(texts)),
        "iterated": lambda texts: list(model.iter_documents(texts, chunk_size=2)),
        "iterated async": lambda texts: asyncio.run(aiterated(texts)),
    }


WAYS = ["queries", "documents", "with a bar", "async", "iterated", "iterated async"]


@pytest.mark.parametrize("way", WAYS)
def test_one_warning_a_call_says_how_many_how_long_and_which(way, embedder):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        every_way(embedder(max_length=16))[way](TEXTS)
    assert len(seen) == 1
    assert re.search(r"cut 2 text\(s\) to 16 tokens \(index 1, 3; the longest has 602\)", str(seen[0].message))


def test_the_warning_names_the_line_that_called(embedder):
    with pytest.warns(UserWarning, match="cut 1") as seen:
        embedder().encode_documents([LONGER])
    with pytest.warns(UserWarning, match="cut 1") as seen_iterating:
        list(embedder().iter_documents([LONGER]))
    assert [warning.filename for warning in (*seen, *seen_iterating)] == [__file__, __file__]


async def test_the_warning_of_a_coroutine_names_the_line_that_awaits(embedder):
    with pytest.warns(UserWarning, match="cut 1") as seen:
        await embedder().aencode_documents([LONGER])
    assert [warning.filename for warning in seen] == [__file__]


def test_many_cut_texts_make_a_short_warning(embedder):
    with pytest.warns(UserWarning, match="cut 500") as seen:
        embedder(max_length=16).encode_documents([LONG] * 500)
    assert "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...;" in str(seen[0].message)
    assert len(str(seen[0].message)) < 500


def test_texts_within_the_limit_cause_no_warning(embedder):
    embedder().encode_documents(["a " * 510, "", "a"])


@pytest.mark.parametrize("way", WAYS)
def test_ignore_is_silent(way, embedder):
    every_way(embedder(max_length=16, on_truncate="ignore"))[way](TEXTS)


@pytest.mark.parametrize("way", WAYS)
def test_raise_names_index_tokens_and_limit(way, embedder):
    model = embedder(max_length=40, on_truncate="raise")
    with pytest.raises(InputTooLongError, match="text 3 has 602 tokens; the limit is 40"):
        every_way(model)[way](TEXTS)
    assert model.encode_documents(TEXTS[:3]).shape == (3, 32)


def test_raise_counts_over_chunks(embedder):
    model = embedder(on_truncate="raise")
    texts = ["a"] * 600 + [LONGER]
    with pytest.raises(InputTooLongError, match="text 600 has"):
        model.encode_documents(texts, show_progress=True)
    with pytest.raises(InputTooLongError, match="text 600 has"):
        list(model.iter_documents(texts, chunk_size=100))


def test_cuts_are_counted(embedder, cache):
    embedder(max_length=16, on_truncate="ignore").encode_documents(TEXTS)
    assert cache.stats()["models"][0]["truncations"] == 2


@pytest.mark.parametrize("limit", [3, 10, 31, 511, 512])
def test_a_cut_text_is_its_beginning(limit, embedder):
    cut = embedder(max_length=limit, on_truncate="ignore").encode_documents([LONGER])
    beginning = embedder().encode_documents(["a " * (limit - 2)])
    np.testing.assert_allclose(cut, beginning, rtol=0, atol=1e-6)


def test_the_instruction_takes_part_in_the_limit(embedder):
    model = embedder(query_instruction="a " * 10, max_length=16, on_truncate="raise")
    model.encode_queries(["a " * 4])
    with pytest.raises(InputTooLongError, match="has 17 tokens"):
        model.encode_queries(["a " * 5])
    model.encode_documents(["a " * 14])


@pytest.mark.parametrize("fixture", ["bert_embedder", "xlmr_embedder"])
def test_more_than_the_positions_is_refused_before_weights_load(fixture, request, cache):
    folder = str(request.getfixturevalue(fixture))
    model = BgeEmbedder(folder, max_length=513, cache=cache)
    calls = (model.encode_queries, model.encode_documents, lambda texts: list(model.iter_documents(texts)))
    for call in calls * 10:  # a refusal must not let the next call slip past the check
        with pytest.raises(ValueError, match="max_length=513 is more than the 512 tokens"):
            call(["a"])
    with pytest.raises(ValueError, match="max_length=513"):
        model.describe()
    with pytest.raises(ValueError, match="max_length=513"):
        _ = model.fingerprint
    assert cache.stats()["loads"] == 0


@pytest.mark.parametrize("limit", [1, 2])
def test_less_than_the_special_tokens_is_refused(limit, embedder):
    with pytest.raises(ValueError, match=f"max_length={limit} leaves a text no room beside 2 special tokens"):
        embedder(max_length=limit).encode_documents(["a"])


def test_users_with_different_limits_share_one_copy(embedder, cache):
    for limit in (8, 64, 512):
        embedder(max_length=limit, on_truncate="ignore").encode_documents(TEXTS)
    assert cache.stats()["loads"] == 1
