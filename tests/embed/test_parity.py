"""Vectors are those of sentence-transformers and transformers, whatever shares the batch."""

import json
import random

import numpy as np
import pytest
import tiny
import torch
from sentence_transformers import SentenceTransformer
from transformers import CONFIG_MAPPING, AutoModel, AutoTokenizer

from bge_integrations import BgeEmbedder

LINES = tiny.TEXT.strip().splitlines()
ODD = ["", " ", "\n\t", "a", "two\nlines ", "zß€ 😀 [SEP] </s> <pad>", "panda bamboo " * 400]
TEXTS = [*LINES, *ODD]

each_architecture = pytest.mark.parametrize("make", [tiny.make_bert_embedder, tiny.make_xlmr_embedder])


def close(actual, expected, atol=3e-6):  # the tiny models' large weights blow the last digits up
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("normalize", [True, False], ids=["normalized", "raw"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "lasttoken"])
@each_architecture
def test_equals_sentence_transformers(make, pooling, normalize, tmp_path, cache):
    folder = make(tmp_path, pooling=pooling, normalize=normalize, max_length=48)
    theirs = SentenceTransformer(str(folder), device="cpu").encode_document(TEXTS)
    ours = BgeEmbedder(str(folder), on_truncate="ignore", cache=cache).encode_documents(TEXTS)
    assert (ours.dtype, ours.shape) == (np.float32, theirs.shape)
    close(ours, theirs, 3e-6 if normalize else 1e-5)


@pytest.mark.parametrize("side", ["query", "document"])
def test_real_weights_equal_sentence_transformers(side, minilm, cache):
    reference = SentenceTransformer(str(minilm), device="cpu")
    theirs = (reference.encode_query if side == "query" else reference.encode_document)(TEXTS)
    embedder = BgeEmbedder(str(minilm), on_truncate="ignore", cache=cache)
    close((embedder.encode_queries if side == "query" else embedder.encode_documents)(TEXTS), theirs, 1e-6)


@each_architecture
def test_lower_casing_by_the_pipeline(make, tmp_path, cache):
    folder = make(tmp_path)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 64, "do_lower_case": true}')
    theirs = SentenceTransformer(str(folder), device="cpu").encode(LINES)
    close(BgeEmbedder(str(folder), on_truncate="ignore", cache=cache).encode_documents(LINES), theirs)


@pytest.mark.parametrize(
    ("make", "like"),
    [(tiny.make_bert_embedder, "BAAI/bge-small-en-v1.5"), (tiny.make_xlmr_embedder, "BAAI/bge-m3")],
)
@pytest.mark.parametrize("backend", ["torch", "sentence_transformers"])
def test_a_bare_folder_is_pooled_by_its_first_token(backend, make, like, tmp_path, cache):
    folder = make(tmp_path, modules=False)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    expected = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
        with torch.no_grad():
            expected.append(torch.nn.functional.normalize(model(**inputs).last_hidden_state[0, 0], dim=0).numpy())
    embedder = BgeEmbedder(str(folder), like=like, backend=backend, on_truncate="ignore", cache=cache)
    assert embedder.describe()["pooling"] == "cls"
    close(embedder.encode_documents(TEXTS), expected)


@pytest.mark.parametrize(
    "model_type", ["mpnet", "data2vec-text", "ibert", "longformer", "luke", "roberta-prelayernorm", "xlm-roberta-xl"]
)
def test_positions_that_begin_after_the_padding_leave_room_for_512_tokens(model_type, tmp_path, cache):
    folder = tiny.make_xlmr_embedder(tmp_path)
    facts = json.loads((folder / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = CONFIG_MAPPING[model_type](
        **{name: facts[name] for name in kept}, pad_token_id=1, max_position_embeddings=514
    )
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    library = SentenceTransformer(str(folder))
    library.max_seq_length = 512
    embedder = BgeEmbedder(str(folder), on_truncate="ignore", cache=cache)
    assert embedder.describe()["max_length"] == 512
    close(embedder.encode_documents(TEXTS), library.encode(TEXTS, batch_size=1), atol=1e-5)


@pytest.mark.parametrize("modes", [["max"], ["weightedmean"], ["cls", "max"]])
@pytest.mark.parametrize("like", [None, "BAAI/bge-small-en-v1.5"])
def test_a_pooling_that_only_the_library_knows_is_described_by_its_name(modes, like, tmp_path, cache):
    folder = tiny.make_bert_embedder(tmp_path)
    pooling = {"embedding_dimension": 32, "pooling_mode": modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    embedder = BgeEmbedder(str(folder), like=like, cache=cache)
    assert embedder.describe()["pooling"] == "+".join(modes)
    close(embedder.encode_documents(LINES), SentenceTransformer(str(folder)).encode(LINES, batch_size=1))


def test_half_precision_is_close_and_float32_outside(bert_embedder, cache):
    exact = BgeEmbedder(str(bert_embedder), cache=cache).encode_documents(LINES)
    rough = BgeEmbedder(str(bert_embedder), cache=cache, dtype=torch.bfloat16).encode_documents(LINES)
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.05


@pytest.mark.parametrize("fixture", ["bert_embedder", "xlmr_embedder", "minilm"])
def test_a_vector_does_not_depend_on_its_batch(fixture, request, cache):
    folder = str(request.getfixturevalue(fixture))
    embedder = BgeEmbedder(folder, on_truncate="ignore", cache=cache)
    expected = np.concatenate([embedder.encode_documents([text]) for text in TEXTS])
    close(embedder.encode_documents(TEXTS), expected, 1e-6)
    close(embedder.encode_documents(TEXTS, show_progress=True), expected, 1e-6)
    order = random.Random(0).sample(range(len(TEXTS)), len(TEXTS))
    close(embedder.encode_documents([TEXTS[i] for i in order]), expected[order], 1e-6)
    for budget in (1, 40, 600):
        small = BgeEmbedder(folder, max_batch_tokens=budget, on_truncate="ignore", cache=cache)
        close(small.encode_documents(TEXTS), expected, 1e-6)
    assert cache.stats()["loads"] == 1


def test_the_pipeline_of_the_library_gives_the_same(bert_embedder, cache):
    ours = BgeEmbedder(str(bert_embedder), on_truncate="ignore", cache=cache)
    library = BgeEmbedder(str(bert_embedder), on_truncate="ignore", cache=cache, backend="sentence_transformers")
    close(library.encode_queries(TEXTS), ours.encode_queries(TEXTS))
    assert {model["backend"] for model in cache.stats()["models"]} == {"torch", "sentence_transformers"}


def test_prompts_of_the_folder_as_sentence_transformers_uses_them(tmp_path, cache):
    folder = tiny.make_bert_embedder(tmp_path, prompts={"query": "Find: ", "document": "Text: ", "other": "Other: "})
    config = json.loads((folder / "config_sentence_transformers.json").read_text())
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config | {"default_prompt_name": "other"}))
    theirs = SentenceTransformer(str(folder), device="cpu")
    ours = BgeEmbedder(str(folder), cache=cache)
    close(ours.encode_queries(LINES), theirs.encode_query(LINES))
    close(ours.encode_documents(LINES), theirs.encode_document(LINES))
