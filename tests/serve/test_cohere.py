"""Cohere's protocol, and Jina's rerank requests: their clients get what the core computes."""

import base64

import cohere
import httpx
import numpy as np
import pytest
from langchain_cohere import CohereRerank
from langchain_core.documents import Document
from serving import EMBEDDER, RERANKER

pytestmark = pytest.mark.enable_socket

TEXTS = ["The giant panda is a bear.", "Bread needs flour, water, salt and yeast.", "大熊猫生活在中国", "panda 🐼"]
QUERY = "what do pandas eat?"
PASSAGES = ["Bread needs flour.", "The panda eats bamboo for twelve hours a day.", "Paris is the capital.", "Bamboo."]
LONG = "word " * 600


@pytest.fixture
def client(server):
    with cohere.ClientV2(api_key="none", base_url=server) as client:
        yield client


def near(vectors, expected):
    np.testing.assert_allclose(np.array(vectors, dtype=np.float32), expected, rtol=0, atol=1e-5)


def embed(client, *types, texts=TEXTS, **more):
    return client.embed(
        model=EMBEDDER, texts=texts, input_type="search_document", embedding_types=list(types), **more
    ).embeddings


def results_of(answer):
    return [(result.index, pytest.approx(result.relevance_score, abs=1e-5)) for result in answer.results]


def expected_of(reranker, passages=PASSAGES, top_n=None):
    return [(result.index, result.score) for result in reranker.rerank(QUERY, passages, top_n)]


@pytest.mark.parametrize("input_type", ["search_query", "search_document", "classification", "clustering"])
def test_only_search_query_gets_the_query_instruction(input_type, client, embedder):
    answer = client.embed(model=EMBEDDER, texts=TEXTS, input_type=input_type, embedding_types=["float"])
    encode = embedder.encode_queries if input_type == "search_query" else embedder.encode_documents
    near(answer.embeddings.float_, encode(TEXTS))
    assert answer.texts == TEXTS


async def test_the_async_client_gets_the_same(server, embedder):
    async with cohere.AsyncClientV2(api_key="none", base_url=server) as client:
        answer = await client.embed(model=EMBEDDER, texts=TEXTS, input_type="search_query", embedding_types=["float"])
    near(answer.embeddings.float_, embedder.encode_queries(TEXTS))


def test_inputs_are_texts_too(client, embedder):
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    answer = client.embed(model=EMBEDDER, inputs=inputs, input_type="search_document", embedding_types=["float"])
    near(answer.embeddings.float_, embedder.encode_documents(TEXTS))


def test_several_formats_come_in_one_answer(client, embedder):
    vectors = embedder.encode_documents(TEXTS)
    got = embed(client, "float", "int8", "uint8", "binary", "ubinary", "base64")
    near(got.float_, vectors)
    np.testing.assert_allclose(got.int8, vectors * 127, rtol=0, atol=0.51)
    np.testing.assert_array_equal(np.array(got.uint8), np.array(got.int8) + 128)
    near([np.frombuffer(base64.b64decode(row), dtype="<f4") for row in got.base64], vectors)
    signs = np.unpackbits(np.array(got.ubinary, dtype=np.uint8), axis=1)
    np.testing.assert_array_equal(signs, vectors > 0)
    np.testing.assert_array_equal(np.array(got.binary) + 128, got.ubinary)


def test_only_the_formats_that_were_asked_for_come(client):
    got = embed(client, "int8", texts=["a"])
    assert got.int8
    assert not any((got.float_, got.uint8, got.binary, got.ubinary, got.base64))


def test_floats_come_when_no_format_is_named(server, embedder):
    answer = httpx.post(f"{server}/v2/embed", json={"model": EMBEDDER, "texts": TEXTS}, timeout=60).json()
    near(answer["embeddings"]["float"], embedder.encode_documents(TEXTS))
    assert answer["meta"]["billed_units"]["input_tokens"] > len(TEXTS)


def test_a_text_over_the_limit_is_cut_or_refused_as_asked(client, embedder):
    texts = ["a", LONG]
    near(embed(client, "float", texts=texts, truncate="END").float_, embedder.encode_documents(texts))
    with pytest.raises(cohere.BadRequestError, match="text 1 has 602 tokens"):
        embed(client, "float", texts=texts, truncate="NONE")
    with pytest.raises(cohere.BadRequestError, match='loses its end. Use "END" or "NONE"'):
        embed(client, "float", texts=texts, truncate="START")


def test_dimensions_are_refused_with_the_reason(client):
    with pytest.raises(cohere.BadRequestError, match="not trained for shorter vectors"):
        embed(client, "float", output_dimension=256)


def test_errors_have_the_protocols_shape(client, server):
    with pytest.raises(cohere.NotFoundError, match="This server has no embedder 'embed-v4.0'") as caught:
        client.embed(model="embed-v4.0", texts=["a"], input_type="search_query", embedding_types=["float"])
    assert "This server has" in caught.value.body["message"]
    with pytest.raises(cohere.BadRequestError, match=r"texts\[1\]: Input should be a valid string"):
        embed(client, "float", texts=["a", 1])
    with pytest.raises(cohere.BadRequestError, match="Give either texts or inputs"):
        client.embed(model=EMBEDDER, input_type="search_query", embedding_types=["float"])
    with pytest.raises(cohere.BadRequestError, match="is no reranker"):
        client.rerank(model=EMBEDDER, query=QUERY, documents=PASSAGES)
    answer = httpx.post(
        f"{server}/v2/rerank", json={"model": RERANKER, "query": "a", "documents": ["b", None]}, timeout=60
    )
    assert answer.status_code == 400
    assert answer.json()["message"] == answer.json()["detail"] == "documents[1]: Input should be a valid string"


@pytest.mark.parametrize("top_n", [None, 1, 100])
def test_rerank_gives_the_cores_scores_best_first(top_n, client, reranker):
    answer = client.rerank(model=RERANKER, query=QUERY, documents=PASSAGES, top_n=top_n)
    assert expected_of(reranker, top_n=top_n) == results_of(answer)


def test_the_first_version_of_the_protocol_is_answered_too(server, reranker):
    with cohere.Client(api_key="none", base_url=server) as client:
        answer = client.rerank(model=RERANKER, query=QUERY, documents=PASSAGES, return_documents=True)
        of_objects = client.rerank(model=RERANKER, query=QUERY, documents=[{"text": text} for text in PASSAGES])
    assert expected_of(reranker) == results_of(answer)
    assert [result.document.text for result in answer.results] == [PASSAGES[result.index] for result in answer.results]
    assert expected_of(reranker) == results_of(of_objects)


def test_documents_are_cut_to_the_tokens_asked_for(client, server, reranker):
    passages = ["panda bamboo bread flour water " * 40, "The panda eats bamboo for twelve hours a day."]
    asked = {"inputs": passages, "add_special_tokens": False}
    tokens = httpx.post(f"{server}/tokenize", json=asked, timeout=60).json()
    shorter = [text[: row[6]["stop"]] for text, row in zip(passages, tokens, strict=True)]
    answer = client.rerank(model=RERANKER, query=QUERY, documents=passages, max_tokens_per_doc=7)
    assert expected_of(reranker, shorter) == results_of(answer)
    assert results_of(answer) != results_of(client.rerank(model=RERANKER, query=QUERY, documents=passages))


def test_a_document_over_the_limit_is_cut(client, reranker):
    passages = [LONG, "Bamboo."]
    assert expected_of(reranker, passages) == results_of(client.rerank(model=RERANKER, query=QUERY, documents=passages))


def test_langchains_reranker_orders_documents(server, reranker):
    compressor = CohereRerank(model=RERANKER, base_url=server, cohere_api_key="none", top_n=3)
    documents = [Document(text, metadata={"number": number}) for number, text in enumerate(PASSAGES)]
    with compressor.client:
        best = compressor.compress_documents(documents, QUERY)
    assert [(document.metadata["number"], document.metadata["relevance_score"]) for document in best] == [
        (index, pytest.approx(score, abs=1e-5)) for index, score in expected_of(reranker, top_n=3)
    ]


@pytest.mark.parametrize("wrapped", [False, True])
def test_jinas_requests_are_answered(wrapped, server, reranker):
    answer = httpx.post(
        f"{server}/v1/rerank",
        json={
            "model": RERANKER,
            "query": QUERY,
            "documents": [{"text": text} for text in PASSAGES] if wrapped else PASSAGES,
            "top_n": 2,
            "return_documents": True,
        },
        timeout=60,
    ).json()
    assert answer["model"] == RERANKER
    assert answer["usage"]["total_tokens"] > 20
    assert [(result["index"], pytest.approx(result["relevance_score"], abs=1e-5)) for result in answer["results"]] == (
        expected_of(reranker, top_n=2)
    )
    assert [result["document"]["text"] for result in answer["results"]] == [
        PASSAGES[result["index"]] for result in answer["results"]
    ]


def test_documents_come_back_only_when_asked_for(server):
    answer = httpx.post(
        f"{server}/v1/rerank", json={"model": RERANKER, "query": QUERY, "documents": PASSAGES}, timeout=60
    ).json()
    assert all(set(result) == {"index", "relevance_score"} for result in answer["results"])
