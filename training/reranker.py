"""The reranker: a cross-encoder that learns from teacher, BM25 and labels together which of a few passages answers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import ListNetLoss

from training.embedder import NO_DROPOUT
from training.teacher import Candidates, stranger

HARD, HARDEST = 2, 10  # passages of a query among its first ten; with them some further down, and one of anywhere
LABEL_MARGIN = 2.0  # the labelled passage's logit over the best other
SHARP, SOFT = 1.0, 4.0  # temperatures of the targets: the labelled passage alone, or the whole ranking


def lists(
    queries: Sequence[str],
    found: Sequence[Candidates],
    passages: Sequence[str],
    answers: Sequence[int],
    temperature: float,
    further: int = 2,
) -> Dataset:
    """For every query its labelled passage and a few others, ``further`` of them from further down, with logits."""
    random = np.random.default_rng(0)
    texts, targets = [], []
    for candidates, answer in zip(found, answers, strict=True):
        rows, logits = others(candidates, answer, len(passages), random, further)
        own = candidates.logits[candidates.rows == answer]
        best = max(*logits, *own)
        texts.append([passages[row] for row in (answer, *rows)])
        targets.append(np.array([best + LABEL_MARGIN, *logits]) / temperature)
    return Dataset.from_dict({"query": list(queries), "documents": texts, "label": targets})


def unlabelled_lists(
    queries: Sequence[str],
    found: Sequence[Candidates],
    passages: Sequence[str],
    left_out: Sequence[int],
    further: int = 2,
) -> Dataset:
    """For every query a few passages, never the one it was taken from (-1 for none), with the logits to learn."""
    random = np.random.default_rng(1)
    picked = [
        others(candidates, source, len(passages), random, further)
        for candidates, source in zip(found, left_out, strict=True)
    ]
    texts = [[passages[row] for row in rows] for rows, _ in picked]
    targets = [logits / SOFT for _, logits in picked]
    return Dataset.from_dict({"query": list(queries), "documents": texts, "label": targets})


def others(
    candidates: Candidates, left_out: int, total: int, random: np.random.Generator, further: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and logits of a few candidates, and of a passage from anywhere, whose logit is 0."""
    kept = candidates.rows != left_out
    rows, logits = candidates.rows[kept], candidates.logits[kept]
    picks = np.concatenate(
        [
            random.choice(HARDEST, HARD, replace=False),
            random.choice(np.arange(HARDEST, len(rows)), further, replace=False),
        ]
    )
    return np.append(rows[picks], stranger(left_out, total, random)), np.append(logits[picks], 0.0)


def assemble(folder: Path, max_length: int = 224) -> CrossEncoder:
    """A cross-encoder with one logit on a student's body."""
    return CrossEncoder(
        str(folder),
        num_labels=1,
        max_length=max_length,
        device="cpu",
        model_kwargs={"attn_implementation": "eager"},
        config_kwargs=NO_DROPOUT,
    )


def train(model: CrossEncoder, dataset: Dataset, out: Path, steps: int, learning_rate: float = 2e-4) -> None:
    """Listwise: the softmax of the model's logits over a query's passages learns that of the targets."""
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(out),
        use_cpu=True,
        bf16=True,
        per_device_train_batch_size=12,
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        logging_steps=25,
        save_steps=250,
        save_total_limit=1,
        report_to=[],
        disable_tqdm=True,
    )
    loss = ListNetLoss(model, mini_batch_size=24)
    trainer = CrossEncoderTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss)
    trainer.train(resume_from_checkpoint=any(out.glob("checkpoint-*")))
