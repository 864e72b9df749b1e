"""Trains the pair that ships with the package, from all-MiniLM-L6-v2 and a folder of question-passage pairs.

    python -m training DATA WORK

DATA holds train/<set>/pairs.jsonl.gz, data/prose/en.jsonl and the labelled sets, data/<set>. WORK keeps what each step
leaves: run it again after a stop, and it goes on at the last checkpoint. See training/README.md.
"""

import argparse
import sysconfig
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets

from training import cards, embedder, reranker, student
from training.corpus import excerpts, read_pairs, read_prose, stretches
from training.docstrings import read_docstrings
from training.evaluate import MODELS, evaluate, write
from training.package import EMBEDDER_FILES, average, ship
from training.teacher import Candidates, candidates, teacher_vectors

EMBEDDER_LAYERS, RERANKER_LAYERS = (0, 1, 3, 5), (0, 1, 2)  # of the teacher's six
SCIENCE = ("arxiv", "covid-qa", "medquad", "pubmedqa", "scitldr")
TECHNICAL = (*SCIENCE, "peps", "techdocs-ccby", "techdocs-ccbysa", "techdocs-permissive")


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

    def near(self, queries: Sequence[str], vectors: np.ndarray | None = None) -> list[Candidates]:
        """The passages that teacher and BM25 find for queries."""
        if vectors is None:
            vectors = teacher_vectors(list(queries))
        return candidates(queries, vectors, self.passages, self.vectors("passages"))

    @cached_property
    def found(self) -> list[Candidates]:
        """The same for all queries."""
        return self.near(self.queries, self.vectors("queries"))

    def of(self, sources: Sequence[str], inside: bool = True) -> np.ndarray:
        """Queries of these sources, or of the others, in one random order."""
        order = np.random.default_rng(0).permutation(len(self.queries))
        return np.array([row for row in order if (self.sources[row] in sources) == inside])

    @cached_property
    def of_science(self) -> list[int]:
        """Passages of science and medicine."""
        return sorted({self.answers[row] for row in self.of(SCIENCE)})


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
    average([work / "embedder-general", work / "embedder-technical"], work / "embedder-vectors")
    model = embedder.assemble(work / "embedder-vectors")
    few = {"queries": embedder.dataset(queries.some(1000)), "passages": embedder.dataset(passages.some(1000))}
    few["technical"] = embedder.dataset(technical.some(1500))
    lists = embedder_lists(texts)
    embedder.distil(model, few, work / "embedder-rankings-steps", steps=250, learning_rate=1e-4, lists=lists)
    model.save(str(work / "embedder"))


def embedder_lists(texts: Texts) -> Dataset:
    """Rankings for the embedder: of queries, most of them technical, and of excerpts."""
    rows = np.concatenate([texts.of(TECHNICAL)[:3500], texts.of(TECHNICAL, inside=False)[:1500]]).tolist()
    taken = excerpts(texts.passages, 1000)
    taken += [
        (text, texts.of_science[row]) for text, row in excerpts([texts.passages[r] for r in texts.of_science], 1500)
    ]
    pieces = [text for text, _ in taken]
    queries = [*(texts.queries[row] for row in rows), *pieces]
    found = [*(texts.found[row] for row in rows), *texts.near(pieces)]
    left_out = [*[-1] * len(rows), *(row for _, row in taken)]
    return embedder.rankings(queries, found, texts.passages, left_out).shuffle(seed=1)


def train_reranker(texts: Texts, pieces: Sequence[str], work: Path) -> None:
    """Leave WORK/reranker: labels first, then whole rankings, those of science and medicine, and of long queries."""
    if (work / "reranker").exists():
        return
    start = cut_body(texts, pieces, RERANKER_LAYERS, work / "reranker-start")
    sharp = reranker.lists(texts.queries, texts.found, texts.passages, texts.answers, reranker.SHARP)
    soft = reranker.lists(texts.queries, texts.found, texts.passages, texts.answers, reranker.SOFT)
    everything = range(len(texts.passages))
    part(work, "labels", start, [some(sharp, 12_000)], steps=1000)
    part(work, "rankings", work / "reranker-labels", [some(soft, 10_800), of_excerpts(texts, everything, 7_200)], 1500)
    science = [
        some(soft, 1_500),
        some(soft.select(texts.of(SCIENCE)), 2_000),
        of_excerpts(texts, texts.of_science, 2_500),
    ]
    part(work, "science", work / "reranker-rankings", science, steps=400, learning_rate=1e-4)
    average([work / "reranker-rankings", work / "reranker-science"], work / "reranker-mean")
    rows = texts.of(SCIENCE)[2_000:7_000].tolist()
    unlabelled = reranker.unlabelled_lists(
        [texts.queries[row] for row in rows],
        [texts.found[row] for row in rows],
        texts.passages,
        [-1] * len(rows),
        further=4,
    )
    mixed = [unlabelled, of_excerpts(texts, texts.of_science, 3_500, 4), of_excerpts(texts, everything, 2_500, 4)]
    part(work, "unlabelled", work / "reranker-mean", [*mixed, some(soft, 2_000)], steps=1080, learning_rate=1.5e-4)
    long = stretches(texts.passages, texts.of_science, 1_700) + stretches(texts.passages, everything, 1_000)
    lists = reranker.unlabelled_lists(
        [text for text, _ in long], texts.near([text for text, _ in long]), texts.passages, [row for _, row in long]
    )
    mixed = [lists, of_excerpts(texts, texts.of_science, 600)]
    part(work, "long", work / "reranker-unlabelled", mixed, steps=260, learning_rate=1e-4, max_length=384)
    (work / "reranker-long").rename(work / "reranker")


def of_excerpts(texts: Texts, rows: Sequence[int], count: int, further: int = 2) -> Dataset:
    """Lists for excerpts of these passages, without labels."""
    taken = excerpts([texts.passages[row] for row in rows], count)
    queries, sources = [text for text, _ in taken], [rows[row] for _, row in taken]
    return reranker.unlabelled_lists(queries, texts.near(queries), texts.passages, sources, further)


def part(
    work: Path,
    name: str,
    start: Path,
    lists: Sequence[Dataset],
    steps: int,
    learning_rate: float = 2e-4,
    max_length: int = 256,
) -> None:
    """One part of the reranker's training: from ``start`` to WORK/reranker-``name``."""
    if (work / f"reranker-{name}").exists():
        return
    model = reranker.assemble(start, max_length)
    mixed = concatenate_datasets(list(lists)).shuffle(seed=2)
    reranker.train(model, mixed, work / f"reranker-{name}-steps", steps, learning_rate)
    model.save(str(work / f"reranker-{name}"))


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
