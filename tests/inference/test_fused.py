"""Layers fused by torch.compile: the same vectors, one compilation for all batches, and no harm where it fails."""

import logging
import random
import shutil

import numpy as np
import pytest
import torch
import torch._dynamo
from transformers import AutoModel

from bge_integrations.inference.backends.fused import Fusing
from bge_integrations.inference.backends.pytorch import TorchBackend
from bge_integrations.inference.backends.varlen import NAME
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch's own compiler needs a C++ compiler")
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away"]


@pytest.fixture(autouse=True)
def compiled():
    """How many graphs torch has compiled since the test began."""
    torch._dynamo.reset()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"] - before


def backend_of(folder, **arguments):
    model = AutoModel.from_pretrained(folder, attn_implementation=NAME).eval()
    return TorchBackend(model, packed=True, engine="packed", fusing=Fusing(model.encoder.layer, **arguments))


def batches_of(tokenizer, count):
    draw = random.Random(0)
    for _ in range(count):
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(0, 90))) for _ in range(draw.randint(1, 20))]
        yield TokenBatch.of(tokenizer.texts(texts, max_length=512))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of torch
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
@pytest.mark.parametrize("kind", ["bert", "xlmr"])
def test_many_batches_one_compilation_and_the_same_vectors(
    kind, compiler, bert_embedder, xlmr_embedder, text_tokenizer, torch_backend, compiled
):
    folder = {"bert": bert_embedder, "xlmr": xlmr_embedder}[kind]
    fused, plain = backend_of(folder, after=1, compiler=compiler), torch_backend(folder, packed=True)
    first, *others = batches_of(text_tokenizer(folder), 20)
    fused.run(first, Dense())
    fused._fusing.thread.join(timeout=100)
    assert compiled() == 1
    for batch in (first, *others):
        np.testing.assert_allclose(fused.run(batch, Dense()), plain.run(batch, Dense()), atol=1e-5, rtol=0)
    assert compiled() == 1
    layer = fused._model.encoder.layer[0]
    assert layer._compiled_call_impl is not None


def test_nothing_is_compiled_before_there_is_much_work(bert_embedder, text_tokenizer, compiled):
    batches = [*batches_of(text_tokenizer(bert_embedder), 4)]
    backend = backend_of(bert_embedder, after=sum(len(batch.ids) for batch in batches) + 1)
    for batch in batches:
        backend.run(batch, Dense())
    assert backend._fusing.thread is None
    assert compiled() == 0


def test_the_exact_forward_is_never_the_fused_one(bert_embedder, text_tokenizer, torch_backend, compiled):
    backend = backend_of(bert_embedder, after=1, compiler="eager")
    (batch,) = batches_of(text_tokenizer(bert_embedder), 1)
    backend.run(batch, Dense())
    backend._fusing.thread.join(timeout=100)
    expected = torch_backend(bert_embedder, packed=True).run(batch, Dense())
    np.testing.assert_array_equal(backend.run(batch, Dense(), exact=True), expected)
    assert compiled() == 1


def test_where_it_fails_batches_go_on_unfused(bert_embedder, text_tokenizer, torch_backend, caplog):
    backend = backend_of(bert_embedder, after=1, compiler="no such compiler")
    (batch,) = batches_of(text_tokenizer(bert_embedder), 1)
    with caplog.at_level(logging.WARNING):
        backend.run(batch, Dense())
        backend._fusing.thread.join(timeout=100)
    assert "layers run unfused, torch.compile failed: " in caplog.text
    expected = torch_backend(bert_embedder, packed=True).run(batch, Dense())
    np.testing.assert_array_equal(backend.run(batch, Dense()), expected)
