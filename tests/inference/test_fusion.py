"""Fusion against the formulas written out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_integrations.inference.fusion import reciprocal_rank_fusion, relative_score_fusion

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
