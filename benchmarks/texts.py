"""Texts with the lengths of real chunks: log-normal, some 125 tokens on average, 500 at most."""

import ast
import json
import random
import sysconfig
from pathlib import Path

WORDS = 400_000


class Texts:
    """Prose and abstracts from a data folder, or the standard library's docstrings where there is none."""

    def __init__(self, data: Path | None) -> None:
        self.source = "prose and scifact" if data else "the standard library's docstrings"
        self._words = _words_of(data) if data else _docstring_words()

    def mixed(self, count: int, *, seed: int = 0) -> list[str]:
        """Texts of log-normal lengths."""
        rng = random.Random(seed)
        return [self._piece(rng, min(380, max(4, round(rng.lognormvariate(4.1, 0.8))))) for _ in range(count)]

    def of_words(self, count: int, words: int, *, seed: int = 0) -> list[str]:
        """Texts of one length."""
        rng = random.Random(seed)
        return [self._piece(rng, words) for _ in range(count)]

    def _piece(self, rng: random.Random, length: int) -> str:
        start = rng.randrange(len(self._words) - length)
        return " ".join(self._words[start : start + length])


def _words_of(data: Path) -> list[str]:
    words: list[str] = []
    for file in (data / "prose" / "en.jsonl", data / "scifact" / "corpus.jsonl"):
        half: list[str] = []
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                half += json.loads(line)["text"].split()
                if len(half) > WORDS // 2:
                    break
        words += half
    return words


def _docstring_words() -> list[str]:
    words: list[str] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words += (ast.get_docstring(node) or "").split()
        if len(words) > WORDS // 2:
            break
    return words
