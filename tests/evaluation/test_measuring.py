"""Search, reranking, measures and the interval, against counting by hand."""

import sys
from math import log2

import numpy as np
import pytest
import tiny

from bge_integrations import BgeEmbedder, BgeReranker, MissingExtraError
from bge_integrations.evaluation import LabelledSet, evaluate, mean_interval, per_query, rescore, retrieve

LINES = tiny.TEXT.strip().splitlines()
ANSWERS = {"q1": {"d0": 1}, "q2": {"d3": 2, "d5": 1}, "q3": {"d1": 1, "d2": 0}}


@pytest.fixture
def data():
    """The first document stands in the set three times."""
    documents = {f"d{number}": line for number, line in enumerate([*LINES[:12], LINES[0], LINES[0]])}
    return LabelledSet("toy", documents, {"q1": "panda", "q2": "a list", "q3": "nearest vectors"}, ANSWERS)


@pytest.fixture
def embedder(bert_embedder, cache):
    return BgeEmbedder(str(bert_embedder), cache=cache)


@pytest.fixture
def reranker(bert_reranker, cache):
    return BgeReranker(str(bert_reranker), cache=cache)


def test_measures_are_those_counted_by_hand(data):
    scores = {"q2": dict.fromkeys(["d1", "d5", "d9", "d3"], 0.5), "q1": {"d2": 0.9, "d3": 0.1}}
    values = per_query(data, scores, ["nDCG@10", "MRR@10", "Recall@2", "Recall@10"])
    ndcg = (1 / log2(3) + 2 / log2(5)) / (2 + 1 / log2(3))
    assert values["nDCG@10"] == {"q2": pytest.approx(ndcg), "q1": 0}
    assert values["MRR@10"] == {"q2": 0.5, "q1": 0}
    assert values["Recall@2"] == {"q2": 0.5, "q1": 0}
    assert values["Recall@10"] == {"q2": 1, "q1": 0}


def test_search_is_exact_and_keeps_the_order_of_equal_documents(data, embedder):
    run = retrieve(embedder, data, top=12)
    documents = embedder.encode_documents(data.documents.values())
    for query, text in data.queries.items():
        similarities = documents @ embedder.encode_queries([text])[0]
        expected = sorted(similarities.tolist(), reverse=True)[:12]
        np.testing.assert_allclose(list(run.scores[query].values()), expected, atol=1e-6)
    names = list(
        retrieve(embedder, LabelledSet("same", dict.fromkeys(data.documents, "x"), data.queries, {})).scores["q1"]
    )
    assert names == list(data.documents)
    assert run.seconds.keys() == run.scores.keys() == data.queries.keys()
    assert run.milliseconds == pytest.approx(1000 * sorted(run.seconds.values())[1])


def test_a_querys_own_document_is_no_hit(embedder, reranker):
    documents = {"a": LINES[0], "b": LINES[0], "c": LINES[3]}
    data = LabelledSet("own", documents, {"a": LINES[0], "x": LINES[3]}, {"a": {"b": 1}, "x": {"c": 1}})
    found = retrieve(embedder, data, top=2)
    assert {query: list(names) for query, names in found.scores.items()} == {"a": ["b", "c"], "x": ["c", "a"]}
    ordered = rescore(reranker, data, {"a": ["a", "b", "c"], "x": ["c"]})
    assert {query: set(names) for query, names in ordered.scores.items()} == {"a": {"b", "c"}, "x": {"c"}}
    values = per_query(data, {"a": {"a": 1, "b": 0.9}, "x": {"c": 1}}, ["nDCG@10", "MRR@10", "Recall@1"])
    assert all(value == {"a": 1, "x": 1} for value in values.values())
    result = evaluate(data, embedder, reranker, fetch_k=10)
    assert result.retrieved.mean("nDCG@10") == 1


def test_the_rerankers_order(data, reranker):
    run = rescore(reranker, data, {"q1": ["d4", "d0", "d7"], "q2": iter(["d3"])})
    results = reranker.rerank("panda", [data.documents[name] for name in ("d4", "d0", "d7")])
    assert list(run.scores["q1"]) == [("d4", "d0", "d7")[result.index] for result in results]
    assert list(run.scores["q2"]) == ["d3"]


def test_evaluation(data, embedder, reranker):
    result = evaluate(data, embedder, reranker, fetch_k=11)
    assert result.measures == ("nDCG@10", "MRR@10", "Recall@10", "Recall@11")
    assert result.reranked is not None
    found, ordered = result.retrieved.run.scores, result.reranked.run.scores
    assert found == retrieve(embedder, data, 11).scores
    assert {query: set(names) for query, names in found.items()} == {query: set(ordered[query]) for query in ordered}
    assert result.gain("Recall@11") == 0
    for side in (result.retrieved, result.reranked):
        values = per_query(data, side.run.scores, ["nDCG@10"])["nDCG@10"]
        assert side.mean("nDCG@10") == pytest.approx(sum(values.values()) / 3)
    gain, (low, high) = result.gain("nDCG@10"), result.interval("nDCG@10")
    assert gain == pytest.approx(result.reranked.mean("nDCG@10") - result.retrieved.mean("nDCG@10"))
    assert low <= gain <= high
    assert min(result.gains("nDCG@10")) - 1e-9 <= low < high <= max(result.gains("nDCG@10")) + 1e-9


def test_without_a_reranker_there_is_no_gain(data, embedder):
    result = evaluate(data, embedder, fetch_k=10)
    assert result.reranked is None
    assert result.measures == ("nDCG@10", "MRR@10", "Recall@10")
    with pytest.raises(ValueError, match="Nothing was reranked"):
        result.gain("nDCG@10")


def test_the_interval_is_near_that_of_the_normal_distribution():
    gains = np.random.default_rng(1).normal(0.1, 1, 500)
    low, high = mean_interval([gains.tolist()])
    error = gains.std(ddof=1) / 500**0.5
    assert low == pytest.approx(gains.mean() - 1.96 * error, abs=error / 5)
    assert high == pytest.approx(gains.mean() + 1.96 * error, abs=error / 5)
    assert mean_interval([[0.25] * 10, [0.75] * 90]) == (0.5, 0.5)


def test_what_cannot_be_measured_is_refused_before_the_work(
    data, embedder, reranker, bert_embedder, cache, monkeypatch
):
    with pytest.raises(ValueError, match="fetch_k must be 10 or more"):
        evaluate(data, embedder, reranker, fetch_k=9)
    with pytest.raises(TypeError):
        evaluate(data, embedder, BgeReranker(str(bert_embedder), cache=cache))
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(MissingExtraError, match=r"bge_integrations\[eval\]"):
        evaluate(data, embedder, reranker)
    assert cache.stats()["models"] == []
