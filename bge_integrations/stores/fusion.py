"""Fusion of several rankings into one: without duplicates, by reciprocal ranks or by scaled scores."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)
Hit = TypeVar("Hit")
Ranking = TypeVar("Ranking")

_SOURCE_KEYS = ("source", "file_path")
"""The metadata keys in which the loaders of LangChain and of LlamaIndex say where a text comes from."""

RRF_K = 60
"""The paper's constant; the larger it is, the less the first ranks stand out."""


class Identity(NamedTuple):
    """The facts by which two hits count as the same document.

    Attributes:
        id: The store's id; None where it gives none.
        text: The text itself, without metadata; "" where there is none, as with an image.
        metadata: "source" or, without it, "file_path" says where the text comes from; other keys do not count.
    """

    id: str | None
    text: str
    metadata: Mapping[str, object]


def without_duplicates(hits: Iterable[Hit], identity_of: Callable[[Hit], Identity]) -> list[Hit]:
    """Drop each hit that is the same as one before it: by its id, or by its text and source together.

    Two hits with one text and different ids are the same unless their sources differ; having no source is a source too.

    Args:
        hits: The hits of one retriever, or of several, one after the other.
        identity_of: Returns the facts by which hits are compared.

    Returns:
        The first of each, in the order given. A hit without text is compared by its id alone.
    """
    seen: set[object] = set()
    firsts = []
    for hit in hits:
        document_id, text, metadata = identity_of(hit)
        keys: set[object] = set() if document_id is None else {document_id}
        if text or document_id is None:
            keys.add((text, _source(metadata)))
        if seen.isdisjoint(keys):
            firsts.append(hit)
            seen |= keys
    return firsts


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[Key]], weights: Sequence[float] | None = None, k: int = RRF_K
) -> dict[Key, float]:
    """Fuse rankings by position alone, so that their scores need not be comparable (Cormack et al., SIGIR 2009).

    Args:
        rankings: Keys, best first, each at most once per ranking.
        weights: The weight of each ranking; None weighs all alike.
        k: Added to every rank, which starts at 1.

    Returns:
        For each key the sum of weight / (k + rank) over the rankings that have it; best first, equals in the order of
        their first appearance.

    Raises:
        ValueError: There is not one weight for each ranking, or a weight is under 0.
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
        scored: (key, score) pairs, best first, each key at most once per ranking.
        weights: The weight of each ranking; None weighs all alike.

    Returns:
        For each key the weighted sum of its scaled scores, 0 where a ranking lacks it and 1 where all of a ranking are
        equal; best first, equals in the order of their first appearance.

    Raises:
        ValueError: There is not one weight for each ranking, or a weight is under 0.
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


def _source(metadata: Mapping[str, object]) -> str | None:
    """Return the source of a text as a string, so that a `Path` equals its name; None where it is unknown."""
    given = (metadata.get(key) for key in _SOURCE_KEYS)
    return next((str(source) for source in given if source not in (None, "")), None)


def _weighted(rankings: Sequence[Ranking], weights: Sequence[float] | None) -> list[tuple[Ranking, float]]:
    weights = [1.0] * len(rankings) if weights is None else weights
    if len(weights) != len(rankings) or any(weight < 0 for weight in weights):
        raise ValueError(f"weights={list(weights)} for {len(rankings)} rankings: give each one weight, 0 or more.")
    return list(zip(rankings, weights, strict=True))


def _best_first(scores: dict[Key, float]) -> dict[Key, float]:
    return dict(sorted(scores.items(), key=lambda item: -item[1]))
