"""Every sentence-transformers pipeline that begins with Transformer gives that library's vectors."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Normalize, Pooling, StaticEmbedding
from tokenizers import Tokenizer
from transformers import (
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from bge_integrations import BgeEmbedder, MissingWeightsError, UnsupportedModelError, WrongKindError

TEXTS = [line for line in tiny.TEXT.splitlines() if line] + ["", "a", "panda " * 80]


def bert(tmp_path):
    return tiny.make_bert_embedder(tmp_path / "bert")


def architecture(tmp_path, kind, config):
    """A tiny model of another architecture with the BERT tokenizer."""
    folder = tmp_path / "other"
    shutil.copytree(bert(tmp_path), folder, ignore=shutil.ignore_patterns("*.safetensors", "modules.json", "[12]_*"))
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind(config(vocab_size=size, initializer_range=0.4)).save_pretrained(folder)
    return folder


def distilbert(tmp_path):
    def config(**facts):
        return DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **facts)

    return architecture(tmp_path, DistilBertModel, config)


def mpnet(tmp_path):
    def config(**facts):
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        return MPNetConfig(pad_token_id=0, **shape, **facts)

    return architecture(tmp_path, MPNetModel, config)


def t5(tmp_path, kind=T5EncoderModel):
    def config(vocab_size, **_):
        return T5Config(vocab_size=vocab_size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)

    return architecture(tmp_path, kind, config)


def t5_with_decoder(tmp_path):
    return t5(tmp_path, T5ForConditionalGeneration)


PIPELINES = {
    "dense": (bert, lambda: [Pooling(32, "mean"), Dense(32, 12), Normalize()], 12),
    "two dense": (bert, lambda: [Pooling(32, "cls"), Dense(32, 48), Dense(48, 8)], 8),
    "max": (bert, lambda: [Pooling(32, "max"), Normalize()], 32),
    "square root": (bert, lambda: [Pooling(32, "mean_sqrt_len_tokens")], 32),
    "weighted mean": (bert, lambda: [Pooling(32, "weightedmean")], 32),
    "two poolings": (bert, lambda: [Pooling(32, ("cls", "mean")), Normalize()], 64),
    "layer norm": (bert, lambda: [Pooling(32, "mean"), LayerNorm(32), Dropout(0.5)], 32),
    "distilbert": (distilbert, lambda: [Pooling(32, "mean"), Normalize()], 32),
    "mpnet": (mpnet, lambda: [Pooling(32, "mean"), Normalize()], 32),
    "t5": (t5, lambda: [Pooling(32, "mean"), Dense(32, 24), Normalize()], 24),
    "t5 with its decoder": (t5_with_decoder, lambda: [Pooling(32, "mean"), Normalize()], 32),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_unknown_pipelines_run_through_the_library(name, make, tmp_path, cache):
    model, modules, width = PIPELINES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = SentenceTransformer(modules=[Transformer(str(model(tmp_path))), *modules()], device="cpu")
    made.max_seq_length = 48
    made.save(str(tmp_path / "pipeline"))
    reference = SentenceTransformer(str(tmp_path / "pipeline"), device="cpu")
    embedder = make(tmp_path / "pipeline", on_truncate="ignore")
    vectors = embedder.encode_documents(TEXTS)
    assert vectors.shape == (len(TEXTS), width)
    assert embedder.dim == width
    np.testing.assert_allclose(vectors, reference.encode(TEXTS), rtol=0, atol=1e-5)
    np.testing.assert_allclose(embedder.encode_queries(TEXTS[:3]), reference.encode_query(TEXTS[:3]), rtol=0, atol=1e-5)
    (entry,) = cache.stats()["models"]
    assert entry["backend"] == "sentence_transformers"
    assert entry["engine"].startswith("sentence_transformers: it")
    assert entry["bytes"] >= sum(p.numel() * p.element_size() for p in reference.parameters())
    if "dense" in name:
        with pytest.raises(UnsupportedModelError, match="Dense"):
            make(tmp_path / "pipeline", backend="torch").encode_documents(["a"])


@pytest.mark.parametrize("make_folder", [tiny.make_bert_embedder, tiny.make_xlmr_embedder])
def test_known_pipelines_saved_by_the_library_stay_fast(make_folder, make, tmp_path, cache):
    folder = make_folder(tmp_path / "model", pooling="mean", max_length=48)
    reference = SentenceTransformer(str(folder), device="cpu")
    reference.save(str(tmp_path / "saved"))
    embedder = make(tmp_path / "saved", on_truncate="ignore")
    np.testing.assert_allclose(embedder.encode_documents(TEXTS), reference.encode(TEXTS), rtol=0, atol=1e-5)
    assert cache.stats()["models"][0]["backend"] == "torch"


@pytest.mark.parametrize("missing", ["encoder.block.1", "layer_norm"])
def test_an_incomplete_encoder_of_another_architecture_is_refused(missing, make, tmp_path):
    modules = [Transformer(str(t5(tmp_path))), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "pipeline"))
    file = tmp_path / "pipeline" / "model.safetensors"
    kept = {name: tensor.clone() for name, tensor in load_file(file).items() if missing not in name}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(MissingWeightsError, match="lacks .* tensors"):
        make(tmp_path / "pipeline").encode_documents(["a"])


def test_prompts_left_out_of_the_pooling(make, tmp_path, cache):
    parts = [Transformer(str(bert(tmp_path))), Pooling(32, "mean", include_prompt=False)]
    prompts = {"query": "find the panda: ", "document": "a passage: "}
    SentenceTransformer(modules=parts, prompts=prompts, device="cpu").save(str(tmp_path / "pipeline"))
    reference = SentenceTransformer(str(tmp_path / "pipeline"), device="cpu")
    embedder = make(tmp_path / "pipeline")
    for ours, theirs in (
        (embedder.encode_queries(TEXTS[:9]), reference.encode_query(TEXTS[:9])),
        (embedder.encode_documents(TEXTS[:9]), reference.encode_document(TEXTS[:9])),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_pipeline_of_another_beginning_is_refused_by_name(make, tmp_path):
    tokenizer = Tokenizer.from_file(str(bert(tmp_path) / "tokenizer.json"))
    static = StaticEmbedding(tokenizer, embedding_dim=16)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path / "static"))
    with pytest.raises(UnsupportedModelError, match="StaticEmbedding"):
        make(tmp_path / "static").encode_documents(["a"])


def test_a_first_module_of_the_models_own_is_refused_by_name(make, own_folder):
    modules = json.loads((own_folder / "modules.json").read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (own_folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModelError, match="custom_st.Transformer"):
        make(own_folder).encode_documents(["a"])


def test_the_library_can_be_asked_for(make, minilm, cache):
    expected = SentenceTransformer(str(minilm), device="cpu").encode(TEXTS)
    for backend in ("torch", "sentence_transformers"):
        vectors = make(minilm, backend=backend, on_truncate="ignore").encode_documents(TEXTS)
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)
    engines = {model["engine"] for model in cache.stats()["models"]}
    assert engines == {"packed", "sentence_transformers: asked for"}


def test_a_cross_encoder_is_no_embedder(bert_reranker, cache):
    from sentence_transformers import CrossEncoder

    saved = bert_reranker.parent / "cross-encoder"
    CrossEncoder(str(bert_reranker), device="cpu").save(str(saved))
    with pytest.raises(WrongKindError):
        BgeEmbedder(str(saved), cache=cache, device="cpu").encode_documents(["a"])
