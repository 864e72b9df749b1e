"""Odd texts are embedded, wrong ones refused by name, and the object works on after either."""

import os

import numpy as np
import pytest
import tiny

from bge_integrations import (
    BgeEmbedder,
    MissingWeightsError,
    UnknownModelError,
    UnsupportedModelError,
    WrongKindError,
)


@pytest.fixture
def embedder(bert_embedder, cache):
    return BgeEmbedder(str(bert_embedder), cache=cache, on_truncate="ignore")


def still_works(embedder):
    assert np.isfinite(embedder.encode_queries(["panda", ""])).all()


ODD = {
    "empty": "",
    "spaces": " \t\r\n\u3000",
    "nul bytes": "a\x00b\x00",
    "control characters": "\x07\x1b[0m\u202e\ufeff",
    "only unknown": "\U0001f43c" * 20,
    "private and unassigned": "\ue000\U0010ffff\ufffe",
    "combining": "e" + "\u0301" * 1000,
    "special tokens": "[CLS] [PAD] [MASK] <s> <pad> </s>",
    "one long word": "a" * 100_000,
    "a megabyte": "panda bear " * 95_326,
    "str of a subclass": np.str_("panda"),
}


@pytest.mark.parametrize("fixture", ["bert_embedder", "xlmr_embedder"])
@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_odd_texts_have_finite_vectors(text, fixture, request, cache):
    embedder = BgeEmbedder(str(request.getfixturevalue(fixture)), cache=cache, on_truncate="ignore")
    vectors = embedder.encode_documents(["panda", text])
    assert vectors.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], embedder.encode_documents(["panda"])[0], atol=1e-6)


@pytest.mark.parametrize("side", ["encode_queries", "encode_documents"])
@pytest.mark.parametrize("bad", [None, 5, 1.5, True, b"bytes", ["nested"], ("a", "b"), {}, float("nan")])
def test_an_element_that_is_no_string_is_named(bad, side, embedder, cache):
    for texts in ([bad], ["a", "b", bad, "c", bad]):
        with pytest.raises(TypeError, match=rf"texts\[{texts.index(bad)}\] is {type(bad).__name__}, not a string"):
            getattr(embedder, side)(texts)
    assert cache.stats()["loads"] == 0
    still_works(embedder)


@pytest.mark.parametrize("side", ["encode_queries", "encode_documents"])
@pytest.mark.parametrize("bad", ["a bare string", "", b"bytes", None, 5, True, object()])
def test_what_is_no_list_is_refused(bad, side, embedder, cache):
    with pytest.raises(TypeError, match=f"texts must be a list of strings, not {type(bad).__name__}"):
        getattr(embedder, side)(bad)
    assert cache.stats()["loads"] == 0


@pytest.mark.parametrize("surrogate", ["\ud800", "a\udfff b"])
def test_a_lone_surrogate_is_named_and_spares_the_other_calls(surrogate, embedder):
    for texts in ([surrogate], ["a"] * 300 + [surrogate]):
        with pytest.raises(ValueError, match=f"Text {len(texts) - 1} holds a lone surrogate.*not valid Unicode"):
            embedder.encode_documents(texts)
        still_works(embedder)
    with pytest.raises(ValueError, match="Text 512 holds"):
        embedder.encode_documents(["a"] * 512 + [surrogate], show_progress=True)


def test_an_error_of_the_callers_generator_is_passed_on(embedder):
    def broken():
        yield "a"
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        embedder.encode_documents(broken())
    still_works(embedder)


ARGUMENTS = {
    "device": ["gpu", "cuda:x", 0, "", "CPU"],
    "dtype": ["int4", "float64", 16, ""],
    "backend": ["onnx", "Torch", None, ""],
    "on_truncate": ["cut", None, "", "Warn", True],
    "max_length": [0, -1, True, False, 512.0, "512"],
    "max_batch_tokens": [0, -1, True, 1.5, "1"],
    "truncate_dim": [0, -1, True, 1.5, "64"],
    "task": ["qa", ""],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ARGUMENTS.items() for value in values])
def test_arguments_out_of_range_are_refused_at_construction(name, value, bert_embedder):
    with pytest.raises(ValueError, match=f"{name}="):
        BgeEmbedder(str(bert_embedder), **{name: value})


@pytest.mark.parametrize("name", ["use_fp16", "batch_size", "normalize_embeddings", "model_name", "top_n"])
def test_unknown_keywords_are_refused(name, bert_embedder):
    with pytest.raises(TypeError, match=name):
        BgeEmbedder(str(bert_embedder), **{name: 1})
    with pytest.raises(TypeError, match="positional"):
        BgeEmbedder(str(bert_embedder), "an instruction")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("BAAI/bge-base-en-v1.6", "BAAI/bge-base-en-v1.5"),
        ("BBAI/bge-base-en-v1.5", "BAAI/bge-base-en-v1.5"),
        ("bge-base-en-v1.5", "BAAI/bge-base-en-v1.5"),
        ("BAAI/bge-m-3", "BAAI/bge-m3"),
        ("baai/BGE-M3", "BAAI/bge-m3"),
        ("BAAI/something-new", "list_models"),
    ],
)
def test_mistyped_ids_name_the_nearest(typo, meant):
    with pytest.raises(UnknownModelError, match=meant):
        BgeEmbedder(typo)


def test_a_parent_that_is_not_in_the_catalogue(bert_embedder):
    with pytest.raises(UnknownModelError, match="like=.*BAAI/bge-base-en-v1.5"):
        BgeEmbedder(str(bert_embedder), like="BAAI/bge-base-en-v1.55")


@pytest.mark.parametrize("model", [None, 5, object(), ["BAAI/bge-m3"]])
def test_a_model_that_is_no_name(model):
    with pytest.raises(TypeError):
        BgeEmbedder(model)


@pytest.mark.parametrize("model", ["BAAI/bge-reranker-base", "BAAI/bge-reranker-v2-m3", "Xenova/bge-reranker-base"])
def test_the_id_of_a_reranker(model):
    with pytest.raises(WrongKindError, match="is a reranker. Use BgeReranker"):
        BgeEmbedder(model)


@pytest.mark.parametrize("model", ["BAAI/BGE-VL-base", "BAAI/BGE-VL-MLLM-S1", "BAAI/bge-visualized"])
def test_an_id_that_this_version_cannot_run(model):
    with pytest.raises(UnsupportedModelError, match="not supported"):
        BgeEmbedder(model)


@pytest.mark.parametrize("like", [None, "BAAI/bge-m3"])
@pytest.mark.parametrize("fixture", ["bert_reranker", "xlmr_reranker"])
def test_the_folder_of_a_reranker(fixture, like, request, cache):
    embedder = BgeEmbedder(str(request.getfixturevalue(fixture)), like=like, cache=cache)
    with pytest.raises(WrongKindError, match="is a reranker. Use BgeReranker"):
        embedder.encode_queries(["a"])
    assert cache.stats()["loads"] == 0


def test_a_folder_that_does_not_say_how_it_pools(tmp_path, cache):
    folder = tiny.make_bert_embedder(tmp_path, modules=False)
    with pytest.raises(UnknownModelError, match="modules.json.*like="):
        BgeEmbedder(str(folder), cache=cache).encode_queries(["a"])
    assert cache.stats()["loads"] == 0


def test_a_folder_that_is_not_there(tmp_path, cache):
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(UnknownModelError, match=str(missing)):
            BgeEmbedder(str(missing), like="BAAI/bge-m3", cache=cache).encode_queries(["a"])


def test_a_device_that_is_not_there(bert_embedder, cache):
    with pytest.raises(ValueError, match="cuda:99.*not on this machine"):
        BgeEmbedder(str(bert_embedder), device="cuda:99", cache=cache).encode_queries(["a"])
    assert cache.stats()["loads"] == 0


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights_are_refused_and_work_once_whole(kept, tmp_path, cache):
    folder = tiny.make_bert_embedder(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:kept])
    embedder = BgeEmbedder(str(folder), cache=cache)
    for _ in range(2):
        with pytest.raises(MissingWeightsError, match="model.safetensors.*Download it again"):
            embedder.encode_queries(["a"])
    weights.write_bytes(whole)
    still_works(embedder)
    assert cache.stats()["loads"] == 1


def test_missing_weights(tmp_path, cache):
    folder = tiny.make_bert_embedder(tmp_path)
    (folder / "model.safetensors").rename(folder / "elsewhere")
    embedder = BgeEmbedder(str(folder), cache=cache)
    with pytest.raises(MissingWeightsError, match="neither model.safetensors nor"):
        embedder.encode_queries(["a"])
    (folder / "elsewhere").rename(folder / "model.safetensors")
    still_works(embedder)


def test_constructing_touches_neither_disk_nor_environment(monkeypatch, tmp_path):
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    BgeEmbedder("BAAI/bge-m3", device="cuda:7", cache_folder=str(tmp_path / "downloads"))
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == before | {"PWD": os.environ["PWD"]}
