"""Shape, length and type of what comes out."""

import copy
import json
import pickle
from collections import deque
from dataclasses import asdict

import numpy as np
import pytest
import tiny

from bge_integrations import BgeEmbedder, list_models
from bge_integrations.embed.embedder import to_lists

LINES = tiny.TEXT.strip().splitlines()


@pytest.fixture
def embedder(bert_embedder, cache):
    def make(**arguments):
        return BgeEmbedder(str(bert_embedder), cache=cache, **arguments)

    return make


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def test_normalize_decides_the_length(embedder, tmp_path, cache):
    unit, raw = embedder().encode_documents(LINES), embedder(normalize=False).encode_documents(LINES)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    close(np.linalg.norm(unit, axis=1), 1)
    assert np.abs(lengths - 1).min() > 0.1
    close(unit, raw / lengths)
    without = str(tiny.make_bert_embedder(tmp_path, normalize=False))
    close(BgeEmbedder(without, cache=cache).encode_documents(LINES) / lengths, unit)
    close(BgeEmbedder(without, cache=cache, normalize=True).encode_documents(LINES), unit)


@pytest.mark.parametrize("dim", [1, 8, 32])
def test_truncate_dim_cuts_and_scales_anew(dim, embedder):
    short, full = embedder(truncate_dim=dim), embedder().encode_documents(LINES)
    assert short.dim == dim
    cut = full[:, :dim]
    close(short.encode_documents(LINES), cut / np.linalg.norm(cut, axis=1, keepdims=True))
    raw = embedder(normalize=False).encode_documents(LINES)[:, :dim]
    np.testing.assert_allclose(
        embedder(truncate_dim=dim, normalize=False).encode_documents(LINES), raw, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("spec", [s for s in list_models("embedder") if not s.unsupported], ids=lambda spec: spec.id)
def test_truncate_dim_is_refused_for_models_of_the_catalogue(spec):
    for name in (spec.id, *spec.aliases, f"/cache/models--{spec.id.replace('/', '--')}/snapshots/0123"):
        with pytest.raises(ValueError, match="truncate_dim=64.*not trained"):
            BgeEmbedder(name, truncate_dim=64)
    BgeEmbedder("someone/matryoshka-of-bge", like=spec.id, truncate_dim=64)


def test_truncate_dim_beyond_the_model_is_refused_before_weights_load(embedder, cache):
    with pytest.raises(ValueError, match="truncate_dim=33.*32 dimensions"):
        embedder(truncate_dim=33).encode_documents(["a"])
    assert cache.stats()["loads"] == 0


def test_nothing_gives_an_empty_array_without_loading(embedder, cache):
    for model in (embedder(), embedder(truncate_dim=8)):
        for empty in ([], (), iter([])):
            vectors = model.encode_documents(empty)
            assert (vectors.shape, vectors.dtype) == ((0, model.dim), np.float32)
        assert model.encode_queries([], show_progress=True).shape == (0, model.dim)
        assert list(model.iter_documents([])) == []
    assert cache.stats()["loads"] == 0


@pytest.mark.parametrize("count", [1, 2, 23])
def test_one_float32_row_a_text(count, embedder):
    vectors = embedder().encode_queries(LINES[:1] * count)
    assert (vectors.shape, vectors.dtype) == ((count, 32), np.float32)
    assert vectors.flags["C_CONTIGUOUS"]
    assert vectors.flags["WRITEABLE"]


def test_any_iterable_of_strings_will_do(embedder):
    model = embedder()
    expected = model.encode_documents(LINES)
    for kind in (tuple, iter, deque, np.array, lambda lines: (line for line in lines)):
        close(model.encode_documents(kind(LINES)), expected)


def test_what_is_passed_in_stays_as_it_was(embedder):
    texts = ["  spaces  ", "two\nlines", "", "panda " * 600]
    before = copy.deepcopy(texts)
    model = embedder(query_instruction="q: ", on_truncate="ignore")
    model.encode_queries(texts)
    vectors = model.encode_documents(texts)
    assert texts == before
    vectors[:] = 0
    assert np.abs(model.encode_documents(texts)).max() > 0


def test_results_go_through_json(embedder, cache):
    model = embedder()
    rows = to_lists(model.encode_documents(LINES))
    assert {type(number) for row in rows for number in row} == {float}
    assert json.loads(json.dumps(rows)) == rows
    for plain in (model.describe(), model.fingerprint, model.dim, cache.stats(), asdict(list_models()[0])):
        assert json.loads(json.dumps(plain)) == plain or isinstance(plain, dict)


def test_the_bar_counts_the_texts_and_changes_no_vector(embedder, capsys):
    model = embedder()
    quiet = model.encode_documents(LINES)
    assert capsys.readouterr().err == ""
    close(model.encode_documents(LINES, show_progress=True), quiet)
    assert f"{len(LINES)}/{len(LINES)}" in capsys.readouterr().err


def test_pickles_and_copies_are_small_and_give_the_same(embedder, bert_embedder):
    model = BgeEmbedder(str(bert_embedder), query_instruction="q: ", max_length=99, token="secret")
    assert "secret" not in repr(model)
    expected = model.encode_queries(LINES)
    assert len(pickle.dumps(model)) < 10_000
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert (other.query_instruction, other.max_length) == ("q: ", 99)
        close(other.encode_queries(LINES), expected)


def test_arguments_are_readable_as_given(bert_embedder, cache):
    given = {
        "query_instruction": "q: ", "document_instruction": "d: ", "task": None, "normalize": False, "max_length": 77,
        "truncate_dim": 8, "on_truncate": "raise", "backend": "torch", "device": "cpu", "dtype": "float32",
        "revision": None, "max_batch_tokens": 99, "like": "BAAI/bge-m3", "cache": cache, "cache_folder": None,
        "token": None, "local_files_only": True, "trust_remote_code": False,
    }  # fmt: skip
    model = BgeEmbedder(bert_embedder, **given)
    assert {name: getattr(model, name) for name in given} == given
    assert model.model == str(bert_embedder)


def test_an_argument_that_is_set_later_counts_from_then_on(bert_embedder, cache):
    embedder = BgeEmbedder(str(bert_embedder), device="cpu", cache=cache)
    plain, prompted = (
        BgeEmbedder(str(bert_embedder), device="cpu", cache=cache, query_instruction=instruction)
        for instruction in (None, "Find: ")
    )
    np.testing.assert_array_equal(embedder.encode_queries(["a"]), plain.encode_queries(["a"]))
    embedder.query_instruction = "Find: "
    np.testing.assert_array_equal(embedder.encode_queries(["a"]), prompted.encode_queries(["a"]))
    assert cache.stats()["loads"] == 1


@pytest.mark.parametrize("name", ["model", "device", "dtype", "backend", "cache_folder", "like", "token"])
def test_an_argument_that_names_the_model_cannot_be_set_later(name, bert_embedder, cache):
    embedder = BgeEmbedder(str(bert_embedder), device="cpu", cache=cache)
    with pytest.raises(AttributeError, match=f"{name} says which model .* Make another"):
        setattr(embedder, name, None)
    assert embedder.encode_queries(["a"]).shape == (1, 32)
