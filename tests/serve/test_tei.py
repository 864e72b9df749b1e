"""TEI's protocol: LlamaIndex's class, huggingface_hub and curl get what the core computes."""

import json
import subprocess

import httpx
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from serving import EMBEDDER, RERANKER

from bge_integrations import BgeEmbedder, BgeM3Embedder, __version__

pytestmark = pytest.mark.enable_socket

TEXTS = ["The giant panda is a bear.", "Bread needs flour, water, salt and yeast.", "大熊猫生活在中国", "", "panda 🐼"]
QUERY = "what do pandas eat?"
PASSAGES = ["Bread needs flour.", "The panda eats bamboo for twelve hours a day.", "Paris is the capital."]
LONG = "word " * 600


def near(vectors, expected):
    np.testing.assert_allclose(np.array(vectors, dtype=np.float32), expected, rtol=0, atol=1e-5)


@pytest.fixture
def post(server):
    def send(path, **body):
        return httpx.post(server + path, json=body, timeout=60)

    return send


@pytest.mark.parametrize("path", ["/embed", "/"])
@pytest.mark.parametrize("side", ["query", "document", "passage", None])
def test_each_side_has_the_cores_vectors(side, path, post, embedder):
    encode = embedder.encode_queries if side == "query" else embedder.encode_documents
    near(post(path, inputs=TEXTS, prompt_name=side).json(), encode(TEXTS))


def test_one_text_is_a_list_of_one(post, embedder):
    near(post("/embed", inputs=TEXTS[0]).json(), embedder.encode_documents(TEXTS[:1]))


def test_vectors_keep_their_length_when_it_is_asked_for(post, embedder):
    near(post("/embed", inputs=TEXTS, normalize=True).json(), embedder.encode_documents(TEXTS))
    plain = BgeEmbedder(EMBEDDER, device="cpu", normalize=False).encode_documents(TEXTS)
    got = post("/embed", inputs=TEXTS, normalize=False).json()
    np.testing.assert_allclose(got, plain, rtol=1e-5, atol=1e-4)


def test_a_text_over_the_limit_is_refused_unless_it_may_be_cut(post, embedder):
    refused = post("/embed", inputs=["a", LONG])
    assert refused.status_code == 413
    assert refused.json()["error_type"] == "Validation"
    assert "text 1 has 602 tokens; the limit is 512" in refused.json()["error"]
    near(post("/embed", inputs=["a", LONG], truncate=True).json(), embedder.encode_documents(["a", LONG]))
    left = post("/embed", inputs=["a", LONG], truncate=True, truncation_direction="Left")
    assert (left.status_code, left.json()["error"]) == (
        422,
        "truncation_direction: a text that is too long loses its end. Use Right.",
    )


def test_dimensions_are_refused_with_the_reason(post):
    refused = post("/embed", inputs="a", dimensions=64)
    assert refused.status_code == 422
    assert "not trained for shorter vectors" in refused.json()["error"]


@pytest.mark.parametrize("inputs", [["a", None], ["a", 1], ["a", ["b"]]])
@pytest.mark.parametrize("path", ["/embed", "/embed_sparse", "/tokenize"])
def test_a_wrong_text_is_refused_with_its_index(path, inputs, post):
    refused = post(path, inputs=inputs)
    assert refused.status_code == 422
    assert refused.json() == {"error": "inputs[1]: Input should be a valid string", "error_type": "Validation"}


def test_a_request_may_name_the_model(post, embedder):
    near(post("/embed", inputs=TEXTS, model=EMBEDDER).json(), embedder.encode_documents(TEXTS))
    refused = post("/embed", inputs="a", model="BAAI/bge-m3")
    assert refused.status_code == 404
    assert "This server has no embedder 'BAAI/bge-m3'" in refused.json()["error"]


def test_huggingface_hub_gets_both_sides(server, embedder):
    client = InferenceClient(model=server)
    near(client.feature_extraction(TEXTS), embedder.encode_documents(TEXTS))
    near(client.feature_extraction(TEXTS, prompt_name="query", normalize=True), embedder.encode_queries(TEXTS))
    near(client.feature_extraction(TEXTS[0]), embedder.encode_documents(TEXTS[:1]))
    near(
        client.feature_extraction(LONG, truncate=True, truncation_direction="right"), embedder.encode_documents([LONG])
    )
    with pytest.raises(HfHubHTTPError, match="413"):
        client.feature_extraction(LONG)


def test_llama_index_gets_documents(server, embedder):
    """Its class puts instructions before texts by itself; a query asks for the query's instruction in that way."""
    model = TextEmbeddingsInference(
        model_name=EMBEDDER, base_url=server, text_instruction="", query_instruction="", embed_batch_size=3
    )
    near(model.get_text_embedding_batch(TEXTS), embedder.encode_documents(TEXTS))
    near([model.get_text_embedding(LONG)], embedder.encode_documents([LONG]))


def test_llama_index_gets_queries_with_the_instruction_once(server, embedder):
    instruction = str(embedder.describe()["query"]).removesuffix("{text}").strip()
    model = TextEmbeddingsInference(
        model_name=EMBEDDER, base_url=server, text_instruction="", query_instruction=instruction
    )
    near([model.get_query_embedding(QUERY)], embedder.encode_queries([QUERY]))


async def test_llama_index_gets_the_same_without_blocking(server, embedder):
    model = TextEmbeddingsInference(model_name=EMBEDDER, base_url=server, text_instruction="", query_instruction="")
    near(await model.aget_text_embedding_batch(TEXTS), embedder.encode_documents(TEXTS))


def test_curl_gets_the_same(server, embedder):
    command = ["curl", "--silent", "--fail-with-body", f"{server}/embed", "-H", "Content-Type: application/json"]
    done = subprocess.run([*command, "-d", json.dumps({"inputs": TEXTS})], capture_output=True, timeout=60)
    near(json.loads(done.stdout), embedder.encode_documents(TEXTS))
    assert done.returncode == 0


def test_curl_without_the_header_is_told_to_send_it(server):
    command = ["curl", "--silent", f"{server}/embed", "-d", '{"inputs": "a"}']
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert "add the header Content-Type: application/json" in json.loads(done.stdout)["error"]


@pytest.mark.parametrize("side", ["query", "document"])
def test_sparse_vectors_are_those_of_bge_m3(side, m3_server, m3):
    core = BgeM3Embedder(str(m3), like="BAAI/bge-m3", outputs=["sparse"], device="cpu")
    expected = (core.encode_queries if side == "query" else core.encode_documents)(TEXTS).sparse
    answer = httpx.post(f"{m3_server}/embed_sparse", json={"inputs": TEXTS, "prompt_name": side}, timeout=60).json()
    for row, vector in zip(answer, expected, strict=True):
        assert [item["index"] for item in row] == vector.indices.tolist()
        near([item["value"] for item in row], vector.values)
    assert answer[3] == []


def test_sparse_vectors_of_another_model_are_refused(post):
    refused = post("/embed_sparse", inputs=TEXTS)
    assert refused.status_code == 422
    assert "gives dense vectors, not sparse" in refused.json()["error"]


@pytest.mark.parametrize("raw", [False, True])
def test_rerank_gives_the_cores_scores_best_first(raw, post, reranker):
    expected = reranker.rerank(QUERY, PASSAGES)
    answer = post("/rerank", query=QUERY, texts=PASSAGES, raw_scores=raw).json()
    assert [(row["index"], pytest.approx(row["score"], abs=1e-5)) for row in answer] == [
        (result.index, result.logit if raw else result.score) for result in expected
    ]
    assert all(set(row) == {"index", "score"} for row in answer)


def test_rerank_gives_the_texts_back_when_asked(post):
    answer = post("/rerank", query=QUERY, texts=PASSAGES, return_text=True).json()
    assert [row["text"] for row in answer] == [PASSAGES[row["index"]] for row in answer]


def test_a_pair_over_the_limit_is_refused_unless_it_may_be_cut(post, reranker):
    texts = ["Bamboo.", LONG]
    refused = post("/rerank", query=QUERY, texts=texts)
    assert refused.status_code == 413
    assert "pair 1 has" in refused.json()["error"]
    answer = post("/rerank", query=QUERY, texts=texts, truncate=True).json()
    assert {row["index"]: pytest.approx(row["score"], abs=1e-5) for row in answer} == dict(
        enumerate(reranker.score([(QUERY, text) for text in texts]))
    )


def test_tokens_stand_where_they_are_in_the_text(post):
    text = "Der giant Panda"
    (tokens,) = post("/tokenize", inputs=text).json()
    assert [token["special"] for token in tokens] == [True, *[False] * (len(tokens) - 2), True]
    assert all(token["text"] == text[token["start"] : token["stop"]] for token in tokens if not token["special"])
    (plain,) = post("/tokenize", inputs=text, add_special_tokens=False).json()
    assert plain == tokens[1:-1]


def test_a_queries_tokens_have_the_instruction_before_them(post, embedder):
    (query,), (document,) = (post("/tokenize", inputs=QUERY, prompt_name=side).json() for side in ("query", "document"))
    instruction = str(embedder.describe()["query"]).removesuffix("{text}")
    (before,) = post("/tokenize", inputs=instruction, add_special_tokens=False).json()
    assert [token["id"] for token in query[1:]] == [token["id"] for token in [*before, *document[1:]]]


def test_tokens_are_not_cut(post):
    assert len(post("/tokenize", inputs=LONG).json()[0]) == 602


def test_a_named_rerankers_tokens_come_from_its_own_tokenizer(post):
    assert post("/tokenize", inputs=QUERY, model=RERANKER).status_code == 200
    assert post("/tokenize", inputs=QUERY, model="other").status_code == 404


def test_info_says_what_the_first_model_takes(server, m3_server, m3):
    info = httpx.get(f"{server}/info", timeout=60).json()
    assert info["model_id"] == EMBEDDER
    assert info["model_type"] == {"embedding": {"pooling": "cls"}}
    assert [info["max_input_length"], info["model_dtype"], info["version"]] == [512, "float32", __version__]
    assert info["max_client_batch_size"] == 4096
    assert httpx.get(f"{m3_server}/info", timeout=60).json()["model_id"] == str(m3)


def test_health_answers(server):
    assert httpx.get(f"{server}/health", timeout=60).status_code == 200
