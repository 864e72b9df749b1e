"""Every class is rebuilt from its own fields, as configurable fields and dumps do, and has a JSON schema."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel, TypeAdapter

from bge_integrations import ModelCache
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.langchain import (
    BgeCrossEncoder,
    BgeEmbeddings,
    BgeM3Rerank,
    BgeM3SparseEmbeddings,
    BgeRerank,
    HuggingFaceBgeEmbeddings,
    HybridRetriever,
    RerankingRetriever,
)
from bge_integrations.stores.sparse_index import SparseIndex

QUERY = "panda"
DOCUMENTS = [Document(f"A passage about panda number {i}.", id=str(i)) for i in range(6)]
CLASSES: list[type[BaseModel]] = [
    BgeCrossEncoder,
    BgeEmbeddings,
    BgeM3Rerank,
    BgeM3SparseEmbeddings,
    BgeRerank,
    HuggingFaceBgeEmbeddings,
    HybridRetriever,
    RerankingRetriever,
]


@pytest.fixture
def rerank(bert_reranker: Path, cache: ModelCache) -> BgeRerank:
    return BgeRerank(model=str(bert_reranker), cache=cache)


@pytest.fixture
def store(m3_dense: BgeEmbeddings) -> InMemoryVectorStore:
    store = InMemoryVectorStore(m3_dense)
    store.add_documents(DOCUMENTS)
    return store


@pytest.fixture(params=["store", "its retriever", "another retriever", "m3", "hybrid"])
def retriever(
    request: pytest.FixtureRequest, store: InMemoryVectorStore, rerank: BgeRerank, m3: Path, m3_embedder: BgeM3Embedder
) -> BaseRetriever:
    if request.param == "hybrid":
        return HybridRetriever(vector_store=store, sparse_index=SparseIndex(), embedder=m3_embedder, k=3)
    if request.param == "its retriever":
        return RerankingRetriever(retriever=store.as_retriever(), reranker=rerank, search_kwargs={"filter": None})
    if request.param == "another retriever":
        return RerankingRetriever(retriever=RunnableLambda(lambda _: DOCUMENTS), reranker=rerank)
    if request.param == "m3":
        compressor = BgeM3Rerank(model=str(m3), like="BAAI/bge-m3", cache=rerank.cache)
        return RerankingRetriever(vector_store=store, reranker=compressor, fetch_k=5)
    return RerankingRetriever(vector_store=store, reranker=rerank)


async def test_a_retriever_is_rebuilt_from_its_fields(retriever: BaseRetriever) -> None:
    expected, own = retriever.invoke(QUERY), type(retriever)
    assert len(expected) == 3
    for twin in (
        own.model_validate(retriever.model_dump()), own(**retriever.__dict__), own(**dict(retriever)),
        copy.copy(retriever), retriever.model_copy(), retriever.model_copy(update={"tags": ["a"]}),
    ):  # fmt: skip
        assert twin.invoke(QUERY) == expected
    number = "k" if isinstance(retriever, HybridRetriever) else "top_n"
    fields: dict[str, Any] = {number: ConfigurableField(id="n"), "search_kwargs": ConfigurableField(id="search")}
    configurable = retriever.configurable_fields(**fields)
    for n in (1, 2):
        told = configurable.with_config(configurable={"n": n})
        assert told.invoke(QUERY) == await told.ainvoke(QUERY) == expected[:n]
    assert configurable.invoke(QUERY) == expected
    assert configurable.config_schema().model_json_schema()
    either = retriever.configurable_alternatives(
        ConfigurableField(id="which"), other=RunnableLambda(lambda _: DOCUMENTS[:1])
    )
    assert either.invoke(QUERY) == expected
    assert either.with_config(configurable={"which": "other"}).invoke(QUERY) == DOCUMENTS[:1]


async def test_a_retriever_can_be_shown(retriever: BaseRetriever) -> None:
    for schema in (retriever.get_input_jsonschema(), retriever.get_output_jsonschema()):
        json.dumps(schema)
    assert type(retriever).__name__ in dumps(retriever)
    assert retriever.to_json()["type"] == "not_implemented"


def test_a_configured_reranker_is_taken(store: InMemoryVectorStore, rerank: BgeRerank) -> None:
    configurable = RerankingRetriever(vector_store=store, reranker=rerank).configurable_fields(
        reranker=ConfigurableField(id="reranker"), fetch_k=ConfigurableField(id="fetch_k")
    )
    other = rerank.model_copy(update={"top_n": 5})
    told = configurable.with_config(configurable={"reranker": other, "fetch_k": 5})
    assert len(told.invoke(QUERY)) == 5


class _Tenants(RerankingRetriever):
    """What a user makes of the class."""

    tenant: str = "a"

    def _get_relevant_documents(self, query: str, *, run_manager: Any, **arguments: Any) -> list[Document]:
        return super()._get_relevant_documents(f"{self.tenant} {query}", run_manager=run_manager, **arguments)


def test_a_subclass_of_a_retriever_has_fields_of_its_own(store: InMemoryVectorStore, rerank: BgeRerank) -> None:
    mine = _Tenants(vector_store=store, reranker=rerank, tenant="moon")
    plain = RerankingRetriever(vector_store=store, reranker=rerank)
    assert mine.invoke(QUERY, top_n=2) == plain.invoke(f"moon {QUERY}", top_n=2)
    configurable = mine.configurable_fields(tenant=ConfigurableField(id="tenant"))
    assert configurable.with_config(configurable={"tenant": "sun"}).invoke(QUERY) == plain.invoke(f"sun {QUERY}")
    assert _Tenants.model_validate(mine.model_dump()).tenant == "moon"


@pytest.mark.parametrize("mode", ["validation", "serialization"])
@pytest.mark.parametrize("model", CLASSES)
def test_every_class_has_a_json_schema(model: type[BaseModel], mode: Any) -> None:
    for schema in (model.model_json_schema(mode=mode), TypeAdapter(list[model]).json_schema(mode=mode)):  # type: ignore[valid-type]
        text = json.dumps(schema)
        assert "ModelCache" not in text
        assert "VectorStore" not in json.dumps(schema.get("properties", {}))
    shown = model.model_json_schema(mode=mode)["properties"].keys()
    if "cache" in shown:  # of its values JSON can hold an address
        types = model.model_json_schema(mode=mode)["properties"]["cache"]["anyOf"]
        assert types == [{"type": "string"}, {"type": "null"}]
    assert not shown & {"vector_store", "retriever", "reranker", "embedder", "sparse_index"}
    assert shown & {"model", "model_name", "fetch_k"}
