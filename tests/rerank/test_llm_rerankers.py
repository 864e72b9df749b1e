"""LLM-based rerankers: equal to transformers by hand, layers and compression, wrong use."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bge_integrations import (
    BgeEmbedder,
    BgeReranker,
    MissingWeightsError,
    UnsupportedModelError,
    WrongKindError,
    get_spec,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "models"
GEMMA = "BAAI/bge-reranker-v2-gemma"
LAYERWISE, LIGHTWEIGHT = "BAAI/bge-reranker-v2-minicpm-layerwise", "BAAI/bge-reranker-v2.5-gemma2-lightweight"
LINES = [line[:80] for line in tiny.TEXT.splitlines() if line]
PAIRS = [*zip(LINES, reversed(LINES), strict=True), ("", "panda"), ("panda", ""), ("a " * 200, "b " * 200)]


@pytest.fixture(scope="session")
def gemma(tmp_path_factory):
    return tiny.make_decoder(tmp_path_factory.mktemp("gemma"), "gemma", with_head=True, ends_in_eos=False)


@pytest.fixture
def reranker(cache):
    def make(folder, like, **arguments):
        arguments = {"normalize": False, "on_truncate": "ignore", **arguments}
        return BgeReranker(str(folder), like=like, cache=cache, **arguments)

    return make


def by_hand(folder, pairs, max_length=512, prompt=None):
    """The logit of "Yes" after the last token, as in the model card, with FlagEmbedding's limits."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    tail = ids("\n") + ids(prompt or get_spec(GEMMA).prompt)
    scores = []
    for query, passage in pairs:
        start = [tokenizer.bos_token_id, *ids("A: " + query)[: max_length * 3 // 4], *ids("\n")]
        room = max_length + len(tail) - len(start)
        tokens = start + ids("B: " + passage)[: min(max_length, room)] + tail
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits
        scores.append(logits[0, -1, ids("Yes")[0]].item())
    return scores


@pytest.mark.parametrize("budget", [1, 500, 4096])
@pytest.mark.parametrize("max_length", [512, 60])
def test_equal_to_transformers_by_hand(max_length, budget, reranker, gemma):
    ours = reranker(gemma, GEMMA, max_length=max_length, max_batch_tokens=budget).score(PAIRS)
    expected = by_hand(gemma, PAIRS, max_length)
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=0)
    assert np.ptp(expected) > 0.1


def test_a_prompt_of_ones_own(reranker, gemma):
    prompt = "Do A and B mean the same?"
    ours = reranker(gemma, GEMMA, prompt=prompt).score(PAIRS)
    np.testing.assert_allclose(ours, by_hand(gemma, PAIRS, prompt=prompt), atol=1e-5, rtol=0)


def test_what_is_cut_is_reported(reranker, gemma):
    with pytest.warns(UserWarning, match=r"cut 1 pair\(s\) to 128 tokens"):
        reranker(gemma, GEMMA, max_length=128, on_truncate="warn").score([("a" * 100, "b" * 100), ("a", "b")])


def test_a_later_gemma_bounds_its_logits(tmp_path, reranker):
    caps = {"final_logit_softcapping": 2.0, "attn_logit_softcapping": None}
    folder = tiny.make_decoder(tmp_path, "gemma2", with_head=True, ends_in_eos=False, **caps)
    ours = reranker(folder, GEMMA).score(PAIRS)
    np.testing.assert_allclose(ours, by_hand(folder, PAIRS), atol=1e-5, rtol=0)
    assert np.abs(ours).max() <= 2


def test_a_checkpoint_without_its_last_layer(tmp_path, reranker):
    folder = tiny.make_decoder(tmp_path, "gemma", with_head=True, tie_word_embeddings=False)
    whole = tiny.make_decoder(tmp_path / "other", "gemma", tie_word_embeddings=False)
    (folder / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    with pytest.raises(MissingWeightsError, match="lm_head"):
        reranker(folder, GEMMA).score([("a", "b")])


@pytest.mark.parametrize(("name", "like"), [("minicpm", LAYERWISE), ("lw", LIGHTWEIGHT)])
def test_layers(name, like, reranker):
    layered = reranker(GOLDEN / name, like, cutoff_layers=[6, 2, 4, 4])
    scores = layered.score_layers(PAIRS)
    assert scores.shape == (len(PAIRS), 3)
    np.testing.assert_array_equal(layered.score(PAIRS), scores[:, -1])
    best = layered.rerank("panda", LINES, top_n=3)
    alone = layered.score([("panda", line) for line in LINES])
    assert [result.index for result in best] == np.argsort(-np.array(alone), kind="stable")[:3].tolist()
    assert asyncio.run(layered.ascore(PAIRS[:3])) == pytest.approx(layered.score(PAIRS[:3]), abs=1e-6)
    assert layered.describe()["cutoff_layers"] == (2, 4, 6)
    normal = reranker(GOLDEN / name, like, cutoff_layers=[2, 4, 6], normalize=True)
    np.testing.assert_allclose(normal.score_layers(PAIRS), 1 / (1 + np.exp(-scores)), atol=1e-6)


@pytest.mark.parametrize(("name", "like"), [("minicpm", LAYERWISE), ("lw", LIGHTWEIGHT)])
def test_nothing_after_the_last_layer_is_computed(name, like, reranker, cache):
    layered = reranker(GOLDEN / name, like, cutoff_layers=[2, 4])
    layered.score(PAIRS[:1])
    ran = []
    layers = next(iter(cache._residents.loaded())).engine.backend._model.model.layers
    for number, layer in enumerate(layers, 1):
        layer.register_forward_hook(lambda *_, number=number: ran.append(number))
    layered.score(PAIRS)
    assert set(ran) == {1, 2, 3, 4}


def test_one_layer_of_the_lightweight_reranker_takes_the_first_head(reranker):
    """As in the reference, from which the published scores come; the layerwise one takes the layer's own."""
    for name, like, same in (("lw", LIGHTWEIGHT, False), ("minicpm", LAYERWISE, True)):
        alone = reranker(GOLDEN / name, like, cutoff_layers=[4]).score(PAIRS)
        among = reranker(GOLDEN / name, like, cutoff_layers=[2, 4]).score(PAIRS)
        assert np.allclose(alone, among, atol=1e-6) == same


def test_compression_shortens_what_later_layers_see(reranker, cache):
    pair = [("a" * 30, "b" * 100)]
    lengths = []
    reranker(GOLDEN / "lw", LIGHTWEIGHT).score(pair)
    layers = next(iter(cache._residents.loaded())).engine.backend._model.model.layers
    for layer in layers:
        layer.register_forward_hook(lambda module, args, out: lengths.append(out.shape[1]))
    reranker(GOLDEN / "lw", LIGHTWEIGHT, compress_layers=[2, 4], compress_ratio=4).score(pair)
    first, _, second, _, third, _ = lengths
    assert lengths == [first, first, second, second, third, third]
    assert first > second > third
    assert first - second > 50


WRONG = [
    ({"cutoff_layers": [1]}, "scores after layers 2 to 6"),
    ({"cutoff_layers": [4, 7]}, r"cutoff_layers has \[7\]"),
    ({"compress_layers": [6]}, "before layers 1 to 5"),
    ({"compress_layers": [0]}, r"compress_layers has \[0\]"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_layers_that_are_not_there(arguments, message, reranker, cache):
    with pytest.raises(ValueError, match=message):
        reranker(GOLDEN / "lw", LIGHTWEIGHT, **arguments).score([("a", "b")])
    assert cache.stats()["loads"] == 0


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (LAYERWISE, {"cutoff_layers": [7]}, "layers 8 to 40"),
        (LAYERWISE, {"cutoff_layers": [28, 41]}, r"cutoff_layers has \[41\]"),
        (LIGHTWEIGHT, {"cutoff_layers": [43]}, "layers 8 to 42"),
        (LIGHTWEIGHT, {"compress_layers": [42]}, "layers 1 to 41"),
    ],
)
def test_layers_that_the_catalogue_knows_not_to_be_there(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        BgeReranker(model, **arguments)


@pytest.mark.parametrize("value", [28, [], ["28"], [2.5], [True], "28"])
@pytest.mark.parametrize("name", ["cutoff_layers", "compress_layers"])
def test_what_is_no_list_of_layers(name, value):
    with pytest.raises(ValueError, match=f"{name}=.* must be a list of layers"):
        BgeReranker(LIGHTWEIGHT, **{name: value})


@pytest.mark.parametrize("ratio", [0, -1, 1.5, "2", True])
def test_what_is_no_ratio(ratio):
    with pytest.raises(ValueError, match="compress_ratio="):
        BgeReranker(LIGHTWEIGHT, compress_ratio=ratio)


FOREIGN = [
    ("BAAI/bge-reranker-base", {"prompt": "?"}),
    ("BAAI/bge-reranker-v2-m3", {"cutoff_layers": [8]}),
    (GEMMA, {"cutoff_layers": [8]}),
    (GEMMA, {"compress_ratio": 2}),
    (LAYERWISE, {"compress_layers": [8]}),
]


@pytest.mark.parametrize(("model", "arguments"), FOREIGN)
def test_arguments_of_another_kind_of_reranker(model, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}= belongs to rerankers of the kind"):
        BgeReranker(model, **arguments)


def test_arguments_of_another_kind_for_a_folder(xlmr_reranker, cache):
    with pytest.raises(ValueError, match="prompt= belongs to rerankers of the kind llm"):
        BgeReranker(str(xlmr_reranker), prompt="?", cache=cache).score([("a", "b")])
    assert cache.stats()["loads"] == 0


def test_a_cross_encoder_has_no_layers(xlmr_reranker, gemma, reranker, cache):
    for model in (BgeReranker(str(xlmr_reranker), cache=cache), reranker(gemma, GEMMA)):
        with pytest.raises(ValueError, match="scores after its last layer only"):
            model.score_layers([("a", "b")])


def test_a_language_model_alone_is_no_reranker(gemma, cache):
    with pytest.raises(WrongKindError, match="is a language model .* pass like="):
        BgeReranker(str(gemma), cache=cache).score([("a", "b")])


def test_one_folder_as_an_embedder_and_as_a_reranker(gemma, reranker, cache):
    as_embedder = BgeEmbedder(str(gemma), like="BAAI/bge-multilingual-gemma2", cache=cache)
    as_embedder.encode_queries(["a"])
    with pytest.raises(WrongKindError, match="loaded as an embedder already"):
        reranker(gemma, GEMMA).score([("a", "b")])
    cache.clear()
    assert len(reranker(gemma, GEMMA).score([("a", "b")])) == 1
    assert as_embedder.encode_queries(["a"]).shape == (1, 32)


@pytest.mark.parametrize("like", [LAYERWISE, LIGHTWEIGHT])
def test_another_architecture(like, gemma, reranker):
    with pytest.raises(UnsupportedModelError, match=f"'gemma'; a model like {like} must be of"):
        reranker(gemma, like).score([("a", "b")])


@pytest.mark.parametrize("query_max_length", [63, 64, 500])
def test_a_query_that_leaves_no_room(query_max_length, reranker, gemma):
    with pytest.raises(ValueError, match="leaves a passage no room"):
        reranker(gemma, GEMMA, max_length=64, query_max_length=query_max_length).score([("a", "b")])


def test_no_pairs(reranker, gemma):
    assert reranker(gemma, GEMMA).score([]) == []
    assert reranker(GOLDEN / "lw", LIGHTWEIGHT, cutoff_layers=[2, 4]).score_layers([]).shape == (0, 2)
