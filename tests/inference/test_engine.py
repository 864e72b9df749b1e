"""A whole engine over real tiny models: tokenizer, queue and torch backend together."""

import gc
import logging
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bge_integrations.errors import ClosedError, InputTooLongError, NonFiniteError
from bge_integrations.inference.engine import Engine
from bge_integrations.inference.heads import Dense
from bge_integrations.inference.plan import PairPlan, TextPlan
from bge_integrations.types import Pooling

TEXTS = [line for line in tiny.TEXT.splitlines() if line]


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def make_engine(request, text_tokenizer, torch_backend):
    engines = []

    def make(folder, *, max_batch_tokens=512, **arguments):
        backend = torch_backend(folder, packed=request.param, **arguments)
        engines.append(Engine(text_tokenizer(folder), backend, device="cpu", max_batch_tokens=max_batch_tokens))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
        engine.join(timeout=30)


def submit(engine, texts, *, head=Dense(), max_length=64, prefix="", **arguments):  # noqa: B008 - frozen
    return engine.submit(texts, TextPlan(head=head, dim=32, max_length=max_length, prefix=prefix), **arguments)


def rows(engine, texts, **arguments):
    return submit(engine, texts, **arguments).result(timeout=60).rows


def by_hand(folder, texts, max_length=64, dtype=None):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=dtype)
    vectors = []
    for text in texts:
        with torch.no_grad():
            inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
            vectors.append(torch.nn.functional.normalize(model.float()(**inputs).last_hidden_state[0, 0], dim=0))
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize("max_batch_tokens", [1, 100, 4000])
def test_texts(bert_embedder, make_engine, max_batch_tokens):
    engine = make_engine(bert_embedder, max_batch_tokens=max_batch_tokens)
    np.testing.assert_allclose(rows(engine, TEXTS), by_hand(bert_embedder, TEXTS), atol=1e-5, rtol=0)


def test_a_prefix_is_part_of_every_text(bert_embedder, make_engine):
    reference = by_hand(bert_embedder, ["query: " + text for text in TEXTS])
    np.testing.assert_allclose(rows(make_engine(bert_embedder), TEXTS, prefix="query: "), reference, atol=1e-5, rtol=0)


def test_pairs(xlmr_reranker, make_engine):
    pairs = [*zip(TEXTS, reversed(TEXTS), strict=True)]
    engine = make_engine(xlmr_reranker)
    plan = PairPlan(prefixes=("Q: ", "P: "), max_length=300, query_max_length=200, prompt="", layers=None)
    output = engine.submit(pairs, plan)
    tokenizer = AutoTokenizer.from_pretrained(xlmr_reranker)
    model = AutoModelForSequenceClassification.from_pretrained(xlmr_reranker)
    with torch.no_grad():
        reference = [
            model(**tokenizer("Q: " + query, "P: " + passage, return_tensors="pt")).logits[0].tolist()
            for query, passage in pairs
        ]
    np.testing.assert_allclose(output.result(timeout=60).rows, reference, atol=1e-5, rtol=0)


def test_a_batch_is_one_forward(bert_embedder, make_engine):
    engine = make_engine(bert_embedder, max_batch_tokens=150)
    forwards = []
    engine.backend._model.register_forward_hook(lambda *_: forwards.append(1))
    rows(engine, TEXTS)
    rows(engine, ["one more"])
    assert len(forwards) == engine.stats.batches > 3


def test_stats(bert_embedder, make_engine):
    engine = make_engine(bert_embedder)
    tokenizer = AutoTokenizer.from_pretrained(bert_embedder)
    lengths = [len(ids) for ids in tokenizer(TEXTS)["input_ids"]]
    output = submit(engine, TEXTS, max_length=48).result(timeout=60)
    cut = [(index, length) for index, length in enumerate(lengths) if length > 48]
    assert [(one.index, one.full_length) for one in output.cuts] == cut
    assert 0 < len(cut) < len(TEXTS)
    assert engine.stats.tokens == sum(min(length, 48) for length in lengths)
    assert engine.stats.truncations == len(cut)


def test_callers_with_every_kind_of_limit_equal_serial(bert_embedder, make_engine):
    engine = make_engine(bert_embedder)
    jobs = [
        {"texts": TEXTS[start:], "prefix": prefix, "max_length": limit, "head": head, "max_batch_tokens": budget}
        for start, limit in enumerate(range(8, 23))
        for prefix in ("", "query: ")
        for head in (Dense(), Dense(Pooling.MEAN, normalize=False))
        for budget in (None, 60)
    ]
    serial = [rows(engine, **job) for job in jobs]
    with ThreadPoolExecutor(16) as pool:
        parallel = [*pool.map(lambda job: rows(engine, **job), jobs)]
    for one, other in zip(serial, parallel, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6, rtol=0)


def test_a_lone_surrogate_fails_its_call_alone(bert_embedder, make_engine):
    engine = make_engine(bert_embedder)
    with pytest.raises(ValueError, match="Text 1 holds a lone surrogate"):
        rows(engine, ["fine", "b\udfffd"])
    plan = PairPlan(prefixes=("", ""), max_length=9, query_max_length=5, prompt="", layers=None)
    pairs = engine.submit([("q", "p"), ("q", "\ud800")], plan)
    with pytest.raises(ValueError, match="Text 1 holds a lone surrogate"):
        pairs.result(timeout=60)
    np.testing.assert_allclose(rows(engine, TEXTS), by_hand(bert_embedder, TEXTS), atol=1e-5, rtol=0)


def test_closing_frees_the_weights(bert_embedder, make_engine):
    engine = make_engine(bert_embedder)
    rows(engine, TEXTS)
    weights = weakref.ref(next(engine.backend._model.parameters()))
    engine.close()
    engine.join(timeout=30)
    gc.collect()
    assert weights() is None
    with pytest.raises(ClosedError):
        rows(engine, TEXTS)


def no_room_over(engine, tokens):
    """A device whose memory takes so many tokens, padding included."""

    def check(module, args, kwargs):
        if kwargs["input_ids"].numel() > tokens:
            raise torch.OutOfMemoryError(f"no room for {kwargs['input_ids'].numel()} tokens")

    engine.backend._model.embeddings.register_forward_pre_hook(check, with_kwargs=True)


def test_out_of_memory_gives_the_same_rows_in_smaller_batches(bert_embedder, make_engine, caplog):
    engine = make_engine(bert_embedder)
    no_room_over(engine, 150)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(rows(engine, TEXTS), by_hand(bert_embedder, TEXTS), atol=1e-5, rtol=0)
    failures = caplog.text.count("out of memory at")
    assert failures >= 1
    rows(engine, TEXTS[:5])
    assert caplog.text.count("out of memory at") == failures


def test_one_text_over_the_memory_is_named(bert_embedder, make_engine):
    engine = make_engine(bert_embedder)
    no_room_over(engine, 60)
    with pytest.raises(InputTooLongError, match=r"Text 1 has 100 tokens.*no room for 100 tokens"):
        rows(engine, ["short", "panda " * 500, "brief"], max_length=100)
    np.testing.assert_allclose(rows(engine, ["after"]), by_hand(bert_embedder, ["after"]), atol=1e-5, rtol=0)


@pytest.fixture(params=[torch.finfo(torch.float16).max, torch.nan], ids=["overflows in fp16", "is NaN"])
def broken_word(request, bert_embedder, tmp_path):
    """A model whose word "the" is more than float16 can add to, or not a number at all."""
    model, tokenizer = AutoModel.from_pretrained(bert_embedder), AutoTokenizer.from_pretrained(bert_embedder)
    (the,) = tokenizer("the", add_special_tokens=False)["input_ids"]
    signs = torch.tensor([1.0, -1.0]).repeat(16)
    with torch.no_grad():
        model.embeddings.token_type_embeddings.weight[0] += 40 * signs
        model.embeddings.word_embeddings.weight[the] = request.param * signs
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "modules.json").write_text("[]")
    return tmp_path, bool(np.isfinite(request.param))


def test_rows_that_overflow_in_half_precision_are_computed_again_in_full(broken_word, make_engine, caplog):
    folder, finite = broken_word
    engine = make_engine(folder, dtype=torch.float16)
    texts = ["a bear", "the panda", "a vector store"]
    if finite:
        with caplog.at_level(logging.WARNING):
            vectors = rows(engine, texts)
        assert "1 of 3 rows were not finite" in caplog.text
        reference = by_hand(folder, texts, dtype=torch.float16)
        np.testing.assert_allclose(vectors[1], reference[1], atol=1e-5, rtol=0)
        assert (vectors * reference).sum(axis=1).min() > 0.99
    else:
        with pytest.raises(NonFiniteError, match="for text 1"):
            rows(engine, texts)
    assert np.isfinite(rows(engine, ["after"])).all()
