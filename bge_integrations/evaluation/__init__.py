"""Evaluation of an embedder on a labelled set, and of the gain that a reranker brings.

Example:
    ```python
    from bge_integrations import BgeEmbedder, BgeReranker
    from bge_integrations.evaluation import evaluate, read_labelled_set

    data = read_labelled_set("scifact", queries=100)
    embedder = BgeEmbedder("bge-integrations/mini-embedder-en", on_truncate="ignore")
    reranker = BgeReranker("bge-integrations/mini-reranker-en", on_truncate="ignore")
    result = evaluate(data, embedder, reranker)
    print(result.retrieved.mean("nDCG@10"), result.gain("nDCG@10"), result.interval("nDCG@10"))
    ```
"""

from bge_integrations.evaluation.labelled import LabelledSet, read_labelled_set
from bge_integrations.evaluation.measuring import (
    Evaluation,
    Measured,
    Run,
    evaluate,
    mean_interval,
    per_query,
    rescore,
    retrieve,
)

__all__ = [
    "Evaluation",
    "LabelledSet",
    "Measured",
    "Run",
    "evaluate",
    "mean_interval",
    "per_query",
    "read_labelled_set",
    "rescore",
    "retrieve",
]
