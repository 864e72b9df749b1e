"""The training code of the pair on little text: a step or two of each part, then the folders that would ship."""

import gzip
import inspect
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer

from bge_integrations import BgeEmbedder, BgeReranker, ModelCache
from training import embedder, reranker, student
from training.corpus import excerpts, read_pairs, stretches
from training.evaluate import evaluate, mean_interval
from training.package import EMBEDDER_FILES, average, ship
from training.teacher import candidates, teacher_vectors

pytestmark = pytest.mark.filterwarnings("default")
PIECES = 1000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Docstrings of the standard library as pairs, and as a labelled set."""
    import argparse
    import collections
    import email.message
    import logging
    import pathlib
    import subprocess
    import unittest.mock

    found = {}
    for module in (argparse, collections, email.message, logging, pathlib, subprocess, textwrap, unittest.mock):
        for name, thing in inspect.getmembers(module):
            for inner, member in [(name, thing), *inspect.getmembers(thing, inspect.isfunction)]:
                text = inspect.getdoc(member) or ""
                if len(text.split()) > 15:
                    found.setdefault(" ".join(text.split()[:50]), inner)
    folder = tmp_path_factory.mktemp("data")
    some = list(found.items())[:160]
    pairs = [{"query": f"what does {name} do", "passage": text, "title": name} for text, name in some]
    (folder / "train" / "docs").mkdir(parents=True)
    with gzip.open(folder / "train" / "docs" / "pairs.jsonl.gz", "wt") as lines:
        lines.writelines(json.dumps(pair) + "\n" for pair in pairs)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)  # three minutes on two cores without AVX-512
def test_the_pair_can_be_trained_again(data: Path, tmp_path: Path, cache: ModelCache) -> None:
    pairs = read_pairs(data / "train")
    assert len(pairs) == 160
    queries, passages = [pair.query for pair in pairs], [pair.passage for pair in pairs]
    pieces = student.cut_vocabulary([*queries, *passages], PIECES)
    assert len(set(pieces)) == PIECES
    query_vectors, vectors = teacher_vectors(queries), teacher_vectors(passages)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-2)

    student.write_tokenizer(pieces, tmp_path / "body")
    student.cut_model(pieces, (0, 5), passages, inner=128).save_pretrained(tmp_path / "body")
    model = embedder.assemble(tmp_path / "body")
    texts = embedder.Labelled(passages, vectors)
    parts = embedder.datasets(embedder.Labelled(queries, query_vectors), texts, long=3)
    embedder.distil(model, parts, tmp_path / "steps", steps=2, learning_rate=1e-4)
    found = candidates(queries, query_vectors, passages, vectors)
    lists = embedder.rankings(queries, found, passages, range(len(passages)))
    assert all(passages[row] not in others for row, others in enumerate(zip(*columns(lists), strict=True)))
    embedder.distil(model, parts, tmp_path / "ranked", steps=2, learning_rate=1e-4, lists=lists)
    model.save(str(tmp_path / "embedder"))
    average([tmp_path / "embedder"] * 2, tmp_path / "averaged")
    ship(tmp_path / "averaged", tmp_path / "shipped", "a card", EMBEDDER_FILES)
    ours = BgeEmbedder(str(tmp_path / "shipped"), like="bge-integrations/mini-embedder-en", cache=cache)
    library = SentenceTransformer(str(tmp_path / "shipped"), device="cpu")
    np.testing.assert_allclose(ours.encode_queries(queries[:5]), library.encode_query(queries[:5]), atol=1e-5)

    assert all((np.diff(near.logits) <= 0).all() for near in found)
    taken = excerpts(passages, 20)
    assert all(piece in passages[row] for piece, row in taken)
    assert all(len(text.split()) >= 70 for text, _ in stretches([" ".join(passages)] * 3, range(3), 3))
    unlabelled = reranker.unlabelled_lists(queries, found, passages, range(len(passages)), further=4)
    assert all(own not in texts for own, texts in zip(passages, unlabelled["documents"], strict=True))
    assert {len(texts) for texts in unlabelled["documents"]} == {7}
    lists = reranker.lists(queries, found, passages, range(len(passages)), reranker.SOFT)
    assert all(np.argmax(targets) == 0 for targets in lists["label"])
    cross_encoder = reranker.assemble(tmp_path / "body")
    reranker.train(cross_encoder, lists, tmp_path / "reranker-steps", steps=2)
    cross_encoder.save(str(tmp_path / "reranker"))
    ship(tmp_path / "reranker", tmp_path / "shipped-reranker", "a card", {})
    scores = BgeReranker(str(tmp_path / "shipped-reranker"), normalize=False, cache=cache)
    library = CrossEncoder(str(tmp_path / "shipped-reranker"), device="cpu", activation_fn=torch.nn.Identity())
    sample = list(zip(queries[:5], passages[:5], strict=True))
    np.testing.assert_allclose(scores.score(sample), library.predict(sample), atol=1e-5)


def columns(lists: Dataset) -> list[list[str]]:
    return [lists[name] for name in lists.column_names if name.startswith("passage")]


def test_evaluation_counts_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["pandas eat bamboo", "whales sing in the sea", "bread needs yeast", "rust is a language", "stars shine"]
    folder = tmp_path / "toy"
    folder.mkdir()
    rows = [{"_id": f"d{row}", "title": "", "text": text} for row, text in enumerate(words)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    queries = [{"_id": f"q{row}", "text": text} for row, text in enumerate(words)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels.tsv").write_text("query\tcorpus\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(5)))
    monkeypatch.setattr("training.evaluate.SETS", ("toy",))
    models = Path(__file__).parents[1] / "bge_integrations" / "models"
    results = evaluate(tmp_path, models / "mini-embedder-en", models / "mini-reranker-en")
    (row,) = results["sets"]
    assert (row["all-MiniLM-L6-v2"], row["mini-embedder-en"], row["reranked"]) == (1, 1, 1)
    assert (row["auc_random"], row["auc_top"], results["gain"], results["interval"]) == (1, 1, 0, (0, 0))
    assert mean_interval([[0.0, 1.0] * 50, [1.0] * 10])[0] < 0.75 < mean_interval([[0.0, 1.0] * 50, [1.0] * 10])[1]
