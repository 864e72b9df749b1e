"""Pairs over the limits: the query is cut to its own limit, then only the passage, and never silently."""

import re
import warnings

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bge_integrations import BgeReranker, InputTooLongError

QUERY, LONG, LONGER = "what do pandas eat", "a " * 60, "b " * 700


@pytest.fixture
def reranker(xlmr_reranker, cache):
    def make(**arguments):
        return BgeReranker(str(xlmr_reranker), normalize=False, cache=cache, **arguments)

    return make


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("fixture", ["bert_reranker", "xlmr_reranker"])
@pytest.mark.parametrize(("limit", "query_limit"), [(512, None), (64, None), (64, 16), (40, 35), (20, 1)])
def test_ids_are_put_together_as_the_reference_does(limit, query_limit, fixture, request, cache):
    """Query cut first, then the passage alone, then the special tokens of a pair."""
    folder = request.getfixturevalue(fixture)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    pairs = [(QUERY, LONGER), (LONG, QUERY), (LONG, LONGER), (LONGER, LONGER), (LONGER, ""), ("", LONGER)]
    expected = []
    for query, passage in pairs:
        first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (query, passage))
        first = first[: query_limit or limit * 3 // 4]
        special = 3 if "bert_" in fixture else 4
        second = second[: limit - len(first) - special]
        if special == 3:
            ids, types = [2, *first, 3, *second, 3], [0] * (len(first) + 2) + [1] * (len(second) + 1)
        else:
            ids, types = [0, *first, 2, 2, *second, 2], None
        inputs = {"input_ids": torch.tensor([ids])} | ({"token_type_ids": torch.tensor([types])} if types else {})
        with torch.no_grad():
            expected.append(model(**inputs).logits.item())
    ours = BgeReranker(
        str(folder), normalize=False, max_length=limit, query_max_length=query_limit, on_truncate="ignore", cache=cache
    )
    close(ours.score(pairs), expected)


def test_one_warning_a_call_says_how_many_how_long_and_which(reranker):
    model = reranker(max_length=32)
    pairs = [(QUERY, "short"), (QUERY, LONG), (LONG, "short"), (QUERY, "short"), (QUERY, LONGER)]
    for call in (
        lambda: model.score(pairs),
        lambda: model.score(pairs, show_progress=True),
    ):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            call()
        assert len(seen) == 1
        assert re.search(r"cut 3 pair\(s\) to 32 tokens \(index 1, 2, 4; the longest has 7\d\d\)", str(seen[0].message))
        assert seen[0].filename == __file__


def test_rerank_warns_once_with_the_documents_indices(reranker):
    with pytest.warns(UserWarning, match=r"cut 2 pair\(s\) to 512 tokens \(index 1, 2;") as seen:
        reranker().rerank(QUERY, ["short", LONGER, LONGER, LONG])
    assert len(seen) == 1


def test_a_cut_query_is_told_even_if_the_pair_would_fit(reranker):
    with pytest.warns(UserWarning, match=r"cut 1 pair"):
        reranker(query_max_length=10).score([(LONG, "short")])


def test_ignore_is_silent(reranker, cache):
    reranker(on_truncate="ignore").rerank(LONGER, [LONGER, "a"])
    assert cache.stats()["models"][0]["truncations"] == 2


def test_raise_names_index_tokens_and_limit(reranker):
    model = reranker(on_truncate="raise", max_length=64)
    with pytest.raises(InputTooLongError, match=r"pair 1 has 7\d\d tokens; the limit is 64"):
        model.rerank(QUERY, ["short", LONGER])
    with pytest.raises(InputTooLongError, match="pair 300 has"):
        model.score([(QUERY, "short")] * 300 + [(QUERY, LONGER)], show_progress=True)
    assert len(model.rerank(QUERY, ["short", "b"])) == 2


@pytest.mark.parametrize("fixture", ["bert_reranker", "xlmr_reranker"])
def test_more_than_the_positions_is_refused_before_weights_load(fixture, request, cache):
    model = BgeReranker(str(request.getfixturevalue(fixture)), max_length=513, cache=cache)
    for call in (lambda: model.score([("a", "b")]), lambda: model.rerank("a", ["b"]), model.describe):
        with pytest.raises(ValueError, match="max_length=513 is more than the 512 tokens"):
            call()
    assert cache.stats()["loads"] == 0


@pytest.mark.parametrize(("fixture", "special"), [("bert_reranker", 3), ("xlmr_reranker", 4)])
def test_a_query_limit_that_leaves_no_room_is_refused(fixture, special, request, cache):
    folder = str(request.getfixturevalue(fixture))
    for limit in (64 - special, 64, 1000):
        model = BgeReranker(folder, max_length=64, query_max_length=limit, cache=cache)
        with pytest.raises(ValueError, match=f"query_max_length={limit} leaves.*at most {64 - special - 1}"):
            model.score([("a", "b")])
    fits = BgeReranker(folder, max_length=64, query_max_length=64 - special - 1, on_truncate="raise", cache=cache)
    assert len(fits.score([("a", "b")])) == 1


def test_longer_positions_take_longer_passages(tmp_path, cache):
    folder = tiny.make_xlmr_reranker(tmp_path, max_position_embeddings=2050)
    needle = "b " * 700 + "the giant panda eats bamboo"
    with pytest.warns(UserWarning, match="cut 2"):
        near = BgeReranker(str(folder), normalize=False, cache=cache).score([(QUERY, needle), (QUERY, LONGER)])
    assert near[0] == pytest.approx(near[1], abs=1e-6)
    far = BgeReranker(str(folder), normalize=False, max_length=2048, cache=cache).score(
        [(QUERY, needle), (QUERY, LONGER)]
    )
    assert abs(far[0] - far[1]) > 1e-3
    assert cache.stats()["loads"] == 1
