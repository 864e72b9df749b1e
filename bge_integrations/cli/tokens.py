"""How long a text is in the tokens of a model, and how long it may be."""

from collections.abc import Callable
from typing import cast

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.runtime.locate import locate, named_folder
from bge_integrations.runtime.source import ModelSource


def most_tokens(embedder: BgeEmbedder) -> int:
    """Return the tokens that a chunk may have: an eighth is left for special tokens and the names of docstrings."""
    return cast("int", embedder.describe()["max_length"]) * 7 // 8


def make_token_counter(model: str) -> Callable[[str], int]:
    """Return a function that counts a text's tokens, special tokens aside.

    Args:
        model: An embedder's id or folder.
    """
    from transformers import AutoTokenizer

    located = locate(ModelSource(model=model, kind="embedder", path=named_folder(model)))
    tokenizer = AutoTokenizer.from_pretrained(located.path).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
