"""An embedder and a reranker on a labelled set: exact search, reranking, measures, and the gain's interval."""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.errors import MissingExtraError
from bge_integrations.evaluation.labelled import LabelledSet
from bge_integrations.rerank.reranker import BgeReranker

Scores = Mapping[str, Mapping[str, float]]

DEPTH = 10
DRAWS = 10_000


@dataclass(frozen=True, slots=True)
class Run:
    """What was found for the queries of a set.

    Attributes:
        scores: Of each query the documents found and their scores, best first.
        seconds: Of each query the wall time of finding them; the first may load the model.
    """

    scores: dict[str, dict[str, float]]
    seconds: dict[str, float]

    @property
    def milliseconds(self) -> float:
        """The median over queries of the wall time of one query."""
        return 1000 * float(np.median(list(self.seconds.values())))


@dataclass(frozen=True, slots=True)
class Measured:
    """A run and how good it is.

    Attributes:
        run: What was found.
        values: Of each measure every query's value, between 0 and 1.
    """

    run: Run
    values: dict[str, dict[str, float]]

    def mean(self, measure: str) -> float:
        """A measure's mean over queries."""
        return float(np.mean(list(self.values[measure].values())))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """An embedder's search measured, and the same passages in a reranker's order.

    Attributes:
        fetch_k: Passages searched for and reranked.
        retrieved: In the order of the search.
        reranked: In the reranker's order; None without one. Its `seconds` are the reranker's alone.
    """

    fetch_k: int
    retrieved: Measured
    reranked: Measured | None

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures."""
        return tuple(self.retrieved.values)

    def gains(self, measure: str) -> list[float]:
        """By how much the reranker raised each query's value.

        Raises:
            ValueError: There was no reranker.
        """
        if self.reranked is None:
            raise ValueError("Nothing was reranked: evaluate with a reranker to know its gain.")
        before, after = self.retrieved.values[measure], self.reranked.values[measure]
        return [after[query] - before[query] for query in before]

    def gain(self, measure: str) -> float:
        """The mean of `gains`."""
        return float(np.mean(self.gains(measure)))

    def interval(self, measure: str) -> tuple[float, float]:
        """The 95 % interval of `gain`, as `mean_interval` finds it."""
        return mean_interval([self.gains(measure)])


def evaluate(
    data: LabelledSet,
    embedder: BgeEmbedder,
    reranker: BgeReranker | None = None,
    *,
    fetch_k: int = 50,
    show_progress: bool = True,
) -> Evaluation:
    """Measure an embedder on a labelled set, and what a reranker gains.

    Every query is asked by itself, as an application does, and its time taken. The measures are nDCG@10 (linear gain),
    MRR@10, Recall@10 and, the most that reranking could reach, Recall@fetch_k.

    Args:
        data: What `read_labelled_set` gives.
        embedder: Searches; `on_truncate="ignore"` keeps it from warning of long documents.
        reranker: Sorts what was found. None leaves it at that.
        fetch_k: Passages to find and to rerank.
        show_progress: Progress bars, where stderr is a terminal.

    Raises:
        MissingExtraError: ir_measures is not installed.
        ValueError: `fetch_k` is under 10.
    """
    if fetch_k < DEPTH:
        raise ValueError(f"fetch_k must be {DEPTH} or more, which the measures look at, not {fetch_k}.")
    _require_ir_measures()
    if reranker is not None:
        reranker.describe()  # one that cannot be had is refused before anything is computed
    measures = list(dict.fromkeys(["nDCG@10", "MRR@10", "Recall@10", f"Recall@{fetch_k}"]))
    found = retrieve(embedder, data, fetch_k, show_progress=show_progress)
    retrieved, reranked = Measured(found, per_query(data, found.scores, measures)), None
    if reranker is not None:
        ordered = rescore(reranker, data, found.scores, show_progress=show_progress)
        reranked = Measured(ordered, per_query(data, ordered.scores, measures))
    return Evaluation(fetch_k, retrieved, reranked)


def retrieve(embedder: BgeEmbedder, data: LabelledSet, top: int = 50, *, show_progress: bool = False) -> Run:
    """Find the nearest documents of every query by exact inner product, its own left out as in `per_query`.

    Args:
        embedder: Embeds documents and queries.
        data: The set.
        top: Documents a query; of equal ones the earlier comes first.
        show_progress: Progress bars, where stderr is a terminal.
    """
    names, shown = list(data.documents), _shown(show_progress)
    vectors = embedder.encode_documents(data.documents.values(), show_progress=shown)
    scores, seconds = {}, {}
    for query, text in tqdm(data.queries.items(), "search", unit="query", disable=not shown):
        started = time.perf_counter()
        similarities = vectors @ embedder.encode_queries([text])[0]
        best = [row for row in np.argsort(-similarities, kind="stable")[: top + 1] if names[row] != query][:top]
        scores[query] = {names[row]: float(similarities[row]) for row in best}
        seconds[query] = time.perf_counter() - started
    return Run(scores, seconds)


def rescore(
    reranker: BgeReranker, data: LabelledSet, candidates: Mapping[str, Iterable[str]], *, show_progress: bool = False
) -> Run:
    """Put documents in a reranker's order, the query's own left out as in `per_query`.

    Args:
        reranker: Scores them.
        data: The set.
        candidates: Of each query the ids of the documents to score; `Run.scores` will do.
        show_progress: A progress bar, where stderr is a terminal.
    """
    scores, seconds = {}, {}
    for query, ids in tqdm(candidates.items(), "rerank", unit="query", disable=not _shown(show_progress)):
        names = [name for name in ids if name != query]
        started = time.perf_counter()
        results = reranker.rerank(data.queries[query], [data.documents[name] for name in names])
        seconds[query] = time.perf_counter() - started
        scores[query] = {names[result.index]: result.score for result in results}
    return Run(scores, seconds)


def per_query(data: LabelledSet, scores: Scores, measures: Sequence[str]) -> dict[str, dict[str, float]]:
    """Measure every query by itself; a document whose id is the query's is no hit, as in BEIR (ArguAna, Quora).

    Args:
        data: The set.
        scores: Of each query the documents, best first: their order counts, so that ties stay as they are.
        measures: Names that `ir_measures` knows, such as "nDCG@10".

    Returns:
        Of each measure the values by query.

    Raises:
        MissingExtraError: ir_measures is not installed.
    """
    _require_ir_measures()
    import ir_measures

    parsed = {ir_measures.parse_measure(name): name for name in measures}
    judgements = {query: data.judgements[query] for query in scores}
    others = {query: [name for name in found if name != query] for query, found in scores.items()}
    ranks = {query: {name: -float(rank) for rank, name in enumerate(found)} for query, found in others.items()}
    values = {name: dict.fromkeys(scores, 0.0) for name in measures}
    for metric in ir_measures.iter_calc(list(parsed), judgements, ranks):
        values[parsed[metric.measure]][metric.query_id] = float(metric.value)
    return values


def mean_interval(gains: Sequence[Sequence[float]], draws: int = DRAWS) -> tuple[float, float]:
    """Find the 95 % interval of a mean over queries by paired bootstrap; always the same for the same gains.

    Args:
        gains: The gains of each query of a set; of several sets each weighs the same.
        draws: How often to draw queries anew.

    Returns:
        Its lower and its upper end.
    """
    draw = np.random.default_rng(0)
    own = [np.asarray(of_set) for of_set in gains]
    means = [[draw.choice(of_set, len(of_set)).mean() for _ in range(draws)] for of_set in own]
    low, high = np.percentile(np.mean(means, axis=0), (2.5, 97.5))
    return float(low), float(high)


def _shown(show_progress: bool) -> bool:
    return show_progress and sys.stderr.isatty()


def _require_ir_measures() -> None:
    from importlib.util import find_spec

    if find_spec("ir_measures") is None:
        raise MissingExtraError('Measuring needs ir_measures. Install it: pip install "bge_integrations[eval]"')
