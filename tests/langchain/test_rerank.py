"""`BgeRerank` and `BgeCrossEncoder`."""

import copy
import inspect
import json
import math
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document
from pydantic import ValidationError

from bge_integrations import BgeReranker, ModelCache, UnknownModelError, UnsupportedModelError, WrongKindError
from bge_integrations.langchain import BgeCrossEncoder, BgeRerank

QUERY = "what is a panda?"
PASSAGES = [
    "The giant panda is a bear that lives in China.",
    "Paris is the capital of France.",
    "Bread needs flour, water, salt and yeast.",
    "",
    "Vitamin C is found in oranges.",
    "大熊猫生活在中国中部的山区",
]
DOCUMENTS = [Document(passage, id=str(i), metadata={"source": {"page": i}}) for i, passage in enumerate(PASSAGES)]


@pytest.fixture
def rerank(bert_reranker: Path, cache: ModelCache) -> BgeRerank:
    return BgeRerank(model=str(bert_reranker), top_n=None, cache=cache)


def _scores(documents: list[Document]) -> list[float]:
    return [document.metadata["relevance_score"] for document in documents]


def test_best_first_with_the_cores_scores(rerank: BgeRerank, bert_reranker: Path, cache: ModelCache) -> None:
    reranked = rerank.compress_documents(DOCUMENTS, QUERY)
    core = BgeReranker(str(bert_reranker), cache=cache).score([(QUERY, passage) for passage in PASSAGES])
    assert _scores(reranked) == pytest.approx(sorted(core, reverse=True), abs=1e-6)
    for document in reranked:
        assert document.metadata["relevance_score"] == pytest.approx(core[int(document.id or -1)], abs=1e-6)
        assert document.page_content == PASSAGES[int(document.id or -1)]
        assert document.metadata["source"] == {"page": int(document.id or -1)}
    assert {type(score) for score in _scores(reranked)} == {float}
    json.dumps([document.metadata for document in reranked])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(len(DOCUMENTS))))
def test_the_order_given_does_not_matter(rerank: BgeRerank, order: list[int]) -> None:
    expected = rerank.compress_documents(DOCUMENTS, QUERY)
    reranked = rerank.compress_documents([DOCUMENTS[i] for i in order], QUERY)
    assert [document.id for document in reranked] == [document.id for document in expected]
    assert _scores(reranked) == pytest.approx(_scores(expected), abs=1e-6)


async def test_async_is_sync(rerank: BgeRerank) -> None:
    expected = rerank.compress_documents(DOCUMENTS, QUERY)
    reranked = await rerank.acompress_documents(DOCUMENTS, QUERY)
    assert [document.id for document in reranked] == [document.id for document in expected]
    assert _scores(reranked) == pytest.approx(_scores(expected), abs=1e-6)


async def test_the_given_documents_stay_as_they_are(rerank: BgeRerank) -> None:
    documents = copy.deepcopy(DOCUMENTS)
    reranked = rerank.compress_documents(documents, QUERY) + await rerank.acompress_documents(documents, QUERY)
    assert documents == DOCUMENTS
    assert not any(mine is yours or mine.metadata is yours.metadata for mine in reranked for yours in documents)


@pytest.mark.parametrize(("top_n", "kept"), [(1, 1), (3, 3), (100, len(DOCUMENTS)), (None, len(DOCUMENTS))])
async def test_top_n(rerank: BgeRerank, top_n: int | None, kept: int) -> None:
    some = rerank.model_copy(update={"top_n": top_n})
    expected = [document.id for document in rerank.compress_documents(DOCUMENTS, QUERY)][:kept]
    assert [document.id for document in some.compress_documents(DOCUMENTS, QUERY)] == expected
    assert [document.id for document in await some.acompress_documents(DOCUMENTS, QUERY)] == expected


def test_three_are_kept_by_default(bert_reranker: Path) -> None:
    assert BgeRerank(model=str(bert_reranker)).top_n == 3


async def test_no_document_gives_none(rerank: BgeRerank, cache: ModelCache) -> None:
    assert rerank.compress_documents([], QUERY) == []
    assert await rerank.acompress_documents([], QUERY) == []


@pytest.mark.parametrize("normalize", [True, False])
async def test_documents_under_the_threshold_are_dropped(rerank: BgeRerank, normalize: bool) -> None:
    everything = rerank.model_copy(update={"normalize": normalize})
    expected = everything.compress_documents(DOCUMENTS, QUERY)
    threshold = _scores(expected)[2]
    picky = everything.model_copy(update={"score_threshold": threshold - 1e-6})
    assert [document.id for document in picky.compress_documents(DOCUMENTS, QUERY)] == [d.id for d in expected[:3]]
    assert len(await picky.acompress_documents(DOCUMENTS, QUERY)) == 3


@pytest.mark.parametrize("threshold", [-0.1, 1.01, math.nan, math.inf])
def test_a_threshold_no_score_can_meet_is_refused(bert_reranker: Path, threshold: float) -> None:
    with pytest.raises(ValidationError, match="score_threshold"):
        BgeRerank(model=str(bert_reranker), score_threshold=threshold)


def test_a_logit_threshold_may_be_any_number(bert_reranker: Path) -> None:
    assert BgeRerank(model=str(bert_reranker), normalize=False, score_threshold=-3.5).score_threshold == -3.5


def test_refusals_come_at_construction(bert_reranker: Path) -> None:
    with pytest.raises(ValidationError, match="top_k"):
        BgeRerank(model=str(bert_reranker), top_k=3)  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="top_n"):
        BgeRerank(model=str(bert_reranker), top_n=0)
    with pytest.raises(WrongKindError, match="BgeEmbedder"):
        BgeRerank(model="BAAI/bge-m3")
    with pytest.raises(UnknownModelError, match="BAAI/bge-reranker-v2-m3"):
        BgeCrossEncoder(model="BAAI/bge-reranker-v2m3")
    with pytest.raises(UnsupportedModelError):
        BgeCrossEncoder(model="BAAI/Matroyshka-ReRanker-beir")


def test_fields_are_the_cores_arguments() -> None:
    core = inspect.signature(BgeReranker).parameters
    assert set(BgeCrossEncoder.model_fields) == set(core)
    assert set(BgeRerank.model_fields) == {*core, "top_n", "score_threshold"}
    for name, field in BgeCrossEncoder.model_fields.items():
        if name != "model":
            assert field.default == core[name].default, name


@pytest.mark.parametrize("kind", [BgeRerank, BgeCrossEncoder])
def test_copies_give_the_same_scores(kind: Any, bert_reranker: Path, cache: ModelCache) -> None:
    original = kind(model=str(bert_reranker), normalize=False, cache=cache)
    pairs = [(QUERY, passage) for passage in PASSAGES]
    expected = original.reranker.score(pairs)
    for twin in (
        pickle.loads(pickle.dumps(original)),
        cloudpickle.loads(cloudpickle.dumps(original)),
        copy.deepcopy(original),
        kind(**original.model_dump()),
        kind.model_validate_json(original.model_dump_json()),
    ):
        assert twin.model_dump() == original.model_dump()
        assert twin.reranker.score(pairs) == pytest.approx(expected, abs=1e-6)
    assert len(pickle.dumps(original)) < 10_000
    assert "cache" not in original.model_dump()


def test_the_cross_encoder_scores_in_the_order_given(xlmr_reranker: Path, cache: ModelCache) -> None:
    encoder = BgeCrossEncoder(model=str(xlmr_reranker), cache=cache)
    pairs = [(QUERY, passage) for passage in PASSAGES]
    scores = encoder.score(pairs)
    assert scores == pytest.approx(BgeReranker(str(xlmr_reranker), cache=cache).score(pairs), abs=1e-6)
    assert {type(score) for score in scores} == {float}
    assert encoder.score([]) == []
    assert len(encoder.score(pairs[:1])) == 1


def test_langchain_classics_reranker_takes_it(bert_reranker: Path, rerank: BgeRerank, cache: ModelCache) -> None:
    classic = CrossEncoderReranker(model=BgeCrossEncoder(model=str(bert_reranker), cache=cache), top_n=4)
    expected = [document.id for document in rerank.compress_documents(DOCUMENTS, QUERY)][:4]
    assert [document.id for document in classic.compress_documents(DOCUMENTS, QUERY)] == expected
