"""Graphs are made once and kept on disk, whole or not at all; without a disk they are made in memory."""

import json
import logging
import shutil

import numpy as np
import pytest
import tiny

from bge_integrations import BgeEmbedder, ModelCache
from bge_integrations.runtime import loader, openvino_graph
from bge_integrations.runtime.folder import OPENVINO_GRAPH

LINES = tiny.TEXT.strip().splitlines()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "bge_integrations" / "openvino"


@pytest.fixture
def conversions(monkeypatch):
    """The folders whose weights were read to make a graph."""
    read, original = [], loader._tensors

    def counted(resolved):
        read.append(resolved.key.model)
        return original(resolved)

    monkeypatch.setattr(loader, "_tensors", counted)
    return read


def encode(folder, **arguments):
    """Vectors from a cache of their own, as in another process."""
    cache = ModelCache()
    embedder = BgeEmbedder(str(folder), backend="openvino", device="cpu", cache=cache, **arguments)
    vectors = embedder.encode_documents(LINES)
    cache.clear()
    return vectors


def test_a_graph_is_made_once(own_folder, home, conversions):
    first = encode(own_folder)
    np.testing.assert_array_equal(encode(own_folder), first)
    encode(own_folder, dtype="bfloat16")  # the same graph, computed otherwise
    encode(shutil.copytree(own_folder, own_folder.with_name("copy")))
    assert len(conversions) == len(list(home.iterdir())) == 1
    (graph,) = home.iterdir()
    assert sorted(file.name for file in graph.iterdir()) == ["openvino_model.bin", OPENVINO_GRAPH]


def test_other_weights_configuration_or_version_is_another_graph(own_folder, home, monkeypatch):
    first = encode(own_folder)
    tiny.make_bert_embedder(own_folder, seed=9)
    assert np.abs(encode(own_folder) - first).max() > 0.01
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 0.5}))
    encode(own_folder)
    monkeypatch.setattr(openvino_graph, "_version", lambda name: f"{name} of another day")
    encode(own_folder)
    assert len(list(home.iterdir())) == 4


def test_a_damaged_graph_is_made_again(own_folder, home, conversions, caplog):
    first = encode(own_folder)
    (weights,) = home.glob("*/*.bin")
    weights.write_bytes(weights.read_bytes()[:1000])
    np.testing.assert_array_equal(encode(own_folder), first)
    assert "is damaged" in caplog.text
    np.testing.assert_array_equal(encode(own_folder), first)
    assert len(conversions) == 2


def test_without_a_disk_to_write_to_it_runs_from_memory(own_folder, tmp_path, conversions, caplog):
    (tmp_path / "home").write_text("a file where a folder should be")
    first = encode(own_folder)
    np.testing.assert_array_equal(encode(own_folder), first)
    assert len(conversions) == 2
    assert [record.levelno for record in caplog.records if "cannot be written" in record.message] == [
        logging.WARNING
    ] * 2


def test_a_graph_that_could_not_be_written_whole_is_not_there(own_folder, home, monkeypatch):
    def full(graph, file):
        file.write_text("<?xml")
        raise RuntimeError("No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(openvino_graph, "save_graph", full)
        first = encode(own_folder)
    assert list(home.iterdir()) == []
    np.testing.assert_array_equal(encode(own_folder), first)


def test_of_two_processes_the_quicker_one_writes(home):
    openvino_graph.import_openvino()
    import openvino as library

    def make():
        node = library.opset13.parameter([2], np.float32)
        return library.Model([library.opset13.relu(node)], [node])

    def make_while_another_does():
        openvino_graph._kept(["facts"], make)
        return make()

    assert len(openvino_graph._kept(["facts"], make_while_another_does)().get_ops()) == 3
    (graph,) = home.iterdir()
    assert (graph / OPENVINO_GRAPH).is_file()
