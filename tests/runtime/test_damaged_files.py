"""A file that is not what its name says is named, whatever library reads it, and so is a token without an embedding."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import AddedToken, Tokenizer

from bge_integrations import BgeEmbedder, BgeM3Embedder, BgeReranker, MissingWeightsError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
JSON = ("tokenizer.json", "special_tokens_map.json")
BACKENDS = ("torch", "openvino", "sentence_transformers")


@pytest.mark.parametrize("content", [POINTER, b'{"cut', b"", b"[1]", b"\xff\xfe"], ids=str)
@pytest.mark.parametrize("name", JSON)
def test_a_damaged_file_of_the_tokenizer(name, content, make, own_folder):
    (own_folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        make(own_folder).encode_documents(["a"])


@pytest.mark.parametrize("content", [POINTER, b"\xff\xfe"], ids=str)
def test_a_vocabulary_that_is_read(content, make, own_folder):
    (own_folder / "tokenizer.json").unlink()
    (own_folder / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"vocab\.txt"):
        make(own_folder).encode_documents(["a"])


@pytest.mark.parametrize("make_folder", [tiny.make_bert_embedder, tiny.make_xlmr_embedder])
def test_without_a_vocabulary_there_is_no_tokenizer(make_folder, make, tmp_path):
    folder = make_folder(tmp_path / "model")
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    for other in ({}, {"vocab.json": '{"a": 0}'}):
        for name, content in other.items():
            (folder / name).write_text(content)
        with pytest.raises(MissingWeightsError, match="no vocabulary|lacks merges"):
            make(folder).encode_documents(["a"])


def test_an_index_that_names_no_files(make, own_folder):
    (own_folder / "model.safetensors").unlink()
    (own_folder / "model.safetensors.index.json").write_text('{"metadata": {}}')
    with pytest.raises(MissingWeightsError, match=r"model\.safetensors\.index\.json .* names no files"):
        make(own_folder).encode_documents(["a"])


def test_a_pointer_that_nobody_reads_harms_nobody(make, own_folder, bert_embedder):
    (own_folder / "vocab.txt").write_bytes(POINTER)
    (own_folder / "pytorch_model.bin").write_bytes(POINTER)
    np.testing.assert_array_equal(make(own_folder).encode_documents(["a"]), make(bert_embedder).encode_documents(["a"]))


@pytest.mark.parametrize("content", [POINTER, b"PK\x03\x04 cut", b""], ids=str)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights(name, content, make, own_folder):
    (own_folder / "model.safetensors").unlink()
    (own_folder / name).write_bytes(content)
    with pytest.raises(MissingWeightsError, match=name):
        make(own_folder).encode_documents(["a"])


@pytest.mark.parametrize("content", [POINTER, b"PK\x03\x04 cut", b""], ids=str)
def test_a_damaged_head(content, m3, tmp_path, cache):
    folder = shutil.copytree(m3, tmp_path / "m3")
    (folder / "sparse_linear.pt").write_bytes(content)
    with pytest.raises(MissingWeightsError, match=r"sparse_linear\.pt"):
        BgeM3Embedder(str(folder), like="BAAI/bge-m3", cache=cache, device="cpu").encode_documents(["a"])


@pytest.mark.parametrize("content", [POINTER, b"\x10", b""], ids=str)
def test_a_damaged_module(content, make, bert_embedder, tmp_path):
    parts = [Transformer(str(bert_embedder)), Pooling(32, "mean"), Dense(32, 8)]
    SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "pipeline"))
    (tmp_path / "pipeline" / "2_Dense" / "model.safetensors").write_bytes(content)
    with pytest.raises(MissingWeightsError, match=r"2_Dense.model\.safetensors"):
        make(tmp_path / "pipeline").encode_documents(["a"])


def with_token_outside(folder, target):
    """A copy whose tokenizer knows one word more than the model has embeddings of."""
    shutil.copytree(folder, target)
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("pandemonium")])
    tokenizer.save(str(target / "tokenizer.json"))
    return target


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_without_an_embedding_is_one_callers_fault(backend, make, bert_embedder, tmp_path):
    embedder = make(with_token_outside(bert_embedder, tmp_path / "model"), backend=backend)
    expected = embedder.encode_documents(["a panda"])

    def call(number):
        if number % 5:
            return embedder.encode_documents(["a panda"])
        with pytest.raises(ValueError, match=r"Text 2 holds the token 'pandemonium' \(id \d+\)"):
            embedder.encode_documents(["fine", "fine too", "a pandemonium"])
        return expected

    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(call, range(20)):
            np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pair", [("pandemonium", "a"), ("a", "pandemonium")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_pairs_the_pair_is_named(backend, pair, bert_reranker, tmp_path, cache):
    folder = with_token_outside(bert_reranker, tmp_path / "model")
    reranker = BgeReranker(str(folder), cache=cache, device="cpu", backend=backend)
    with pytest.raises(ValueError, match="Pair 1 holds the token 'pandemonium'"):
        reranker.score([("a", "b"), pair])


def test_a_token_without_an_embedding_for_a_decoder(tmp_path, cache):
    folder = with_token_outside(tiny.make_decoder(tmp_path / "plain", "qwen2"), tmp_path / "model")
    embedder = BgeEmbedder(str(folder), like="BAAI/bge-code-v1", cache=cache, device="cpu")
    with pytest.raises(ValueError, match="Text 0 holds the token 'pandemonium'"):
        embedder.encode_documents(["pandemonium"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_padding_token_without_an_embedding_is_only_padding(backend, make, bert_embedder, tmp_path):
    folder = shutil.copytree(bert_embedder, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "[NEW]"}))
    texts = ["a", "The giant panda eats bamboo."]
    vectors = make(folder, backend=backend).encode_documents(texts)
    np.testing.assert_allclose(vectors, make(bert_embedder).encode_documents(texts), rtol=0, atol=1e-5)
