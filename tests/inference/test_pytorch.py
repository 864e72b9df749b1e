"""The torch backend, padded and packed, equals transformers called by hand on each text alone."""

import gc
import weakref
from functools import cache

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bge_integrations.inference.backends.base import DeviceMemoryError
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense, Logit
from bge_integrations.types import Pooling

LINES = [line for line in tiny.TEXT.splitlines() if line]
TEXTS = [
    LINES[0],
    "",
    "literally [PAD] and <pad> [PAD][PAD] </s> inside, and at the end <pad> [PAD]",
    " ".join(LINES[:7]),
    "panda",
    "<pad>",
    *LINES[10:],
]
PAIRS = [*zip(reversed(TEXTS), TEXTS, strict=True)]
POOLINGS = [Pooling.CLS, Pooling.MEAN, Pooling.LAST_TOKEN]


@pytest.fixture(params=["bert", "xlmr"])
def embedder(request, bert_embedder, xlmr_embedder):
    return {"bert": bert_embedder, "xlmr": xlmr_embedder}[request.param]


@pytest.fixture(params=["bert", "xlmr"])
def reranker(request, bert_reranker, xlmr_reranker):
    return {"bert": bert_reranker, "xlmr": xlmr_reranker}[request.param]


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def packed(request):
    return request.param


@cache
def hidden_by_hand(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.no_grad():
        return [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]


def embedded_by_hand(folder, pooling, normalize, dim=None):
    rows = []
    for hidden in hidden_by_hand(folder):
        row = {"cls": hidden[0], "mean": hidden.mean(0), "last_token": hidden[-1]}[pooling][:dim]
        rows.append(row / row.norm() if normalize else row)
    return torch.stack(rows).numpy()


@cache
def scored_by_hand(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    rows = []
    for query, passage in PAIRS:
        inputs = tokenizer([query], [passage], return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**inputs).logits[0])
    return torch.stack(rows).numpy()


def batch_of(tokenizer, texts):
    return TokenBatch.of(tokenizer.texts(texts, max_length=512))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_an_embedder_equals_transformers(embedder, packed, pooling, normalize, text_tokenizer, torch_backend):
    batch = batch_of(text_tokenizer(embedder), TEXTS)
    assert len(batch.ids) > 512
    backend = torch_backend(embedder, packed=packed)
    rows = backend.run(batch, Dense(pooling, normalize))
    assert (rows.dtype, rows.shape) == (np.float32, (len(TEXTS), 32))
    reference = embedded_by_hand(embedder, pooling, normalize)
    np.testing.assert_allclose(rows, reference, atol=1e-5, rtol=0)


def test_a_reranker_equals_transformers(reranker, packed, text_tokenizer, torch_backend):
    batch = TokenBatch.of(text_tokenizer(reranker).pairs(PAIRS, max_length=512, query_max_length=510))
    assert len(batch.ids) > 512
    rows = torch_backend(reranker, packed=packed).run(batch, Logit())
    assert rows.shape == (len(PAIRS), 1)
    np.testing.assert_allclose(rows, scored_by_hand(reranker), atol=1e-5, rtol=0)


def test_the_company_of_a_text_does_not_matter(embedder, packed, text_tokenizer, torch_backend):
    tokenizer, backend = text_tokenizer(embedder), torch_backend(embedder, packed=packed)
    together = backend.run(batch_of(tokenizer, TEXTS), Dense())
    backwards = backend.run(batch_of(tokenizer, TEXTS[::-1]), Dense())[::-1]
    alone = np.concatenate([backend.run(batch_of(tokenizer, [text]), Dense()) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    np.testing.assert_allclose(backwards, alone, atol=1e-5, rtol=0)


def test_a_vector_is_cut_before_it_is_normalized(embedder, packed, text_tokenizer, torch_backend):
    backend = torch_backend(embedder, packed=packed)
    rows = backend.run(batch_of(text_tokenizer(embedder), TEXTS), Dense(Pooling.MEAN, dim=10))
    reference = embedded_by_hand(embedder, Pooling.MEAN, normalize=True, dim=10)
    np.testing.assert_allclose(rows, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_half_precision_points_the_same_way(embedder, packed, pooling, dtype, text_tokenizer, torch_backend):
    backend = torch_backend(embedder, packed=packed, dtype=dtype)
    rows = backend.run(batch_of(text_tokenizer(embedder), TEXTS), Dense(pooling))
    assert rows.dtype == np.float32
    cosines = (rows * embedded_by_hand(embedder, pooling, normalize=True)).sum(axis=1)
    assert cosines.min() > (0.9999 if dtype is torch.float16 else 0.99)


@pytest.mark.gpu
@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_on_cuda_points_the_same_way(embedder, pooling, text_tokenizer, torch_backend):
    backend = torch_backend(embedder, packed=True, dtype=torch.float16, device="cuda")
    batch, reference = batch_of(text_tokenizer(embedder), TEXTS), embedded_by_hand(embedder, pooling, True)
    assert (backend.run(batch, Dense(pooling)) * reference).sum(axis=1).min() > 0.999
    assert (backend.run(batch, Dense(pooling), exact=True) * reference).sum(axis=1).min() > 0.999


def test_exact_computes_in_float32_and_leaves_the_weights(embedder, packed, text_tokenizer, torch_backend, tmp_path):
    backend = torch_backend(embedder, packed=packed, dtype=torch.float16)
    batch = batch_of(text_tokenizer(embedder), TEXTS)
    upcast = AutoModel.from_pretrained(embedder, dtype=torch.float16).float()
    upcast.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(embedder).save_pretrained(tmp_path)
    reference = embedded_by_hand(tmp_path, "cls", normalize=True)
    before = backend.run(batch, Dense())
    np.testing.assert_allclose(backend.run(batch, Dense(), exact=True), reference, atol=1e-5, rtol=0)
    assert np.abs(before - reference).max() > 1e-5
    assert {parameter.dtype for parameter in backend._model.parameters()} == {torch.float16}
    np.testing.assert_array_equal(backend.run(batch, Dense()), before)


def test_bytes_are_those_of_the_weights(embedder, packed, torch_backend):
    model = AutoModel.from_pretrained(embedder)
    tensors = [*model.parameters(), *model.buffers()]
    assert torch_backend(embedder, packed=packed).nbytes == sum(t.numel() * t.element_size() for t in tensors)


def test_closing_frees_the_weights(embedder, packed, torch_backend):
    backend = torch_backend(embedder, packed=packed)
    weights = weakref.ref(next(backend._model.parameters()))
    backend.close()
    backend.close()
    gc.collect()
    assert weights() is None


def test_out_of_memory_is_told_and_leaves_nothing_behind(embedder, packed, text_tokenizer, torch_backend):
    backend, kept = torch_backend(embedder, packed=packed), []

    def no_room(module, args, kwargs):
        activations = torch.zeros(8)
        kept.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")

    hook = backend._model.encoder.layer[1].register_forward_pre_hook(no_room, with_kwargs=True)
    batch = batch_of(text_tokenizer(embedder), TEXTS)
    with pytest.raises(DeviceMemoryError, match=r"tried to allocate 20.00 GiB") as told:
        backend.run(batch, Dense())
    assert told.value.__context__ is None
    assert [activations() for activations in kept] == [None]
    hook.remove()
    assert np.isfinite(backend.run(batch, Dense())).all()


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), MemoryError("out of memory")])
def test_nothing_else_is_taken_for_out_of_memory(embedder, packed, error, text_tokenizer, torch_backend):
    backend = torch_backend(embedder, packed=packed)

    def fail(module, args):
        raise error

    backend._model.embeddings.register_forward_pre_hook(fail)
    with pytest.raises(type(error)) as told:
        backend.run(batch_of(text_tokenizer(embedder), TEXTS), Dense())
    assert told.value is error


@pytest.mark.parametrize(("dtype", "copied"), [(torch.float32, False), (torch.bfloat16, True)])
def test_exact_copies_only_weights_that_are_not_float32(dtype, copied, torch_backend, text_tokenizer, bert_embedder):
    backend = torch_backend(bert_embedder, packed=True, dtype=dtype)
    ran = []
    backend._model.register_forward_pre_hook(lambda module, _: ran.append(module))
    backend.run(TokenBatch.of(text_tokenizer(bert_embedder).texts(["a panda"], max_length=32)), Dense(), exact=True)
    assert (ran[0] is not backend._model) is copied
