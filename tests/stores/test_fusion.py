"""Fusion against the formulas written out."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_integrations.stores.fusion import (
    Identity,
    reciprocal_rank_fusion,
    relative_score_fusion,
    without_duplicates,
)

KEYS = "abcdefgh"
RANKINGS = st.lists(st.lists(st.sampled_from(KEYS), unique=True), max_size=4)
SCORES = st.floats(-10, 10, allow_nan=False)
SCORED = st.lists(st.dictionaries(st.sampled_from(KEYS), SCORES), max_size=4)
WEIGHTS = st.lists(st.floats(0, 3), min_size=4, max_size=4)


def first_seen(rankings):
    return list(dict.fromkeys(key for ranking in rankings for key in ranking))


def in_order(fused, rankings):
    seen = first_seen(rankings)
    return sorted(seen, key=lambda key: (-fused[key], seen.index(key)))


@given(RANKINGS, WEIGHTS, st.integers(0, 100))
def test_reciprocal_ranks(rankings, weights, k):
    weights = weights[: len(rankings)]
    fused = reciprocal_rank_fusion(rankings, weights, k)
    assert list(fused) == in_order(fused, rankings)
    for key, score in fused.items():
        pairs = zip(rankings, weights, strict=True)
        terms = [weight / (k + ranking.index(key) + 1) for ranking, weight in pairs if key in ranking]
        assert score == pytest.approx(sum(terms))
    assert reciprocal_rank_fusion(rankings, k=k) == reciprocal_rank_fusion(rankings, [1] * len(rankings), k)


@given(SCORED, WEIGHTS, st.booleans())
def test_relative_scores(scored, weights, distances):
    weights = weights[: len(scored)]
    sign = 1 if distances else -1
    pairs = [sorted(scores.items(), key=lambda item: sign * item[1]) for scores in scored]
    fused = relative_score_fusion(pairs, weights)
    assert list(fused) == in_order(fused, [[key for key, _ in ranking] for ranking in pairs])
    for key, total in fused.items():
        expected = 0.0
        for scores, weight in zip(scored, weights, strict=True):
            if key in scores:
                goodness = [-sign * score for score in scores.values()]
                worst, best = min(goodness), max(goodness)
                expected += weight * ((-sign * scores[key] - worst) / (best - worst) if best != worst else 1)
        assert total == pytest.approx(expected)


def test_known_numbers():
    fused = reciprocal_rank_fusion([["a", "b"], ["b", "c"]])
    assert list(fused) == ["b", "a", "c"]
    assert fused == pytest.approx({"b": 1 / 62 + 1 / 61, "a": 1 / 61, "c": 1 / 62})
    assert relative_score_fusion([[("a", 0.9), ("b", 0.5), ("c", 0.1)], [("b", 7.0)]], (2, 1)) == pytest.approx(
        {"a": 2.0, "b": 2.0, "c": 0.0}
    )
    distances = relative_score_fusion([[("a", 0.1), ("b", 0.2), ("c", 0.5)]])
    assert distances == pytest.approx({"a": 1.0, "b": 0.75, "c": 0.0})
    assert reciprocal_rank_fusion([]) == relative_score_fusion([[], []]) == {}


def test_ties_keep_their_first_appearance():
    assert list(reciprocal_rank_fusion([["z", "b"], ["a", "c"]])) == ["z", "a", "b", "c"]


@pytest.mark.parametrize("weights", [(1,), (1, 1, 1), (1, -0.5)])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="2 rankings"):
        reciprocal_rank_fusion([["a"], ["b"]], weights)
    with pytest.raises(ValueError, match="2 rankings"):
        relative_score_fusion([[("a", 1.0)], []], weights)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (Identity("1", "text", {}), Identity("1", "other text", {}), True),
        (Identity("1", "text", {"source": "a"}), Identity("1", "text", {"source": "b"}), True),
        (Identity("1", "text", {}), Identity("2", "text", {}), True),
        (Identity("1", "text", {"source": "a"}), Identity("2", "text", {"source": "a", "page": 4}), True),
        (Identity("1", "text", {"source": "a"}), Identity("2", "text", {"source": "b"}), False),
        (Identity("1", "text", {"source": "a"}), Identity("2", "text", {}), False),
        (Identity(None, "text", {"source": "a"}), Identity("1", "text", {"source": "a"}), True),
        (Identity("1", "text", {"source": "a"}), Identity(None, "text", {"source": "a"}), True),
        (Identity(None, "text", {"source": "a"}), Identity("1", "text", {"source": "b"}), False),
        (Identity(None, "text", {}), Identity(None, "text", {}), True),
        (Identity(None, "text", {}), Identity(None, "Text", {}), False),
        (Identity(None, "text", {"source": Path("a")}), Identity(None, "text", {"source": "a"}), True),
        (Identity(None, "text", {"source": ["a", "list"]}), Identity(None, "text", {"source": ["a", "list"]}), True),
        (Identity(None, "text", {"source": None}), Identity(None, "text", {"source": "None"}), False),
        (Identity(None, "text", {"source": ""}), Identity(None, "text", {}), True),
        (Identity(None, "text", {"source": 0}), Identity(None, "text", {"source": 1}), False),
        (Identity("1", "text", {"file_path": "a"}), Identity("2", "text", {"file_path": "a"}), True),
        (Identity("1", "text", {"file_path": "a"}), Identity("2", "text", {"file_path": "b"}), False),
        (Identity("1", "text", {"source": "a", "file_path": "x"}), Identity("2", "text", {"source": "a"}), True),
        (Identity("1", "", {}), Identity("2", "", {}), False),
        (Identity("1", "", {}), Identity("1", "", {}), True),
        (Identity(None, "", {}), Identity(None, "", {}), True),
        (Identity("text", "", {}), Identity(None, "text", {}), False),
    ],
)
def test_what_is_the_same_document(first, second, same):
    for one, other in ((first, second), (second, first)):
        assert without_duplicates([one, other], lambda hit: hit) == ([one] if same else [one, other])


def test_the_first_of_each_stays_in_order():
    hits = [
        Identity("1", "b", {}), Identity("2", "a", {}), Identity("1", "c", {}), Identity("3", "b", {}),
        Identity("4", "c", {}),
    ]  # fmt: skip
    # the third is dropped for its id, so its text is still missing when the fifth brings it
    assert without_duplicates(iter(hits), lambda hit: hit) == [hits[0], hits[1], hits[4]]
    assert without_duplicates([], lambda hit: hit) == []
