"""`bge quantize`: a folder in int8 that is a model of its own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from typer.testing import CliRunner

from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.cli.app import app
from bge_integrations.errors import MissingWeightsError, UnsupportedModelError, WrongKindError

LINES = tiny.TEXT.strip().splitlines()
PARENT = "BAAI/bge-small-en-v1.5"
CPU = Path("/proc/cpuinfo")
ALIKE = 0.9 if CPU.exists() and "vnni" in CPU.read_text() else 0.7
"""CPUs without VNNI saturate sums of int8 products, by which a tiny model of random weights loses more."""


def quantize(*arguments):
    return CliRunner().invoke(app, ["quantize", *map(str, arguments)])


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """An embedder that does not say how it pools."""
    return tiny.make_bert_embedder(tmp_path_factory.mktemp("bare"), modules=False)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    file.write_text("\n\n".join(LINES), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def embedder_folder(bare, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized") / "small-int8"
    done = quantize(bare, folder, "--texts", texts, "--like", PARENT)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"{folder}  ")
    return folder


@pytest.mark.parametrize("backend", ["auto", "openvino"])
def test_the_folder_is_an_embedder(backend, embedder_folder, bare, cache):
    ours = BgeEmbedder(str(embedder_folder), backend=backend, cache=cache)
    parent = BgeEmbedder(str(bare), like=PARENT, device="cpu", cache=cache)
    assert (ours.encode_documents(LINES) * parent.encode_documents(LINES)).sum(1).min() > ALIKE
    facts, others = ours.describe(), parent.describe()
    assert (facts["backend"], facts["device"], facts["dtype"]) == ("openvino", "cpu", "int8")
    assert [facts[key] for key in ("query", "pooling", "normalize", "max_length", "row")] == [
        others[key] for key in ("query", "pooling", "normalize", "max_length", "row")
    ]
    int8 = BgeEmbedder(str(bare), like=PARENT, dtype="int8", cache=cache)
    assert len({ours.fingerprint, parent.fingerprint, int8.fingerprint}) == 3


def test_the_folder_says_how_it_was_made(embedder_folder, bare):
    facts = json.loads((embedder_folder / "bge_openvino.json").read_text())
    assert (facts["dtype"], facts["model"], facts["like"], facts["texts"]) == ("int8", bare.name, PARENT, len(LINES))
    assert not list(embedder_folder.glob("*.safetensors"))


def test_a_reranker_and_json_lines(bert_reranker, tmp_path, cache):
    file, folder = tmp_path / "texts.jsonl", tmp_path / "reranker"
    file.write_text("\n".join(json.dumps({"text": line, "id": 1}) for line in LINES))
    done = quantize(bert_reranker, folder, "--texts", file)
    assert done.exit_code == 0, done.output
    pairs = [(LINES[3], line) for line in LINES]
    ours = BgeReranker(str(folder), cache=cache).score(pairs)
    theirs = BgeReranker(str(bert_reranker), device="cpu", cache=cache).score(pairs)
    assert np.corrcoef(ours, theirs)[0, 1] > ALIKE
    with pytest.raises(WrongKindError):
        BgeEmbedder(str(folder), cache=cache).describe()


@pytest.mark.slow
def test_real_weights_stay_near(texts, tmp_path, cache):
    name = "bge-integrations/mini-embedder-en"
    assert quantize(name, tmp_path / "int8", "--texts", texts).exit_code == 0
    ours, parent = BgeEmbedder(str(tmp_path / "int8"), cache=cache), BgeEmbedder(name, device="cpu", cache=cache)
    assert ours.describe()["query"] == parent.describe()["query"]
    assert (ours.encode_documents(LINES) * parent.encode_documents(LINES)).sum(1).min() > 0.97


@pytest.mark.parametrize("arguments", [{"backend": "torch"}, {"dtype": "float32"}, {"device": "cuda:0"}])
def test_it_runs_in_int8_on_openvino_alone(arguments, embedder_folder, cache):
    with pytest.raises(UnsupportedModelError, match=r"int8 graph for OpenVINO|runs on the CPU"):
        BgeEmbedder(str(embedder_folder), cache=cache, **arguments).describe()


def test_a_folder_without_its_graph_is_refused(embedder_folder, tmp_path, cache):
    folder = shutil.copytree(embedder_folder, tmp_path / "copy")
    (folder / "openvino_model.bin").unlink()
    with pytest.raises(MissingWeightsError, match=r"lacks openvino_model.bin"):
        BgeEmbedder(str(folder), cache=cache).encode_documents(LINES)


def test_what_cannot_be_quantized_is_refused_and_leaves_nothing(embedder_folder, bare, texts, tmp_path):
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n")
    target = tmp_path / "target"
    decoder = tiny.make_decoder(tmp_path / "decoder", "gemma2")
    for arguments, message in [
        ((bare, tmp_path, "--texts", texts), "is not an empty folder"),
        ((bare, target, "--texts", few, "--like", PARENT), "2 texts are too few"),
        ((bare, target, "--texts", texts), "has no modules.json"),
        ((embedder_folder, target, "--texts", texts), "is quantized already"),
        ((decoder, target, "--texts", texts, "--like", "BAAI/bge-multilingual-gemma2"), "not BERT or XLM-RoBERTa"),
    ]:
        done = quantize(*arguments)
        assert done.exit_code == 1
        assert message in done.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder", "few.txt"]
