"""A cache behind an address gives what a cache of this process gives: numbers, order, warnings, errors."""

import asyncio
import contextlib
import multiprocessing
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import trustme
from serving import EMBEDDER, RERANKER, serving

from bge_integrations import (
    BgeEmbedder,
    BgeM3Embedder,
    BgeReranker,
    InputTooLongError,
    ModelCache,
    UnknownModelError,
    WrongKindError,
)
from bge_integrations.embed.embedder import FolderEmbedder
from bge_integrations.errors import NotAllowedError, OverloadedError, ServerUnavailableError
from bge_integrations.runtime import remote

pytestmark = pytest.mark.enable_socket

TEXTS = ["The giant panda is a bear.", "Bread needs flour.", "", "大熊猫生活在中国。", "panda " * 40]
QUERY = "what do pandas eat?"


@pytest.fixture(scope="module")
def socket_server(tmp_path_factory, bert_embedder):
    """A server on a Unix socket, with the packaged models and a folder."""
    path = tmp_path_factory.mktemp("socket") / "bge.sock"
    with serving("--socket", path, models=(EMBEDDER, RERANKER, bert_embedder)) as server:
        yield server


@pytest.fixture
def where(socket_server):
    return {"cache": socket_server.address}


def test_vectors_are_those_of_this_process(where):
    here, there = BgeEmbedder(EMBEDDER, device="cpu"), BgeEmbedder(EMBEDDER, **where)
    for side in ("encode_queries", "encode_documents"):
        expected, got = getattr(here, side)(TEXTS), getattr(there, side)(TEXTS)
        assert (got.dtype, got.shape) == (np.float32, expected.shape)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert there.encode_documents([]).shape == (0, 384)
    assert there.dim == here.dim
    assert there.fingerprint == here.fingerprint
    assert there.describe() == here.describe()


def test_every_option_travels(where, bert_embedder):
    options = {"query_instruction": "Find: ", "max_length": 9, "on_truncate": "ignore", "normalize": False}
    here, there = (BgeEmbedder(str(bert_embedder), device="cpu", **options, **cache) for cache in ({}, where))
    np.testing.assert_allclose(there.encode_queries(TEXTS), here.encode_queries(TEXTS), rtol=0, atol=1e-5)
    here, there = (FolderEmbedder(str(bert_embedder), prompt="passage: ", **cache) for cache in ({}, where))
    np.testing.assert_allclose(there.encode_documents(TEXTS), here.encode_documents(TEXTS), rtol=0, atol=1e-5)
    assert there.fingerprint == here.fingerprint


def test_scores_are_those_of_this_process(where):
    here, there = BgeReranker(RERANKER, device="cpu"), BgeReranker(RERANKER, **where)
    for mine, theirs in zip(here.rerank(QUERY, TEXTS), there.rerank(QUERY, TEXTS), strict=True):
        assert (theirs.index, theirs.score, theirs.logit) == (
            mine.index, pytest.approx(mine.score, abs=1e-5), pytest.approx(mine.logit, abs=1e-4),
        )  # fmt: skip
    assert there.score([]) == []
    assert there.describe() == here.describe()


def test_the_three_outputs_of_bge_m3_travel(m3):
    like = "BAAI/bge-m3"
    expected = BgeM3Embedder(str(m3), like=like, device="cpu").encode_documents(TEXTS)
    with serving("--port", 0, "--like", like, models=[m3]) as server:
        got = BgeM3Embedder(str(m3), like=like, cache=server.address).encode_documents(TEXTS)
    np.testing.assert_allclose(got.dense, expected.dense, rtol=0, atol=1e-5)
    for mine, theirs in zip(expected.sparse, got.sparse, strict=True):
        np.testing.assert_array_equal(theirs.indices, mine.indices)
        np.testing.assert_allclose(theirs.values, mine.values, rtol=0, atol=1e-5)
    for mine, theirs in zip(expected.colbert, got.colbert, strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=0, atol=1e-5)


def test_a_long_call_travels_in_parts_and_keeps_its_order_and_its_warning(where, monkeypatch):
    monkeypatch.setattr(remote, "PART_CHARACTERS", 2000)
    texts = [f"text {number} " * (1 + number % 7) for number in range(300)]
    texts[123] = texts[280] = "word " * 600
    there = BgeEmbedder(EMBEDDER, **where)
    with pytest.warns(UserWarning, match=r"cut 2 text\(s\) to 512 tokens \(index 123, 280; the longest has 602"):
        got = there.encode_documents(texts)
    expected = BgeEmbedder(EMBEDDER, on_truncate="ignore").encode_documents(texts)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_iterating_reads_no_further_than_it_needs(where):
    read = []

    def texts():
        for number in range(1000):
            read.append(number)
            yield f"text {number}"

    steps = BgeEmbedder(EMBEDDER, **where).iter_documents(texts(), chunk_size=10)
    assert next(steps).shape == (10, 384)
    assert len(read) <= 30
    steps.close()


async def test_async_calls_hold_no_threads(where):
    there, before = BgeEmbedder(EMBEDDER, **where), threading.active_count()
    calls = [asyncio.create_task(there.aencode_queries([f"{QUERY} {number}"])) for number in range(64)]
    await asyncio.sleep(0)
    assert threading.active_count() <= before + 1
    assert len(await asyncio.gather(*calls)) == 64
    assert [rows.shape async for rows in there.aiter_documents(["a", "b", "c"], chunk_size=2)] == [(2, 384), (1, 384)]


def test_errors_are_those_of_the_core(where, bert_embedder):
    there = BgeEmbedder(EMBEDDER, on_truncate="raise", **where)
    with pytest.raises(InputTooLongError, match="text 1 has 602 tokens; the limit is 512"):
        there.encode_documents(["a", "word " * 600])
    with pytest.raises(ValueError, match="Text 1 holds a lone surrogate"):
        there.encode_documents(["a", "\ud800"])
    with pytest.raises(UnknownModelError, match="no embedder 'BAAI/bge-m3'"):
        BgeEmbedder("BAAI/bge-m3", **where).encode_documents(["a"])
    with pytest.raises(ValueError, match="max_length=1 leaves a text no room"):
        BgeEmbedder(EMBEDDER, max_length=1, **where).encode_documents(["a"])
    with pytest.raises(ValueError, match="dtype='bfloat16': this server was started with dtype=None"):
        BgeEmbedder(EMBEDDER, dtype="bfloat16", **where).encode_documents(["a"])
    with pytest.raises(WrongKindError, match="is no reranker"):
        BgeReranker(str(bert_embedder), **where).score([("a", "b")])


def test_no_path_of_a_request_is_opened(where, xlmr_embedder):
    with pytest.raises(UnknownModelError, match="This server has no embedder"):
        BgeEmbedder(str(xlmr_embedder), **where).encode_documents(["a"])


def test_an_address_is_plain_configuration_without_the_key(where):
    embedder = BgeEmbedder(EMBEDDER, cache="http://:secret@127.0.0.1:9")
    assert embedder.cache == "http://127.0.0.1:9"
    assert b"secret" not in pickle.dumps(embedder)
    assert repr(embedder) == f"BgeEmbedder({EMBEDDER!r}, cache='http://127.0.0.1:9')"
    again = pickle.loads(pickle.dumps(BgeEmbedder(EMBEDDER, **where)))
    assert again.encode_queries([QUERY]).shape == (1, 384)


@pytest.mark.parametrize("cache", ["ftp://host", "host:8080", "http://", "unix://relative.sock", 8080, b"auto"])
def test_a_wrong_address_is_refused_when_the_object_is_made(cache):
    with pytest.raises((ValueError, TypeError), match="address"):
        BgeEmbedder(EMBEDDER, cache=cache)


def test_the_environment_names_the_default(socket_server, monkeypatch):
    monkeypatch.setenv("BGE_CACHE", socket_server.address)
    stats = remote.remote_cache(socket_server.address).stats

    def tokens():
        return sum(model["tokens"] for model in stats()["models"] if model["model"] == EMBEDDER)

    before = tokens()
    BgeEmbedder(EMBEDDER).encode_documents(["one text"])
    assert tokens() > before
    before = tokens()
    BgeEmbedder(EMBEDDER, cache=ModelCache()).encode_documents(["one text"])
    assert tokens() == before


def test_a_server_that_is_not_there_is_a_clear_error(tmp_path):
    with pytest.raises(ServerUnavailableError, match=r"nobody\.sock cannot be reached"):
        BgeEmbedder(EMBEDDER, cache=f"unix://{tmp_path}/nobody.sock").encode_queries([QUERY])


def _embed_in_child(address, results):
    results.put(BgeEmbedder(EMBEDDER, cache=address).encode_queries([QUERY]))


def test_a_forked_child_asks_by_connections_of_its_own(where):
    expected = BgeEmbedder(EMBEDDER, **where).encode_queries([QUERY])
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forks beside threads
        child = context.Process(target=_embed_in_child, args=(where["cache"], results))
        child.start()
    np.testing.assert_allclose(results.get(), expected, rtol=0, atol=1e-5)
    child.join()
    assert child.exitcode == 0
    np.testing.assert_allclose(BgeEmbedder(EMBEDDER, **where).encode_queries([QUERY]), expected, rtol=0, atol=1e-5)


def test_a_server_behind_tls(tmp_path, monkeypatch):
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    script = f"""
import asyncio, socket, uvicorn
from bge_integrations.serve import create_app
config = uvicorn.Config(create_app([{EMBEDDER!r}]), ssl_certfile={str(tmp_path / "server.pem")!r}, log_level="warning")
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
uvicorn.Server(config).run(sockets=[listener])
"""
    with (
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as server,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(server.kill)
        there = BgeEmbedder(EMBEDDER, cache=f"https://localhost:{int(server.stdout.readline())}")
        with pytest.raises(ServerUnavailableError, match="certificate verify failed"):
            there.encode_queries([QUERY])
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
        expected = BgeEmbedder(EMBEDDER).encode_queries([QUERY])
        np.testing.assert_allclose(there.encode_queries([QUERY]), expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(asyncio.run(there.aencode_queries([QUERY])), expected, rtol=0, atol=1e-5)


def test_keys_too_many_texts_and_too_many_calls(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("first-key\nsecond-key\n")
    limits = ("--max-texts", 8, "--max-body", 4000, "--max-waiting", 1)
    with serving("--port", 0, "--api-key-file", keys, *limits) as server:
        host = server.address.removeprefix("http://")
        with pytest.raises(NotAllowedError, match="wants a key"):
            BgeEmbedder(EMBEDDER, cache=server.address).encode_queries([QUERY])
        with pytest.raises(NotAllowedError):
            BgeEmbedder(EMBEDDER, cache=f"http://:wrong@{host}").encode_queries([QUERY])
        there = BgeEmbedder(EMBEDDER, cache=f"http://:second-key@{host}", on_truncate="ignore")
        assert there.encode_queries([QUERY]).shape == (1, 384)
        expected = BgeEmbedder(EMBEDDER).encode_documents(TEXTS[:3])
        np.testing.assert_allclose(there.encode_documents(TEXTS[:3]), expected, rtol=0, atol=1e-5)
        with pytest.raises(InputTooLongError, match="4,000 bytes"):
            there.encode_documents(["word " * 2000])
        pending = [there.submit_documents([f"{QUERY} {number}"]) for number in range(30)]
        outcomes = [_outcome(one) for one in pending]
        assert OverloadedError in outcomes
        assert None in outcomes


async def test_a_call_over_a_servers_limits_travels_in_smaller_parts():
    texts = [f"text {number}" for number in range(50)]
    expected = BgeEmbedder(EMBEDDER).encode_documents(texts)
    with serving("--port", 0, "--max-texts", 8) as server:
        got = await BgeEmbedder(EMBEDDER, cache=server.address).aencode_documents(texts)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def _outcome(pending):
    try:
        pending.result()
    except Exception as error:
        return type(error)
    return None
