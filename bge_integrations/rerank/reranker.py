"""Queries and passages to relevance scores."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from bge_integrations.catalog import ModelSpec
from bge_integrations.inference.call import Cut, Output, Rows
from bge_integrations.inference.engine import Engine
from bge_integrations.inference.inputs import checked_pairs, checked_texts
from bge_integrations.rerank.recipe import ARGUMENTS, Recipe, check_layers, layer_numbers, layers_of
from bge_integrations.runtime.cache import ModelCache, Prepare, Start
from bge_integrations.runtime.source import Kind, Resolved
from bge_integrations.runtime.stream import Stream, as_they_are, off_loop
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
        prompt: Of LLM-based rerankers, the task put after query and passage; None takes the catalogue's.
        query_instruction: Text before each query; None takes the catalogue's: "A: " for LLM-based rerankers, else none.
        document_instruction: Text before each passage; None takes the catalogue's: "B: ", else none.
        cutoff_layers: Of layerwise rerankers, after which layers to score; nothing after the last is computed. `score`
            and `rerank` take the last. None takes the model's last layer.
        compress_layers: Of the lightweight reranker, before which layers the passage's tokens are averaged in groups;
            None takes layer 8.
        compress_ratio: Of the lightweight reranker, tokens a group; None takes 1, which compresses nothing. The
            authors save most with 2 before layer 8 and `cutoff_layers=[25]`.

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
            model, max_length=max_length, on_truncate=on_truncate, backend=backend, device=device, dtype=dtype,
            revision=revision, max_batch_tokens=max_batch_tokens, like=like, cache=cache, cache_folder=cache_folder,
            token=token, local_files_only=local_files_only, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        self.normalize = normalize
        self.query_max_length = None if query_max_length is None else positive("query_max_length", query_max_length)
        self.query_instruction = query_instruction
        self.document_instruction = document_instruction
        self.prompt = prompt
        self.cutoff_layers = layer_numbers("cutoff_layers", cutoff_layers)
        self.compress_layers = layer_numbers("compress_layers", compress_layers)
        self.compress_ratio = None if compress_ratio is None else positive("compress_ratio", compress_ratio)
        if self._row:
            self._refuse_foreign_arguments(self._row)
            if self._row.start_layer and self._row.layers and like is None:
                scoring = range(self._row.start_layer, self._row.layers + 1)
                check_layers(self.cutoff_layers or (), self.compress_layers or (), scoring)

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
        return self._scores(_joined(list(self._stream(checked_pairs(pairs), show_progress)))[:, -1])

    async def ascore(self, pairs: Iterable[Pair], show_progress: bool = False) -> list[float]:
        """As `score`, without blocking the event loop."""
        listed = checked_pairs(pairs)
        parts = [rows async for rows in self._stream(listed, show_progress)]
        return await off_loop(len(listed), lambda: self._scores(_joined(parts)[:, -1]))

    def score_layers(self, pairs: Iterable[Pair], show_progress: bool = False) -> NDArray[np.float64]:
        """Scores pairs after each of a layerwise reranker's `cutoff_layers`; otherwise as `score`.

        Returns:
            float64 (pairs, layers), layers ascending.

        Raises:
            ValueError: The model is no layerwise reranker.
        """
        layers = self._recipe(self._resolved()).layers
        if layers is None:
            raise ValueError(f"{self.model} scores after its last layer only. Use score().")
        parts = list(self._stream(checked_pairs(pairs), show_progress))
        return self._normalized(_joined(parts, width=len(layers.cutoffs)))

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
        return self._ranked(pairs, _joined(list(self._stream(pairs)))[:, -1], top_n)

    async def arerank(self, query: str, documents: Iterable[str], top_n: int | None = None) -> list[RerankResult]:
        """As `rerank`, without blocking the event loop."""
        pairs = _pairs_of(query, documents, top_n)
        parts = [rows async for rows in self._stream(pairs)]
        return await off_loop(len(pairs), lambda: self._ranked(pairs, _joined(parts)[:, -1], top_n))

    def describe(self) -> dict[str, object]:
        """What the model receives and what it gives, and how that was found. Loads no weights; may download files."""
        resolved = self._resolved()
        recipe = self._recipe(resolved)
        before_query, before_passage = recipe.prefixes
        return {
            "model": self.model,
            "row": resolved.spec.id if resolved.spec else None,
            "found": resolved.found_by,
            "query": before_query + "{query}",
            "document": before_passage + "{document}",
            "prompt": recipe.prompt,
            "cutoff_layers": recipe.layers.cutoffs if recipe.layers else None,
            "normalize": self.normalize,
            "max_length": recipe.max_length,
            "query_max_length": recipe.query_limit,
            "on_truncate": self.on_truncate,
            **asdict(resolved.key),
        }

    def _refuse_foreign_arguments(self, spec: ModelSpec | None) -> None:
        family = spec.family if spec else "cross_encoder"
        for name, families in ARGUMENTS.items():
            if getattr(self, name) is not None and family not in families:
                raise ValueError(
                    f"{name}= belongs to rerankers of the kind {' or '.join(families)}; {self.model} is of the kind "
                    f"{family}. For a fine-tune pass like= with the id of its parent."
                )

    def _stream(self, pairs: list[Pair], show_progress: bool = False) -> Stream[Pair, Rows]:
        """All pairs as one call, or, for a bar to move, in chunks."""
        size = PROGRESS_CHUNK if show_progress else max(1, len(pairs))
        return Stream(pairs, self._start, size, convert=as_they_are, report=self._report_cuts, bar=show_progress)

    def _start(self, pairs: list[Pair], first: int, patient: bool) -> Future[Output]:
        return self._submit(pairs, lambda part, offset: self._prepare(part, first + offset, patient=patient))

    def _prepare(self, pairs: list[Pair], first: int, *, patient: bool) -> Prepare[Output]:
        """What queues one call, whose pairs the caller counts from `first`."""

        def prepare(resolved: Resolved) -> "Start[Output]":
            recipe = self._recipe(resolved)

            def start(engine: Engine) -> Future[Output]:
                return engine.submit(
                    pairs,
                    recipe.encode(engine.tokenizer),
                    head=recipe.head(engine.tokenizer),
                    max_batch_tokens=self.max_batch_tokens,
                    check=self._check(recipe.max_length, "pair"),
                    first=first,
                    patient=patient,
                )

            return start

        return prepare

    def _recipe(self, resolved: Resolved) -> Recipe:
        """Raises `ValueError` for what the files show to be impossible."""
        spec, folder = resolved.spec, resolved.folder
        self._refuse_foreign_arguments(spec)
        layerwise = spec is not None and spec.family in ARGUMENTS["cutoff_layers"]
        asked = (self.query_instruction, self.document_instruction)
        own = folder.default_prompt if resolved.guessed or not spec else ""
        usual = (spec.query_instruction, spec.document_instruction) if spec and not own else (own, "")
        before_query, before_passage = (text if mine is None else mine for mine, text in zip(asked, usual, strict=True))
        return Recipe(
            prefixes=(before_query, before_passage),
            max_length=self._limit(
                folder,
                spec.max_length
                if spec and not (resolved.guessed and folder.modules)
                else min(DEFAULT_MAX_LENGTH, folder.max_length),
            ),
            query_max_length=self.query_max_length,
            prompt=self.prompt or (spec.prompt if spec else ""),
            layers=layers_of(folder, self.cutoff_layers or (), self.compress_layers, self.compress_ratio or 1)
            if layerwise
            else None,
        )

    def _report_cuts(self, cuts: list[Cut]) -> None:
        self._report(cuts, self._recipe(self._resolved()).max_length, "pair")

    def _normalized(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        return _sigmoid(logits) if self.normalize else logits

    def _scores(self, logits: NDArray[np.float64]) -> list[float]:
        scores: list[float] = self._normalized(logits).tolist()
        return scores

    def _ranked(self, pairs: list[Pair], logits: NDArray[np.float64], top_n: int | None) -> list[RerankResult]:
        # A pair's last digits depend on its neighbours in the batch; the same pair twice is a tie all the same.
        first: dict[Pair, int] = {}
        logits = logits[[first.setdefault(pair, index) for index, pair in enumerate(pairs)]]
        scores = self._scores(logits)
        order = np.argsort(-logits, kind="stable")[:top_n].tolist()
        return [RerankResult(index, scores[index], float(logits[index])) for index in order]


def _pairs_of(query: str, documents: Iterable[str], top_n: int | None) -> list[Pair]:
    if not isinstance(query, str):
        raise TypeError(f"query must be a string, not {type(query).__name__}.")
    if top_n is not None:
        positive("top_n", top_n)
    return [(query, document) for document in checked_texts(documents, "documents")]


def _joined(parts: list[Rows], width: int = 1) -> NDArray[np.float64]:
    """Logits (pairs, width)."""
    return np.concatenate(parts).astype(np.float64) if parts else np.empty((0, width))


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    # Either branch alone would overflow for large logits of the other sign.
    return np.where(
        logits >= 0, 1 / (1 + np.exp(-np.abs(logits))), np.exp(-np.abs(logits)) / (1 + np.exp(-np.abs(logits)))
    )
