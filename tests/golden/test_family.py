"""FlagEmbedding's numbers for bge-m3's outputs and for the models built on language models; see README.md."""

import json
from pathlib import Path

import numpy as np
import pytest

from bge_integrations import BgeEmbedder, BgeM3Embedder, BgeReranker
from bge_integrations.embed.m3 import maxsim, sparse_score

HERE = Path(__file__).parent
MODELS = HERE / "models"
INPUT = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
EXPECTED = json.loads((HERE / "expected_family.json").read_text(encoding="utf-8"))
TEXTS, PAIRS = INPUT["texts"], [tuple(pair) for pair in INPUT["pairs"]]

TASK = "Given a question, retrieve passages that answer the question."
EXAMPLES = [
    {
        "instruct": TASK,
        "query": "what is a virtual interface",
        "response": "A virtual interface is a software-defined abstraction.",
    },
    {"query": "causes", "response": "Back pain"},
]
EMBEDDERS = {
    "gemma2": ("gemma2emb", "BAAI/bge-multilingual-gemma2", {}),
    "qwen2": ("qwen2emb", "BAAI/bge-code-v1", {}),
    "icl zero-shot": ("icl", "BAAI/bge-en-icl", {}),
    "icl few-shot": ("icl", "BAAI/bge-en-icl", {"examples": EXAMPLES}),
}
LAYERWISE, LIGHTWEIGHT = "BAAI/bge-reranker-v2-minicpm-layerwise", "BAAI/bge-reranker-v2.5-gemma2-lightweight"

batched = pytest.mark.parametrize("budget", [1, 4096], ids=["one by one", "batched"])


def close(actual, expected, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.fixture
def m3(cache):
    def make(**arguments):
        return BgeM3Embedder(
            str(MODELS / "m3"), like="BAAI/bge-m3", on_truncate="ignore", max_length=512, cache=cache, **arguments
        )

    return make


@pytest.fixture
def reranker(cache):
    def make(name, like, **arguments):
        return BgeReranker(
            str(MODELS / name), like=like, **{"normalize": False, **arguments}, on_truncate="ignore", cache=cache
        )

    return make


@batched
@pytest.mark.parametrize("case", EMBEDDERS)
def test_embedders_built_on_language_models(case, budget, cache):
    name, like, arguments = EMBEDDERS[case]

    def embedder(max_length):
        return BgeEmbedder(
            str(MODELS / name), like=like, query_instruction=TASK, max_length=max_length, max_batch_tokens=budget,
            on_truncate="ignore", cache=cache, **arguments,
        )  # fmt: skip

    close(embedder(512).encode_queries(TEXTS), EXPECTED[case]["queries"])
    close(embedder(512).encode_documents(TEXTS), EXPECTED[case]["corpus"])
    close(embedder(16).encode_documents(TEXTS), EXPECTED[case]["corpus_maxlen16"])


def test_the_expected_vectors_tell_queries_documents_and_examples_apart():
    for case in EMBEDDERS:
        assert np.abs(np.subtract(EXPECTED[case]["queries"], EXPECTED[case]["corpus"])).max(axis=1).min() > 0.01
    few, zero = EXPECTED["icl few-shot"]["queries"], EXPECTED["icl zero-shot"]["queries"]
    assert np.abs(np.subtract(few, zero)).max(axis=1).min() > 1e-3


@batched
def test_outputs_of_m3(budget, m3):
    result = m3(max_batch_tokens=budget).encode_documents(TEXTS[:4])
    close(result.dense, INPUT["m3 dense"])
    for sparse, expected in zip(result.sparse, EXPECTED["m3"]["lexical_weights"], strict=True):
        weights = dict(zip(map(str, sparse.indices.tolist()), sparse.values.tolist(), strict=True))
        assert weights == pytest.approx(expected, abs=1e-6)
    for vectors, expected in zip(result.colbert, EXPECTED["m3"]["colbert_vecs"], strict=True):
        close(vectors, expected)
    close([[sparse_score(a, b) for b in result.sparse] for a in result.sparse], EXPECTED["m3"]["lexical"])
    close([[maxsim(a, b) for b in result.colbert] for a in result.colbert], EXPECTED["m3"]["colbert"])


@batched
@pytest.mark.parametrize(("case", "weights"), [("score", (1, 1, 1)), ("score 0.4,0.2,0.4", (0.4, 0.2, 0.4))])
def test_scores_of_m3(case, weights, budget, m3):
    scores = m3(max_batch_tokens=budget).score(PAIRS, weights=weights)
    assert list(scores) == list(EXPECTED["m3"][case])
    for name, expected in EXPECTED["m3"][case].items():
        close(scores[name], expected)


@batched
@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("raw", {}),
        ("sigmoid", {"normalize": True}),
        ("max32", {"max_length": 32}),
        ("prompt", {"prompt": "Is B about A?"}),
    ],
)
def test_the_reranker_with_a_yes_logit(case, arguments, budget, reranker):
    gemma = reranker("gemma_rr", "BAAI/bge-reranker-v2-gemma", max_batch_tokens=budget, **arguments)
    close(gemma.score(PAIRS), EXPECTED["gemma reranker"][case])


@batched
@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("None", {}),
        ("[4]", {"cutoff_layers": [4]}),
        ("[2,4,6]", {"cutoff_layers": [6, 2, 4]}),
        ("[4] max32", {"cutoff_layers": [4], "max_length": 32}),
    ],
)
def test_the_layerwise_reranker(case, arguments, budget, reranker):
    minicpm = reranker("minicpm", LAYERWISE, max_batch_tokens=budget, **arguments)
    expected = np.atleast_2d(EXPECTED["layerwise"][case])
    close(minicpm.score_layers(PAIRS).T, expected)
    close(minicpm.score(PAIRS), expected[-1])


@batched
@pytest.mark.parametrize("case", [case for case in EXPECTED["lightweight"] if not case.endswith("batch1")])
def test_the_lightweight_reranker(case, budget, reranker):
    gemma = reranker("lw", LIGHTWEIGHT, max_batch_tokens=budget, **json.loads(case))
    expected = np.atleast_2d(EXPECTED["lightweight"][case + (" batch1" if budget == 1 else "")])
    close(gemma.score_layers(PAIRS).T, expected)
    close(gemma.score(PAIRS), expected[-1])


def test_the_expected_scores_tell_layers_and_compression_apart():
    cases = ['{"cutoff_layers": [4]}', '{"cutoff_layers": [4], "compress_ratio": 2, "compress_layers": [3]}', "{}"]
    one, compressed, all_layers = (np.array(EXPECTED["lightweight"][case]) for case in cases)
    assert np.abs(one - compressed).max() > 1e-4
    assert np.abs(one - all_layers).max() > 1e-2
