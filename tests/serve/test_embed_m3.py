"""POST /embed_m3: the outputs of bge-m3 in one answer, equal to the core's, and only those asked for."""

from itertools import combinations

import httpx
import numpy as np
import pytest
import tiny

from bge_integrations import BgeM3Embedder

pytestmark = pytest.mark.enable_socket

TEXTS = [*(line for line in tiny.TEXT.splitlines() if line), "", "panda", "panda panda", "<s> </s> \U0001f43c"]
OUTPUTS = ("dense", "sparse", "colbert")


@pytest.fixture
def post(m3_server):
    def send(**body):
        return httpx.post(f"{m3_server}/embed_m3", json=body, timeout=60)

    return send


@pytest.fixture(scope="module")
def core(m3):
    return BgeM3Embedder(str(m3), like="BAAI/bge-m3", device="cpu", on_truncate="ignore")


def check(answer, expected):
    """Compare the outputs that an answer has with the core's."""
    if "dense" in answer:
        np.testing.assert_allclose(np.array(answer["dense"]), expected.dense, rtol=0, atol=1e-5)
    for row, vector in zip(answer.get("sparse", []), expected.sparse, strict="sparse" in answer):
        assert row["indices"] == vector.indices.tolist()
        np.testing.assert_allclose(row["values"], vector.values, rtol=0, atol=1e-5)
    for row, vectors in zip(answer.get("colbert", []), expected.colbert, strict="colbert" in answer):
        np.testing.assert_allclose(np.array(row), vectors, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["query", "document"])
def test_both_sides_have_the_cores_three_outputs(side, post, core):
    answer = post(inputs=TEXTS, input_type=side).json()
    check(answer, (core.encode_queries if side == "query" else core.encode_documents)(TEXTS))
    assert set(answer) == {*OUTPUTS, "usage"}


@pytest.mark.parametrize("outputs", [*combinations(OUTPUTS, 1), *combinations(OUTPUTS, 2)])
def test_only_the_outputs_that_were_asked_for_come(outputs, post, core):
    answer = post(inputs=TEXTS[:3], outputs=outputs[::-1]).json()
    assert set(answer) == {*outputs, "usage"}
    check(answer, core.encode_documents(TEXTS[:3]))


def test_an_output_named_twice_comes_once(post, core):
    answer = post(inputs="panda", outputs=["dense", "dense"]).json()
    check(answer, core.encode_documents(["panda"]))
    assert len(answer["dense"]) == 1


def test_usage_counts_the_tokens_that_were_computed(post, m3_server):
    tokens = httpx.post(f"{m3_server}/tokenize", json={"inputs": TEXTS}, timeout=60).json()
    assert post(inputs=TEXTS).json()["usage"] == {"total_tokens": sum(map(len, tokens))}


def test_a_text_over_the_limit_is_refused_unless_it_may_be_cut(post, core):
    long = ["a", "panda " * 9000]
    refused = post(inputs=long)
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "InputTooLongError"
    assert "text 1 has" in refused.json()["error"]["message"]
    check(post(inputs=long, truncate=True, outputs=["dense"]).json(), core.encode_documents(long))


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"inputs": []}, 400, "inputs: List should have at least 1 item"),
        ({"inputs": ["a", 1]}, 400, "inputs[1]: Input should be a valid string"),
        ({"inputs": "a", "outputs": []}, 400, "outputs: List should have at least 1 item"),
        ({"inputs": "a", "outputs": ["dense", "lexical"]}, 400, "outputs[1]: Input should be 'dense', 'sparse'"),
        ({"inputs": "a", "model": "BAAI/bge-m3"}, 404, "This server has no embedder 'BAAI/bge-m3'"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(body, status, said, post):
    answer = post(**body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_a_model_without_these_outputs_says_which_it_has(server):
    answer = httpx.post(f"{server}/embed_m3", json={"inputs": "a"}, timeout=60)
    assert answer.status_code == 400
    assert "gives dense vectors, not colbert and sparse" in answer.json()["error"]["message"]
