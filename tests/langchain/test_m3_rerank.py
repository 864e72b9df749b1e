"""`BgeM3Rerank`."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from pydantic import ValidationError

from bge_integrations import ModelCache, UnsupportedModelError, WrongKindError
from bge_integrations.embed import m3 as module
from bge_integrations.langchain import BgeM3Rerank

LIKE = "BAAI/bge-m3"
QUERY = "what is a panda?"
PASSAGES = [
    "The giant panda is a bear that lives in China.",
    "Paris is the capital of France.",
    "Bread needs flour, water, salt and yeast.",
    "",
    "大熊猫生活在中国中部的山区",
]
DOCUMENTS = [Document(passage, id=str(i), metadata={"source": {"page": i}}) for i, passage in enumerate(PASSAGES)]


@pytest.fixture
def rerank(m3: Path, cache: ModelCache) -> BgeM3Rerank:
    return BgeM3Rerank(model=str(m3), like=LIKE, top_n=None, cache=cache)


def _scores(documents: list[Document]) -> list[float]:
    return [document.metadata["relevance_score"] for document in documents]


@pytest.mark.parametrize(
    ("weights", "outputs"),
    [
        ((0, 0, 1), ("colbert",)),
        ((1, 0, 0), ("dense",)),
        ((0, 2, 0), ("sparse",)),
        ((0.4, 0.2, 0), ("dense", "sparse")),
        ((0.4, 0.2, 0.4), ("dense", "sparse", "colbert")),
    ],
)
async def test_scores_are_the_models(
    rerank: BgeM3Rerank, weights: tuple[float, float, float], outputs: tuple[str, ...]
) -> None:
    rerank = rerank.model_copy(update={"weights": weights})
    core = rerank.embedder.score([(QUERY, passage) for passage in PASSAGES])
    expected = [
        sum(w * score for w, score in zip(weights, scores, strict=True)) / sum(weights)
        for scores in zip(core["dense"], core["sparse"], core["colbert"], strict=True)
    ]
    order = sorted(range(len(PASSAGES)), key=lambda i: -expected[i])
    assert rerank.embedder.outputs == outputs
    for found in (rerank.compress_documents(DOCUMENTS, QUERY), await rerank.acompress_documents(DOCUMENTS, QUERY)):
        assert [document.id for document in found] == [str(i) for i in order]
        assert _scores(found) == pytest.approx([expected[i] for i in order], abs=1e-5)
        assert [document.page_content for document in found] == [PASSAGES[i] for i in order]
        assert {type(score) for score in _scores(found)} == {float}
        json.dumps([document.metadata for document in found])


async def test_many_documents_go_in_parts(rerank: BgeM3Rerank, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rerank.compress_documents(DOCUMENTS, QUERY)
    monkeypatch.setattr(module, "_RANKED_AT_ONCE", 2)
    for found in (rerank.compress_documents(DOCUMENTS, QUERY), await rerank.acompress_documents(DOCUMENTS, QUERY)):
        assert [document.id for document in found] == [document.id for document in expected]
        assert _scores(found) == pytest.approx(_scores(expected), abs=1e-6)


async def test_top_n_and_threshold(rerank: BgeM3Rerank) -> None:
    everything = rerank.compress_documents(DOCUMENTS, QUERY)
    ids = [document.id for document in everything]
    threshold = _scores(everything)[2] - 1e-6
    for update, kept in (
        ({"top_n": 2}, 2),
        ({"top_n": 100}, 5),
        ({"score_threshold": threshold}, 3),
        ({"score_threshold": threshold, "top_n": 2}, 2),
    ):
        some = rerank.model_copy(update=update)
        assert [document.id for document in some.compress_documents(DOCUMENTS, QUERY)] == ids[:kept]
        assert [document.id for document in await some.acompress_documents(DOCUMENTS, QUERY)] == ids[:kept]
    assert BgeM3Rerank().top_n == 3


async def test_no_document_gives_none_and_loads_nothing(rerank: BgeM3Rerank, cache: ModelCache) -> None:
    assert rerank.compress_documents([], QUERY) == await rerank.acompress_documents([], QUERY) == []
    assert cache.stats()["models"] == []


async def test_equals_keep_their_order_and_the_given_stay_as_they_are(rerank: BgeM3Rerank) -> None:
    given = [Document("The same.", id=str(i)) for i in range(4)]
    before = copy.deepcopy(given)
    found = rerank.compress_documents(given, QUERY) + await rerank.acompress_documents(given, QUERY)
    assert [document.id for document in found] == list("01230123")
    assert given == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": (0, 0, 0)},
        {"weights": (1, 1)},
        {"weights": (0, -1, 1)},
        {"weights": (0, 0, float("nan"))},
        {"score_threshold": float("nan")},
        {"top_n": 0},
        {"top_k": 3},
        {"outputs": ("dense",)},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        BgeM3Rerank(**wrong)


def test_other_models_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="colbert"):
        BgeM3Rerank(model="BAAI/bge-base-en-v1.5")
    with pytest.raises(WrongKindError):
        BgeM3Rerank(model="BAAI/bge-reranker-v2-m3")


def test_copies_and_pickles_rank_alike(rerank: BgeM3Rerank) -> None:
    expected = _scores(rerank.compress_documents(DOCUMENTS, QUERY))
    again = BgeM3Rerank.model_validate(rerank.model_dump())
    for twin in (copy.deepcopy(rerank), pickle.loads(pickle.dumps(rerank)), again):
        assert _scores(twin.compress_documents(DOCUMENTS, QUERY)) == pytest.approx(expected, abs=1e-6)
