"""The frameworks' own suites and classes, unchanged, on a cache behind an address."""

import pickle

import chromadb
import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.load import dumps
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from serving import EMBEDDER, RERANKER
from starlette.applications import Starlette

from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.chroma import BgeEmbeddingFunction
from bge_integrations.langchain import BgeEmbeddings, BgeRerank, RerankingRetriever
from bge_integrations.llama_index import BgeEmbedding
from bge_integrations.llama_index import BgeRerank as NodeRerank
from bge_integrations.serve import create_app

pytestmark = pytest.mark.enable_socket

PASSAGES = ["Pandas eat bamboo all day.", "Paris is the capital of France.", "Bread needs flour.", "Bears eat fish."]
QUERY = "what do pandas eat?"


class _Remote:
    @pytest.fixture(autouse=True)
    def _address(self, server):
        self.server = server

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return BgeEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": EMBEDDER, "cache": self.server}


class TestUnit(_Remote, EmbeddingsUnitTests):
    pass


class TestIntegration(_Remote, EmbeddingsIntegrationTests):
    pass


class TestRetriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _store(self, server):
        store = InMemoryVectorStore(BgeEmbeddings(model=EMBEDDER, cache=server))
        store.add_documents([Document(page_content=text) for text in PASSAGES])
        self.parameters = {"vector_store": store, "reranker": BgeRerank(model=RERANKER, cache=server), "fetch_k": 4}

    @property
    def retriever_constructor(self):
        return RerankingRetriever

    @property
    def retriever_constructor_params(self):
        return self.parameters

    @property
    def retriever_query_example(self):
        return QUERY

    @property
    def num_results_arg_name(self):
        return "top_n"


def test_langchain_keeps_the_address(server):
    embeddings = BgeEmbeddings(model=EMBEDDER, cache=server.replace("//", "//:secret@"))
    assert embeddings.model_dump()["cache"] == server
    assert server in repr(embeddings)
    assert pickle.loads(pickle.dumps(embeddings)).embed_query(QUERY) == embeddings.embed_query(QUERY)
    assert "secret" not in repr(embeddings) + dumps(embeddings) + repr(pickle.dumps(embeddings))


async def test_llama_index_embeds_and_reranks_there(server):
    embedding = BgeEmbedding(EMBEDDER, cache=server)
    again = BgeEmbedding.from_dict(embedding.to_dict())
    assert again.cache == server
    expected = BgeEmbedder(EMBEDDER).encode_queries([QUERY])[0]
    np.testing.assert_allclose(await again.aget_query_embedding(QUERY), expected, rtol=0, atol=1e-5)
    index = VectorStoreIndex([TextNode(text=text) for text in PASSAGES], embed_model=embedding)
    nodes = await index.as_retriever(similarity_top_k=4).aretrieve(QUERY)
    ranked = NodeRerank(RERANKER, cache=server, top_n=2).postprocess_nodes(nodes, query_str=QUERY)
    best = BgeReranker(RERANKER).rerank(QUERY, PASSAGES)[0]
    assert (ranked[0].text, ranked[0].score) == (PASSAGES[best.index], pytest.approx(best.score, abs=1e-4))


@pytest.mark.parametrize("outer", [FastAPI, Starlette])
async def test_it_mounts_in_another_application(outer):
    outside = outer()
    outside.mount("/models", create_app([EMBEDDER], api_keys=["key"]))
    transport = httpx.ASGITransport(app=outside)
    async with httpx.AsyncClient(transport=transport, base_url="http://outside") as client:
        assert (await client.get("/models/docs")).status_code == 200
        ask = {"url": "/models/v1/embeddings", "json": {"model": EMBEDDER, "input": PASSAGES}}
        assert (await client.post(**ask)).json()["error"]["type"] == "authentication_error"
        answer = (await client.post(**ask, headers={"Authorization": "Bearer key"})).json()
    vectors = [row["embedding"] for row in answer["data"]]
    np.testing.assert_allclose(vectors, BgeEmbedder(EMBEDDER).encode_documents(PASSAGES), rtol=0, atol=1e-5)


def test_chroma_embeds_there(server):
    function = BgeEmbeddingFunction(EMBEDDER, cache=server)
    collection = chromadb.EphemeralClient().create_collection("remote", embedding_function=function)
    collection.add(ids=list("abcd"), documents=PASSAGES)
    assert collection.query(query_texts=[QUERY], n_results=1)["documents"] == [[PASSAGES[0]]]
    assert "cache" not in function.get_config()  # where a model runs is not the collection's
