"""The text that the pair learns from: question-passage pairs and public-domain prose, with what each source is."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
MIN_WORDS, MAX_WORDS = 6, 70  # of an excerpt
LONG_PASSAGE, LONG_QUERY = 90, (70, 170)  # words of a passage that gives a long query, and of that query


@dataclass(frozen=True)
class Pair:
    """A query and a passage that answers it, and the set they are from."""

    query: str
    passage: str
    source: str


def read_pairs(folder: Path) -> list[Pair]:
    """Every pair of ``folder/<set>/pairs.jsonl.gz``, sets in the order of their names.

    Every other passage carries its title in front, as documents of a search engine do, unless the query is made of
    that title: the model would learn to look no further.
    """
    pairs = []
    for path in sorted(folder.glob("*/pairs.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                title, passage = row.get("title", ""), row["passage"]
                if title and title.lower() not in row["query"].lower() and zlib.crc32(passage.encode()) % 2:
                    passage = f"{title} {passage}"
                pairs.append(Pair(row["query"], passage, path.parent.name))
    if not pairs:
        raise FileNotFoundError(f"no */pairs.jsonl.gz below {folder}")
    return pairs


def excerpts(passages: Sequence[str], count: int, seed: int = 0) -> list[tuple[str, int]]:
    """``count`` pieces of one to three sentences, each with the row of the passage it was taken from."""
    random = np.random.default_rng(seed)
    taken = []
    for row in random.permutation(len(passages)).tolist():
        sentences = SENTENCE_END.split(passages[row])
        length = int(random.integers(1, 4))
        if len(sentences) > length:
            start = int(random.integers(len(sentences) - length + 1))
            piece = " ".join(sentences[start : start + length])
            if MIN_WORDS <= len(piece.split()) <= MAX_WORDS:
                taken.append((piece, row))
        if len(taken) == count:
            break
    return taken


def stretches(passages: Sequence[str], rows: Sequence[int], count: int, seed: int = 0) -> list[tuple[str, int]]:
    """``count`` runs of many words, as long queries are, each with the row of the passage it was taken from."""
    random = np.random.default_rng(seed)
    taken: list[tuple[str, int]] = []
    for row in random.permutation(rows).tolist():
        words = passages[row].split()
        if len(words) >= LONG_PASSAGE and len(taken) < count:
            length = int(random.integers(*LONG_QUERY))
            start = int(random.integers(0, max(1, len(words) - length)))
            taken.append((" ".join(words[start : start + length]), row))
    return taken


def read_prose(path: Path) -> Iterator[str]:
    """The paragraphs of a JSON Lines file with a ``text`` each."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]
