"""Writes the trained pair as the folders that ship: fp16 weights, BGE's own layout of files, a card each."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

DROPOUT = 0.1  # BERT's own, for those who train on
CALL_SETTINGS = (
    "is_local",
    "local_files_only",
    "max_length",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "padding_side",
    "stride",
    "truncation_side",
    "truncation_strategy",
)  # left by training's last call
# As in BAAI's repositories: older versions of sentence-transformers read these, newer ones both.
EMBEDDER_FILES = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": {
        "word_embedding_dimension": 384,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    },
    "2_Normalize/config.json": {},
    "sentence_bert_config.json": {"max_seq_length": 512, "do_lower_case": False},
}


def average(folders: Sequence[Path], folder: Path) -> None:
    """Copy the last of ``folders`` to ``folder`` with the mean of their weights: steadier on other kinds of text."""
    shutil.copytree(folders[-1], folder)
    weights = [load_file(path / "model.safetensors") for path in folders]
    means = {name: torch.stack([tensors[name] for tensors in weights]).mean(0) for name in weights[-1]}
    save_file(means, folder / "model.safetensors", {"format": "pt"})


def ship(trained: Path, folder: Path, card: str, files: dict[str, Any]) -> None:
    """Copy a trained folder to ``folder``: weights in fp16, to be loaded in fp32 unless the caller says otherwise."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"dtype": "float32", "hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": DROPOUT}
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary.no_truncation()
    vocabulary.no_padding()
    vocabulary.save(str(folder / "tokenizer.json"))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = {key: value for key, value in tokenizer.items() if key not in CALL_SETTINGS} | {"model_max_length": 512}
    for name, content in {"config.json": config, "tokenizer_config.json": tokenizer, **files}.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
