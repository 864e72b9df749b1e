"""OpenVINO gives what torch gives, alone and in any batch; bfloat16 stays near; what it cannot run is refused."""

import os
import subprocess
import sys
import threading

import numpy as np
import openvino
import psutil
import pytest
import tiny

from bge_integrations import BgeEmbedder, BgeM3Embedder, BgeReranker, ModelCache
from bge_integrations.errors import MissingExtraError, UnsupportedModelError
from bge_integrations.inference.backends.openvino import GROUP_TOKENS, STREAMS, _parts
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense
from bge_integrations.runtime import resolve

LINES = tiny.TEXT.strip().splitlines()
ODD = ["", " ", "\n\t", "a", "two\nlines ", "zß€ 😀 [SEP] </s> <pad>", "panda bamboo " * 400]
TEXTS = [*LINES, *ODD]

each_embedder = pytest.mark.parametrize("make", [tiny.make_bert_embedder, tiny.make_xlmr_embedder])


@pytest.fixture
def both(cache):
    """Makes the same embedder or reranker twice: on torch, and on OpenVINO."""

    def both(kind, folder, **arguments):
        common = {"cache": cache, "device": "cpu", "on_truncate": "ignore", **arguments}
        return kind(str(folder), backend="torch", **common), kind(str(folder), backend="openvino", **common)

    return both


def close(actual, expected, atol=1e-5):
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def cosines(actual, expected):
    return (actual * expected).sum(1) / np.linalg.norm(actual, axis=1) / np.linalg.norm(expected, axis=1)


@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
@each_embedder
def test_vectors_equal_torch(make, pooling, tmp_path, both):
    torch, openvino = both(BgeEmbedder, make(tmp_path, pooling=pooling))
    close(openvino.encode_documents(TEXTS), torch.encode_documents(TEXTS))


@each_embedder
def test_vectors_equal_torch_cut_short_and_unnormalized(make, tmp_path, both):
    folder = make(tmp_path, max_position_embeddings=23)  # no whole number of steps, nor of positions of padding
    torch, openvino = both(BgeEmbedder, folder, normalize=False, truncate_dim=8, max_length=21)
    expected = torch.encode_documents(TEXTS)
    assert expected.shape == (len(TEXTS), 8)
    close(openvino.encode_documents(TEXTS), expected, 3e-5)  # the tiny models' large weights blow the last digits up


@pytest.mark.parametrize("tokens", [1, 50, 300, 10_000])
def test_vectors_do_not_depend_on_the_batch(tokens, bert_embedder, both):
    torch, openvino = both(BgeEmbedder, bert_embedder, max_batch_tokens=tokens)
    close(openvino.encode_documents(TEXTS), torch.encode_documents(TEXTS))


def test_many_threads_get_their_own_vectors(xlmr_embedder, both):
    torch, openvino = both(BgeEmbedder, xlmr_embedder)
    expected, given = torch.encode_queries(LINES), {}

    def ask(index):
        given[index] = openvino.encode_queries([LINES[index]])[0]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(LINES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close(np.stack([given[index] for index in range(len(LINES))]), expected)


@pytest.mark.parametrize("make", [tiny.make_bert_reranker, tiny.make_xlmr_reranker])
def test_scores_equal_torch(make, tmp_path, both):
    torch, openvino = both(BgeReranker, make(tmp_path))
    pairs = [(LINES[0], text) for text in TEXTS] + [(text, LINES[1]) for text in ODD]
    np.testing.assert_allclose(openvino.score(pairs), torch.score(pairs), rtol=0, atol=1e-5)


def test_real_weights_equal_torch(minilm, both):
    torch, openvino = both(BgeEmbedder, minilm)
    expected = torch.encode_documents(TEXTS)
    close(openvino.encode_documents(TEXTS), expected, 1e-6)
    _, rough = both(BgeEmbedder, minilm, dtype="bfloat16")
    assert cosines(rough.encode_documents(TEXTS), expected).min() > 0.9995


def test_dense_vectors_of_m3(m3, both):
    torch, openvino = both(BgeEmbedder, m3, like="BAAI/bge-m3")
    close(openvino.encode_documents(TEXTS), torch.encode_documents(TEXTS))
    _, dense = both(BgeM3Embedder, m3, like="BAAI/bge-m3", outputs=["dense"])
    close(dense.encode_documents(LINES).dense, torch.encode_documents(LINES))
    _, everything = both(BgeM3Embedder, m3, like="BAAI/bge-m3")
    with pytest.raises(UnsupportedModelError, match='backend="openvino" gives dense vectors only'):
        everything.encode_documents(LINES)


def test_bfloat16_is_near_and_computes_exactly_where_asked(bert_embedder, both, cache):
    expected = both(BgeEmbedder, bert_embedder)[0].encode_documents(LINES)
    _, rough = both(BgeEmbedder, bert_embedder, dtype="bfloat16")
    assert cosines(rough.encode_documents(LINES), expected).min() > 0.99
    engine = next(r.engine for r in cache._residents.loaded() if r.key.dtype == "bfloat16")
    batch = TokenBatch.of(engine.tokenizer.texts(LINES, max_length=512))
    close(engine.backend.run(batch, Dense(), exact=True), expected)


def test_groups_are_within_their_tokens_and_leave_no_stream_idle():
    lengths = np.array([600, 400, 100, 90, *[16] * 60])
    groups = [lengths[part] for part in _parts(lengths)]
    assert np.concatenate(groups).tolist() == lengths.tolist()
    assert all(len(group) == 1 or len(group) * group[0] <= GROUP_TOKENS for group in groups)
    assert len(list(_parts(np.full(64, 4)))) == STREAMS
    assert list(_parts(np.array([4]))) == [slice(0, 1)]


def test_not_every_length_of_text_takes_memory_of_its_own(bert_embedder, both):
    _, openvino = both(BgeEmbedder, bert_embedder, dtype="bfloat16")
    texts = ["a " * words for words in range(1, 510)]

    def growth(texts):
        before = psutil.Process().memory_info().rss
        for text in texts:
            openvino.encode_documents([text])
        return psutil.Process().memory_info().rss - before

    growth(texts[::8])
    assert growth(texts) < 30e6  # several times that where each of the 509 lengths is a shape


def test_int8_says_and_writes_nothing_and_reports_to_nobody(bert_embedder, tmp_path):
    script = (
        "import sys\n"
        "from bge_integrations import BgeEmbedder, default_cache\n"
        "embedder = BgeEmbedder(sys.argv[1], dtype='int8', device='cpu')\n"
        "assert embedder.encode_documents(sys.argv[2:]).shape == (2, 32)\n"
        "assert embedder.describe()['backend'] == 'openvino'\n"
        "assert not {'openvino_telemetry', 'nncf'} & set(sys.modules)\n"
        "import openvino_telemetry\n"  # blocked only while openvino was imported
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run = [sys.executable, "-c", script, str(bert_embedder), *LINES[:2]]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_int8_is_a_model_of_its_own(bert_embedder, cache):
    def fingerprint(**arguments):
        return BgeEmbedder(str(bert_embedder), cache=cache, device="cpu", **arguments).fingerprint

    exact = fingerprint(backend="torch")
    assert fingerprint(backend="openvino") == fingerprint(backend="openvino", dtype="bfloat16") == exact
    assert fingerprint(dtype="int8") == fingerprint(backend="openvino", dtype="int8") != exact


def test_auto_takes_it_for_models_worth_compiling(minilm, bert_embedder, m3, cache, monkeypatch):
    def chosen(folder, **arguments):
        return BgeEmbedder(str(folder), cache=cache, **arguments).describe()["backend"]

    assert chosen(minilm, device="cpu") == "openvino"
    assert chosen(minilm, device="cpu", dtype="bfloat16") == "torch"
    assert chosen(bert_embedder, device="cpu") == "torch"
    monkeypatch.setattr(resolve, "_WORTH_COMPILING", 0)
    assert chosen(bert_embedder, device="cpu", dtype="float32") == "openvino"
    assert chosen(m3, device="cpu", like="BAAI/bge-m3") == "torch"
    monkeypatch.setattr(resolve, "find_spec", lambda name: None)
    assert chosen(bert_embedder, device="cpu:0", dtype="float32", local_files_only=True) == "torch"


@pytest.mark.parametrize("step", ["Model", "Core"])
def test_auto_goes_on_with_torch_where_openvino_fails(step, tmp_path, cache, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no such operation")

    folder = str(tiny.make_bert_embedder(tmp_path / "model", seed=5))
    monkeypatch.setattr(resolve, "_WORTH_COMPILING", 0)
    expected = BgeEmbedder(folder, cache=ModelCache(), device="cpu", backend="torch").encode_documents(LINES)
    monkeypatch.setattr(openvino, step, fail)
    with caplog.at_level("WARNING", logger="bge_integrations"):
        for offline in (False, True):  # another source each
            embedder = BgeEmbedder(folder, cache=cache, device="cpu", local_files_only=offline)
            close(embedder.encode_documents(LINES[:3]), expected[:3])
    (warning,) = caplog.records
    assert "runs on torch, not on OpenVINO" in warning.getMessage()
    (model,) = cache.stats()["models"]
    assert model["backend"] == "torch"
    assert model["engine"].startswith("packed; OpenVINO cannot run the model (RuntimeError: no such operation)")
    explicit = BgeEmbedder(folder, cache=cache, device="cpu", backend="openvino")
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="OpenVINO cannot run the model"):
            explicit.encode_documents(LINES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "cuda:0"}, 'runs on the CPU, not on device="cuda:0"'),
        ({"dtype": "float16"}, "Use float32, bfloat16 or int8"),
    ],
)
def test_what_openvino_cannot_do_is_refused(arguments, message, bert_embedder, cache):
    embedder = BgeEmbedder(str(bert_embedder), backend="openvino", cache=cache, **arguments)
    with pytest.raises(UnsupportedModelError, match=message):
        embedder.encode_documents(LINES)


def test_other_architectures_are_refused(tmp_path, cache):
    folder = str(tiny.make_decoder(tmp_path, "gemma2"))
    for arguments in ({"backend": "openvino"}, {"dtype": "int8"}):
        embedder = BgeEmbedder(folder, like="BAAI/bge-multilingual-gemma2", cache=cache, **arguments)
        with pytest.raises(UnsupportedModelError, match="not BERT or XLM-RoBERTa"):
            embedder.describe()


@pytest.mark.parametrize("backend", ["torch", "sentence_transformers"])
def test_int8_on_another_backend_is_refused_at_once(backend, bert_embedder):
    with pytest.raises(ValueError, match='dtype="int8" runs on backend="openvino" alone'):
        BgeEmbedder(str(bert_embedder), backend=backend, dtype="int8")


def test_without_the_package_the_error_names_the_extra(bert_embedder, cache, monkeypatch):
    monkeypatch.setattr(resolve, "find_spec", lambda name: None)
    monkeypatch.setattr(resolve, "sys", type("Sys", (), {"modules": {}}))
    with pytest.raises(MissingExtraError, match=r"bge_integrations\[openvino\]"):
        BgeEmbedder(str(bert_embedder), backend="openvino", cache=cache).describe()


@pytest.mark.parametrize("cores", ["1", "1,2"])
def test_it_takes_as_many_cores_as_omp_num_threads_says(cores, bert_embedder):
    code = (
        "import sys; from bge_integrations import BgeEmbedder, default_cache\n"
        "BgeEmbedder(sys.argv[1], backend='openvino', device='cpu').encode_queries(['panda'])\n"
        "print(default_cache().stats()['models'][0]['engine'])"
    )
    command = [sys.executable, "-c", code, str(bert_embedder)]
    run = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": cores}, capture_output=True, text=True)
    assert "1 groups of texts at a time" in run.stdout, run.stderr
