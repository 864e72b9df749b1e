"""What can't be run is refused with one clear error, before weights load where possible, and harms nobody."""

import json
import os
import shutil

import numpy as np
import pytest
import tiny
import torch
from holding import held_loads
from safetensors.torch import load_file, save_file
from transformers import BertModel

from bge_integrations import (
    BgeEmbedder,
    BgeReranker,
    MissingWeightsError,
    UnknownModelError,
    UnsupportedModelError,
    WrongKindError,
)


@pytest.fixture
def rerank(cache):
    return lambda folder, **arguments: BgeReranker(str(folder), cache=cache, device="cpu", **arguments)


@pytest.fixture
def rewrite():
    """Saves a folder's tensors anew, without those whose name contains `without`."""

    def rewrite(folder, without=None, extra=None):
        tensors = {name: t.clone() for name, t in load_file(folder / "model.safetensors").items()}
        kept = {name: t for name, t in tensors.items() if without is None or without not in name}
        save_file(kept | (extra or {}), folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return rewrite


@pytest.mark.parametrize("name", ["BAAI/bge-reranker-v2-m3", "BAAI/bge-reranker-base"])
def test_a_reranker_of_the_catalogue_is_no_embedder(name):
    with pytest.raises(WrongKindError, match="BgeReranker"):
        BgeEmbedder(name)


def test_an_embedder_of_the_catalogue_is_no_reranker():
    with pytest.raises(WrongKindError, match="BgeEmbedder"):
        BgeReranker("BAAI/bge-m3")


def test_files_tell_the_kind_before_weights_load(make, rerank, bert_embedder, bert_reranker, cache):
    with held_loads():
        with pytest.raises(WrongKindError, match="is an embedder. Use BgeEmbedder"):
            rerank(bert_embedder).score([("a", "b")])
        with pytest.raises(WrongKindError, match="is a reranker. Use BgeReranker"):
            make(bert_reranker).encode_documents(["a"])
        with pytest.raises(WrongKindError):
            make(bert_reranker, like="BAAI/bge-m3").encode_documents(["a"])
    assert cache.stats()["loads"] == 0
    assert make(bert_embedder).encode_documents(["a"]).shape == (1, 32)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("BAAI/bge-base-en-v1.6", "BAAI/bge-base-en-v1.5"),
        ("BAAI/bge-m4", "BAAI/bge-m3"),
        ("BBAI/bge-m3", "BAAI/bge-m3"),
        ("baai/bge-m3", "BAAI/bge-m3"),
        ("bge-large-zh-v1.5", "BAAI/bge-large-zh-v1.5"),
        ("BAAI/bge-rerank-v2-m3", "BAAI/bge-reranker-v2-m3"),
    ],
)
def test_a_mistyped_id_is_refused_at_construction(name, nearest):
    with pytest.raises(UnknownModelError, match=nearest):
        BgeEmbedder(name)
    with pytest.raises(UnknownModelError, match=nearest):
        BgeReranker(name)


def test_a_folder_without_weights(make, own_folder):
    (own_folder / "model.safetensors").unlink()
    with held_loads(), pytest.raises(MissingWeightsError, match=f"{own_folder} holds no weights"):
        make(own_folder).encode_documents(["a"])


@pytest.mark.parametrize("length", [0, 4, 8, 100, 20_000, -1])
def test_truncated_safetensors_are_seen_in_the_header(length, make, own_folder, bert_embedder, cache):
    file = own_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with held_loads(), pytest.raises(MissingWeightsError, match=f"{file} is .*Download it again"):
        make(own_folder).encode_documents(["a"])
    assert cache.stats()["loads"] == 0
    shutil.copy(bert_embedder / "model.safetensors", file)
    assert make(own_folder).encode_documents(["a"]).shape == (1, 32)


def test_shards(make, own_folder, bert_embedder, capfd):
    expected = make(bert_embedder).encode_documents(["a"])
    (own_folder / "model.safetensors").unlink()
    BertModel.from_pretrained(bert_embedder).save_pretrained(own_folder, max_shard_size="60KB")
    assert len(list(own_folder.glob("model-*.safetensors"))) > 2
    np.testing.assert_array_equal(make(own_folder).encode_documents(["a"]), expected)
    next(own_folder.glob("model-00002-*")).unlink()
    with held_loads(), pytest.raises(MissingWeightsError, match="lacks model-00002-of"):
        make(own_folder).encode_documents(["a"])


@pytest.mark.parametrize("backend", ["auto", "sentence_transformers"])
@pytest.mark.parametrize("missing", ["encoder.layer.1.", "embeddings.LayerNorm", "layer.0.attention.self.query.bias"])
def test_a_missing_layer_is_never_made_up(missing, backend, make, own_folder, rewrite):
    rewrite(own_folder, without=missing)
    with pytest.raises(MissingWeightsError, match=missing):
        make(own_folder, backend=backend).encode_documents(["a"])


@pytest.mark.parametrize("backend", ["auto", "sentence_transformers"])
@pytest.mark.parametrize(
    ("architecture", "missing"), [("bert", "classifier"), ("bert", "pooler"), ("xlmr", "classifier")]
)
def test_a_missing_head_is_never_made_up(architecture, missing, backend, rerank, rewrite, tmp_path):
    maker = tiny.make_bert_reranker if architecture == "bert" else tiny.make_xlmr_reranker
    folder = rewrite(maker(tmp_path), without=missing)
    with pytest.raises(MissingWeightsError, match=missing):
        rerank(folder, backend=backend).score([("a", "b")])


def test_an_embedders_unused_pooler_may_be_missing(make, own_folder, rewrite, bert_embedder):
    rewrite(own_folder, without="pooler")
    expected = make(bert_embedder).encode_documents(["a"])
    np.testing.assert_array_equal(make(own_folder).encode_documents(["a"]), expected)


def test_tensors_of_another_shape_are_refused(make, own_folder):
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(MissingWeightsError, match="another shape .*intermediate"):
        make(own_folder).encode_documents(["a"])


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("backend", ["auto", "sentence_transformers"])
def test_a_pickle_in_a_bin_file_is_not_run(backend, make, own_folder):
    tensors = load_file(own_folder / "model.safetensors")
    (own_folder / "model.safetensors").unlink()
    marker = own_folder / "payload ran"
    torch.save({**tensors, "payload": Payload(marker)}, own_folder / "pytorch_model.bin")
    with pytest.raises(MissingWeightsError, match="Nothing is unpickled"):
        make(own_folder, backend=backend).encode_documents(["a"])
    assert not marker.exists()


def test_a_genuine_bin_file_loads(make, own_folder, bert_embedder):
    torch.save(load_file(own_folder / "model.safetensors"), own_folder / "pytorch_model.bin")
    (own_folder / "model.safetensors").unlink()
    expected = make(bert_embedder).encode_documents(["a"])
    np.testing.assert_array_equal(make(own_folder).encode_documents(["a"]), expected)


def test_code_that_comes_with_a_model_is_not_run(make, own_folder):
    marker = own_folder / "code ran"
    (own_folder / "own.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    config = json.loads((own_folder / "config.json").read_text())
    (own_folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "own.Model"}}))
    assert make(own_folder).encode_documents(["a"]).shape == (1, 32)  # by transformers' own BERT
    modules = json.loads((own_folder / "modules.json").read_text())
    modules[1]["type"] = "own.Pooling"
    (own_folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match="own.Pooling"):
        make(own_folder).encode_documents(["a"])
    assert not marker.exists()


def test_two_labels_are_refused(rerank, tmp_path):
    folder = tiny.make_bert_reranker(tmp_path, num_labels=2)
    with held_loads(), pytest.raises(UnsupportedModelError, match="2 labels"):
        rerank(folder).score([("a", "b")])


def test_a_folder_that_does_not_say_how_it_pools(make, tmp_path):
    folder = tiny.make_bert_embedder(tmp_path, modules=False)
    with held_loads(), pytest.raises(UnknownModelError, match="like="):
        make(folder).encode_documents(["a"])
    assert make(folder, like="BAAI/bge-base-en-v1.5").encode_documents(["a"]).shape == (1, 32)
    with pytest.raises(UnknownModelError, match="BAAI/bge-m3"):
        make(folder, like="BAAI/bge-m33")


def test_a_folder_that_is_no_model(make, tmp_path):
    with pytest.raises(UnknownModelError, match="config.json"):
        make(tmp_path).encode_documents(["a"])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        make(tmp_path).encode_documents(["a"])


def test_a_device_that_is_not_there(make, bert_embedder):
    with pytest.raises(ValueError, match="cuda:99"):
        make(bert_embedder, device="cuda:99").encode_documents(["a"])
