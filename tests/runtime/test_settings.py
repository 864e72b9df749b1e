"""What sentence-transformers' files ask for is honoured, handed to that library, or refused by name."""

import json
import shutil

import numpy as np
import pytest
import tiny
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import CNN, Pooling, WeightedLayerPooling

from bge_integrations import BgeEmbedder, BgeReranker, UnsupportedModelError
from bge_integrations.embed.embedder import FolderEmbedder

LONG = "The giant panda lives in the mountains. " * 20 + "Paris is the capital of France."
TEXTS = ["", "panda [SEP] <mask>", "What does the panda EAT?", LONG]
SETTINGS, PIPELINE, TOKENIZER = (
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer_config.json",
)


def set_keys(file, **keys):
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | keys))


@pytest.fixture
def model(tmp_path):
    return tiny.make_bert_embedder(tmp_path / "model", pooling="mean", max_length=32)


def check_equal(folder, cache):
    reference = SentenceTransformer(str(folder), device="cpu")
    embedder = BgeEmbedder(str(folder), cache=cache, device="cpu", on_truncate="ignore")
    exact = FolderEmbedder(str(folder), cache=cache, device="cpu", on_truncate="ignore")
    documents = embedder.encode_documents(TEXTS)
    for ours, theirs in (
        (documents, reference.encode_document(TEXTS)),
        (embedder.encode_queries(TEXTS), reference.encode_query(TEXTS)),
        (exact.encode_documents(TEXTS), reference.encode(TEXTS)),
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert embedder.dim == embedder.describe()["dim"] == documents.shape[1]
    return embedder


HONOURED = {
    "the end of a text is kept": (TOKENIZER, {"truncation_side": "left"}),
    "special tokens are text": (TOKENIZER, {"split_special_tokens": True}),
    "capitals stay": (TOKENIZER, {"do_lower_case": False}),
    "the tokenizer's limit": (TOKENIZER, {"model_max_length": 24}),
    "no token types": (TOKENIZER, {"model_input_names": ["input_ids", "attention_mask"]}),
    "lower case": (SETTINGS, {"do_lower_case": True}),
    "no limit of its own": (SETTINGS, {"max_seq_length": None}),
    "padding left out": (SETTINGS, {"unpad_inputs": False}),
    "an empty setting": (SETTINGS, {"processing_kwargs": {}, "document_length": None}),
    "a type of the weights": (SETTINGS, {"model_args": {"torch_dtype": "float32"}}),
    "an earlier layer": (
        SETTINGS,
        {
            "modality_config": {"text": {"method": "forward", "method_output_name": ["hidden_states", 1]}},
            "module_output_name": "token_embeddings",
        },
    ),
    "shorter vectors": (PIPELINE, {"truncate_dim": 8}),
    "longer vectors than there are": (PIPELINE, {"truncate_dim": 999}),
    "prompts without text": (PIPELINE, {"prompts": {"query": None, "document": None}}),
    "a prompt for every text": (PIPELINE, {"prompts": {"x": "find: "}, "default_prompt_name": "x"}),
    "another similarity": (PIPELINE, {"similarity_fn_name": "euclidean"}),
}


@pytest.mark.parametrize("name", HONOURED)
def test_a_setting_is_honoured(name, model, cache):
    file, keys = HONOURED[name]
    set_keys(model / file, **keys)
    check_equal(model, cache)


REFUSED = {
    "processing_kwargs": (SETTINGS, {"processing_kwargs": {"text": {"max_length": 12}}}),
    "document_length": (SETTINGS, {"document_length": 12}),
    "query_length": (SETTINGS, {"query_length": 12}),
    "query_expansion": (SETTINGS, {"query_expansion": {"strategy": "fixed", "length": 32}}),
    "modality_config": (
        SETTINGS,
        {"modality_config": {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}},
    ),
    "transformer_task": (SETTINGS, {"transformer_task": "fill-mask"}),
    "tokenizer_args": (SETTINGS, {"tokenizer_args": {"padding_side": "left"}}),
    "tokenizer_name_or_path": (SETTINGS, {"tokenizer_name_or_path": "elsewhere"}),
    "max_seq_length": (SETTINGS, {"max_seq_length": "32"}),
    "something_new": (SETTINGS, {"something_new": 1}),
    "SparseEncoder": (PIPELINE, {"model_type": "SparseEncoder"}),
    "MultiVectorEncoder": (PIPELINE, {"model_type": "MultiVectorEncoder"}),
    "default prompt 'x'": (PIPELINE, {"default_prompt_name": "x"}),
    "prompts": (PIPELINE, {"prompts": {"query": 1}}),
    "truncate_dim": (PIPELINE, {"truncate_dim": "8"}),
    "no-such-package": (PIPELINE, {"requirements": {"no-such-package": ">=1"}}),
    "padding_side": (TOKENIZER, {"padding_side": "left"}),
    "attention_mask": (TOKENIZER, {"model_input_names": ["input_ids"]}),
    "pooling_mode_of_mine": ("1_Pooling/config.json", {"pooling_mode_of_mine": True}),
    "middle": ("1_Pooling/config.json", {"pooling_mode": "middle"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_is_refused_by_its_name(name, model, make):
    file, keys = REFUSED[name]
    set_keys(model / file, **keys)
    with pytest.raises((ValueError, ImportError), match=name):
        make(model).encode_documents(["a"])


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_older_names_of_the_settings(kind, model, cache):
    (model / SETTINGS).write_text("{}")
    set_keys(model / f"sentence_{kind}_config.json", max_seq_length=16, do_lower_case=False)
    assert check_equal(model, cache).describe()["max_length"] == 16


MODULES = {
    "token vectors of length one": lambda: [Normalize(module_input_name="token_embeddings"), Pooling(32, "mean")],
    "a normalisation of nothing": lambda: [Normalize(), Pooling(32, "mean")],
    "normalised into another name": lambda: [Pooling(32, "mean"), Normalize(module_output_name="other")],
    "layers": lambda: [WeightedLayerPooling(32, num_hidden_layers=2, layer_start=1), Pooling(32, "cls"), Normalize()],
    "convolutions": lambda: [CNN(32, out_channels=12, kernel_sizes=[1]), Pooling(12)],
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_in_an_order_of_their_own(name, tmp_path, cache):
    base = tiny.make_bert_embedder(tmp_path / "base", modules=False, output_hidden_states=name == "layers")
    made = SentenceTransformer(modules=[Transformer(str(base)), *MODULES[name]()], device="cpu")
    made.max_seq_length = 32
    made.save_pretrained(str(tmp_path / "saved"))
    check_equal(tmp_path / "saved", cache)


@pytest.mark.parametrize("kind", ["Router", "SpladePooling", "LSTM", "MultiVectorMask", "mine.Pooling"])
def test_a_module_that_cannot_be_run_is_refused_by_its_name(kind, model, make):
    modules = json.loads((model / "modules.json").read_text())
    prefix = "" if "." in kind else "sentence_transformers.models."
    modules.insert(1, {"idx": 1, "name": "x", "path": "x", "type": prefix + kind})
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModelError, match=kind):
        make(model).encode_documents(["a"])


def test_modules_run_in_the_order_of_the_file(model, cache):
    modules = json.loads((model / "modules.json").read_text())
    (model / "modules.json").write_text(json.dumps([entry | {"idx": 9 - entry["idx"]} for entry in modules]))
    check_equal(model, cache)


@pytest.mark.parametrize("key", [{"truncation_side": "left"}, {"split_special_tokens": True}, {"strip_accents": False}])
def test_a_fingerprint_covers_the_tokenizers_settings(key, model, make):
    before = make(model).fingerprint
    set_keys(model / TOKENIZER, **key)
    assert make(model).fingerprint != before


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cross_encoders_own_prompt(side, tmp_path, cache):
    folder = tiny.make_bert_reranker(tmp_path / "base")
    made = CrossEncoder(str(folder), device="cpu", prompts={"q": "find: "}, default_prompt_name="q")
    made.save_pretrained(str(tmp_path / "saved"))
    set_keys(tmp_path / "saved" / TOKENIZER, truncation_side=side)
    pairs = [("panda", "It eats bamboo."), ("What is Paris?", "The capital of France.")]
    reranker = BgeReranker(str(tmp_path / "saved"), cache=cache, device="cpu")
    assert reranker.describe()["query"] == "find: {query}"
    reference = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(reranker.score(pairs), reference.predict(pairs), rtol=0, atol=1e-5)
    bare = BgeReranker(str(tmp_path / "saved"), query_instruction="", cache=cache, device="cpu")
    np.testing.assert_allclose(bare.score(pairs), reference.predict(pairs, prompt=""), rtol=0, atol=1e-5)


DAMAGED = {
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    "a list": b"[1]",
    "a string": b'"x"',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "no UTF-8": b'{"a": "\xff"}',
    "cut short": b'{"a": ',
    "nothing": b"",
}
FILES = ["modules.json", "config.json", SETTINGS, PIPELINE, TOKENIZER, "1_Pooling/config.json"]


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_refused_by_its_name(damage, file, model, make):
    (model / file).write_bytes(DAMAGED[damage])
    with pytest.raises(ValueError, match=file):
        make(model).describe()


@pytest.mark.parametrize("entry", [{}, {"path": ""}, {"type": "x", "path": 1}, {"type": "x", "path": "../x"}])
def test_an_entry_of_modules_json_that_says_too_little(entry, model, make):
    (model / "modules.json").write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match="modules.json"):
        make(model).describe()


def test_a_pooling_without_its_settings_is_refused(model, make):
    shutil.rmtree(model / "1_Pooling")
    with pytest.raises(ValueError, match="1_Pooling"):
        make(model).describe()
