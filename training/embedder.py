"""The embedder: its vectors become the teacher's, then its rankings those of teacher and BM25 together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, EmbedDistillLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from sentence_transformers.util import pairwise_dot_score
from torch import Tensor

from training.teacher import SCALE, Candidates, stranger

INSTRUCTION = "Represent this sentence for searching relevant passages: "
PROMPTS = {"queries": INSTRUCTION, "lists": {"query": INSTRUCTION}}  # by set, or by set and column
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

WORDS = 140  # of a passage
MAX_TOKENS = 400

BEST, FIRST, FURTHER = 8, 4, 3  # of a list: so many of the best eight, so many of the rest; and one of anywhere
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Labelled:
    """Texts and the teacher's vectors of them, (texts, 384)."""

    texts: Sequence[str]
    vectors: np.ndarray

    def rows(self, rows: np.ndarray) -> "Labelled":
        """Those of these rows."""
        return Labelled([self.texts[row] for row in rows], self.vectors[rows])

    def some(self, count: int) -> "Labelled":
        """``count`` of them, drawn at random, in their order."""
        return self.rows(np.sort(np.random.default_rng(0).permutation(len(self.texts))[:count]))

    def __add__(self, other: "Labelled") -> "Labelled":
        """Both."""
        return Labelled([*self.texts, *other.texts], np.concatenate([self.vectors, other.vectors]))


def assemble(folder: Path) -> SentenceTransformer:
    """A student with BGE's CLS pooling, normalization and instruction."""
    body = Transformer(
        str(folder), max_seq_length=MAX_TOKENS, model_kwargs={"attn_implementation": "eager"}, config_kwargs=NO_DROPOUT
    )
    modules = [body, Pooling(body.get_embedding_dimension(), pooling_mode="cls"), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu", prompts={"query": INSTRUCTION, "document": ""})


def datasets(queries: Labelled, passages: Labelled, long: int) -> dict[str, Dataset]:
    """Queries; passages, cut short, in parts of like length; and ``long`` texts of several passages."""
    short = Labelled([" ".join(text.split()[:WORDS]) for text in passages.texts], passages.vectors)
    return {"queries": dataset(queries), **by_length(short, "passages"), "long": dataset(joined(passages).some(long))}


def by_length(texts: Labelled, name: str, parts: int = 4) -> dict[str, Dataset]:
    """The texts in ``parts`` sets of like length, so that a batch is padded little."""
    order = np.argsort([len(text) for text in texts.texts], kind="stable")
    return {f"{name}{part}": dataset(texts.rows(rows)) for part, rows in enumerate(np.array_split(order, parts))}


def dataset(texts: Labelled) -> Dataset:
    """Texts with the vectors they are to get."""
    return Dataset.from_dict({"text": list(texts.texts), "label": texts.vectors.astype(np.float32)})


def joined(passages: Labelled, words: int = 350) -> Labelled:
    """Neighbours put together until they have ``words`` words, for the positions that no passage reaches.

    The teacher averages over tokens, so the vector of a joined text is the average of its parts' by their length.
    """
    texts, targets, part, weights = [], [], [], []
    for row, text in enumerate(passages.texts):
        part.append(row)
        weights.append(len(text.split()))
        if sum(weights) >= words:
            mean = np.average(passages.vectors[part].astype(np.float32), axis=0, weights=weights)
            texts.append(" ".join(passages.texts[index] for index in part))
            targets.append(mean / np.linalg.norm(mean))
            part, weights = [], []
    return Labelled(texts, np.stack(targets))


def rankings(
    queries: Sequence[str], found: Sequence[Candidates], passages: Sequence[str], left_out: Sequence[int]
) -> Dataset:
    """For every query a few passages, never the one it was taken from, with the logits of teacher and BM25."""
    random = np.random.default_rng(3)
    columns: dict[str, list[object]] = {"query": list(queries), "label": []}
    for candidates, own in zip(found, left_out, strict=True):
        kept = candidates.rows != own
        rows, logits = candidates.rows[kept], candidates.logits[kept]
        first = random.choice(BEST, FIRST, replace=False)
        picks = np.append(first, random.choice(np.arange(BEST, len(rows)), FURTHER, replace=False))
        columns["label"].append([*logits[picks].tolist(), 0.0])
        for place, row in enumerate([*rows[picks].tolist(), stranger(own, len(passages), random)]):
            columns.setdefault(f"passage{place}", []).append(" ".join(passages[row].split()[:WORDS]))
    return Dataset.from_dict(columns)


def scaled_cosine(queries: Tensor, passages: Tensor) -> Tensor:
    """Cosines of unit vectors as logits, scaled like the teacher's."""
    return SCALE * pairwise_dot_score(queries, passages)


def distil(
    student: SentenceTransformer,
    texts: Mapping[str, Dataset],
    out: Path,
    steps: int,
    learning_rate: float,
    lists: Dataset | None = None,
) -> None:
    """Train the student on ``text`` -> ``label``, the teacher's vector, and on ``lists``, from `rankings`.

    Texts of ``queries`` and the queries of ``lists`` get the instruction.
    """
    vectors = EmbedDistillLoss(student, distance_metric="cosine")
    ranking = DistillKLDivLoss(student, similarity_fct=scaled_cosine, temperature=TEMPERATURE)
    datasets = dict(texts) if lists is None else {**texts, "lists": lists}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(out),
        use_cpu=True,
        bf16=True,
        per_device_train_batch_size=32 if lists is None else 5,
        gradient_accumulation_steps=2,
        ignore_data_skip=True,
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(100, steps // 8),
        prompts={name: prompt for name, prompt in PROMPTS.items() if name in datasets},
        logging_steps=25,
        save_steps=250 if lists is None else 50,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
    )
    losses = {name: ranking if name == "lists" else vectors for name in datasets}
    trainer = SentenceTransformerTrainer(model=student, args=arguments, train_dataset=datasets, loss=losses)
    trainer.train(resume_from_checkpoint=any(out.glob("checkpoint-*")))
