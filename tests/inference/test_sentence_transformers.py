"""Pipelines that run through sentence-transformers equal that library."""

import numpy as np
import pytest
import tiny
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from bge_integrations.inference.backends.base import DeviceMemoryError
from bge_integrations.inference.backends.sentence_transformers import SentenceTransformersBackend
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense, Logit

TEXTS = [line for line in tiny.TEXT.splitlines() if line]


@pytest.fixture
def pipeline(tmp_path):
    return SentenceTransformer(str(tiny.make_bert_embedder(tmp_path, pooling="mean")), device="cpu")


def backend_of(model):
    return SentenceTransformersBackend(model, pad_id=0, engine="sentence_transformers: a test")


def test_an_embedder(pipeline, text_tokenizer, tmp_path):
    reference = pipeline.encode(TEXTS)
    batch = TokenBatch.of(text_tokenizer(tmp_path).texts(TEXTS, max_length=512))
    rows = backend_of(pipeline).run(batch, Dense())
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, reference, atol=1e-5, rtol=0)


def test_a_reranker_gives_its_raw_logits(xlmr_reranker, text_tokenizer):
    model = CrossEncoder(str(xlmr_reranker), device="cpu")
    pairs = [*zip(TEXTS, reversed(TEXTS), strict=True)]
    reference = model.predict(pairs, activation_fn=torch.nn.Identity())
    batch = TokenBatch.of(text_tokenizer(xlmr_reranker).pairs(pairs, max_length=512, query_max_length=400))
    rows = SentenceTransformersBackend(model, pad_id=1, engine="a test").run(batch, Logit())
    np.testing.assert_allclose(rows[:, 0], reference, atol=1e-5, rtol=0)


def test_a_prompt_is_left_out_of_the_pooling_where_the_pipeline_says_so(pipeline, text_tokenizer, tmp_path):
    pipeline[1].include_prompt = False
    reference = pipeline.encode(TEXTS, prompt="The query is: ")
    tokenizer = text_tokenizer(tmp_path)
    batch = TokenBatch.of(tokenizer.texts(["The query is: " + text for text in TEXTS], max_length=512))
    rows = backend_of(pipeline).run(batch, Dense(prompt_length=tokenizer.prompt_length("The query is: ")))
    np.testing.assert_allclose(rows, reference, atol=1e-5, rtol=0)


def test_exact_computes_in_float32(pipeline, text_tokenizer, tmp_path):
    batch = TokenBatch.of(text_tokenizer(tmp_path).texts(TEXTS, max_length=512))
    backend = backend_of(pipeline.half())
    half, exact = backend.run(batch, Dense()), backend.run(batch, Dense(), exact=True)
    assert half.dtype == exact.dtype == np.float32
    assert 0 < np.abs(half - exact).max() < 0.05
    assert {parameter.dtype for parameter in pipeline.parameters()} == {torch.float16}


def test_only_torchs_own_error_is_out_of_memory(pipeline, text_tokenizer, tmp_path):
    errors = [torch.OutOfMemoryError("no room"), RuntimeError("out of memory")]

    def fail(module, args):
        raise errors.pop(0)

    pipeline[0].register_forward_pre_hook(fail)
    batch = TokenBatch.of(text_tokenizer(tmp_path).texts(TEXTS, max_length=512))
    with pytest.raises(DeviceMemoryError, match="no room"):
        backend_of(pipeline).run(batch, Dense())
    with pytest.raises(RuntimeError, match="out of memory"):
        backend_of(pipeline).run(batch, Dense())
