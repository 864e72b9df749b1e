"""What every embedder shares: texts of either side through one model, sync, async, and as a stream."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, replace
from typing import Generic, TypeVar

import numpy as np

from bge_integrations.catalog import ModelSpec
from bge_integrations.embed.fingerprint import fingerprint
from bge_integrations.embed.pending import Pending
from bge_integrations.embed.recipe import Recipe, Side, checked_examples, query_frame
from bge_integrations.inference.call import Cut, Output, Rows
from bge_integrations.inference.engine import Engine
from bge_integrations.inference.heads import Dense, Head
from bge_integrations.inference.inputs import checked_texts, iterable_of_texts
from bge_integrations.runtime.cache import ModelCache, Prepare, Start
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.source import Kind, Resolved
from bge_integrations.runtime.stream import Stream, as_they_are, off_loop
from bge_integrations.runtime.user import BackendName, ModelUser, OnTruncate, positive
from bge_integrations.types import Pooling

E = TypeVar("E")

PROGRESS_CHUNK = 512


class Embedder(ModelUser, ABC, Generic[E]):
    """Encodes texts with one model; `E` is what a call gives for its texts.

    Its arguments are documented in `BgeEmbedder`.
    """

    kind: Kind = "embedder"

    def __init__(
        self,
        model: str,
        *,
        query_instruction: str | None,
        document_instruction: str | None,
        task: str | None,
        examples: Sequence[Mapping[str, str]] | None,
        normalize: bool | None,
        max_length: int | None,
        truncate_dim: int | None,
        on_truncate: OnTruncate,
        backend: BackendName,
        device: object,
        dtype: object,
        revision: str | None,
        max_batch_tokens: int | None,
        like: str | None,
        cache: ModelCache | None,
        cache_folder: str | None,
        token: str | None,
        local_files_only: bool,
        trust_remote_code: bool,
    ) -> None:
        super().__init__(
            model, max_length=max_length, on_truncate=on_truncate, backend=backend, device=device, dtype=dtype,
            revision=revision, max_batch_tokens=max_batch_tokens, like=like, cache=cache, cache_folder=cache_folder,
            token=token, local_files_only=local_files_only, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        self.query_instruction = query_instruction
        self.document_instruction = document_instruction
        self.task = task
        self.examples = checked_examples(examples)
        self.normalize = normalize
        self.truncate_dim = None if truncate_dim is None else positive("truncate_dim", truncate_dim)
        self._check_task()
        if self._row:
            self._check_examples(self._row)

    def encode_queries(self, texts: Iterable[str], show_progress: bool = False) -> E:
        """Embeds queries, each with the query instruction before it.

        Args:
            texts: The queries, without instruction.
            show_progress: Show a tqdm bar.

        Returns:
            What the class gives for its texts, in their order.

        Raises:
            TypeError: A bare string, or an element that is not a string, with its index.
            ValueError: A text that is not valid Unicode, with its index.
            InputTooLongError: A text over `max_length`, with `on_truncate="raise"`.
        """
        return self._encode(texts, "query", show_progress)

    def encode_documents(self, texts: Iterable[str], show_progress: bool = False) -> E:
        """Embeds documents; otherwise as `encode_queries`."""
        return self._encode(texts, "document", show_progress)

    async def aencode_queries(self, texts: Iterable[str], show_progress: bool = False) -> E:
        """As `encode_queries`, without blocking the event loop."""
        return await self._aencode(texts, "query", show_progress)

    async def aencode_documents(self, texts: Iterable[str], show_progress: bool = False) -> E:
        """As `encode_documents`, without blocking the event loop."""
        return await self._aencode(texts, "document", show_progress)

    def submit_documents(self, texts: Iterable[str], positions: Sequence[int] | None = None) -> "Pending[E]":
        """Queues documents and returns at once, for callers that have other work while the model computes.

        Args:
            texts: The documents.
            positions: What the warning about cut texts calls them; None for their indices.

        Raises:
            TypeError: A bare string, or an element that is not a string, with its index.
        """

        def report(cuts: list[Cut]) -> None:
            named = cuts if positions is None else [replace(cut, index=positions[cut.index]) for cut in cuts]
            self._report_cuts(named)

        return Pending(self._starter("document")(checked_texts(texts), 0, False), self._result, report)

    def iter_documents(self, texts: Iterable[str], chunk_size: int = 1024) -> Iterator[E]:
        """Embeds any number of documents with flat memory.

        Args:
            texts: Any iterable of documents, read as it is needed.
            chunk_size: Documents a step.

        Returns:
            An iterator over what the class gives for `chunk_size` texts, in order; the last step may be shorter.
        """
        return iter(self._chunks(texts, chunk_size))

    def aiter_documents(self, texts: Iterable[str], chunk_size: int = 1024) -> AsyncIterator[E]:
        """As `iter_documents`, without blocking the event loop (but for reading `texts`)."""
        return aiter(self._chunks(texts, chunk_size))

    @property
    def dim(self) -> int:
        """Length of a dense vector."""
        if self.truncate_dim:
            return self.truncate_dim
        if self._row and self._row.id == self.model and self._row.dim and self._source.path is None:
            return self._row.dim
        return self._recipe(self._resolved()).dim

    @property
    def fingerprint(self) -> str:
        """What decides document vectors, as 32 hexadecimal digits.

        Covers the contents of weights and tokenizer, pooling, normalisation, dimensions, max_length, the document
        instruction and whether it runs in int8; not the path, device, backend, another dtype or the query instruction.
        Reads the weight files at first use.
        """
        resolved = self._resolved()
        recipe = self._recipe(resolved)
        settings = {
            "pooling": recipe.pooling,
            "normalize": recipe.normalize,
            "dim": recipe.dim,
            "max_length": recipe.max_length,
            "document_prefix": recipe.document_prefix,
        } | ({"int8": True} if resolved.key.dtype == "int8" else {})
        return fingerprint(resolved.folder, settings, self._outputs)

    def describe(self) -> dict[str, object]:
        """What the model receives and what it gives, and how that was found. Loads no weights; may download files."""
        resolved = self._resolved()
        recipe = self._recipe(resolved)
        return {
            "model": self.model,
            "row": resolved.spec.id if resolved.spec else None,
            "found": resolved.found_by,
            "query": str(recipe.query),
            "document": recipe.document_prefix + "{text}",
            "outputs": self._outputs,
            "pooling": str(recipe.pooling),
            "normalize": recipe.normalize,
            "max_length": recipe.max_length,
            "dim": recipe.dim,
            "on_truncate": self.on_truncate,
            **asdict(resolved.key),
        }

    @property
    @abstractmethod
    def _outputs(self) -> tuple[str, ...]:
        """Which of the model's outputs this object gives."""

    @abstractmethod
    def _head(self, dense: Dense) -> Head:
        """What to keep of a forward whose dense vector is made like `dense`."""

    @abstractmethod
    def _result(self, rows: Rows) -> E:
        """What a caller gets for rows."""

    @abstractmethod
    def _no_result(self) -> E:
        """What a caller gets for no text; may read the model's files."""

    def _encode(self, texts: Iterable[str], side: Side, show_progress: bool) -> E:
        parts = list(self._all(texts, side, show_progress))
        return self._result(_joined(parts)) if parts else self._no_result()

    async def _aencode(self, texts: Iterable[str], side: Side, show_progress: bool) -> E:
        parts = [rows async for rows in self._all(texts, side, show_progress)]
        if not parts:
            return await asyncio.to_thread(self._no_result)
        return await off_loop(sum(map(len, parts)), lambda: self._result(_joined(parts)))

    def _all(self, texts: Iterable[str], side: Side, show_progress: bool) -> Stream[str, Rows]:
        """All texts as one call, or, for a bar to move, in chunks."""
        listed = checked_texts(texts)
        size = PROGRESS_CHUNK if show_progress else max(1, len(listed))
        start = self._starter(side)
        return Stream(listed, start, size, convert=as_they_are, report=self._report_cuts, bar=show_progress)

    def _chunks(self, texts: Iterable[str], chunk_size: int) -> Stream[str, E]:
        size = positive("chunk_size", chunk_size)
        start = self._starter("document")
        return Stream(iterable_of_texts(texts), start, size, convert=self._result, report=self._report_cuts)

    def _report_cuts(self, cuts: list[Cut]) -> None:
        if cuts:
            self._report(cuts, self._recipe(self._resolved()).max_length, "text")

    def _starter(self, side: Side) -> Callable[[list[str], int, bool], Future[Output]]:
        """The function that queues a chunk of texts of one side; see `Stream`."""

        def start(chunk: list[str], index: int, patient: bool) -> Future[Output]:
            texts = checked_texts(chunk, start=index)
            return self._submit(texts, lambda part, offset: self._prepare(part, side, index + offset, patient=patient))

        return start

    def _prepare(self, texts: list[str], side: Side, first: int, *, patient: bool) -> Prepare[Output]:
        """What queues one call, whose texts the caller counts from `first`."""

        def prepare(resolved: Resolved) -> "Start[Output]":
            recipe = self._recipe(resolved)

            def start(engine: Engine) -> Future[Output]:
                special_tokens = engine.tokenizer.special_tokens
                if recipe.max_length <= special_tokens:
                    raise ValueError(
                        f"max_length={recipe.max_length} leaves a text no room beside {special_tokens} special tokens."
                    )
                left_out = 0 if resolved.folder.include_prompt else engine.tokenizer.prompt_length(recipe.prefix(side))
                return engine.submit(
                    texts,
                    recipe.encode(engine.tokenizer, side),
                    head=self._head(recipe.dense(left_out)),
                    max_batch_tokens=self.max_batch_tokens,
                    check=self._check(recipe.max_length, "text"),
                    first=first,
                    patient=patient,
                )

            return start

        return prepare

    def _recipe(self, resolved: Resolved) -> Recipe:
        """Raises `ValueError` for what the files show to be impossible."""
        spec, folder = resolved.spec, resolved.folder
        by_id = spec is not None and spec.id == resolved.key.model
        pooling = spec.pooling if spec and (by_id or folder.pooling is None) else folder.pooling
        facts = folder if spec is None or (resolved.guessed and folder.modules) else spec
        worded = None if resolved.guessed and self.task is None and _instructions(folder) != ("", "") else spec
        query, document = self._instructions(worded, folder)
        self._check_examples(spec)
        return self._checked(
            resolved,
            Recipe(
                pooling=pooling or Pooling.MEAN,
                normalize=facts.normalize if self.normalize is None else self.normalize,
                max_length=self._limit(folder, facts.max_length),
                dim=self.truncate_dim or min(folder.truncate_dim or folder.dim, folder.dim),
                query=query_frame(worded.query_template if worded else None, query, self.examples),
                document_prefix=document,
                ends_in_eos=spec is not None and spec.ends_in_eos,
                truncate_dim=self.truncate_dim or folder.truncate_dim,
                cut_last=self.truncate_dim is None,
            ),
        )

    def _instructions(self, spec: ModelSpec | None, folder: Folder) -> tuple[str, str]:
        """The instruction of a query, or the task of a model with a template, and that of a document."""
        if spec and self.query_instruction is not None and self.task is None:
            return self.query_instruction, self.document_instruction or ""  # a pair of the caller's own
        if spec:
            query, document = (
                spec.tasks[self.task] if self.task else (spec.query_instruction, spec.document_instruction)
            )
        else:
            query, document = _instructions(folder)
        return (
            query if self.query_instruction is None else self.query_instruction,
            document if self.document_instruction is None else self.document_instruction,
        )

    def _checked(self, resolved: Resolved, recipe: Recipe) -> Recipe:
        """Refuses, before weights load, what the files show to be impossible."""
        if recipe.dim > resolved.folder.dim:
            raise ValueError(
                f"truncate_dim={recipe.dim} is more than the {resolved.folder.dim} dimensions of {self.model}."
            )
        if resolved.folder.normalize and not recipe.normalize and resolved.key.backend == "sentence_transformers":
            raise ValueError(
                f"normalize=False: the pipeline of {self.model} ends in Normalize, and it runs as a whole."
            )
        return recipe

    def _check_task(self) -> None:
        if self.task is not None and (self._row is None or self.task not in self._row.tasks):
            names = ", ".join(self._row.tasks) if self._row and self._row.tasks else "none"
            raise ValueError(f'task="{self.task}" is not a published task of {self.model}. Its tasks: {names}.')

    def _check_examples(self, spec: ModelSpec | None) -> None:
        if self.examples and not (spec and spec.few_shot):
            raise ValueError(
                f"examples= are for models trained with examples, such as BAAI/bge-en-icl; {self.model} is not one."
            )


def _instructions(folder: Folder) -> tuple[str, str]:
    """The folder's own prompts, as sentence-transformers' `encode_query` and `encode_document` find them."""
    document = next((folder.prompts[n] for n in ("document", "passage", "corpus") if n in folder.prompts), "")
    return folder.prompts.get("query", ""), document


def _joined(parts: list[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
