"""`BgeEmbeddings`: LangChain's own suites, and what they do not ask."""

import asyncio
import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from langchain_core.embeddings import Embeddings
from langchain_core.load import dumps
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from pydantic import PrivateAttr, SecretStr, ValidationError

from bge_integrations import BgeEmbedder, ModelCache, UnknownModelError, UnsupportedModelError, WrongKindError
from bge_integrations.langchain import BgeEmbeddings

TEXTS = ["The giant panda is a bear.", "", "  two\nlines  ", "大熊猫生活在中国", "a " * 600]


class _TinyModel:
    @pytest.fixture(autouse=True)
    def _folder(self, bert_embedder: Path, cache: ModelCache) -> None:
        self.params = {"model": str(bert_embedder), "cache": cache}

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return BgeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return self.params


class TestUnit(_TinyModel, EmbeddingsUnitTests):
    pass


class TestIntegration(_TinyModel, EmbeddingsIntegrationTests):
    pass


@pytest.fixture
def embeddings(bert_embedder: Path, cache: ModelCache) -> BgeEmbeddings:
    return BgeEmbeddings(model=str(bert_embedder), query_instruction="query: ", on_truncate="ignore", cache=cache)


def test_vectors_are_the_cores(embeddings: BgeEmbeddings, bert_embedder: Path, cache: ModelCache) -> None:
    core = BgeEmbedder(str(bert_embedder), query_instruction="query: ", on_truncate="ignore", cache=cache)
    documents = embeddings.embed_documents(TEXTS)
    np.testing.assert_allclose(documents, core.encode_documents(TEXTS), atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_query("panda"), core.encode_queries(["panda"])[0], atol=1e-6)
    np.testing.assert_allclose(embeddings.embed_query("panda"), core.encode_documents(["query: panda"])[0], atol=1e-6)


async def test_async_is_sync(embeddings: BgeEmbeddings) -> None:
    np.testing.assert_allclose(await embeddings.aembed_documents(TEXTS), embeddings.embed_documents(TEXTS), atol=1e-6)
    np.testing.assert_allclose(await embeddings.aembed_query("panda"), embeddings.embed_query("panda"), atol=1e-6)
    single = [embeddings.embed_query(text) for text in TEXTS]
    together = await asyncio.gather(*(embeddings.aembed_query(text) for text in TEXTS))
    np.testing.assert_allclose(together, single, atol=1e-6)


async def test_values_are_builtin_floats(embeddings: BgeEmbeddings) -> None:
    for vectors in (embeddings.embed_documents(TEXTS), await embeddings.aembed_documents(TEXTS)):
        assert json.loads(json.dumps(vectors)) == vectors
        assert {type(value) for vector in vectors for value in vector} == {float}
    assert {type(value) for value in embeddings.embed_query("")} == {float}


async def test_no_text_gives_no_vector(embeddings: BgeEmbeddings) -> None:
    assert embeddings.embed_documents([]) == []
    assert await embeddings.aembed_documents([]) == []


@pytest.mark.parametrize("texts", ["a bare string", ["fine", None], ["fine", 3], None])
async def test_what_is_no_text_is_refused(embeddings: BgeEmbeddings, texts: Any) -> None:
    with pytest.raises(TypeError):
        embeddings.embed_documents(texts)
    with pytest.raises(TypeError):
        await embeddings.aembed_documents(texts)
    assert len(embeddings.embed_documents(["still works"])) == 1


@pytest.mark.parametrize("query", [None, 3, ["a list"]])
def test_what_is_no_query_is_refused(embeddings: BgeEmbeddings, query: Any) -> None:
    with pytest.raises(TypeError):
        embeddings.embed_query(query)


def test_refusals_come_at_construction() -> None:
    with pytest.raises(ValidationError, match="normalise"):
        BgeEmbeddings(model="BAAI/bge-m3", normalise=True)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="on_truncate"):
        BgeEmbeddings(model="BAAI/bge-m3", on_truncate="cut")  # type: ignore[arg-type]
    with pytest.raises(UnknownModelError, match="BAAI/bge-small-en-v1.5"):
        BgeEmbeddings(model="BAAI/bge-small-en-v15")
    with pytest.raises(WrongKindError, match="BgeReranker"):
        BgeEmbeddings(model="BAAI/bge-reranker-v2-m3")
    with pytest.raises(UnsupportedModelError):
        BgeEmbeddings(model="BAAI/BGE-VL-base")


def test_fields_are_the_cores_arguments() -> None:
    core = inspect.signature(BgeEmbedder).parameters
    assert set(BgeEmbeddings.model_fields) == set(core)
    for name, field in BgeEmbeddings.model_fields.items():
        if name != "model":
            assert field.default == core[name].default, name


def test_copies_give_the_same_vectors(embeddings: BgeEmbeddings) -> None:
    copies = [
        pickle.loads(pickle.dumps(embeddings)),
        cloudpickle.loads(cloudpickle.dumps(embeddings)),
        copy.deepcopy(embeddings),
        copy.copy(embeddings),
        embeddings.model_copy(),
        BgeEmbeddings(**embeddings.model_dump()),
        BgeEmbeddings.model_validate(embeddings.model_dump()),
        BgeEmbeddings.model_validate_json(embeddings.model_dump_json()),
    ]
    expected = embeddings.embed_query("panda")
    for twin in copies:
        assert twin.model_dump() == embeddings.model_dump()
        np.testing.assert_allclose(twin.embed_query("panda"), expected, atol=1e-6)
    assert len(pickle.dumps(embeddings)) < 10_000
    assert copy.deepcopy(embeddings).embedder.cache is embeddings.embedder.cache


def test_equal_fields_make_equal_objects(bert_embedder: Path) -> None:
    one, other = BgeEmbeddings(model=str(bert_embedder)), BgeEmbeddings(model=str(bert_embedder))
    assert one == other
    assert one != BgeEmbeddings(model=str(bert_embedder), truncate_dim=8)
    assert one != one.model_dump()


def test_a_changed_field_counts(embeddings: BgeEmbeddings) -> None:
    expected = embeddings.embed_documents(["panda"])[0]
    shorter = embeddings.model_copy(update={"truncate_dim": 8, "normalize": False})
    assert len(shorter.embed_query("panda")) == 8
    embeddings.query_instruction = ""
    np.testing.assert_allclose(embeddings.embed_query("panda"), expected, atol=1e-6)
    assert embeddings.embedder is embeddings.embedder


def test_the_dump_holds_neither_cache_nor_token(bert_embedder: Path, cache: ModelCache) -> None:
    embeddings = BgeEmbeddings(model=str(bert_embedder), cache=cache, token="hf_secret")  # type: ignore[arg-type]
    shown = [repr(embeddings), str(embeddings), str(embeddings.model_dump()), embeddings.model_dump_json()]
    shown += [dumps(embeddings), json.dumps(BgeEmbeddings.model_json_schema())]
    assert not [text for text in shown if "hf_secret" in text or "*****" in text]
    assert not {"cache", "token"} & embeddings.model_dump().keys()
    assert BgeEmbeddings.model_validate_json(embeddings.model_dump_json()).embedder.token is None
    for twin in (embeddings, embeddings.model_copy(), pickle.loads(pickle.dumps(embeddings))):
        assert twin.embedder.token == "hf_secret"


@pytest.mark.parametrize("token", ["**********", SecretStr("**********"), None])
def test_the_mask_of_a_token_is_never_sent(bert_embedder: Path, token: Any) -> None:
    assert BgeEmbeddings(model=str(bert_embedder), token=token).embedder.token is None


def test_the_model_goes_by_any_of_its_names(bert_embedder: Path, tmp_path: Path) -> None:
    path: Any = bert_embedder
    named = BgeEmbeddings(model=str(bert_embedder), cache_folder=str(tmp_path))
    assert named == BgeEmbeddings(path, cache_folder=tmp_path)  # type: ignore[misc, call-arg, arg-type]
    assert named == BgeEmbeddings(model_name=path, cache_folder=tmp_path)  # type: ignore[call-arg, arg-type]
    assert next(iter(named.model_dump())) == "model"
    with pytest.raises(TypeError, match="model= and model_name="):
        BgeEmbeddings(model=path, model_name=path)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="first argument and model="):
        BgeEmbeddings(path, model=path)  # type: ignore[misc]
    with pytest.raises(ValidationError, match="modelname"):
        BgeEmbeddings(modelname=path)  # type: ignore[call-arg]


class _Tenants(BgeEmbeddings):
    """What a user makes of the class."""

    tenant: str = "a"
    _calls: int = PrivateAttr(default=0)

    def model_post_init(self, context: Any, /) -> None:
        self._calls += 1

    def embed_query(self, text: str) -> list[float]:
        self._calls += 1
        return super().embed_query(f"{self.tenant} {text}")


def test_a_subclass_has_fields_of_its_own(embeddings: BgeEmbeddings) -> None:
    mine = _Tenants(**embeddings.model_dump(), cache=embeddings.cache, tenant="b")
    assert mine.embed_query("panda") == pytest.approx(embeddings.embed_query("b panda"), abs=1e-6)
    assert mine._calls == 2
    for twin in (_Tenants.model_validate(mine.model_dump()), pickle.loads(pickle.dumps(mine)), mine.model_copy()):
        assert twin.model_dump() == mine.model_dump()
    assert "tenant" in _Tenants.model_json_schema()["properties"]


def test_torchs_own_names_are_taken(bert_embedder: Path) -> None:
    embeddings = BgeEmbeddings(
        model=str(bert_embedder),
        dtype=torch.float32,  # type: ignore[arg-type]
        device=torch.device("cpu"),  # type: ignore[arg-type]
    )
    assert (embeddings.dtype, embeddings.device) == ("float32", "cpu")
    json.dumps(embeddings.model_dump())
