"""Measuring of an embedder and a reranker on a labelled set: search, reranking, measures, and the gain's interval."""

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
    """The documents found for the queries of a set.

    Attributes:
        scores: For each query, the documents found and their scores, best first.
        seconds: For each query, the wall time of finding them; the first may include loading the model.
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
        run: The documents found.
        values: For each measure, every query's value, between 0 and 1.
    """

    run: Run
    values: dict[str, dict[str, float]]

    def mean(self, measure: str) -> float:
        """Return a measure's mean over queries."""
        return float(np.mean(list(self.values[measure].values())))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The measures of an embedder's search, and of the same passages in a reranker's order.

    Attributes:
        fetch_k: The number of passages searched for and reranked.
        retrieved: The passages in the order of the search.
        reranked: The passages in the reranker's order; None without one. Its `seconds` are the reranker's alone.
    """

    fetch_k: int
    retrieved: Measured
    reranked: Measured | None

    @property
    def measures(self) -> tuple[str, ...]:
        """The names of the measures."""
        return tuple(self.retrieved.values)

    def gains(self, measure: str) -> list[float]:
        """Return by how much the reranker raised each query's value.

        Raises:
            ValueError: There was no reranker.
        """
        if self.reranked is None:
            raise ValueError("Nothing was reranked: evaluate with a reranker to know its gain.")
        before, after = self.retrieved.values[measure], self.reranked.values[measure]
        return [after[query] - before[query] for query in before]

    def gain(self, measure: str) -> float:
        """Return the mean of `gains`."""
        return float(np.mean(self.gains(measure)))

    def interval(self, measure: str) -> tuple[float, float]:
        """Return the 95 % interval of `gain`, as `mean_interval` finds it."""
        return mean_interval([self.gains(measure)])


def evaluate(
    data: LabelledSet,
    embedder: BgeEmbedder,
    reranker: BgeReranker | None = None,
    *,
    fetch_k: int = 50,
    show_progress: bool = True,
) -> Evaluation:
    """Measure an embedder on a labelled set, and the gain of a reranker.

    Every query is asked by itself, as an application does, and timed. The measures are nDCG@10 (linear gain),
    MRR@10, Recall@10 and, the most that reranking could reach, Recall@fetch_k.

    Args:
        data: The set, as `read_labelled_set` returns it.
        embedder: Finds the passages; `on_truncate="ignore"` keeps it from warning of long documents.
        reranker: Sorts the passages found; None measures the search alone.
        fetch_k: The number of passages to find and to rerank.
        show_progress: Show progress bars, where stderr is a terminal.

    Raises:
        MissingExtraError: ir_measures is not installed.
        ValueError: `fetch_k` is under 10.
    """
    if fetch_k < DEPTH:
        raise ValueError(f"fetch_k must be {DEPTH} or more, as the measures look at so many passages, not {fetch_k}.")
    _require_ir_measures()
    if reranker is not None:
        reranker.describe()  # one that cannot be used is refused before anything is computed
    measures = list(dict.fromkeys(["nDCG@10", "MRR@10", "Recall@10", f"Recall@{fetch_k}"]))
    found = retrieve(embedder, data, fetch_k, show_progress=show_progress)
    retrieved, reranked = Measured(found, per_query(data, found.scores, measures)), None
    if reranker is not None:
        ordered = rescore(reranker, data, found.scores, show_progress=show_progress)
        reranked = Measured(ordered, per_query(data, ordered.scores, measures))
    return Evaluation(fetch_k, retrieved, reranked)


def retrieve(embedder: BgeEmbedder, data: LabelledSet, top: int = 50, *, show_progress: bool = False) -> Run:
    """Find each query's nearest documents by exact inner product, without the one that has the query's id.

    Args:
        embedder: Embeds documents and queries.
        data: The set.
        top: Number of documents per query; of documents with equal scores the earlier comes first.
        show_progress: Show progress bars, where stderr is a terminal.
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
    """Put documents in a reranker's order, without the one that has the query's id.

    Args:
        reranker: Scores the documents.
        data: The set.
        candidates: For each query, the ids of the documents to score, such as `Run.scores`.
        show_progress: Show a progress bar, where stderr is a terminal.
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
        scores: For each query, the documents, best first: only their order counts, so that ties stay as they are.
        measures: Names that `ir_measures` knows, such as "nDCG@10".

    Returns:
        For each measure, the values by query.

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
        gains: For each set, the gains of its queries; every set weighs the same.
        draws: Number of bootstrap samples of the queries.

    Returns:
        The interval's lower and upper end.
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
