"""The graph that is written down for OpenVINO gives what transformers gives, however the weights are stored."""

import json

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification

from bge_integrations import BgeEmbedder, BgeReranker, ModelCache
from bge_integrations.errors import MissingWeightsError, UnsupportedModelError
from bge_integrations.runtime import loader

LINES = tiny.TEXT.strip().splitlines()


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    """No test here may have a module loaded, but where torch's own format of weights needs it."""
    monkeypatch.setattr(loader, "_encoder_module", lambda *_: pytest.fail("a torch module was loaded"))


def encode(folder, **arguments):
    cache = ModelCache()
    embedder = BgeEmbedder(str(folder), backend="openvino", device="cpu", cache=cache, normalize=False, **arguments)
    return embedder.encode_documents(LINES[:6])


def reference(folder, **arguments):
    """CLS vectors of transformers, one text at a time."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False, **arguments).eval()
    with torch.inference_mode():
        encoded = [tokenizer(text, return_tensors="pt", truncation=True, max_length=512) for text in LINES[:6]]
        return torch.cat([model(**one).last_hidden_state[:, 0] for one in encoded]).numpy()


def close(actual, expected, atol=2e-5):  # the tiny models' large weights blow the last digits up
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def test_every_activation(tmp_path):
    for name in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"):
        folder = tiny.make_bert_embedder(tmp_path / name, hidden_act=name)
        close(encode(folder), reference(folder))


def test_an_activation_that_it_does_not_know_is_left_to_torch(tmp_path, monkeypatch):
    monkeypatch.undo()
    folder = tiny.make_bert_embedder(tmp_path, hidden_act="mish")
    with pytest.raises(UnsupportedModelError, match="hidden_act='mish'"):
        encode(folder)


@pytest.mark.parametrize("make", [tiny.make_bert_embedder, tiny.make_xlmr_embedder])
@pytest.mark.parametrize("config", [{"type_vocab_size": 1}, {"type_vocab_size": 2}, {"layer_norm_eps": 0.1}])
def test_settings_of_both_architectures(make, config, tmp_path):
    folder = make(tmp_path, **config)
    close(encode(folder), reference(folder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_dtype(dtype, own_folder):
    weights = {name: tensor.to(dtype) for name, tensor in load_file(own_folder / "model.safetensors").items()}
    save_file(weights, own_folder / "model.safetensors", metadata={"format": "pt"})
    close(encode(own_folder), reference(own_folder))


def test_names_of_older_checkpoints(own_folder):
    expected = encode(own_folder)
    weights = load_file(own_folder / "model.safetensors")
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        weights = {name.replace(f"LayerNorm.{new}", f"LayerNorm.{old}"): tensor for name, tensor in weights.items()}
    weights = {f"bert.{name}": tensor for name, tensor in weights.items()} | {
        "bert.embeddings.position_ids": torch.arange(512)
    }
    save_file(weights, own_folder / "model.safetensors", metadata={"format": "pt"})
    np.testing.assert_array_equal(encode(own_folder), expected)


def test_weights_in_several_files(own_folder):
    expected = encode(own_folder)
    weights = load_file(own_folder / "model.safetensors")
    (own_folder / "model.safetensors").unlink()
    files = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({n: t for n, t in weights.items() if files[n] == file}, own_folder / file, metadata={"format": "pt"})
    (own_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    np.testing.assert_array_equal(encode(own_folder), expected)


def test_weights_in_torchs_format(own_folder, monkeypatch):
    expected = encode(own_folder)
    monkeypatch.undo()
    torch.save(load_file(own_folder / "model.safetensors"), own_folder / "pytorch_model.bin")
    (own_folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(encode(own_folder), expected)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
@pytest.mark.parametrize("other", [None, torch.zeros(32, 31)], ids=["missing", "misshapen"])
def test_a_missing_or_misshapen_tensor_is_refused_by_name(backend, other, own_folder, monkeypatch):
    monkeypatch.undo()
    name = "encoder.layer.1.attention.self.key.weight"
    weights = load_file(own_folder / "model.safetensors")
    del weights[name]
    if other is not None:
        weights[name] = other
    save_file(weights, own_folder / "model.safetensors", metadata={"format": "pt"})
    embedder = BgeEmbedder(str(own_folder), backend=backend, device="cpu", cache=ModelCache())
    with pytest.raises(MissingWeightsError, match=rf"(?s){own_folder}.*{name}"):
        embedder.encode_documents(["a"])


@pytest.mark.parametrize("make", [tiny.make_bert_reranker, tiny.make_xlmr_reranker])
def test_scores(make, tmp_path):
    from transformers import AutoTokenizer

    folder = make(tmp_path)
    pairs = [(LINES[0], text) for text in LINES[:6]]
    reranker = BgeReranker(str(folder), backend="openvino", device="cpu", cache=ModelCache(), normalize=False)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        expected = [model.eval()(**tokenizer(*pair, return_tensors="pt")).logits.item() for pair in pairs]
    close(reranker.score(pairs), expected)
