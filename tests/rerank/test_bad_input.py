"""Odd texts are scored, wrong input refused by name, and the object works on after either."""

import math

import pytest
import tiny

from bge_integrations import (
    BgeReranker,
    MissingWeightsError,
    UnknownModelError,
    UnsupportedModelError,
    WrongKindError,
)


@pytest.fixture
def reranker(xlmr_reranker, cache):
    return BgeReranker(str(xlmr_reranker), cache=cache, on_truncate="ignore")


def still_works(reranker):
    assert all(0 < score < 1 for score in reranker.score([("panda", "bamboo"), ("", "")]))


@pytest.mark.parametrize("fixture", ["bert_reranker", "xlmr_reranker"])
@pytest.mark.parametrize(
    "text",
    ["", " \t\n\u3000", "a\x00b\x00", "\U0001f43c" * 20, "<s> </s> [SEP]", "a" * 100_000, "panda bear " * 95_326],
    ids=["empty", "spaces", "nul", "unknown", "special", "one long word", "a megabyte"],
)
def test_odd_texts_have_finite_scores(text, fixture, request, cache):
    reranker = BgeReranker(str(request.getfixturevalue(fixture)), cache=cache, on_truncate="ignore")
    scores = reranker.score([(text, "panda"), ("panda", text), (text, text), ("panda", "bamboo")])
    assert all(math.isfinite(score) for score in scores)
    assert scores[3] == pytest.approx(reranker.score([("panda", "bamboo")])[0], abs=1e-5)


BAD_PAIRS = [
    None, 5, "ab", b"ab", ("a",), ("a", "b", "c"), ("a", None), (None, "b"), ("a", 5), ("a", b"b"), ("a", ["b"]),
    [("a", "b")], {"query": "a"}, {"a", "b"},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_PAIRS, ids=lambda bad: repr(sorted(bad) if isinstance(bad, set) else bad))
def test_what_is_no_pair_is_named(bad, reranker, cache):
    for pairs in ([bad], [("a", "b"), ("c", "d"), bad, ("e", "f")]):
        with pytest.raises(TypeError, match=rf"pairs\[{pairs.index(bad)}\] must be two strings"):
            reranker.score(pairs)
    assert cache.stats()["loads"] == 0
    still_works(reranker)


@pytest.mark.parametrize("bad", [None, 5, "ab", "", b"ab", object()])
def test_what_is_no_list_is_refused(bad, reranker, cache):
    with pytest.raises(TypeError, match=f"pairs must be a list .* not {type(bad).__name__}"):
        reranker.score(bad)
    with pytest.raises(TypeError, match=f"documents must be a list of strings, not {type(bad).__name__}"):
        reranker.rerank("a", bad)
    assert cache.stats()["loads"] == 0


@pytest.mark.parametrize("bad", [None, 5, b"ab", ["a"], ("a", "b")])
def test_bad_queries_and_documents_are_refused(bad, reranker, cache):
    for documents in (["a"], []):
        with pytest.raises(TypeError, match=f"query must be a string, not {type(bad).__name__}"):
            reranker.rerank(bad, documents)
    with pytest.raises(TypeError, match=rf"documents\[1\] is {type(bad).__name__}, not a string"):
        reranker.rerank("a", ["b", bad])
    assert cache.stats()["loads"] == 0


async def test_coroutines_refuse_the_same(reranker, cache):
    with pytest.raises(TypeError, match=r"pairs\[0\]"):
        await reranker.ascore([None])
    with pytest.raises(TypeError, match="query must be a string"):
        await reranker.arerank(None, [])
    with pytest.raises(ValueError, match="top_n=0"):
        await reranker.arerank("a", ["b"], top_n=0)
    assert cache.stats()["loads"] == 0


def test_a_lone_surrogate_is_named(reranker):
    for pairs in ([("\ud800", "b")], [("a", "b")] * 300 + [("a", "b\udfff")]):
        for show_progress in (False, True):
            with pytest.raises(ValueError, match=f"Text {len(pairs) - 1} holds a lone surrogate"):
                reranker.score(pairs, show_progress)
        still_works(reranker)
    with pytest.raises(ValueError, match="lone surrogate"):
        reranker.rerank("\ud800", ["a", "b"])
    still_works(reranker)


ARGUMENTS = {
    "device": ["gpu", 0, ""],
    "dtype": ["int4", "float64", ""],
    "backend": ["onnx", None],
    "on_truncate": ["cut", None],
    "max_length": [0, -1, True, 512.0, "512"],
    "query_max_length": [0, -1, True, 1.5, "64"],
    "max_batch_tokens": [0, True, 1.5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in ARGUMENTS.items() for value in values])
def test_arguments_out_of_range_are_refused_at_construction(name, value, xlmr_reranker):
    with pytest.raises(ValueError, match=f"{name}="):
        BgeReranker(str(xlmr_reranker), **{name: value})


@pytest.mark.parametrize("name", ["use_fp16", "batch_size", "top_n", "truncate_dim", "task"])
def test_unknown_keywords_are_refused(name, xlmr_reranker):
    with pytest.raises(TypeError, match=name):
        BgeReranker(str(xlmr_reranker), **{name: 1})
    with pytest.raises(TypeError, match="positional"):
        BgeReranker(str(xlmr_reranker), False)


@pytest.mark.parametrize("typo", ["BAAI/bge-reranker-v2-m4", "BBAI/bge-reranker-v2-m3", "bge-reranker-v2-m3"])
def test_mistyped_ids_name_the_nearest(typo):
    with pytest.raises(UnknownModelError, match="BAAI/bge-reranker-v2-m3"):
        BgeReranker(typo)


@pytest.mark.parametrize("model", [None, 5, object()])
def test_a_model_that_is_no_name(model):
    with pytest.raises(TypeError):
        BgeReranker(model)


@pytest.mark.parametrize("model", ["BAAI/bge-m3", "BAAI/bge-large-zh", "Xenova/bge-base-en-v1.5"])
def test_the_id_of_an_embedder(model):
    with pytest.raises(WrongKindError, match="is an embedder. Use BgeEmbedder"):
        BgeReranker(model)


@pytest.mark.parametrize("model", ["BAAI/Matroyshka-ReRanker-beir", "BGE-Reasoner-Reranker"])
def test_an_id_that_cannot_be_run(model):
    with pytest.raises(UnsupportedModelError, match="research code only|not published"):
        BgeReranker(model)


@pytest.mark.parametrize("fixture", ["bert_embedder", "xlmr_embedder", "minilm"])
def test_the_folder_of_an_embedder_never_gets_a_random_head(fixture, request, cache):
    reranker = BgeReranker(str(request.getfixturevalue(fixture)), cache=cache)
    with pytest.raises(WrongKindError, match="is an embedder. Use BgeEmbedder"):
        reranker.score([("a", "b")])
    assert cache.stats()["loads"] == 0


@pytest.mark.parametrize("fixture", ["bert_embedder", "xlmr_embedder"])
def test_a_checkpoint_without_its_head_is_refused(fixture, request, tmp_path, cache):
    """Its config says cross-encoder, but its weights are an embedder's."""
    embedder = request.getfixturevalue(fixture)
    make = tiny.make_bert_reranker if "bert_" in fixture else tiny.make_xlmr_reranker
    folder = make(tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((embedder / "model.safetensors").read_bytes())
    reranker = BgeReranker(str(folder), cache=cache)
    with pytest.raises(MissingWeightsError, match="classifier"):
        reranker.score([("a", "b")])
    (folder / "model.safetensors").write_bytes(whole)
    still_works(reranker)


@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifier_with_several_labels_is_refused(labels, tmp_path, cache):
    folder = tiny.make_bert_reranker(tmp_path, num_labels=labels)
    with pytest.raises(UnsupportedModelError, match=f"{labels} labels"):
        BgeReranker(str(folder), cache=cache).score([("a", "b")])
    assert cache.stats()["loads"] == 0


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_truncated_weights_are_refused_and_work_once_whole(kept, tmp_path, cache):
    folder = tiny.make_xlmr_reranker(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:kept])
    reranker = BgeReranker(str(folder), cache=cache)
    with pytest.raises(MissingWeightsError, match="model.safetensors"):
        reranker.score([("a", "b")])
    weights.write_bytes(whole)
    still_works(reranker)


def test_a_device_that_is_not_there(xlmr_reranker, cache):
    with pytest.raises(ValueError, match="cuda:99.*not on this machine"):
        BgeReranker(str(xlmr_reranker), device="cuda:99", cache=cache).score([("a", "b")])
