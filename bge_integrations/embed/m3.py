"""bge-m3: dense, sparse and token vectors from one forward, and the scores that they give."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.embed.embedder import Embedder
from bge_integrations.errors import UnsupportedModelError
from bge_integrations.inference.batch import Rows
from bge_integrations.runtime.user import checked_pairs, off_loop
from bge_integrations.types import M3Embeddings, SparseEmbedding

OUTPUTS = ("dense", "sparse", "colbert")
SCORES = ("colbert", "sparse", "dense", "sparse+dense", "colbert+sparse+dense")
SCORED_AT_ONCE = 256  # pairs: the token vectors of a thousand passages of 512 tokens take 2 GB
_RANKED_AT_ONCE = SCORED_AT_ONCE // 2  # passages: while one step's are scored, the model computes the next

Pair = tuple[str, str]


@dataclass(repr=False, eq=False)
class BgeM3Embedder(Embedder[M3Embeddings]):
    """An embedder with all outputs of bge-m3; one forward computes those asked for, and only those.

    A call returns one `M3Embeddings` for its texts. A `BgeEmbedder` of the same model shares its copy of the weights.
    https://arxiv.org/abs/2402.03216

    Args:
        model: "BAAI/bge-m3", or the id or folder of a fine-tune with its heads (`sparse_linear.pt`,
            `colbert_linear.pt`).
        outputs: One or more of "dense", "sparse" and "colbert".

    The other arguments are those of `BgeEmbedder`; bge-m3 takes no instruction.

    Raises:
        UnsupportedModelError: The model has no such outputs.
        MissingWeightsError: At first use, the folder lacks a head that is asked for.
        ValueError: `outputs` is empty or names something else.

    Example:
        >>> embedder = BgeM3Embedder("BAAI/bge-m3", outputs=("dense", "sparse"))
        >>> embedder.dim
        1024
    """

    model: str = "BAAI/bge-m3"
    _: KW_ONLY
    outputs: Iterable[str] = OUTPUTS

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_outputs()

    def with_outputs(self, *outputs: str) -> "BgeM3Embedder":
        """Return a copy of this embedder with other outputs."""
        other = copy.copy(self)
        other.outputs = outputs
        other._check_outputs()  # noqa: SLF001  one of this class
        return other

    def score(self, pairs: Iterable[Pair], weights: Sequence[float] = (1.0, 1.0, 1.0)) -> dict[str, list[float]]:
        """Score (query, passage) pairs in every way that bge-m3 has.

        Args:
            pairs: Two strings each.
            weights: The weights of dense, sparse and colbert in the sums.

        Returns:
            Lists of one float per pair, by FlagEmbedding's names: "dense" (inner product), "sparse" (`sparse_score`),
            "colbert" (`maxsim`), "sparse+dense" and "colbert+sparse+dense" (weighted means).

        Raises:
            TypeError: An element is not a pair of strings; the message has its index.
            ValueError: `weights` are not three numbers, or those of dense and sparse sum to 0.
        """
        everything, scores = self.with_outputs(*OUTPUTS), _Scores(weights)
        for chunk in _chunks(checked_pairs(pairs)):
            queries, passages = _sides(chunk)
            scores.add(chunk, everything.encode_queries(queries), everything.encode_documents(passages))
        return scores.lists

    async def ascore(self, pairs: Iterable[Pair], weights: Sequence[float] = (1.0, 1.0, 1.0)) -> dict[str, list[float]]:
        """Score pairs as `score` does, without blocking the event loop."""
        everything, scores = self.with_outputs(*OUTPUTS), _Scores(weights)
        for chunk in _chunks(checked_pairs(pairs)):
            queries, passages = _sides(chunk)
            of_queries = await everything.aencode_queries(queries)
            of_passages = await everything.aencode_documents(passages)
            await off_loop(sum(map(len, of_passages.colbert or [])), scores.add, chunk, of_queries, of_passages)
        return scores.lists

    @property
    def _outputs(self) -> tuple[str, ...]:
        return tuple(self.outputs)

    def _result(self, rows: Rows) -> M3Embeddings:
        if self.outputs == ("dense",):
            return M3Embeddings(rows, None, None)
        columns: dict[str, Any] = {output: list(rows[:, column]) for column, output in enumerate(self.outputs)}
        dense = np.stack(columns["dense"]) if "dense" in columns else None
        return M3Embeddings(dense, columns.get("sparse"), columns.get("colbert"))

    def _no_result(self) -> M3Embeddings:
        wanted: dict[str, Any] = {"dense": np.empty((0, self.dim), dtype=np.float32), "sparse": [], "colbert": []}
        return M3Embeddings(*(wanted[output] if output in self.outputs else None for output in OUTPUTS))

    def _check_outputs(self) -> None:
        self.outputs = _ordered(self.outputs)
        if self._row and (lacking := set(self.outputs) - set(self._row.outputs)):
            raise UnsupportedModelError(
                f"{self.model} gives {' and '.join(self._row.outputs)} vectors, not {' and '.join(sorted(lacking))}. "
                'BAAI/bge-m3 gives all three; for a fine-tune of it pass like="BAAI/bge-m3".'
            )


def _ordered(outputs: Iterable[str]) -> tuple[str, ...]:
    """Return the outputs in one order, each once, so that calls for the same ones share a batch."""
    wanted = {outputs} if isinstance(outputs, str) else set(outputs)
    if not wanted or not wanted <= set(OUTPUTS):
        raise ValueError(f"outputs={outputs!r} must name one or more of {', '.join(OUTPUTS)}.")
    return tuple(name for name in OUTPUTS if name in wanted)


def sparse_score(query: SparseEmbedding, document: SparseEmbedding) -> float:
    """Return the sum, over the tokens that both have, of the product of their weights."""
    _, of_query, of_document = np.intersect1d(query.indices, document.indices, assume_unique=True, return_indices=True)
    return float(query.values[of_query] @ document.values[of_document])


def maxsim(query: NDArray[np.float32], document: NDArray[np.float32]) -> float:
    """Return the mean, over a query's token vectors, of the best inner product with one of a document's.

    Args:
        query: The query's token vectors, (tokens, dim).
        document: The document's token vectors, (tokens, dim).
    """
    return float((query @ document.T).max(axis=1).mean())


def _single_scores(
    queries: M3Embeddings, query: int, passages: M3Embeddings, passage: int
) -> tuple[float, float, float]:
    """Return the dense, sparse and colbert score of the query and passage in these rows; 0 for a missing output."""
    dense = sparse = colbert = 0.0
    if queries.dense is not None and passages.dense is not None:
        dense = float(queries.dense[query] @ passages.dense[passage])
    if queries.sparse is not None and passages.sparse is not None:
        sparse = sparse_score(queries.sparse[query], passages.sparse[passage])
    if queries.colbert is not None and passages.colbert is not None:
        colbert = maxsim(queries.colbert[query], passages.colbert[passage])
    return dense, sparse, colbert


def rank(
    embedder: BgeM3Embedder, query: str, texts: list[str], weights: Sequence[float], top_n: int | None
) -> list[tuple[int, float]]:
    """Return the positions and scores of the `top_n` best texts, best first, equals in the order given.

    The score is the mean of the dense, the sparse and the token vectors' score, with these weights. The vectors of 256
    texts at most are in memory together.
    """
    if not texts:
        return []
    queries, scores = embedder.encode_queries([query]), list[float]()
    for passages in embedder.iter_documents(texts, _RANKED_AT_ONCE):
        scores += _weighted(queries, passages, weights)
        del passages  # frees their memory before the next ones come
    return _best(scores, top_n)


async def arank(
    embedder: BgeM3Embedder, query: str, texts: list[str], weights: Sequence[float], top_n: int | None
) -> list[tuple[int, float]]:
    """Rank texts as `rank` does, without blocking the event loop."""
    import asyncio

    if not texts:
        return []
    queries, scores = await embedder.aencode_queries([query]), list[float]()
    async for passages in embedder.aiter_documents(texts, _RANKED_AT_ONCE):
        scores += await asyncio.to_thread(_weighted, queries, passages, weights)
        del passages
    return _best(scores, top_n)


def _weighted(query: M3Embeddings, passages: M3Embeddings, weights: Sequence[float]) -> list[float]:
    shares = np.array(weights) / sum(weights)
    return [float(shares @ _single_scores(query, 0, passages, row)) for row in range(len(passages))]


def _best(scores: list[float], top_n: int | None) -> list[tuple[int, float]]:
    return sorted(enumerate(scores), key=lambda ranked: -ranked[1])[:top_n]


class _Scores:
    """The lists that `BgeM3Embedder.score` returns, while they are filled."""

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = tuple(float(weight) for weight in weights)
        if len(self._weights) != 3 or not sum(self._weights[:2]) or not sum(self._weights):
            raise ValueError(
                f"weights={weights!r} must be three numbers, for dense, sparse and colbert, and neither all three nor "
                "the first two may sum to 0."
            )
        self.lists: dict[str, list[float]] = {name: [] for name in SCORES}

    def add(self, pairs: list[Pair], of_queries: M3Embeddings, of_passages: M3Embeddings) -> None:
        queries, passages = ({text: row for row, text in enumerate(side)} for side in _sides(pairs))
        of_dense, of_sparse, of_colbert = self._weights
        for query, passage in pairs:
            dense, sparse, colbert = _single_scores(of_queries, queries[query], of_passages, passages[passage])
            two = of_dense * dense + of_sparse * sparse
            three = two + of_colbert * colbert
            values = (colbert, sparse, dense, two / (of_dense + of_sparse), three / sum(self._weights))
            for name, value in zip(SCORES, values, strict=True):
                self.lists[name].append(value)


def _chunks(pairs: list[Pair]) -> Iterator[list[Pair]]:
    return (pairs[start : start + SCORED_AT_ONCE] for start in range(0, len(pairs), SCORED_AT_ONCE))


def _sides(pairs: list[Pair]) -> tuple[list[str], list[str]]:
    """Return the queries and the passages of pairs, each once."""
    return list(dict.fromkeys(query for query, _ in pairs)), list(dict.fromkeys(passage for _, passage in pairs))
