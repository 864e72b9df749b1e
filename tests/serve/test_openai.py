"""OpenAI's protocol: its own clients, LangChain's and LlamaIndex's get the vectors that the core computes."""

import base64

import httpx
import numpy as np
import openai
import pytest
import tiktoken
import tiny
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from serving import EMBEDDER, RERANKER, serving

from bge_integrations import BgeEmbedder

pytestmark = pytest.mark.enable_socket

TEXTS = ["The giant panda is a bear.", "Bread needs flour, water, salt and yeast.", "大熊猫生活在中国", "", "panda 🐼"]
LONG = "word " * 600


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def langchain(server):
    def make(**arguments):
        fixed = {"model": EMBEDDER, "base_url": f"{server}/v1", "api_key": "none", "max_retries": 0}
        return OpenAIEmbeddings(**fixed, **arguments)

    return make


def vectors_of(answer):
    return np.array([item.embedding for item in answer.data], dtype=np.float32)


def near(vectors, expected):
    np.testing.assert_allclose(np.array(vectors, dtype=np.float32), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("side", ["query", "document"])
def test_each_side_has_the_cores_vectors_in_both_formats(side, encoding, client, embedder):
    answer = client.embeddings.create(
        model=EMBEDDER, input=TEXTS, encoding_format=encoding, extra_body={"input_type": side}
    )
    encode = embedder.encode_queries if side == "query" else embedder.encode_documents
    raw = [item.embedding for item in answer.data]
    if encoding == "base64":
        assert all(isinstance(vector, str) for vector in raw)
        raw = [np.frombuffer(base64.b64decode(vector), dtype="<f4") for vector in raw]
    near(raw, encode(TEXTS))
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    assert [answer.object, answer.data[0].object, answer.model] == ["list", "embedding", EMBEDDER]


def test_the_clients_own_choice_of_format_is_understood(client, embedder):
    near(vectors_of(client.embeddings.create(model=EMBEDDER, input=TEXTS)), embedder.encode_documents(TEXTS))


def test_one_text_is_a_list_of_one(client, embedder):
    near(vectors_of(client.embeddings.create(model=EMBEDDER, input=TEXTS[0])), embedder.encode_documents(TEXTS[:1]))


async def test_the_async_client_gets_the_same(server, embedder):
    async with openai.AsyncOpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        near(vectors_of(await client.embeddings.create(model=EMBEDDER, input=TEXTS)), embedder.encode_documents(TEXTS))
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="text-embedding-3-small", input="a")


@pytest.mark.parametrize("name", ["query", "search_query"])
def test_every_name_of_the_query_side_is_known(name, client, embedder):
    answer = client.embeddings.create(model=EMBEDDER, input=TEXTS, extra_body={"input_type": name})
    near(vectors_of(answer), embedder.encode_queries(TEXTS))


@pytest.mark.parametrize("name", ["document", "passage", "search_document", None])
def test_every_other_name_is_the_document_side(name, client, embedder):
    answer = client.embeddings.create(model=EMBEDDER, input=TEXTS, extra_body={"input_type": name})
    near(vectors_of(answer), embedder.encode_documents(TEXTS))


@pytest.mark.parametrize(("task", "queries"), [("retrieval.query", True), ("retrieval.passage", False)])
def test_jinas_name_of_the_side_counts_too(task, queries, client, embedder):
    answer = client.embeddings.create(model=EMBEDDER, input=TEXTS, extra_body={"task": task})
    near(vectors_of(answer), embedder.encode_queries(TEXTS) if queries else embedder.encode_documents(TEXTS))


def test_the_end_of_the_models_name_chooses_the_side(client, embedder):
    of = {
        side: vectors_of(client.embeddings.create(model=EMBEDDER + side, input=TEXTS))
        for side in ("-query", "-passage")
    }
    near(of["-query"], embedder.encode_queries(TEXTS))
    near(of["-passage"], embedder.encode_documents(TEXTS))


def test_the_input_type_wins_over_the_end_of_the_name(client, embedder):
    answer = client.embeddings.create(model=f"{EMBEDDER}-passage", input=TEXTS, extra_body={"input_type": "query"})
    near(vectors_of(answer), embedder.encode_queries(TEXTS))


def test_usage_counts_the_tokens_that_were_computed(client, server):
    tokens = httpx.post(f"{server}/tokenize", json={"inputs": TEXTS}, timeout=60).json()
    usage = client.embeddings.create(model=EMBEDDER, input=TEXTS).usage
    assert usage.prompt_tokens == usage.total_tokens == sum(map(len, tokens))


def test_the_models_are_listed(client):
    models = client.models.list().data
    assert [model.id for model in models] == [EMBEDDER, RERANKER]
    assert {model.object for model in models} == {"model"}


def test_dimensions_are_refused_with_the_reason(client):
    with pytest.raises(openai.BadRequestError, match="not trained for shorter vectors"):
        client.embeddings.create(model=EMBEDDER, input="a", dimensions=64)


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    """A tiny model in a folder as the hub's cache has it, by which its id is known."""
    folder = tmp_path_factory.mktemp("hub") / "models--BAAI--bge-base-en" / "snapshots" / ("0" * 40)
    return tiny.make_bert_embedder(folder)


@pytest.fixture(scope="module")
def folders(bert_embedder, hub_folder):
    """A client of a server of two folders: one of a model outside the catalogue, one of the hub's cache."""
    with (
        serving("--port", "0", models=[bert_embedder, hub_folder]) as server,
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def test_dimensions_cut_the_vectors_of_a_model_outside_the_catalogue(folders, bert_embedder):
    def embed(**more):
        return vectors_of(folders.embeddings.create(model=str(bert_embedder), input=TEXTS, **more))

    core = BgeEmbedder(str(bert_embedder), device="cpu", truncate_dim=8)
    near(embed(dimensions=8), core.encode_documents(TEXTS))
    assert embed().shape == (len(TEXTS), 32)
    with pytest.raises(openai.BadRequestError, match="more than the 32 dimensions"):
        embed(dimensions=33)


@pytest.mark.parametrize("name", ["BAAI/bge-base-en", "Xenova/bge-base-en", "Xenova/bge-base-en-query"])
def test_an_id_or_alias_of_the_catalogue_names_a_folder_of_the_hubs_cache(name, folders, hub_folder):
    core = BgeEmbedder(str(hub_folder), device="cpu")
    encode = core.encode_queries if name.endswith("-query") else core.encode_documents
    near(vectors_of(folders.embeddings.create(model=name, input=TEXTS)), encode(TEXTS))


def test_a_text_over_the_limit_is_refused_with_its_index(client):
    with pytest.raises(openai.BadRequestError, match="text 2 has 602 tokens") as caught:
        client.embeddings.create(model=EMBEDDER, input=["a", "b", LONG])
    assert caught.value.code == "InputTooLongError"
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("name", ["text-embedding-3-small", "BAAI/bge-m3", "/etc", "../x", f"{EMBEDDER}-other"])
def test_another_model_is_not_found(name, client):
    with pytest.raises(openai.NotFoundError, match="This server has no embedder") as caught:
        client.embeddings.create(model=name, input="a")
    assert caught.value.type == "not_found_error"


def test_a_reranker_gives_no_embeddings(client):
    with pytest.raises(openai.BadRequestError, match="is no embedder"):
        client.embeddings.create(model=RERANKER, input="a")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "input: List should have at least 1 item"),
        (["a", None], r"input\[1\]: Input should be a valid string"),
        (["a", "b", ["c"]], r"input\[2\]: Input should be a valid string"),
        ([[1, 2], [3]], "check_embedding_ctx_length=False"),
        ([1, 2], "check_embedding_ctx_length=False"),
    ],
)
def test_bad_input_is_refused_with_the_place(given, said, client):
    with pytest.raises(openai.BadRequestError, match=said):
        client.embeddings.create(model=EMBEDDER, input=given)


def test_langchain_gets_documents_and_by_the_models_name_queries(langchain, embedder):
    near(langchain(check_embedding_ctx_length=False).embed_documents(TEXTS), embedder.encode_documents(TEXTS))
    queries = langchain(check_embedding_ctx_length=False).model_copy(update={"model": f"{EMBEDDER}-query"})
    near([queries.embed_query(TEXTS[0])], embedder.encode_queries(TEXTS[:1]))


async def test_langchain_gets_the_same_without_blocking(langchain, embedder):
    async with httpx.AsyncClient() as http:
        model = langchain(check_embedding_ctx_length=False, http_async_client=http)
        near(await model.aembed_documents(TEXTS), embedder.encode_documents(TEXTS))


def test_langchain_that_sends_token_ids_is_told_how_not_to(langchain, monkeypatch):
    letters = tiktoken.Encoding("bytes", pat_str=r".", mergeable_ranks={bytes([i]): i for i in range(256)},
                                special_tokens={})  # fmt: skip
    for find in ("encoding_for_model", "get_encoding"):  # they would download OpenAI's vocabulary
        monkeypatch.setattr(tiktoken, find, lambda _: letters)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        langchain().embed_documents(["a text"])


def test_llama_index_gets_both_sides(server, embedder):
    def make(name):
        return OpenAILikeEmbedding(model_name=name, api_base=f"{server}/v1", api_key="none", max_retries=0)

    near(make(EMBEDDER).get_text_embedding_batch(TEXTS), embedder.encode_documents(TEXTS))
    near([make(f"{EMBEDDER}-query").get_query_embedding(TEXTS[0])], embedder.encode_queries(TEXTS[:1]))
