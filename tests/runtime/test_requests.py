"""A call is data: it pickles, and whichever process runs it, it gives what the object gives."""

import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from bge_integrations import BgeEmbedder, BgeM3Embedder, BgeReranker, InputTooLongError, ModelCache
from bge_integrations.embed.embedder import FolderEmbedder
from bge_integrations.runtime.folder import FolderWatch

TEXTS = ["The giant panda is a bear.", "Bread needs flour."]
PAIRS = [("what is a panda?", text) for text in TEXTS]
ELSEWHERE = """
import pickle, sys
from bge_integrations import default_cache
output = default_cache().submit(pickle.loads(sys.stdin.buffer.read())).result()
sys.stdout.buffer.write(pickle.dumps(output))
"""


class Recording(ModelCache):
    """Keeps the requests that it gets."""

    def __init__(self):
        super().__init__()
        self.requests = []

    def submit(self, request):
        self.requests.append(request)
        return super().submit(request)


@pytest.fixture
def recording():
    cache = Recording()
    yield cache
    cache.clear()


@pytest.fixture
def calls(bert_embedder, m3, bert_reranker, recording):
    """Requests of every kind of object, each with what the object gave for it."""
    options = {"device": "cpu", "cache": recording}
    embedder = BgeEmbedder(
        str(bert_embedder),
        like="BAAI/bge-base-en-v1.5",
        query_instruction="Find: ",
        max_length=16,
        on_truncate="ignore",
        **options,
    )
    rows = [
        embedder.encode_queries(TEXTS),
        embedder.encode_documents(TEXTS),
        FolderEmbedder(str(bert_embedder), prompt="passage: ", **options).encode_documents(TEXTS),
        BgeM3Embedder(str(m3), like="BAAI/bge-m3", outputs=["dense"], **options).encode_queries(TEXTS).dense,
        np.array(BgeReranker(str(bert_reranker), normalize=False, **options).score(PAIRS))[:, None],
    ]
    return list(zip(recording.requests, rows, strict=True))


def test_one_request_a_call(calls):
    assert [list(request.items) for request, _ in calls] == [*[TEXTS] * 4, PAIRS]


def test_a_pickled_request_gives_the_same(calls, recording):
    for request, rows in calls:
        again = pickle.loads(pickle.dumps(request))
        assert again == request
        np.testing.assert_allclose(recording.submit(again).result().rows, rows, rtol=0, atol=1e-6)


def test_another_process_gives_the_same(calls):
    request, rows = calls[0]
    run = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], input=pickle.dumps(request), capture_output=True, timeout=110, check=True
    )
    np.testing.assert_allclose(pickle.loads(run.stdout).rows, rows, rtol=0, atol=1e-5)


def test_a_request_says_what_is_refused_and_how_texts_are_counted(calls, recording):
    request = replace(calls[0][0], items=["short", "panda " * 99], refuse_long=True, first=40)
    with pytest.raises(InputTooLongError, match="text 41 has"):
        recording.submit(request).result()


def test_requests_are_never_changed(calls):
    for request, _ in calls:
        with pytest.raises(FrozenInstanceError):
            request.first = 1


def test_equal_options_give_one_plan(calls, recording):
    request = calls[0][0]
    plan = recording.plan(request.source, request.options)
    assert recording.plan(request.source, replace(request.options)) is plan
    assert (plan.prefix, plan.max_length) == ("Find: ", 16)


def test_the_token_is_not_shown(bert_embedder, recording):
    BgeEmbedder(str(bert_embedder), token="hf_secret", device="cpu", cache=recording).encode_documents(["a"])
    assert "hf_secret" not in repr(recording.requests[0])


def test_a_packaged_model_is_not_looked_at_in_every_call(monkeypatch):
    embedder = BgeEmbedder("bge-integrations/mini-embedder-en", device="cpu")
    before = embedder.encode_queries(["a"])
    monkeypatch.setattr(FolderWatch, "revision", None)
    np.testing.assert_array_equal(embedder.encode_queries(["a"]), before)
