"""What a fine-tune's config.json says beside its model changes no number, and no text's numbers know its neighbours."""

import json
import shutil

import numpy as np
import pytest
import tiny
import transformers

from bge_integrations import BgeEmbedder, BgeM3Embedder, BgeReranker, UnsupportedModelError

TEXTS = [*[line for line in tiny.TEXT.splitlines() if line][:5], "", "a"]
PAIRS = [*zip(TEXTS, reversed(TEXTS), strict=True)]
PACKAGING = [
    {"return_dict": False},
    {"use_return_dict": False},
    {"output_hidden_states": True},
    {"output_attentions": True, "_attn_implementation": "sdpa"},
    {"torchscript": True, "use_cache": True, "gradient_checkpointing": True},
    {"chunk_size_feed_forward": 7},
    {"add_cross_attention": True},
    {"dtype": "no such type"},
    {"pad_token_id": 10**6},
    {"_attn_implementation": "sdpa"},
    {"attn_implementation": "eager"},
    {"attn_implementation": {"": "eager", "text_config": "sdpa"}},
    {"_attn_implementation_internal": "eager"},
    {"_attn_implementation": "flash_attention_2"},
    {"_attn_implementation": "flex_attention"},
    {"attention_implementation": "flash", "_attn_implementation_autoset": True},
    {"_attn_implementation": "no such attention"},
]
TOO_MUCH_FOR_THE_LIBRARY = ("use_return_dict", "output_attentions", "add_cross_attention", "dtype", "pad_token_id")
LIBRARY = [keys for keys in PACKAGING if not set(TOO_MUCH_FOR_THE_LIBRARY) & set(keys)]
DECODERS = ("llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3")


def rewritten(folder, target, **keys):
    """A copy of a folder with keys set in its config.json."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text()) | keys
    (target / "config.json").write_text(json.dumps(config))
    return target


def alone_and_together(call, items):
    return call(items), np.concatenate([call([item]) for item in items])


@pytest.mark.parametrize("keys", PACKAGING, ids=str)
def test_an_embedder(keys, bert_embedder, tmp_path, make, cache):
    expected = make(bert_embedder).encode_documents(TEXTS)
    embedder = make(rewritten(bert_embedder, tmp_path / "model", **keys), backend="torch")
    for vectors in alone_and_together(embedder.encode_documents, TEXTS):
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)
    assert {model["engine"] for model in cache.stats()["models"]} == {"packed"}


@pytest.mark.parametrize("keys", LIBRARY, ids=str)
def test_an_embedder_through_the_library(keys, bert_embedder, tmp_path, make):
    expected = make(bert_embedder).encode_documents(TEXTS)
    embedder = make(rewritten(bert_embedder, tmp_path / "model", **keys), backend="sentence_transformers")
    for vectors in alone_and_together(embedder.encode_documents, TEXTS):
        np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("keys", [PACKAGING[1], PACKAGING[3], PACKAGING[6]], ids=str)
def test_what_the_library_cannot_take_is_refused_by_name(keys, bert_embedder, tmp_path, make):
    folder = rewritten(bert_embedder, tmp_path / "model", **keys)
    with pytest.raises(UnsupportedModelError, match=r"model cannot be loaded"):
        make(folder, backend="sentence_transformers").encode_documents(["a"])


@pytest.mark.parametrize("keys", [PACKAGING[0], PACKAGING[2], PACKAGING[13]], ids=str)
@pytest.mark.parametrize("make_folder", [tiny.make_bert_reranker, tiny.make_xlmr_reranker])
@pytest.mark.parametrize("backend", ["torch", "openvino", "sentence_transformers"])
def test_a_reranker(keys, make_folder, backend, tmp_path, cache):
    plain = make_folder(tmp_path / "plain")
    expected = BgeReranker(str(plain), cache=cache, device="cpu", normalize=False).score(PAIRS)
    folder = rewritten(plain, tmp_path / "model", **keys)
    reranker = BgeReranker(str(folder), cache=cache, device="cpu", normalize=False, backend=backend)
    for scores in alone_and_together(reranker.score, PAIRS):
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


EVERYTHING = {
    "return_dict": False,
    "use_return_dict": True,
    "output_hidden_states": True,
    "output_attentions": True,
    "chunk_size_feed_forward": 7,
    "_attn_implementation": "flash_attention_2",
}


def m3_outputs(folder, cache):
    got = BgeM3Embedder(str(folder), like="BAAI/bge-m3", cache=cache, device="cpu").encode_documents(TEXTS)
    return np.concatenate([got.dense, np.stack([vectors.sum(axis=0) for vectors in got.colbert])])


def decoder_vectors(folder, cache):
    embedder = BgeEmbedder(str(folder), like="BAAI/bge-multilingual-gemma2", cache=cache, device="cpu")
    return np.concatenate(alone_and_together(embedder.encode_documents, TEXTS))


def decoder_scores(folder, cache):
    reranker = BgeReranker(str(folder), like="BAAI/bge-reranker-v2-gemma", cache=cache, device="cpu")
    return np.concatenate(alone_and_together(reranker.score, PAIRS))


@pytest.mark.parametrize(
    ("make_folder", "compute"),
    [
        (tiny.make_m3, m3_outputs),
        (lambda folder: tiny.make_decoder(folder, "gemma2"), decoder_vectors),
        (lambda folder: tiny.make_decoder(folder, "gemma", with_head=True), decoder_scores),
    ],
    ids=["m3", "embedder on a decoder", "reranker on a decoder"],
)
def test_other_families(make_folder, compute, tmp_path, cache):
    plain = make_folder(tmp_path / "plain")
    expected = compute(plain, cache)
    got = compute(rewritten(plain, tmp_path / "model", **EVERYTHING), cache)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    assert {model["engine"] for model in cache.stats()["models"]} == {"packed"}


def classifier(folder, kind, **keys):
    tiny.make_decoder(folder, kind, ends_in_eos=True)
    config = transformers.AutoConfig.from_pretrained(folder, num_labels=1)
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text()) | keys
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


@pytest.mark.parametrize(("kind", "pad_id"), [*((kind, None) for kind in DECODERS), ("qwen3", -1), ("llama", 10**6)])
def test_a_decoder_that_classifies_needs_no_padding_token(kind, pad_id, tmp_path, cache):
    folder = classifier(tmp_path / "model", kind, pad_token_id=pad_id)
    reranker = BgeReranker(str(folder), cache=cache, device="cpu", normalize=False)
    together, alone = alone_and_together(reranker.score, PAIRS)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | {"pad_token_id": None}))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = [model(**tokenizer([query], [text], return_tensors="pt")).logits.item() for query, text in PAIRS]
    np.testing.assert_allclose(together, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pad_id", [None, -1, 10**6])
def test_through_the_library_it_takes_the_tokenizers(pad_id, tmp_path, cache):
    folder = classifier(tmp_path / "model", "qwen3", pad_token_id=pad_id)
    scores = [
        alone_and_together(BgeReranker(str(folder), cache=cache, device="cpu", backend=backend).score, PAIRS)
        for backend in ("torch", "sentence_transformers")
    ]
    np.testing.assert_allclose(np.ravel(scores), np.tile(scores[0][1], 4), rtol=0, atol=1e-5)
