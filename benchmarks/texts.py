"""Texts with the lengths of real chunks: log-normal, some 125 tokens on average, 500 at most."""

import ast
import random
import sysconfig
from pathlib import Path


def mixed_texts(count: int, *, seed: int = 0) -> list[str]:
    """Pieces of the standard library's docstrings."""
    words = _words(200_000)
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        length = min(380, max(4, round(rng.lognormvariate(4.1, 0.8))))
        start = rng.randrange(len(words) - length)
        texts.append(" ".join(words[start : start + length]))
    return texts


def _words(count: int) -> list[str]:
    words: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words += (ast.get_docstring(node) or "").split()
        if len(words) > count:
            break
    return words
