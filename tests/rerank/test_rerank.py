"""Order, scores and types of what comes out."""

import copy
import json
import math
import pickle
from dataclasses import FrozenInstanceError, asdict

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bge_integrations import BgeEmbedder, BgeReranker, ModelCache, RerankResult

LINES = tiny.TEXT.strip().splitlines()
QUERY = "What does the giant panda eat?"


@pytest.fixture
def reranker(xlmr_reranker, cache):
    def make(**arguments):
        return BgeReranker(str(xlmr_reranker), cache=cache, **arguments)

    return make


@pytest.fixture(scope="module")
def shared(xlmr_reranker):
    """One for many examples."""
    return BgeReranker(str(xlmr_reranker), cache=ModelCache())


def with_bias(folder, bias):
    """The model with so much added to every logit."""
    weights = load_file(folder / "model.safetensors")
    weights["classifier.out_proj.bias"] = weights["classifier.out_proj.bias"] + bias
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_results_are_best_first_and_agree_with_the_scores(reranker):
    model = reranker()
    scores = model.score([(QUERY, line) for line in LINES])
    logits = reranker(normalize=False).score([(QUERY, line) for line in LINES])
    results = model.rerank(QUERY, LINES)
    assert sorted(result.index for result in results) == list(range(len(LINES)))
    assert [result.score for result in results] == sorted(scores, reverse=True)
    for result in results:
        assert result.score == pytest.approx(scores[result.index], abs=1e-7)
        assert result.logit == pytest.approx(logits[result.index], abs=1e-6)
        assert 0 < result.score < 1


def test_without_normalize_the_score_is_the_logit(reranker):
    normalized, raw = reranker().rerank(QUERY, LINES), reranker(normalize=False).rerank(QUERY, LINES)
    assert [result.index for result in normalized] == [result.index for result in raw]
    assert all(result.score == result.logit for result in raw)
    assert [result.logit for result in raw] == [result.logit for result in normalized]


@pytest.mark.parametrize("top_n", [None, 1, 3, len(LINES), len(LINES) + 1, 10**9])
def test_top_n_takes_the_first(top_n, reranker):
    assert reranker().rerank(QUERY, LINES, top_n) == reranker().rerank(QUERY, LINES)[:top_n]
    assert reranker().rerank(QUERY, LINES, top_n=top_n) == reranker().rerank(QUERY, LINES)[:top_n]


@pytest.mark.parametrize("top_n", [0, -1, True, 1.5, "3"])
def test_other_values_of_top_n_are_refused(top_n, reranker, cache):
    for documents in (LINES, []):
        with pytest.raises(ValueError, match="top_n="):
            reranker().rerank(QUERY, documents, top_n=top_n)
    assert cache.stats()["loads"] == 0


def test_nothing_gives_nothing_without_loading(reranker, cache):
    model = reranker()
    for empty in ([], (), iter([])):
        assert model.rerank(QUERY, empty) == []
        assert model.score(empty) == []
    assert model.score([], show_progress=True) == []
    assert cache.stats()["loads"] == 0


def test_ties_keep_the_order_given(tmp_path, cache):
    flat = BgeReranker(str(with_bias(tiny.make_xlmr_reranker(tmp_path), 1e30)), cache=cache)
    results = flat.rerank(QUERY, LINES * 5)
    assert len({result.logit for result in results}) == 1
    assert [result.index for result in results] == list(range(5 * len(LINES)))
    assert [result.index for result in flat.rerank(QUERY, LINES * 5, top_n=7)] == list(range(7))


@settings(max_examples=40, deadline=None)
@given(st.permutations(LINES[:9]), st.sampled_from([None, 1, 4, 20]))
def test_the_order_given_does_not_matter(shared, documents, top_n):
    expected = shared.rerank(QUERY, LINES[:9], top_n)
    results = shared.rerank(QUERY, documents, top_n)
    assert [documents[result.index] for result in results] == [LINES[result.index] for result in expected]
    np.testing.assert_allclose([r.logit for r in results], [r.logit for r in expected], rtol=0, atol=5e-6)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=30), st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_any_text_has_a_finite_score_between_0_and_1(shared, query, documents):
    results = shared.rerank(query, documents)
    assert sorted(result.index for result in results) == list(range(len(documents)))
    assert all(0 < result.score < 1 and math.isfinite(result.logit) for result in results)
    by_logit = sorted(results, key=lambda result: result.logit, reverse=True)
    assert [result.score for result in by_logit] == sorted((result.score for result in results), reverse=True)


@pytest.mark.parametrize("bias", [60.0, 800.0, 1e38, -60.0, -800.0, -1e38])
def test_extreme_logits_do_not_overflow(bias, tmp_path, cache):
    folder = with_bias(tiny.make_xlmr_reranker(tmp_path), bias)
    results = BgeReranker(str(folder), cache=cache).rerank(QUERY, LINES)
    assert all(math.isfinite(result.logit) and 0 <= result.score <= 1 for result in results)
    assert [result.logit for result in results] == sorted((result.logit for result in results), reverse=True)
    assert all(result.score == 1 if bias > 0 else result.score < 1e-20 for result in results)


@pytest.mark.parametrize("normalize", [True, False])
def test_numbers_are_builtin_and_go_through_json(normalize, reranker):
    model = reranker(normalize=normalize)
    for count in (0, 1, 5):
        scores = model.score([(QUERY, line) for line in LINES[:count]])
        assert type(scores) is list
        assert {type(score) for score in scores} <= {float}
        assert json.loads(json.dumps(scores)) == scores
    for result in model.rerank(QUERY, LINES):
        assert (type(result.index), type(result.score), type(result.logit)) == (int, float, float)
        assert RerankResult(**json.loads(json.dumps(asdict(result)))) == result
    assert json.loads(json.dumps(model.describe())) == model.describe()


def test_a_result_cannot_be_changed():
    result = RerankResult(0, 0.5, 0.0)
    with pytest.raises(FrozenInstanceError):
        result.score = 1.0


def test_what_is_passed_in_stays_as_it_was(reranker):
    documents = ["  spaces ", "", "a " * 600]
    pairs = [[QUERY, document] for document in documents]
    before = copy.deepcopy((documents, pairs))
    model = reranker(on_truncate="ignore", query_instruction="q: ")
    model.rerank(QUERY, documents, top_n=2)
    model.score(pairs)
    assert (documents, pairs) == before


def test_any_iterable_will_do(reranker):
    model = reranker()
    expected = model.rerank(QUERY, LINES)
    for kind in (tuple, iter, np.array, lambda lines: (line for line in lines)):
        assert model.rerank(QUERY, kind(LINES)) == expected
    pairs = [(QUERY, line) for line in LINES]
    assert model.score(iter(pairs)) == model.score([list(pair) for pair in pairs])


def test_the_bar_counts_the_pairs(reranker, capsys):
    model = reranker()
    quiet = model.score([(QUERY, line) for line in LINES])
    assert capsys.readouterr().err == ""
    np.testing.assert_allclose(model.score([(QUERY, line) for line in LINES], show_progress=True), quiet, atol=1e-6)
    assert f"{len(LINES)}/{len(LINES)}" in capsys.readouterr().err


def test_pickles_and_copies_are_small_and_give_the_same(xlmr_reranker):
    model = BgeReranker(str(xlmr_reranker), query_instruction="q: ", max_length=99, token="secret")
    assert "secret" not in repr(model)
    expected = model.rerank(QUERY, LINES)
    assert len(pickle.dumps(model)) < 10_000
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert other.rerank(QUERY, LINES) == expected


def test_an_embedder_and_a_reranker_live_side_by_side(reranker, xlmr_embedder, cache):
    embedder = BgeEmbedder(str(xlmr_embedder), cache=cache)
    vectors, results = embedder.encode_documents(LINES), reranker().rerank(QUERY, LINES)
    assert reranker().rerank(QUERY, LINES) == results
    np.testing.assert_allclose(embedder.encode_documents(LINES), vectors, rtol=0, atol=1e-6)
    assert cache.stats()["loads"] == 2
