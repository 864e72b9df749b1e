"""Logits are those of sentence-transformers' CrossEncoder without its activation, whatever shares the batch."""

import random
from itertools import product

import numpy as np
import pytest
import tiny
import torch
from sentence_transformers import CrossEncoder

from bge_integrations import BgeReranker

LINES = tiny.TEXT.strip().splitlines()
ODD = ["", " ", "two\nlines ", "zß€ 😀 [SEP] </s> <pad>"]
PAIRS = [*product(LINES[:3], LINES), *product(["", LINES[0]], ODD), *product(ODD, LINES[:2])]

each_architecture = pytest.mark.parametrize("fixture", ["bert_reranker", "xlmr_reranker"])


def close(actual, expected, atol=2e-5):  # the tiny models' large weights blow the last digits up
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.fixture
def folder(fixture, request):
    return str(request.getfixturevalue(fixture))


@each_architecture
def test_logits_equal_the_cross_encoder(folder, cache):
    theirs = CrossEncoder(folder, device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    ours = BgeReranker(folder, normalize=False, cache=cache).score(PAIRS)
    assert np.std(ours) > 0.1
    close(ours, theirs)


@each_architecture
def test_a_cut_passage_equals_the_cross_encoder(folder, cache):
    pairs = [("What is a panda?", " ".join(LINES)), ("", " ".join(LINES[::-1]))]
    theirs = CrossEncoder(folder, device="cpu", max_length=100).predict(pairs, activation_fn=torch.nn.Identity())
    ours = BgeReranker(folder, normalize=False, max_length=100, on_truncate="ignore", cache=cache).score(pairs)
    close(ours, theirs)


@each_architecture
def test_the_sigmoid_is_applied_once(folder, cache):
    """Neither the library's own activation nor a second sigmoid comes on top."""
    theirs = CrossEncoder(folder, device="cpu").predict(PAIRS)  # its default for one label is the sigmoid
    logits = np.array(BgeReranker(folder, normalize=False, cache=cache).score(PAIRS))
    scores = BgeReranker(folder, cache=cache).score(PAIRS)
    close(scores, theirs)
    close(scores, 1 / (1 + np.exp(-logits)), 1e-12)
    for backend in ("torch", "sentence_transformers"):
        close(BgeReranker(folder, normalize=False, backend=backend, cache=cache).score(PAIRS), logits)


@each_architecture
def test_a_logit_does_not_depend_on_its_batch(folder, cache):
    reranker = BgeReranker(folder, normalize=False, cache=cache)
    expected = np.array([reranker.score([pair])[0] for pair in PAIRS])
    close(reranker.score(PAIRS), expected)
    close(reranker.score(PAIRS * 5, show_progress=True), np.tile(expected, 5))
    order = random.Random(0).sample(range(len(PAIRS)), len(PAIRS))
    close(reranker.score([PAIRS[i] for i in order]), expected[order])
    for budget in (1, 60, 700):
        close(BgeReranker(folder, normalize=False, max_batch_tokens=budget, cache=cache).score(PAIRS), expected)
    assert cache.stats()["loads"] == 1


@each_architecture
def test_pairs_that_share_a_query_or_a_passage_stay_apart(folder, cache):
    reranker = BgeReranker(folder, normalize=False, cache=cache)
    a, b, c = LINES[:3]
    pairs = [(a, b), (b, a), (a, c), (a, b), (c, a), (a, a), (b, b), (b, a)]
    scores = reranker.score(pairs)
    close(scores, [reranker.score([pair])[0] for pair in pairs])
    assert len({round(score, 4) for score in scores}) == len(set(pairs))
    assert scores[0] == pytest.approx(scores[3], abs=1e-5)


@each_architecture
def test_instructions_go_before_their_own_side(folder, cache):
    plain = BgeReranker(folder, normalize=False, cache=cache)
    instructed = BgeReranker(folder, normalize=False, query_instruction="A: ", document_instruction="B: ", cache=cache)
    close(instructed.score(PAIRS), plain.score([("A: " + query, "B: " + passage) for query, passage in PAIRS]))
    only_query = BgeReranker(folder, normalize=False, query_instruction="A: ", cache=cache)
    close(only_query.score(PAIRS), plain.score([("A: " + query, passage) for query, passage in PAIRS]))
    for off in (None, ""):
        without = BgeReranker(folder, normalize=False, query_instruction=off, document_instruction=off, cache=cache)
        close(without.score(PAIRS), plain.score(PAIRS))
