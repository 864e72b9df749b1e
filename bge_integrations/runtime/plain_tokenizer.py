"""BERT's and XLM-RoBERTa's tokenizers, read from tokenizer.json without transformers, which takes seconds to import."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, Metaspace, Sequence, WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.modules import read_object

Facts = Mapping[str, Any]

_READ = {
    "added_tokens_decoder", "do_lower_case", "strip_accents", "tokenize_chinese_chars", "tokenizer_class",
    "truncation_side",
}  # fmt: skip
_WITHOUT_EFFECT = {
    "add_prefix_space", "backend", "clean_up_tokenization_spaces", "do_basic_tokenize", "is_local", "max_len",
    "max_length", "model_max_length", "name_or_path", "pad_to_multiple_of", "pad_token_type_id", "processor_class",
    "sp_model_kwargs", "special_tokens_map_file", "stride", "tokenizer_file", "truncation_strategy",
}  # fmt: skip
"""Keys of tokenizer_config.json that change no token id here, where the tokenizer cuts and pads nothing."""
_UNKNOWN = "\U000f0000"
"""A character for private use, which is in no vocabulary."""
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


@dataclass(frozen=True, slots=True)
class LoadedTokenizer:
    """A tokenizer as its folder means it.

    Attributes:
        fast: The tokenizer itself.
        special: Name -> id of its special tokens, such as "pad_token" -> 0.
        takes_types: Whether its model takes token types.
        keeps_end: Whether a text that is too long loses its beginning instead of its end.
        splits_special: Whether special tokens in a text are tokenized like other words.
    """

    fast: Tokenizer
    special: Mapping[str, int]
    takes_types: bool
    keeps_end: bool
    splits_special: bool


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of tokenizer: what transformers calls it, its usual special tokens, and whether a tokenizer is one."""

    classes: tuple[str | None, ...]
    tokens: Mapping[str, str]
    takes_types: bool
    matches: Callable[[Tokenizer, Facts, Mapping[str, str]], bool]


def plain_tokenizer(folder: Folder) -> LoadedTokenizer | None:
    """Read tokenizer.json, if transformers would make the same tokenizer of the folder; return None otherwise.

    transformers does not always take the file as it is: it builds some kinds anew, of the vocabulary and the settings.
    """
    where, config, kind = folder.tokenizer_path, folder.tokenizer, _KINDS.get(folder.model_type)
    if kind is None or config.get("tokenizer_class") not in kind.classes or not (where / "tokenizer.json").is_file():
        return None
    types = ["token_type_ids"] if kind.takes_types else []
    usual = {"padding_side": "right", "model_input_names": ["input_ids", *types, "attention_mask"]}
    unusual = {key for key, value in config.items() if value and value != usual.get(key)}
    side = config.get("truncation_side", "right")
    if not config or unusual - {*kind.tokens, *_READ, *_WITHOUT_EFFECT} or side not in ("left", "right"):
        return None
    if (where / "added_tokens.json").is_file():
        return None
    fast = Tokenizer.from_file(str(where / "tokenizer.json"))
    added = fast.get_added_tokens_decoder()
    held, numbered = {t.content: t for t in added.values()}, {number: t.content for number, t in added.items()}
    named = {name: _content(config.get(name, token)) for name, token in kind.tokens.items()}
    mapped = read_object(where / "special_tokens_map.json")
    listed = config.get("added_tokens_decoder") or {}
    if (
        set(held) != set(named.values())
        or any(named.get(name) != _content(token) for name, token in mapped.items())
        or (listed and {int(number): _content(token) for number, token in listed.items()} != numbered)
        or not all(_agrees(token, held) for token in (*config.values(), *mapped.values(), *listed.values()))
        or not kind.matches(fast, config, named)
    ):
        return None
    special = {name: number for name, token in named.items() if (number := fast.token_to_id(token)) is not None}
    return LoadedTokenizer(fast, special, kind.takes_types, keeps_end=side == "left", splits_special=False)


def _content(token: Any) -> str:
    return str(token.get("content") if isinstance(token, dict) else token)


def _agrees(token: Any, held: Mapping[str, AddedToken]) -> bool:
    """Return whether a token that a configuration describes is the one in the file; True for anything else."""
    if not isinstance(token, dict) or "content" not in token:
        return True
    same = held.get(_content(token))
    return same is not None and all(bool(token.get(flag)) == getattr(same, flag) for flag in _FLAGS)


def _is_berts(fast: Tokenizer, config: Facts, named: Mapping[str, str]) -> bool:
    model, cls, sep = fast.model, named["cls_token"], named["sep_token"]
    if type(model).__name__ != "WordPiece" or model.max_input_chars_per_word != 100:
        return False
    normalizer = BertNormalizer(
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    single, pair = f"{cls}:0 $A:0 {sep}:0", f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1"
    return (
        (model.unk_token, model.continuing_subword_prefix) == (named["unk_token"], "##")
        and _same(fast.normalizer, normalizer)
        and _same(fast.pre_tokenizer, BertPreTokenizer())
        and _same(fast.post_processor, _template(fast, single, pair, cls, sep))
    )


def _is_xlm_robertas(fast: Tokenizer, config: Facts, named: Mapping[str, str]) -> bool:
    bos, eos = named["bos_token"], named["eos_token"]
    single, pair = f"{bos} $A {eos}", f"{bos} $A {eos} {eos} $B {eos}"
    return (
        type(fast.model).__name__ == "Unigram"
        and fast.encode(_UNKNOWN, add_special_tokens=False).ids[-1:] == [fast.token_to_id(named["unk_token"])] == [3]
        and config.get("add_prefix_space", True)
        and type(fast.normalizer).__name__ == "Precompiled"
        and _same(fast.pre_tokenizer, Sequence([WhitespaceSplit(), Metaspace()]))
        and _same(fast.post_processor, _template(fast, single, pair, bos, eos))
    )


def _template(fast: Tokenizer, single: str, pair: str, *tokens: str) -> TemplateProcessing:
    numbered = [(token, fast.token_to_id(token)) for token in tokens]
    return TemplateProcessing(single=single, pair=pair, special_tokens=numbered)


def _same(part: Any, wanted: Any) -> bool:
    return type(part) is type(wanted) and part.__getstate__() == wanted.__getstate__()


_BERT = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip
_XLM_ROBERTA = {
    "bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<s>",
    "sep_token": "</s>", "mask_token": "<mask>",
}  # fmt: skip
_KINDS = {
    "bert": _Kind((None, "BertTokenizer", "BertTokenizerFast"), _BERT, True, _is_berts),
    "xlm-roberta": _Kind(
        (None, "XLMRobertaTokenizer", "XLMRobertaTokenizerFast"), _XLM_ROBERTA, False, _is_xlm_robertas
    ),
}
