"""Trains the pair that ships with the package, from all-MiniLM-L6-v2 and a folder of question-passage pairs.

    python -m training DATA WORK

DATA holds train/<set>/pairs.jsonl.gz, data/prose/en.jsonl and the labelled sets, data/<set>. WORK keeps what each step
leaves: run it again after a stop, and it goes on at the last checkpoint. See training/README.md.
"""

import argparse
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from training import cards, embedder, reranker, student
from training.corpus import excerpts, read_pairs, read_prose
from training.docstrings import read_docstrings
from training.evaluate import MODELS, evaluate, write
from training.package import EMBEDDER_FILES, average, ship
from training.teacher import candidates, teacher_vectors

EMBEDDER_LAYERS, RERANKER_LAYERS = (0, 1, 3, 5), (0, 1, 2)  # of the teacher's six
SCIENCE = ("arxiv", "covid-qa", "medquad", "pubmedqa", "scitldr")


class Texts:
    """The training text, and what the teacher says about it."""

    def __init__(self, data: Path, work: Path) -> None:
        pairs = read_pairs(data / "train")
        self.queries = [pair.query for pair in pairs]
        self.sources = [pair.source for pair in pairs]
        self.passages = list(dict.fromkeys(pair.passage for pair in pairs))
        self.prose = list(read_prose(data / "data" / "prose" / "en.jsonl"))
        rows = {passage: row for row, passage in enumerate(self.passages)}
        self.answers = [rows[pair.passage] for pair in pairs]
        self.work = work

    def labelled(self, name: str) -> embedder.Labelled:
        """The texts of that name with the teacher's vectors."""
        return embedder.Labelled(getattr(self, name), self.vectors(name))

    def vectors(self, name: str) -> np.ndarray:
        """The teacher's of "queries", "passages" or "prose", (texts, 384) float16."""
        path = self.work / f"{name}.npy"
        if not path.exists():
            np.save(path, teacher_vectors(getattr(self, name)))
        return np.load(path)


def main() -> None:
    """Every step that WORK does not hold yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    texts = Texts(arguments.data, work)
    pieces = student.cut_vocabulary([*texts.passages, *texts.queries, *texts.prose])
    train_embedder(texts, pieces, work)
    train_reranker(texts, pieces, work)
    results = evaluate(arguments.data / "data", work / "embedder", work / "reranker")
    write(results)
    ship(work / "embedder", MODELS / "mini-embedder-en", cards.embedder(results), EMBEDDER_FILES)
    ship(work / "reranker", MODELS / "mini-reranker-en", cards.reranker(results), {})


def train_embedder(texts: Texts, pieces: Sequence[str], work: Path) -> None:
    """Leave WORK/embedder: general text first, then technical text too."""
    if (work / "embedder").exists():
        return
    queries, passages, prose = (texts.labelled(name) for name in ("queries", "passages", "prose"))
    model = embedder.assemble(cut_body(texts, pieces, EMBEDDER_LAYERS, work / "embedder-start"))
    real = embedder.datasets(queries, passages + prose, long=2000)
    embedder.distil(model, real, work / "embedder-general-steps", steps=1500, learning_rate=5e-4)
    prose_of_code = read_docstrings(work / "packages", Path(sysconfig.get_path("purelib")))
    technical = embedder.Labelled(prose_of_code, teacher_vectors(prose_of_code))
    mixed = embedder.datasets(queries.some(12_000), passages.some(16_000), long=500)
    mixed |= embedder.by_length(technical, "technical", parts=3)
    model.save(str(work / "embedder-general"))
    embedder.distil(model, mixed, work / "embedder-technical-steps", steps=700, learning_rate=2e-4)
    model.save(str(work / "embedder-technical"))
    average([work / "embedder-general", work / "embedder-technical"], work / "embedder")


def train_reranker(texts: Texts, pieces: Sequence[str], work: Path) -> None:
    """Leave WORK/reranker: labels first, then whole rankings, then those of science and medicine once more."""
    if (work / "reranker").exists():
        return
    passages, vectors = texts.passages, texts.vectors("passages")
    found = candidates(texts.queries, texts.vectors("queries"), passages, vectors)

    def of_excerpts(rows: Sequence[int], count: int) -> Dataset:
        taken = excerpts([passages[row] for row in rows], count)
        queries, sources = [text for text, _ in taken], [rows[row] for _, row in taken]
        near = candidates(queries, teacher_vectors(queries), passages, vectors)
        return reranker.excerpt_lists(queries, near, passages, sources)

    sharp = reranker.lists(texts.queries, found, passages, texts.answers, reranker.SHARP)
    soft = reranker.lists(texts.queries, found, passages, texts.answers, reranker.SOFT)
    science = [row for row, source in enumerate(texts.sources) if source in SCIENCE]
    of_science = sorted({texts.answers[row] for row in science})
    parts = {
        "labels": ([sharp.shuffle(seed=0)], 1000, 2e-4),
        "rankings": ([some(soft, 10_800), of_excerpts(range(len(passages)), 7_200)], 1500, 2e-4),
        "science": ([some(soft, 1_500), some(soft.select(science), 2_000), of_excerpts(of_science, 2_500)], 400, 1e-4),
    }
    model = reranker.assemble(cut_body(texts, pieces, RERANKER_LAYERS, work / "reranker-start"))
    for name, (datasets, steps, learning_rate) in parts.items():
        mixed = concatenate_datasets(datasets).shuffle(seed=2)
        reranker.train(model, mixed, work / f"reranker-{name}-steps", steps, learning_rate)
        model.save(str(work / f"reranker-{name}"))
    average([work / "reranker-rankings", work / "reranker-science"], work / "reranker")


def some(lists: Dataset, count: int) -> Dataset:
    """``count`` of them, drawn at random."""
    return lists.shuffle(seed=1).select(range(count))


def cut_body(texts: Texts, pieces: Sequence[str], layers: Sequence[int], folder: Path) -> Path:
    """The untrained student of these layers of the teacher."""
    student.write_tokenizer(pieces, folder)
    student.cut_model(pieces, layers, texts.passages[::200]).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
