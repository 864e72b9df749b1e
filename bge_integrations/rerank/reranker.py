"""The reranker: queries and passages become relevance scores."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.rerank.prompts import RerankOptions, check_layers, layer_numbers
from bge_integrations.runtime.request import Kind
from bge_integrations.runtime.user import ModelUser, checked_pairs, checked_texts, off_loop, optional_positive, positive
from bge_integrations.types import RerankResult

Pair = tuple[str, str]
Logits = NDArray[np.float64]

PROGRESS_CHUNK = 256


@dataclass(repr=False, eq=False, kw_only=True)
class BgeReranker(ModelUser):
    """A BGE reranker, or any sequence classifier with one label.

    It is cheap to construct: the weights load at first use, once per process, and are shared with every other object
    that uses the model. It holds configuration only, so you can pickle it, deep-copy it and use it from any number of
    threads.

    Args:
        model: A catalogue id such as "BAAI/bge-reranker-v2-m3", a hub id, or a folder.
        normalize: Scores are the sigmoid of the logits, between 0 and 1; False gives the logits themselves.
        max_length: Tokens at which a pair is cut, special tokens included. None takes 512, as FlagEmbedding does
            for every reranker, or less where the folder says so; bge-reranker-v2-m3 takes up to 8192.
        query_max_length: Tokens at which the query is cut; after that only the passage is cut. None takes three
            quarters of `max_length`, as FlagEmbedding does.
        on_truncate: What a pair over the limits causes: one warning per call, an error, or nothing.
        prompt: For LLM-based rerankers, the task put after query and passage; None takes the catalogue's.
        query_instruction: Text before each query; None takes the catalogue's: "A: " for LLM-based rerankers, else none.
        document_instruction: Text before each passage; None takes the catalogue's: "B: ", else none.
        cutoff_layers: For layerwise rerankers, the layers after which to score; nothing after the last is computed, and
            `score` and `rerank` use the last. None takes the model's last layer.
        compress_layers: For the lightweight reranker, the layers before which the passage's tokens are averaged in
            groups; None takes layer 8.
        compress_ratio: For the lightweight reranker, tokens of a group; None takes 1, which compresses nothing. The
            authors save most with 2 before layer 8 and `cutoff_layers=[25]`.

    The other arguments are those of `BgeEmbedder`.

    Raises:
        UnknownModelError: The model is a mistyped catalogue id; the message names the nearest ones.
        WrongKindError: The model is an embedder.
        UnsupportedModelError: This version cannot run the model.
        ValueError: An argument is out of its range, or this kind of reranker does not have it.

    Example:
        >>> BgeReranker("BAAI/bge-reranker-base").max_length is None
        True
    """

    kind: ClassVar[Kind] = "reranker"

    normalize: bool = True
    query_max_length: int | None = None
    prompt: str | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None
    cutoff_layers: Sequence[int] | None = None
    compress_layers: Sequence[int] | None = None
    compress_ratio: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.query_max_length = optional_positive("query_max_length", self.query_max_length)
        self.compress_ratio = optional_positive("compress_ratio", self.compress_ratio)
        self.cutoff_layers = cutoffs = layer_numbers("cutoff_layers", self.cutoff_layers)
        self.compress_layers = compressed = layer_numbers("compress_layers", self.compress_layers)
        if self._row:
            self._options.refuse_foreign(self._row, self.model)
            if self._row.start_layer and self._row.layers and self.like is None:
                scoring = range(self._row.start_layer, self._row.layers + 1)
                check_layers(cutoffs or (), compressed or (), scoring)

    def score(self, pairs: Iterable[Pair], show_progress: bool = False) -> list[float]:
        """Score (query, passage) pairs.

        Args:
            pairs: Two strings each.
            show_progress: Show a tqdm bar.

        Returns:
            One builtin float per pair, in the order given: the sigmoid of the logit, or the logit with
            `normalize=False`.

        Raises:
            TypeError: An element is not a pair of strings; the message has its index.
            InputTooLongError: A pair is over the limits, with `on_truncate="raise"`.
        """
        scores: list[float] = self._normalized(self._logits(checked_pairs(pairs), show_progress)[:, -1]).tolist()
        return scores

    async def ascore(self, pairs: Iterable[Pair], show_progress: bool = False) -> list[float]:
        """Score pairs as `score` does, without blocking the event loop."""
        logits = await self._alogits(checked_pairs(pairs), show_progress)
        return await off_loop(len(logits), lambda: self._normalized(logits[:, -1]).tolist())

    def score_layers(self, pairs: Iterable[Pair], show_progress: bool = False) -> Logits:
        """Score pairs after each of a layerwise reranker's `cutoff_layers`; see `score` for the rest.

        Returns:
            An array, float64 (pairs, layers), with the layers ascending.

        Raises:
            ValueError: The model is not a layerwise reranker.
        """
        cutoffs = self._describe(self._options)["cutoff_layers"]
        if cutoffs is None:
            raise ValueError(f"{self.model} scores after its last layer only. Use score().")
        logits = self._logits(checked_pairs(pairs), show_progress, width=len(cutoffs))
        return self._normalized(logits)

    def rerank(self, query: str, documents: Iterable[str], top_n: int | None = None) -> list[RerankResult]:
        """Order documents by their relevance to a query.

        Args:
            query: The query.
            documents: The passages.
            top_n: How many to return; None returns all.

        Returns:
            Results, best first; equal scores keep the order given.

        Raises:
            TypeError: The query or a document is not a string.
            ValueError: `top_n` is below 1.
            InputTooLongError: A pair is over the limits, with `on_truncate="raise"`.
        """
        pairs = _pairs_of(query, documents, top_n)
        return self._ranked(pairs, self._logits(pairs)[:, -1], top_n)

    async def arerank(self, query: str, documents: Iterable[str], top_n: int | None = None) -> list[RerankResult]:
        """Order documents as `rerank` does, without blocking the event loop."""
        pairs = _pairs_of(query, documents, top_n)
        logits = await self._alogits(pairs)
        return await off_loop(len(pairs), lambda: self._ranked(pairs, logits[:, -1], top_n))

    def describe(self) -> dict[str, object]:
        """Return the model's settings and how they were found. This loads no weights, but may download files."""
        facts = self._describe(self._options)
        return {"model": self.model, "normalize": self.normalize, "on_truncate": self.on_truncate, **facts}

    @cached_property
    def _options(self) -> RerankOptions:
        return RerankOptions(
            query_instruction=self.query_instruction, document_instruction=self.document_instruction,
            prompt=self.prompt, max_length=self.max_length, query_max_length=self.query_max_length,
            cutoff_layers=layer_numbers("cutoff_layers", self.cutoff_layers),
            compress_layers=layer_numbers("compress_layers", self.compress_layers), compress_ratio=self.compress_ratio,
        )  # fmt: skip

    def _logits(self, pairs: list[Pair], show_progress: bool = False, width: int = 1) -> Logits:
        """Compute logits, float64 (pairs, layers); the last column is the score."""
        if not pairs:
            return np.empty((0, width))
        return self._run(self._options, pairs, PROGRESS_CHUNK if show_progress else None).astype(np.float64)

    async def _alogits(self, pairs: list[Pair], show_progress: bool = False) -> Logits:
        if not pairs:
            return np.empty((0, 1))
        rows = await self._arun(self._options, pairs, PROGRESS_CHUNK if show_progress else None)
        return rows.astype(np.float64)

    def _normalized(self, logits: Logits) -> Logits:
        if not self.normalize:
            return logits
        small = np.exp(-np.abs(logits))  # exp of a large number would overflow
        scores: Logits = np.where(logits >= 0, 1, small) / (1 + small)
        return scores

    def _ranked(self, pairs: list[Pair], logits: Logits, top_n: int | None) -> list[RerankResult]:
        # A logit's last digits depend on the other pairs in the batch; a pair that occurs twice must still be a tie.
        first: dict[Pair, int] = {}
        logits = logits[[first.setdefault(pair, index) for index, pair in enumerate(pairs)]]
        scores = self._normalized(logits).tolist()
        order = np.argsort(-logits, kind="stable")[:top_n].tolist()
        return [RerankResult(index, scores[index], float(logits[index])) for index in order]


def _pairs_of(query: str, documents: Iterable[str], top_n: int | None) -> list[Pair]:
    if not isinstance(query, str):
        raise TypeError(f"query must be a string, not {type(query).__name__}.")
    if top_n is not None:
        positive("top_n", top_n)
    return list(zip(repeat(query), checked_texts(documents, "documents"), strict=False))
