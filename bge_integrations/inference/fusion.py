"""Several rankings into one: reciprocal ranks or scaled scores. Pure."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Ranking = TypeVar("Ranking")

RRF_K = 60
"""The constant of the paper: how little the first ranks stand out."""


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[Key]], weights: Sequence[float] | None = None, k: int = RRF_K
) -> dict[Key, float]:
    """Fuse rankings by position alone, so that their scores need not be comparable (Cormack et al., SIGIR 2009).

    Args:
        rankings: Keys, best first, each at most once a ranking.
        weights: What each ranking counts; None = all the same.
        k: Added to every rank, which starts at 1.

    Returns:
        For each key the sum of weight / (k + rank) over the rankings that have it; best first, equals in the order of
        their first appearance.

    Raises:
        ValueError: Not one weight a ranking, or a weight under 0.
    """
    fused: dict[Key, float] = {}
    for ranking, weight in _weighted(rankings, weights):
        for rank, key in enumerate(ranking, 1):
            fused[key] = fused.get(key, 0.0) + weight / (k + rank)
    return _best_first(fused)


def relative_score_fusion(
    scored: Sequence[Sequence[tuple[Key, float]]], weights: Sequence[float] | None = None
) -> dict[Key, float]:
    """Fuse rankings by their scores, each scaled to 1 for its first and 0 for its last.

    Similarities and distances scale alike, as the best comes first either way.

    Args:
        scored: (key, score) pairs, best first, each key at most once a ranking.
        weights: What each ranking counts; None = all the same.

    Returns:
        For each key the weighted sum of its scaled scores, 0 where a ranking lacks it and 1 where all of a ranking are
        equal; best first, equals in the order of their first appearance.

    Raises:
        ValueError: Not one weight a ranking, or a weight under 0.
    """
    fused: dict[Key, float] = {}
    for ranking, weight in _weighted(scored, weights):
        if not ranking:
            continue
        first, last = ranking[0][1], ranking[-1][1]
        for key, score in ranking:
            scaled = float((score - last) / (first - last)) if first != last else 1.0
            fused[key] = fused.get(key, 0.0) + weight * scaled
    return _best_first(fused)


def _weighted(rankings: Sequence[Ranking], weights: Sequence[float] | None) -> list[tuple[Ranking, float]]:
    weights = [1.0] * len(rankings) if weights is None else weights
    if len(weights) != len(rankings) or any(weight < 0 for weight in weights):
        raise ValueError(f"weights={list(weights)} for {len(rankings)} rankings: give each one weight, 0 or more.")
    return list(zip(rankings, weights, strict=True))


def _best_first(scores: dict[Key, float]) -> dict[Key, float]:
    return dict(sorted(scores.items(), key=lambda item: -item[1]))
