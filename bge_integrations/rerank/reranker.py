"""Queries and passages to relevance scores."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from bge_integrations.inference.call import Cut, Output
from bge_integrations.inference.engine import Engine
from bge_integrations.inference.heads import Logit
from bge_integrations.inference.inputs import checked_texts
from bge_integrations.runtime.cache import ModelCache, Start
from bge_integrations.runtime.source import Kind, Resolved
from bge_integrations.runtime.stream import Stream
from bge_integrations.runtime.user import BackendName, ModelUser, OnTruncate, positive
from bge_integrations.types import RerankResult

Pair = tuple[str, str]

DEFAULT_MAX_LENGTH = 512
PROGRESS_CHUNK = 256


class BgeReranker(ModelUser):
    """A BGE reranker, or any sequence classifier with one label.

    Cheap to construct: weights load at first use, once a process, and are shared with every other object that uses the
    model. Holds configuration only, so it pickles, deep-copies and may be used from any number of threads.

    Args:
        model: A catalogue id such as "BAAI/bge-reranker-v2-m3", a hub id, or a folder.
        normalize: Scores are the sigmoid of the logits, between 0 and 1; False gives the logits themselves.
        max_length: Tokens at which a pair is cut, special tokens included. None takes 512, as the reference does for
            every reranker, or less where the folder says so; bge-reranker-v2-m3 takes up to 8192.
        query_max_length: Tokens at which the query is cut; then only the passage is. None takes three quarters of
            `max_length`, as the reference does.
        on_truncate: What a pair over the limits causes: one warning a call, an error, or nothing.
        prompt: Of LLM-based rerankers.
        query_instruction: Text before each query; None adds nothing.
        document_instruction: Text before each passage; None adds nothing.
        cutoff_layers: Of layerwise rerankers.
        compress_layers: Of the lightweight reranker.
        compress_ratio: Of the lightweight reranker.

    The other arguments are those of `BgeEmbedder`.

    Raises:
        UnknownModelError: A mistyped catalogue id; the message names the nearest ones.
        WrongKindError: An embedder.
        UnsupportedModelError: A model this version cannot run.
        ValueError: An argument out of its range, or one that this kind of reranker does not have.

    Example:
        >>> BgeReranker("BAAI/bge-reranker-base").max_length is None
        True
    """

    kind: Kind = "reranker"

    def __init__(
        self,
        model: str,
        *,
        normalize: bool = True,
        max_length: int | None = None,
        query_max_length: int | None = None,
        on_truncate: OnTruncate = "warn",
        prompt: str | None = None,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        cutoff_layers: Sequence[int] | None = None,
        compress_layers: Sequence[int] | None = None,
        compress_ratio: int | None = None,
        backend: BackendName = "auto",
        device: object = None,
        dtype: object = None,
        revision: str | None = None,
        max_batch_tokens: int | None = None,
        like: str | None = None,
        cache: ModelCache | None = None,
        cache_folder: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            model,
            max_length=max_length,
            on_truncate=on_truncate,
            backend=backend,
            device=device,
            dtype=dtype,
            revision=revision,
            max_batch_tokens=max_batch_tokens,
            like=like,
            cache=cache,
            cache_folder=cache_folder,
            token=token,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
        )
        self.normalize = normalize
        self.query_max_length = None if query_max_length is None else positive("query_max_length", query_max_length)
        self.query_instruction = query_instruction
        self.document_instruction = document_instruction
        self.prompt = prompt
        self.cutoff_layers = cutoff_layers
        self.compress_layers, self.compress_ratio = compress_layers, compress_ratio
        self._refuse_foreign_arguments()

    def score(self, pairs: Iterable[Pair], show_progress: bool = False) -> list[float]:
        """Scores (query, passage) pairs.

        Args:
            pairs: Two strings each.
            show_progress: Show a tqdm bar.

        Returns:
            One builtin float a pair, in the order given: the sigmoid of the logit, or the logit with
            `normalize=False`.

        Raises:
            TypeError: Something that is not a pair of strings, with its index.
            InputTooLongError: A pair over the limits, with `on_truncate="raise"`.
        """
        return self._scores(_joined(list(self._stream(checked_pairs(pairs), show_progress))))

    async def ascore(self, pairs: Iterable[Pair], show_progress: bool = False) -> list[float]:
        """As `score`, without blocking the event loop."""
        return self._scores(_joined([rows async for rows in self._stream(checked_pairs(pairs), show_progress)]))

    def rerank(self, query: str, documents: Iterable[str], top_n: int | None = None) -> list[RerankResult]:
        """Orders documents by their relevance to a query.

        Args:
            query: The query.
            documents: The passages.
            top_n: How many to return; None returns all.

        Returns:
            Results, best first; equal scores keep the order given.

        Raises:
            TypeError: The query or a document is not a string.
            ValueError: `top_n` is below 1.
            InputTooLongError: A pair over the limits, with `on_truncate="raise"`.
        """
        pairs = _pairs_of(query, documents, top_n)
        return self._ranked(pairs, _joined(list(self._stream(pairs))), top_n)

    async def arerank(self, query: str, documents: Iterable[str], top_n: int | None = None) -> list[RerankResult]:
        """As `rerank`, without blocking the event loop."""
        pairs = _pairs_of(query, documents, top_n)
        return self._ranked(pairs, _joined([rows async for rows in self._stream(pairs)]), top_n)

    def describe(self) -> dict[str, object]:
        """What the model receives and what it gives, and how that was found. Loads no weights; may download files."""
        resolved = self._resolved()
        max_length, query_max_length = self._limits(resolved)
        return {
            "model": self.model,
            "row": resolved.spec.id if resolved.spec else None,
            "found": resolved.found_by,
            "query": (self.query_instruction or "") + "{query}",
            "document": (self.document_instruction or "") + "{document}",
            "normalize": self.normalize,
            "max_length": max_length,
            "query_max_length": query_max_length,
            "on_truncate": self.on_truncate,
            **asdict(resolved.key),
        }

    def _refuse_foreign_arguments(self) -> None:
        for name in ("prompt", "cutoff_layers", "compress_layers", "compress_ratio"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}= belongs to LLM-based rerankers; {self.model} is a cross-encoder.")

    def _stream(self, pairs: list[Pair], show_progress: bool = False) -> Stream[Pair]:
        """All pairs as one call, or, for a bar to move, in chunks."""
        size = PROGRESS_CHUNK if show_progress else max(1, len(pairs))
        return Stream(pairs, self._start, size, report=self._report_cuts, bar=show_progress)

    def _start(self, pairs: list[Pair], first: int) -> Future[Output]:
        """Queues one call, whose pairs the caller counts from `first`."""

        def prepare(resolved: Resolved) -> "Start[Output]":
            max_length, query_max_length = self._limits(resolved)

            def start(engine: Engine) -> Future[Output]:
                room = max_length - engine.tokenizer.pair_special_tokens
                if (self.query_max_length or 1) >= room:
                    raise ValueError(
                        f"query_max_length={self.query_max_length} leaves a passage no room within "
                        f"max_length={max_length}: use at most {room - 1}, or raise max_length."
                    )
                return engine.submit_pairs(
                    pairs,
                    head=Logit(),
                    max_length=max_length,
                    query_max_length=min(query_max_length, room - 1),
                    prefixes=(self.query_instruction or "", self.document_instruction or ""),
                    max_batch_tokens=self.max_batch_tokens,
                    check=self._check(max_length, "pair"),
                    first=first,
                )

            return start

        return self._submit(prepare)

    def _limits(self, resolved: Resolved) -> tuple[int, int]:
        """Most tokens of a pair and of its query."""
        default = resolved.spec.max_length if resolved.spec else min(DEFAULT_MAX_LENGTH, resolved.folder.max_length)
        max_length = self._limit(resolved.folder, default)
        return max_length, self.query_max_length or max(1, max_length * 3 // 4)

    def _report_cuts(self, cuts: list[Cut]) -> None:
        self._report(cuts, self._limits(self._resolved())[0], "pair")

    def _scores(self, logits: NDArray[np.float64]) -> list[float]:
        scores: list[float] = (_sigmoid(logits) if self.normalize else logits).tolist()
        return scores

    def _ranked(self, pairs: list[Pair], logits: NDArray[np.float64], top_n: int | None) -> list[RerankResult]:
        # A pair's last digits depend on its neighbours in the batch; the same pair twice is a tie all the same.
        first: dict[Pair, int] = {}
        logits = logits[[first.setdefault(pair, index) for index, pair in enumerate(pairs)]]
        scores = self._scores(logits)
        order = np.argsort(-logits, kind="stable")[:top_n].tolist()
        return [RerankResult(index, scores[index], float(logits[index])) for index in order]


def checked_pairs(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs as a list of tuples.

    Raises:
        TypeError: Something that is not a pair of strings, with its index.
    """
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs must be a list of (query, passage) pairs, not {type(pairs).__name__}.")
    checked = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"pairs[{index}] must be two strings, (query, passage), not {pair!r:.60}.")
        checked.append((pair[0], pair[1]))
    return checked


def _pairs_of(query: str, documents: Iterable[str], top_n: int | None) -> list[Pair]:
    if not isinstance(query, str):
        raise TypeError(f"query must be a string, not {type(query).__name__}.")
    if top_n is not None:
        positive("top_n", top_n)
    return [(query, document) for document in checked_texts(documents, "documents")]


def _joined(parts: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.concatenate(parts)[:, 0].astype(np.float64) if parts else np.empty(0)


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    # Either branch alone would overflow for large logits of the other sign.
    return np.where(
        logits >= 0, 1 / (1 + np.exp(-np.abs(logits))), np.exp(-np.abs(logits)) / (1 + np.exp(-np.abs(logits)))
    )
