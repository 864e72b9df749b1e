"""What LlamaIndex's components share: the model's two names, JSON schemas, subclasses, the token."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from bge_integrations import BgeEmbedder
from bge_integrations.llama_index import BgeEmbedding, BgeM3Rerank, BgeM3SparseEmbedding, BgeRerank

MODELS = {
    BgeEmbedding: "bge-integrations/mini-embedder-en",
    BgeRerank: "bge-integrations/mini-reranker-en",
    BgeM3Rerank: "BAAI/bge-m3",
    BgeM3SparseEmbedding: "BAAI/bge-m3",
}
each_kind = pytest.mark.parametrize(("kind", "model"), MODELS.items(), ids=lambda value: getattr(value, "__name__", ""))


def model_of(component: Any) -> str:
    name: str = component._core().model
    return name


@each_kind
def test_the_model_is_known_by_both_names_and_comes_first(kind: Any, model: str) -> None:
    for component in (
        kind(model),
        kind(model=model),
        kind(model_name=model),
        kind(model, model=model),
        kind(model=model, model_name=model),
        kind(model=None, model_name=model),
        kind.model_validate({"model": model}),
        kind.model_validate({"model_name": model}),
        kind.from_dict({"model": model}),
        kind.from_dict({"model_name": model}),
    ):
        assert model_of(component) == model
        assert component.to_dict() == kind(model).to_dict()


@each_kind
@pytest.mark.parametrize(
    ("positional", "named"),
    [(["{}"], {"model": "other"}), (["{}"], {"model_name": "other"}), ([], {"model": "{}", "model_name": "other"})],
)
def test_two_models_are_refused(kind: Any, model: str, positional: list[str], named: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"'{model}' and as 'other': give it once"):
        kind(*(one.format(model) for one in positional), **{key: one.format(model) for key, one in named.items()})


@each_kind
def test_a_second_positional_argument_is_refused(kind: Any, model: str) -> None:
    with pytest.raises(TypeError, match="2 positional arguments"):
        kind(model, 5)


def test_paths_are_taken(bert_embedder: Path, bert_reranker: Path, tmp_path: Path) -> None:
    embedding = BgeEmbedding(bert_embedder, cache_folder=tmp_path)
    assert (embedding.model_name, embedding.cache_folder) == (str(bert_embedder), str(tmp_path))
    assert len(embedding.get_query_embedding("a")) == BgeEmbedder(str(bert_embedder)).dim
    assert BgeRerank(model=bert_reranker).model == BgeRerank(model_name=bert_reranker).model == str(bert_reranker)
    assert json.loads(embedding.to_json())["model_name"] == str(bert_embedder)


@each_kind
@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_every_class_has_a_json_schema(kind: Any, model: str, mode: Any) -> None:
    schema = kind.model_json_schema(mode=mode)
    assert json.loads(json.dumps(schema)) == schema
    if mode == "validation":
        assert {"max_length", "device", "class_name", kind._model_field} <= schema["properties"].keys()
        assert schema["properties"]["cache"]["anyOf"] == [{"type": "string"}, {"type": "null"}]  # an address


@each_kind
def test_a_subclass_has_fields_of_its_own(kind: Any, model: str) -> None:
    class Tenant(kind):  # type: ignore[misc]
        tenant: str = "acme"

    component = Tenant(model, tenant="other")
    for again in (component, Tenant.from_dict(component.to_dict()), component.model_copy(), copy.deepcopy(component)):
        assert again.tenant == "other"
        assert model_of(again) == model
    assert component.model_copy(update={"max_length": 64})._core().max_length == 64


@each_kind
def test_the_token_is_in_no_dump_and_its_mask_is_none(kind: Any, model: str) -> None:
    component = kind(model, token="hf_secret")
    dumps = [component.model_dump_json(), component.to_json(), str(component.to_dict()), repr(component)]
    assert not any("hf_secret" in dump or "****" in dump for dump in dumps)
    assert kind.model_validate_json(dumps[0])._core().token is None
    assert kind(model, token="**********")._core().token is None
    for again in (pickle.loads(pickle.dumps(component)), copy.deepcopy(component), component.model_copy()):
        assert again._core().token == "hf_secret"
