"""bge-m3's outputs: equal to the layers written by hand, only those asked for, one copy of the weights."""

import asyncio
import copy
import pickle

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel, AutoTokenizer

from bge_integrations import (
    BgeEmbedder,
    BgeM3Embedder,
    MissingWeightsError,
    NonFiniteError,
    UnsupportedModelError,
    WrongKindError,
)
from bge_integrations.embed.m3 import maxsim, sparse_score

TEXTS = [*(line for line in tiny.TEXT.splitlines() if line), "", "panda", "panda panda", "<s> </s> <mask> \U0001f43c"]
M3 = "BAAI/bge-m3"


@pytest.fixture
def embedder(m3, cache):
    def make(folder=m3, **arguments):
        return BgeM3Embedder(str(folder), like=M3, cache=cache, **{"on_truncate": "ignore", **arguments})

    return make


def by_hand(folder, texts):
    """Dense, sparse and colbert as the paper and the reference have them, text by text."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    heads = {name: torch.load(folder / f"{name}_linear.pt", weights_only=True) for name in ("sparse", "colbert")}
    dense, sparse, colbert = [], [], []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**inputs).last_hidden_state[0]
        dense.append(torch.nn.functional.normalize(hidden[0], dim=0).numpy())
        weights = torch.relu(hidden @ heads["sparse"]["weight"].T + heads["sparse"]["bias"])[:, 0].tolist()
        best = {}
        for token, weight in zip(inputs["input_ids"][0].tolist(), weights, strict=True):
            if token not in (0, 1, 2, 3) and weight > 0:
                best[token] = max(weight, best.get(token, 0))
        sparse.append(best)
        vectors = hidden[1:] @ heads["colbert"]["weight"].T + heads["colbert"]["bias"]
        colbert.append(torch.nn.functional.normalize(vectors, dim=-1).numpy())
    return dense, sparse, colbert


@pytest.mark.parametrize("budget", [1, 100, 4096])
def test_all_outputs_equal_the_layers_by_hand(budget, embedder, m3):
    result = embedder(max_batch_tokens=budget).encode_documents(TEXTS)
    dense, sparse, colbert = by_hand(m3, TEXTS)
    np.testing.assert_allclose(result.dense, np.stack(dense), atol=1e-5, rtol=0)
    assert result.dense.dtype == np.float32
    assert sum(map(len, sparse)) > 100
    for found, expected in zip(result.sparse, sparse, strict=True):
        assert found.indices.tolist() == sorted(expected)
        np.testing.assert_allclose(found.values, [expected[token] for token in sorted(expected)], atol=1e-5, rtol=0)
        assert (found.indices.dtype, found.values.dtype) == (np.int64, np.float32)
    for found, expected in zip(result.colbert, colbert, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
        assert found.dtype == np.float32


def test_queries_and_documents_are_read_alike(embedder):
    for first, second in zip(
        embedder().encode_queries(TEXTS).colbert, embedder().encode_documents(TEXTS).colbert, strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_only_what_is_asked_for_is_computed(embedder, cache):
    alone = embedder(outputs=["sparse"])
    result = alone.encode_queries(TEXTS)
    assert (result.dense, result.colbert, len(result)) == (None, None, len(TEXTS))
    used = []
    model = next(iter(cache._residents.loaded())).engine.backend._model
    for name in ("sparse_linear", "colbert_linear"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: used.append(name))
    alone.encode_queries(TEXTS)
    assert set(used) == {"sparse_linear"}
    used.clear()
    alone.with_outputs("dense").encode_queries(TEXTS)
    assert used == []
    alone.with_outputs("colbert", "dense").encode_queries(TEXTS)
    assert set(used) == {"colbert_linear"}


def test_dense_alone_is_the_embedders(embedder, m3, cache):
    core = BgeEmbedder(str(m3), like=M3, cache=cache, on_truncate="ignore")
    dense = embedder(outputs=("dense",))
    np.testing.assert_array_equal(dense.encode_documents(TEXTS).dense, core.encode_documents(TEXTS))
    assert dense.fingerprint == core.fingerprint
    assert embedder().fingerprint != core.fingerprint
    assert embedder().with_outputs("dense").fingerprint == core.fingerprint
    assert cache.stats()["loads"] == 1


def test_the_heads_belong_to_the_fingerprint_of_what_they_make(embedder, m3, tmp_path):
    other = tiny.make_m3(tmp_path)
    (other / "sparse_linear.pt").unlink()
    torch.save({"weight": torch.ones(1, 32), "bias": torch.zeros(1)}, other / "sparse_linear.pt")
    assert (
        embedder(other, outputs=("dense", "colbert")).fingerprint == embedder(outputs=("dense", "colbert")).fingerprint
    )
    assert embedder(other).fingerprint != embedder().fingerprint


def test_no_texts(embedder):
    result = embedder().encode_documents([])
    assert (result.dense.shape, result.sparse, result.colbert, len(result)) == ((0, 32), [], [], 0)


def test_async_and_streams_give_the_same(embedder):
    m3 = embedder()
    whole = m3.encode_documents(TEXTS)
    later = asyncio.run(m3.aencode_documents(TEXTS))
    parts = list(m3.iter_documents(iter(TEXTS), chunk_size=5))
    assert [len(part) for part in parts] == [5] * (len(TEXTS) // 5) + [len(TEXTS) % 5] * (len(TEXTS) % 5 > 0)
    for other in (later.dense, np.concatenate([part.dense for part in parts])):
        np.testing.assert_allclose(whole.dense, other, atol=1e-6, rtol=0)
    streamed = [vectors for part in parts for vectors in part.colbert]
    for one, two in zip(whole.colbert, streamed, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6, rtol=0)


def test_eight_thousand_tokens_run_within_the_budget(tmp_path, embedder, cache):
    folder = tiny.make_m3(tmp_path, max_position_embeddings=8194)
    long = embedder(folder, max_batch_tokens=512)
    text = "panda bear " * 9000
    result = long.encode_documents([text, *TEXTS[:3]])
    assert result.colbert[0].shape == (8191, 32)
    assert [len(vectors) for vectors in result.colbert[1:]] == [
        len(vectors) for vectors in long.encode_documents(TEXTS[:3]).colbert
    ]


def test_scores(embedder):
    m3 = embedder()
    pairs = [(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[0]), (TEXTS[0], TEXTS[0])]
    queries, passages = (m3.encode_queries([pair[side] for pair in pairs]) for side in (0, 1))
    scores = m3.score(iter(pairs), weights=(0.4, 0.2, 0.4))
    dense = (queries.dense * passages.dense).sum(axis=1)
    sparse = [sparse_score(*both) for both in zip(queries.sparse, passages.sparse, strict=True)]
    colbert = [maxsim(*both) for both in zip(queries.colbert, passages.colbert, strict=True)]
    np.testing.assert_allclose(scores["dense"], dense, atol=1e-5)
    np.testing.assert_allclose(scores["sparse"], sparse, atol=1e-4)
    np.testing.assert_allclose(scores["colbert"], colbert, atol=1e-5)
    two = (0.4 * dense + 0.2 * np.array(sparse)) / 0.6
    np.testing.assert_allclose(scores["sparse+dense"], two, atol=1e-4)
    np.testing.assert_allclose(scores["colbert+sparse+dense"], two * 0.6 + 0.4 * np.array(colbert), atol=1e-4)
    assert all(type(value) is float for values in scores.values() for value in values)
    later = asyncio.run(m3.ascore(pairs, weights=(0.4, 0.2, 0.4)))
    np.testing.assert_allclose([later[name] for name in scores], list(scores.values()), atol=1e-4)
    assert m3.score([]) == {name: [] for name in scores}


def test_sparse_score_counts_common_tokens_alone(embedder):
    one, two, none = embedder(outputs=("sparse",)).encode_queries(["panda bear", "panda", "42"]).sparse
    weights = dict(zip(one.indices.tolist(), one.values.tolist(), strict=True))
    expected = sum(
        weights.get(token, 0) * value for token, value in zip(two.indices.tolist(), two.values.tolist(), strict=True)
    )
    assert sparse_score(one, two) == pytest.approx(expected, abs=1e-5)
    assert sparse_score(one, none) == 0.0


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1, 1), (0, 0, 1), (1, -1, 1), (1, 1, -2)])
def test_weights_that_make_no_mean(weights, embedder):
    with pytest.raises(ValueError, match="weights="):
        embedder().score([("a", "b")], weights=weights)


@pytest.mark.parametrize("outputs", [(), ("dens",), ("dense", "lexical"), "all"])
def test_unknown_outputs(outputs, m3):
    with pytest.raises(ValueError, match="must name one or more of dense, sparse, colbert"):
        BgeM3Embedder(str(m3), like=M3, outputs=outputs)


@pytest.mark.parametrize("model", ["BAAI/bge-base-en-v1.5", "BAAI/bge-m3-unsupervised", "BAAI/llm-embedder"])
def test_a_dense_model_has_no_other_outputs(model):
    with pytest.raises(UnsupportedModelError, match=f"{model} gives dense vectors, not colbert and sparse"):
        BgeM3Embedder(model)
    assert BgeM3Embedder(model, outputs=("dense",)).outputs == ("dense",)


def test_a_reranker_is_none():
    with pytest.raises(WrongKindError, match="is a reranker"):
        BgeM3Embedder("BAAI/bge-reranker-v2-m3")


@pytest.mark.parametrize("lost", ["sparse", "colbert"])
def test_missing_heads_are_an_error_before_weights_load(lost, tmp_path, embedder, cache):
    folder = tiny.make_m3(tmp_path)
    (folder / f"{lost}_linear.pt").unlink()
    with pytest.raises(MissingWeightsError, match=f"lacks {lost}_linear.pt"):
        embedder(folder).encode_queries(["panda"])
    assert cache.stats()["loads"] == 0
    rest = embedder(folder, outputs={"dense", "sparse", "colbert"} - {lost})
    assert len(rest.encode_queries(["panda"])) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(1, 31), "bias": torch.zeros(1)}, "should hold the weight"),
        ({"weight": torch.zeros(1, 32)}, "should hold the weight"),
        ({"weight": print, "bias": torch.zeros(1)}, "Nothing is unpickled"),
    ],
)
def test_damaged_heads(content, message, tmp_path, embedder):
    folder = tiny.make_m3(tmp_path)
    torch.save(content, folder / "sparse_linear.pt")
    with pytest.raises(MissingWeightsError, match=message):
        embedder(folder).encode_queries(["panda"])


def test_numbers_that_are_none_are_an_error(tmp_path, embedder):
    folder = tiny.make_m3(tmp_path)
    torch.save({"weight": torch.full((1, 32), torch.nan), "bias": torch.zeros(1)}, folder / "sparse_linear.pt")
    with pytest.raises(NonFiniteError, match="text 0"):
        embedder(folder).encode_queries(["panda"])
    assert np.isfinite(embedder(folder, outputs=("dense", "colbert")).encode_queries(["panda"]).dense).all()


def test_the_librarys_own_pipeline_gives_dense_only(embedder):
    with pytest.raises(ValueError, match="gives dense vectors only"):
        embedder(backend="sentence_transformers").encode_queries(["panda"])


def test_objects_hold_configuration(embedder):
    m3 = embedder(outputs=("sparse", "dense"))
    for other in (copy.deepcopy(m3), pickle.loads(pickle.dumps(m3))):
        assert other.outputs == ("dense", "sparse")
        np.testing.assert_array_equal(other.encode_queries(["panda"]).dense, m3.encode_queries(["panda"]).dense)
    assert m3.describe()["outputs"] == ("dense", "sparse")
    assert m3.with_outputs("colbert").outputs == ("colbert",)
    assert m3.outputs == ("dense", "sparse")
