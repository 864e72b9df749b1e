"""A call costs its forwards and little more."""

import time

import pytest
import tiny
import torch
from transformers import AutoModel, AutoTokenizer, BertModel

from bge_integrations import BgeEmbedder

LINES = tiny.TEXT.strip().splitlines()


@pytest.fixture
def forwards():
    """Every forward of a BERT while the test runs."""
    seen = []

    def note(module, inputs, outputs):
        if isinstance(module, BertModel):
            seen.append(module)

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    yield seen
    handle.remove()


def test_one_forward_a_batch(bert_embedder, cache, forwards):
    embedder = BgeEmbedder(str(bert_embedder), cache=cache, max_batch_tokens=100)
    embedder.encode_queries(LINES[:1])
    assert cache.stats()["models"][0]["batches"] == 1
    forwards.clear()  # those at the load prove that the model may run packed
    embedder.encode_documents(LINES)
    stats = cache.stats()["models"][0]
    assert len(forwards) == stats["batches"] - 1
    assert stats["tokens"] / 100 <= stats["batches"] - 1 < 2 * stats["tokens"] / 100 + 1


def test_nothing_moves_after_the_load(bert_embedder, cache, forwards, monkeypatch):
    embedder = BgeEmbedder(str(bert_embedder), cache=cache)
    embedder.encode_queries(["a"])
    moved = []
    for name in ("to", "train", "half", "float", "cuda"):
        original = getattr(torch.nn.Module, name)

        def noted(module, *args, original=original, name=name, **kwargs):
            moved.append(name)
            return original(module, *args, **kwargs)

        monkeypatch.setattr(torch.nn.Module, name, noted)
    for _ in range(3):
        embedder.encode_documents(LINES)
    assert moved == []
    assert len({id(model) for model in forwards}) == 1


def test_a_short_query_takes_little_longer_than_its_forward(minilm, cache):
    """Some 0.5 to 1 ms on a quiet machine; the fastest of calls taken in turns, since others may compute here too."""
    embedder = BgeEmbedder(str(minilm), cache=cache)
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm).eval()

    def bare():
        with torch.inference_mode():
            return model(**tokenizer("what is a panda?", return_tensors="pt")).last_hidden_state.mean(1).numpy()

    seconds = [(timed(bare), timed(lambda: embedder.encode_queries(["what is a panda?"]))) for _ in range(60)]
    assert min(ours for _, ours in seconds) < min(theirs for theirs, _ in seconds) + 0.005


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
