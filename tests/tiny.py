"""Tiny random models of the real architectures with tokenizers made from the text below: in a second, under 1 MB.

The vocabularies are counted here because the trainers of `tokenizers` give another one in every process.
The reference side of parity tests uses these models too, so nothing of the package is imported.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from math import log
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PretrainedConfig,
    PreTrainedModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

TEXT = """
The giant panda is a bear that lives in the mountains of central China, where it eats bamboo for twelve hours a day.
A vector store keeps one vector for every passage, and a query is answered by the passages whose vectors are nearest.
Rerankers read the question together with each passage, so they are slower and more exact than embedders.
How do I sort a list of dictionaries by the value of a key? Use the function sorted with a key argument.
The capital of France is Paris, and the population of China is over one billion people.
Bread needs flour, water, salt and yeast; let the dough rest until it has doubled, then bake it until it is golden.
In 1969 two astronauts walked on the moon, collected stones and returned to the earth after eight days.
An error was raised because the connection to the server was closed before the answer had been read.
The court held that the contract was void, since neither party had signed the second page of the agreement.
Vitamin C is found in oranges, lemons and peppers; a lack of it causes scurvy, once feared by every sailor.
If interest rates rise, the price of an old bond falls, because new bonds pay their owners more.
Open the file, read it line by line, count the words, close the file and print the total to the screen.
Rain fell for three weeks; the river rose above the old bridge, and the villages downstream were flooded at night.
She played the violin every morning before school, and her brother listened quietly behind the kitchen door.
Which planet is the largest? Jupiter is the largest planet of the solar system, followed by Saturn and Uranus.
Photosynthesis turns light, water and carbon dioxide into sugar and oxygen inside the green leaves of plants.
Wer früh aufsteht, sieht die Sonne über den Bergen und hört die Vögel in den Bäumen singen.
Die Straßenbahn fährt alle zehn Minuten vom Bahnhof über die große Brücke zum Marktplatz und zurück.
Der Vertrag über die Wohnung wurde im Frühling geschlossen und gilt für fünf Jahre.
大熊猫生活在中国中部的山区，每天吃竹子。法国的首都是巴黎，中国的人口超过十亿。
向量数据库为每个段落保存一个向量，查询时返回最近的段落。重排序模型把问题和段落一起阅读。
如何按照键的值对字典列表进行排序？请使用排序函数。雨下了三个星期，河水上涨，村庄被淹没了。
"""

SPECIAL_BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SPECIAL_XLMR = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
SPECIAL_DECODER = ["<pad>", "<s>", "</s>", "<instruct>", "<query>", "<response>"]


def make_bert_embedder(
    folder: Path,
    *,
    seed: int = 0,
    pooling: str = "cls",
    normalize: bool = True,
    max_length: int | None = None,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    modules: bool = True,
    prompts: dict[str, str] | None = None,
    **config: object,
) -> Path:
    """Make a BERT embedder in `folder`, laid out as sentence-transformers does.

    Args:
        folder: Made if it is not there.
        seed: Decides the weights; the global random state stays as it is.
        pooling: "cls", "mean", "max" or "lasttoken".
        normalize: Add a Normalize module.
        max_length: max_seq_length of sentence_bert_config.json; None for the model's own 512.
        hidden: Width of the hidden states.
        layers: Number of layers.
        heads: Number of attention heads.
        modules: Write modules.json and what belongs to it; False leaves a plain transformers folder.
        prompts: Prompts of config_sentence_transformers.json.
        config: Anything else for the model's config.
    """
    shape = _shape(hidden, layers, heads)
    _save_bert(folder, BertModel, seed, shape | config)
    if modules:
        _save_modules(folder, pooling, normalize, max_length or 512, hidden, prompts)
    return folder


def make_xlmr_embedder(
    folder: Path,
    *,
    seed: int = 0,
    pooling: str = "cls",
    normalize: bool = True,
    max_length: int | None = None,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    modules: bool = True,
    prompts: dict[str, str] | None = None,
    **config: object,
) -> Path:
    """Make an XLM-RoBERTa embedder, the architecture of bge-m3; the arguments are those of `make_bert_embedder`."""
    shape = _shape(hidden, layers, heads)
    _save_xlmr(folder, XLMRobertaModel, seed, shape | config)
    if modules:
        _save_modules(folder, pooling, normalize, max_length or 512, hidden, prompts)
    return folder


def make_m3(folder: Path, *, seed: int = 0, hidden: int = 32, **config: object) -> Path:
    """Make a bge-m3: an XLM-RoBERTa embedder without modules.json, with both heads."""
    make_xlmr_embedder(folder, seed=seed, hidden=hidden, modules=False, **config)
    generator = torch.Generator().manual_seed(seed)
    for name, width in (("sparse", 1), ("colbert", hidden)):
        head = {"weight": torch.randn(width, hidden, generator=generator), "bias": torch.zeros(width)}
        torch.save(head, folder / f"{name}_linear.pt")
    return folder


def make_decoder(
    folder: Path, kind: str, *, seed: int = 0, with_head: bool = False, ends_in_eos: bool = True, **config: object
) -> Path:
    """Make a language model of an architecture such as "gemma2" or "mistral", with a tokenizer of single bytes.

    Args:
        folder: Made if it is not there.
        kind: `model_type` of transformers.
        seed: Decides the weights.
        with_head: Keep the output layer, as a reranker needs it.
        ends_in_eos: Whether the tokenizer's post-processor adds "</s>".
        config: Anything else for the model's config.
    """
    tokenizer = _bytes(ends_in_eos=ends_in_eos)
    shape = _shape(32, 2, 4) | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    size = Tokenizer.from_str(tokenizer).get_vocab_size()
    facts = AutoConfig.for_model(kind, **{**shape, **special, "vocab_size": size, **config})
    auto = AutoModelForCausalLM if with_head else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = auto.from_config(facts)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names})
    return folder


def make_bert_reranker(
    folder: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2, heads: int = 4, **config: object
) -> Path:
    """Make a BERT cross-encoder with one label (`num_labels=` gives it more)."""
    shape = {**_shape(hidden, layers, heads), "num_labels": 1}
    _save_bert(folder, BertForSequenceClassification, seed, shape | config)
    return folder


def make_xlmr_reranker(
    folder: Path, *, seed: int = 0, hidden: int = 32, layers: int = 2, heads: int = 4, **config: object
) -> Path:
    """Make an XLM-RoBERTa cross-encoder with one label, the architecture of the BGE rerankers."""
    shape = {**_shape(hidden, layers, heads), "num_labels": 1}
    _save_xlmr(folder, XLMRobertaForSequenceClassification, seed, shape | config)
    return folder


def _shape(hidden: int, layers: int, heads: int) -> dict[str, object]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
        "initializer_range": 0.4,  # twenty times the usual: different texts get clearly different vectors
    }


def _save_bert(folder: Path, kind: type[PreTrainedModel], seed: int, config: dict[str, object]) -> None:
    tokenizer = _wordpiece()
    size = Tokenizer.from_str(tokenizer).get_vocab_size()
    _save_model(folder, kind, BertConfig(**{"vocab_size": size, "max_position_embeddings": 512, **config}), seed)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    vocabulary = json.loads(tokenizer)["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)), encoding="utf-8")
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_BERT, strict=True))
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512, **names},
    )


def _save_xlmr(folder: Path, kind: type[PreTrainedModel], seed: int, config: dict[str, object]) -> None:
    tokenizer = _unigram()
    special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    size = Tokenizer.from_str(tokenizer).get_vocab_size()
    facts = {"vocab_size": size, "max_position_embeddings": 514, **special, **config}
    _save_model(folder, kind, XLMRobertaConfig(**facts), seed)
    (folder / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    positions = facts["max_position_embeddings"]
    assert isinstance(positions, int)
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token", "mask_token"), SPECIAL_XLMR, strict=True))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "XLMRobertaTokenizer",
            "model_max_length": positions - 2,
            "cls_token": "<s>",
            "sep_token": "</s>",
            **names,
        },
    )


def _save_model(folder: Path, kind: type[PreTrainedModel], config: PretrainedConfig, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = kind(config)
    config.architectures = [kind.__name__]
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})


def _save_modules(
    folder: Path, pooling: str, normalize: bool, max_length: int, hidden: int, prompts: dict[str, str] | None
) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * normalize
    _write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(kinds)
        ],
    )
    for path, _ in kinds[1:]:
        (folder / path).mkdir(exist_ok=True)
    flags = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "lasttoken": "lasttoken"}
    pooled = {f"pooling_mode_{flag}": mode == pooling for mode, flag in flags.items()}
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden, **pooled})
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write_json(folder / "config_sentence_transformers.json", {"prompts": prompts or {}, "default_prompt_name": None})


@cache
def _wordpiece() -> str:
    """Build BERT's lower-casing WordPiece tokenizer for TEXT; gives its tokenizer.json."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(TEXT))]
    starts = sorted(_frequent(word[:end] for word in words for end in range(1, len(word) + 1)))
    rests = sorted(_frequent(piece for word in words for piece in _substrings(word[1:])))
    pieces = [*SPECIAL_BERT, *starts, *(f"##{piece}" for piece in rests)]
    tokenizer.model = models.WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer.add_special_tokens(SPECIAL_BERT)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return str(tokenizer.to_str())


@cache
def _unigram() -> str:
    """Build XLM-RoBERTa's Unigram tokenizer for TEXT; gives its tokenizer.json."""
    counts = _frequent(piece for word in TEXT.split() for piece in _substrings(f"\u2581{word}"))
    total = sum(counts.values())
    pieces = [(piece, log(counts[piece] / total)) for piece in sorted(counts)]
    special = [(piece, 0.0) for piece in SPECIAL_XLMR]
    tokenizer = Tokenizer(models.Unigram([*special[:4], *pieces, special[4]], unk_id=3))
    tokenizer.add_special_tokens(SPECIAL_XLMR)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return str(tokenizer.to_str())


@cache
def _bytes(*, ends_in_eos: bool) -> str:
    """Build a byte-level BPE tokenizer without merges; gives its tokenizer.json."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*SPECIAL_DECODER, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.add_special_tokens(SPECIAL_DECODER)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if ends_in_eos else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return str(tokenizer.to_str())


def _substrings(word: str) -> Iterator[str]:
    return (word[start:end] for start in range(len(word)) for end in range(start + 1, len(word) + 1))


def _frequent(pieces: Iterable[str]) -> Counter[str]:
    """Count the pieces; keep those seen three times, and every single character, ASCII's too."""
    counts = Counter(pieces)
    counts.update(chr(code) for code in range(ord("!"), ord("~") + 1))
    return Counter({piece: count for piece, count in counts.items() if count >= 3 or len(piece) == 1})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
