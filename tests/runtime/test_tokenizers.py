"""A tokenizer that is read without transformers is the one that transformers makes; every other is left to it."""

import base64
import json
import struct
from pathlib import Path

import pytest
import tiny
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

import bge_integrations
from bge_integrations import get_spec
from bge_integrations.runtime.folder import read_folder
from bge_integrations.runtime.plain_tokenizer import plain_tokenizer

TOKENS = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), tiny.SPECIAL_BERT, strict=True))

USUAL = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def settings(folder, name="tokenizer_config.json", **changes):
    """Change a folder's JSON file; None takes a key out."""
    file = folder / name
    facts = (json.loads(file.read_text()) if file.is_file() else {}) | changes
    file.write_text(json.dumps({key: value for key, value in facts.items() if value is not None}))


def rewritten(folder, change):
    file = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(file)
    change(tokenizer)
    tokenizer.save(file)


def as_transformers_makes_it(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {name: getattr(tokenizer, f"{name}_id") for name in (*TOKENS, "bos_token", "eos_token")}
    return (
        comparable(tokenizer.backend_tokenizer), {name: number for name, number in ids.items() if number is not None},
        "token_type_ids" in tokenizer.model_input_names, tokenizer.truncation_side == "left",
        bool(tokenizer.split_special_tokens),
    )  # fmt: skip


def comparable(fast):
    facts = json.loads(fast.to_str())
    return {key: value for key, value in facts.items() if key not in ("truncation", "padding", "decoder")}


def lists_tokens(folder, **flags):
    added = enumerate(TOKENS.values())
    entries = {str(number): {"content": token, **USUAL, "special": True, **flags} for number, token in added}
    settings(folder, added_tokens_decoder=entries, extra_special_tokens={}, additional_special_tokens=[])


READ = {
    "as it is": lambda folder: None,
    "as BAAI saved it": lambda folder: settings(
        folder, do_basic_tokenize=True, never_split=None, strip_accents=None, tokenize_chinese_chars=True,
        clean_up_tokenization_spaces=True, name_or_path="/a/b", special_tokens_map_file="/c",
        tokenizer_class="BertTokenizerFast",
    ),
    "as transformers saves it": lambda folder: AutoTokenizer.from_pretrained(folder).save_pretrained(folder),
    "the usual inputs": lambda folder: settings(
        folder, padding_side="right", model_input_names=["input_ids", "token_type_ids", "attention_mask"]
    ),
    "no class": lambda folder: settings(folder, tokenizer_class=None),
    "tokens listed": lists_tokens,
    "tokens mapped": lambda folder: settings(
        folder, "special_tokens_map.json", **{name: {"content": token, **USUAL} for name, token in TOKENS.items()}
    ),
    "cut on the left": lambda folder: settings(folder, truncation_side="left"),
    "cased": lambda folder: (
        settings(folder, do_lower_case=False),
        rewritten(folder, lambda t: setattr(t, "normalizer", normalizers.BertNormalizer(lowercase=False))),
    ),
    "cut and padded": lambda folder: rewritten(folder, lambda t: (t.enable_truncation(64), t.enable_padding())),
}  # fmt: skip
LEFT = {
    "one number for another token": lambda folder: settings(
        folder, added_tokens_decoder={"3": {"content": "[CLS]", **USUAL}}
    ),
    "do_lower_case against the file": lambda folder: settings(folder, do_lower_case=False),
    "strip_accents against the file": lambda folder: settings(folder, strip_accents=True),
    "cut on no side": lambda folder: settings(folder, truncation_side="up"),
    "another token": lambda folder: settings(folder, cls_token="[MASK]"),
    "a token that takes spaces": lambda folder: settings(folder, mask_token={"content": "[MASK]", "lstrip": True}),
    "one more token": lambda folder: settings(folder, additional_special_tokens=["[X]"]),
    "one more token in the map": lambda folder: settings(folder, "special_tokens_map.json", bos_token="[CLS]"),
    "tokens listed otherwise": lambda folder: lists_tokens(folder, lstrip=True),
    "one more token in the file": lambda folder: rewritten(folder, lambda t: t.add_tokens(["panda"])),
    "another pre-tokenizer": lambda folder: rewritten(
        folder, lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace())
    ),
    "another class": lambda folder: settings(folder, tokenizer_class="PreTrainedTokenizerFast"),
    "split special tokens": lambda folder: settings(folder, split_special_tokens=True),
    "inputs": lambda folder: settings(folder, model_input_names=["input_ids", "attention_mask"]),
    "padded on the left": lambda folder: settings(folder, padding_side="left"),
    "no settings": lambda folder: (folder / "tokenizer_config.json").unlink(),
    "no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
}


@pytest.mark.parametrize("change", READ.values(), ids=READ)
def test_what_is_read_is_what_transformers_makes(change, own_folder):
    change(own_folder)
    read = plain_tokenizer(read_folder(own_folder))
    assert read is not None
    fast, special, *rest = as_transformers_makes_it(own_folder)
    assert comparable(read.fast) == fast
    assert read.special == special
    assert [read.takes_types, read.keeps_end, read.splits_special] == rest


@pytest.mark.parametrize("change", LEFT.values(), ids=LEFT)
def test_what_it_might_make_otherwise_is_left_to_it(change, own_folder):
    change(own_folder)
    assert plain_tokenizer(read_folder(own_folder)) is None


def like_bge_m3(folder, **config):
    """Make the folder's tokenizer one of BAAI's kind: with sentencepiece's table of characters, here an empty one."""
    file = folder / "tokenizer.json"
    facts = json.loads(file.read_text())
    table = struct.pack("<I", 1024) + bytes(1024)
    facts["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
    for token in facts["added_tokens"]:
        token["lstrip"] = token["content"] == "<mask>"
    file.write_text(json.dumps(facts))
    settings(folder, **config)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tokenizer_class": "XLMRobertaTokenizerFast", "sp_model_kwargs": {}, "clean_up_tokenization_spaces": True},
        {"mask_token": {"__type": "AddedToken", "content": "<mask>", **USUAL, "lstrip": True}},
    ],
)
def test_xlm_roberta(config, tmp_path):
    folder = tiny.make_xlmr_embedder(tmp_path, modules=False)
    assert plain_tokenizer(read_folder(folder)) is None  # without a table transformers builds another normaliser
    like_bge_m3(folder, **config)
    if not config:
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    read = plain_tokenizer(read_folder(folder))
    fast, special, *rest = as_transformers_makes_it(folder)
    assert comparable(read.fast) == fast
    assert read.special == special
    assert [read.takes_types, read.keeps_end, read.splits_special] == rest


@pytest.mark.parametrize(
    "config",
    [
        {"mask_token": {"__type": "AddedToken", "content": "<mask>", **USUAL}},
        {"added_tokens_decoder": {"0": {"content": "<s>", **USUAL, "special": True}}},  # it drops what is not listed
    ],
)
def test_xlm_roberta_with_other_tokens_is_left_to_transformers(config, tmp_path):
    folder = tiny.make_xlmr_embedder(tmp_path, modules=False)
    like_bge_m3(folder, **config)
    assert plain_tokenizer(read_folder(folder)) is None


def test_real_tokenizers_are_read(minilm):
    package = Path(bge_integrations.__path__[0])
    pair = (package / get_spec(f"bge-integrations/mini-{kind}-en").packaged for kind in ("embedder", "reranker"))
    for folder in (minilm, *pair):
        read = plain_tokenizer(read_folder(Path(folder)))
        assert comparable(read.fast) == as_transformers_makes_it(folder)[0]
