"""The numbers of FlagEmbedding, to the last float32 digits. README.md says where they come from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from bge_integrations import BgeEmbedder, BgeReranker

HERE = Path(__file__).parent
MODELS = HERE / "models"
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))
TEXTS, PAIRS = EXPECTED["texts"], EXPECTED["pairs"]

# The models are random with small weights: scores of different texts differ by some 1e-6 only.
VECTOR, SCORE = 5e-7, 1e-7


def close(actual, expected, atol):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.fixture
def embedder(cache):
    def make(name="bert", like="BAAI/bge-base-en-v1.5", **arguments):
        return BgeEmbedder(str(MODELS / name), like=like, on_truncate="ignore", cache=cache, **arguments)

    return make


@pytest.fixture
def score(cache):
    def score(**arguments):
        reranker = BgeReranker(str(MODELS / "xlmr_seqcls"), on_truncate="ignore", cache=cache, **arguments)
        return reranker.score([tuple(pair) for pair in PAIRS])

    return score


def test_the_expected_numbers_tell_the_cases_apart():
    bert, reranker = EXPECTED["bert"], EXPECTED["reranker"]
    assert np.abs(np.subtract(bert["queries"], bert["corpus"])).max(axis=1).min() > 100 * VECTOR
    assert np.abs(np.subtract(bert["corpus"][-1], bert["corpus_maxlen16"][-1])).max() > 100 * VECTOR
    assert np.abs(np.subtract(reranker["max64"], reranker["q16 max64"])).max() > 10 * SCORE


def test_queries_get_the_instruction(embedder):
    close(embedder().encode_queries(TEXTS), EXPECTED["bert"]["queries"], VECTOR)


def test_documents_get_none(embedder):
    close(embedder().encode_documents(TEXTS), EXPECTED["bert"]["corpus"], VECTOR)


def test_documents_are_cut_at_max_length(embedder):
    close(embedder(max_length=16).encode_documents(TEXTS), EXPECTED["bert"]["corpus_maxlen16"], VECTOR)


def test_mean_pooling(tmp_path, cache):
    folder = shutil.copytree(MODELS / "bert", tmp_path / "bert")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": index, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    vectors = BgeEmbedder(str(folder), on_truncate="ignore", cache=cache).encode_documents(TEXTS)
    close(vectors, EXPECTED["bert mean"]["corpus"], VECTOR)


def test_a_pair_of_instructions_given_as_texts(embedder):
    both = embedder(
        query_instruction="Represent this query for retrieving relevant documents: ",
        document_instruction="Represent this document for retrieval: ",
    )
    close(both.encode_queries(TEXTS), EXPECTED["bert passage instruction"]["queries"], VECTOR)
    close(both.encode_documents(TEXTS), EXPECTED["bert passage instruction"]["corpus"], VECTOR)


def test_a_pair_of_instructions_given_as_task(embedder):
    both = embedder(like="BAAI/llm-embedder", task="qa")
    close(both.encode_queries(TEXTS), EXPECTED["bert passage instruction"]["queries"], VECTOR)
    close(both.encode_documents(TEXTS), EXPECTED["bert passage instruction"]["corpus"], VECTOR)


def test_dense_vectors_of_m3(embedder):
    m3 = embedder("m3", like="BAAI/bge-m3")
    close(m3.encode_documents(TEXTS[:4]), EXPECTED["m3 dense"], VECTOR)
    close(m3.encode_queries(TEXTS[:4]), EXPECTED["m3 dense"], VECTOR)


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("raw", {"normalize": False}),
        ("sigmoid", {}),
        ("max64", {"normalize": False, "max_length": 64}),
        ("q16 max64", {"normalize": False, "max_length": 64, "query_max_length": 16}),
        ("instr", {"normalize": False, "query_instruction": "q: ", "document_instruction": "p: "}),
    ],
)
def test_scores(case, arguments, score):
    close(score(**arguments), EXPECTED["reranker"][case], SCORE)


@pytest.mark.parametrize("budget", [1, 64, 4096])
def test_no_number_depends_on_the_batch(budget, embedder, score):
    small = embedder(max_batch_tokens=budget)
    close(small.encode_queries(TEXTS), EXPECTED["bert"]["queries"], VECTOR)
    close(score(normalize=False, max_batch_tokens=budget), EXPECTED["reranker"]["raw"], SCORE)
