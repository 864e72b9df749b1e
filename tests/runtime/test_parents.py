"""A folder's own files go before what is guessed of its parent; a folder called like an id is that model."""

import json
from pathlib import Path

import pytest
import tiny

from bge_integrations import BgeEmbedder, BgeReranker

PARENT = "BAAI/bge-small-zh-v1.5"
SHAPES = {"hidden_size": 512, "num_hidden_layers": 4, "vocab_size": 21128, "num_attention_heads": 8}
CHINESE = "为这个句子生成表示以用于检索相关文章：{text}"
ENGLISH = "Represent this sentence for searching relevant passages: {text}"


def child(folder, **arguments):
    """A fine-tune whose config.json has the shapes of its parent; nothing is loaded."""
    tiny.make_bert_embedder(folder, **arguments)
    config = json.loads((folder / "config.json").read_text()) | SHAPES
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def name_parent(folder, parent=PARENT):
    config = json.loads((folder / "config.json").read_text()) | {"_name_or_path": parent}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_fine_tunes_own_files_go_before_its_parents_row(tmp_path, cache):
    prompts = {"query": "Find: ", "document": "Text: "}
    folder = child(tmp_path, pooling="mean", normalize=False, max_length=64, prompts=prompts)
    name_parent(folder)
    described = BgeEmbedder(str(folder), cache=cache).describe()
    assert described["row"] == PARENT
    wanted = {"query": "Find: {text}", "document": "Text: {text}", "pooling": "mean", "normalize": False}
    assert {key: described[key] for key in wanted} == wanted
    assert described["max_length"] == 64
    like = BgeEmbedder(str(folder), like=PARENT, cache=cache).describe()  # the caller's word is no guess
    assert (like["query"], like["normalize"], like["max_length"]) == (CHINESE, True, 512)


@pytest.mark.parametrize("prompts", [None, {}, {"query": "", "document": ""}])
def test_the_row_gives_the_instruction_where_the_files_have_none(prompts, tmp_path, cache):
    name_parent(child(tmp_path, prompts=prompts))
    assert BgeEmbedder(str(tmp_path), cache=cache).describe()["query"] == CHINESE


@pytest.mark.parametrize("name", ["BAAI/bge-base-en-v1.5", "Xenova/bge-base-en-v1.5", "BAAI/bge-base-en-v1.5/"])
def test_a_relative_folder_called_like_an_id_is_that_model(name, tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_bert_embedder(Path(name), pooling="mean")
    embedder = BgeEmbedder(name, cache=cache, device="cpu")
    described = embedder.describe()
    assert (described["row"], described["query"]) == ("BAAI/bge-base-en-v1.5", ENGLISH)
    assert described["pooling"] == "mean"
    assert embedder.dim == described["dim"] == embedder.encode_queries(["a"]).shape[1] == 32
    bare = BgeEmbedder(name, query_instruction="", cache=cache, device="cpu")
    with_instruction = bare.encode_queries([ENGLISH.replace("{text}", "a")])
    assert (embedder.encode_queries(["a"]) == with_instruction).all()


@pytest.mark.parametrize(("shapes", "row"), [(True, PARENT), (False, None)])
def test_a_path_that_ends_in_an_id_is_that_model_if_the_shapes_agree(shapes, row, tmp_path, cache):
    folder = tmp_path / PARENT
    child(folder) if shapes else tiny.make_bert_embedder(folder)
    described = BgeEmbedder(str(folder), cache=cache).describe()
    assert described["row"] == row
    assert described["query"] == (CHINESE if row else "{text}")


def test_a_reranker_in_a_folder_called_like_an_id(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.make_xlmr_reranker(Path("BAAI/bge-reranker-base"))
    reranker = BgeReranker("BAAI/bge-reranker-base", cache=cache, device="cpu")
    assert reranker.describe()["row"] == "BAAI/bge-reranker-base"
    assert len(reranker.score([("a", "b")])) == 1
