"""Texts to vectors, queries and documents each by their own path."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bge_integrations.catalog import ModelSpec
from bge_integrations.embed.fingerprint import fingerprint
from bge_integrations.inference.call import Cut, Output
from bge_integrations.inference.engine import Engine
from bge_integrations.inference.heads import Dense
from bge_integrations.inference.inputs import checked_texts, iterable_of_texts
from bge_integrations.runtime.cache import ModelCache, Start
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.source import Kind, Resolved
from bge_integrations.runtime.stream import Stream
from bge_integrations.runtime.user import BackendName, ModelUser, OnTruncate, positive
from bge_integrations.types import Pooling

FloatArray = NDArray[np.float32]
Side = Literal["query", "document"]

PROGRESS_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Recipe:
    """How texts become vectors: the catalogue's row, the folder's files and the caller's arguments, put together."""

    pooling: Pooling
    normalize: bool
    max_length: int
    dim: int
    query_prefix: str
    document_prefix: str

    def prefix(self, side: Side) -> str:
        """What goes before a text of one side."""
        return self.query_prefix if side == "query" else self.document_prefix


class BgeEmbedder(ModelUser):
    """A BGE embedding model, or any sentence-transformers text model.

    Cheap to construct: weights load at first use, once a process, and are shared with every other object that uses the
    model. Holds configuration only, so it pickles, deep-copies and may be used from any number of threads.

    Args:
        model: A catalogue id such as "BAAI/bge-base-en-v1.5", a hub id, or a folder.
        query_instruction: Text before each query. None takes the catalogue's (or, outside it, the model's own "query"
            prompt); "" adds nothing.
        document_instruction: Text before each document. BGE models take none, but for llm-embedder.
        task: Name of a published pair of instructions, such as "qa" of llm-embedder.
        normalize: Scale vectors to length 1. None takes the catalogue's, else what the folder says.
        max_length: Tokens at which a text is cut, special tokens included. None takes the catalogue's, else the
            folder's.
        truncate_dim: Keep the first so many dimensions, for models trained for that (Matryoshka).
        on_truncate: What a text over `max_length` causes: one warning a call, an error, or nothing.
        backend: "auto", "torch", or "sentence_transformers" for that library's own pipeline.
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best there is.
        dtype: "float32", "float16" or "bfloat16" of the weights; None takes float16 on cuda, float32 elsewhere.
        revision: The hub's branch, tag or commit.
        max_batch_tokens: Most tokens in a forward that holds texts of this object.
        like: The catalogue id that a fine-tune or a bare folder descends from.
        cache: Where the model lives; None is the process-wide cache.
        cache_folder: Where downloads are kept; None is the hub's own folder.
        token: For private or gated repositories. Never shown by `repr`.
        local_files_only: Never ask the hub.
        trust_remote_code: Run Python code that the repository brings.

    Raises:
        UnknownModelError: A mistyped catalogue id; the message names the nearest ones.
        WrongKindError: A reranker.
        UnsupportedModelError: A model this version cannot run.
        ValueError: An argument out of its range.

    Example:
        >>> embedder = BgeEmbedder("BAAI/bge-base-en-v1.5")
        >>> embedder.describe()["query"]
        'Represent this sentence for searching relevant passages: {text}'
    """

    kind: Kind = "embedder"

    def __init__(
        self,
        model: str,
        *,
        query_instruction: str | None = None,
        document_instruction: str = "",
        task: str | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        on_truncate: OnTruncate = "warn",
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
        self.query_instruction = query_instruction
        self.document_instruction = document_instruction
        self.task = task
        self.normalize = normalize
        self.truncate_dim = None if truncate_dim is None else positive("truncate_dim", truncate_dim)
        self._check_task()
        if truncate_dim and self._row and (like is None or self._row.id == self.model):
            raise ValueError(
                f"truncate_dim={truncate_dim}: {self.model} was not trained for shorter vectors, so cutting them loses "
                "quality. For a fine-tune that was, pass its folder and like=."
            )

    def encode_queries(self, texts: Iterable[str], show_progress: bool = False) -> FloatArray:
        """Embeds queries, each with the query instruction before it.

        Args:
            texts: The queries, without instruction.
            show_progress: Show a tqdm bar.

        Returns:
            float32 (n, dim), in the order of `texts`.

        Raises:
            TypeError: A bare string, or an element that is not a string, with its index.
            ValueError: A text that is not valid Unicode, with its index.
            InputTooLongError: A text over `max_length`, with `on_truncate="raise"`.
        """
        return self._encode(texts, "query", show_progress)

    def encode_documents(self, texts: Iterable[str], show_progress: bool = False) -> FloatArray:
        """Embeds documents; otherwise as `encode_queries`."""
        return self._encode(texts, "document", show_progress)

    async def aencode_queries(self, texts: Iterable[str], show_progress: bool = False) -> FloatArray:
        """As `encode_queries`, without blocking the event loop."""
        return await self._aencode(texts, "query", show_progress)

    async def aencode_documents(self, texts: Iterable[str], show_progress: bool = False) -> FloatArray:
        """As `encode_documents`, without blocking the event loop."""
        return await self._aencode(texts, "document", show_progress)

    def iter_documents(self, texts: Iterable[str], chunk_size: int = 1024) -> Iterator[FloatArray]:
        """Embeds any number of documents with flat memory.

        Args:
            texts: Any iterable of documents, read as it is needed.
            chunk_size: Documents an array.

        Returns:
            An iterator of float32 (chunk_size, dim) arrays in order; the last may be shorter.
        """
        return iter(self._stream(iterable_of_texts(texts), "document", positive("chunk_size", chunk_size)))

    def aiter_documents(self, texts: Iterable[str], chunk_size: int = 1024) -> AsyncIterator[FloatArray]:
        """As `iter_documents`, without blocking the event loop (but for reading `texts`)."""
        return aiter(self._stream(iterable_of_texts(texts), "document", positive("chunk_size", chunk_size)))

    @property
    def dim(self) -> int:
        """Length of a vector."""
        if self.truncate_dim:
            return self.truncate_dim
        if self._row and self._row.id == self.model and self._row.dim:
            return self._row.dim
        return self._resolved().folder.dim

    @property
    def fingerprint(self) -> str:
        """What decides document vectors, as 32 hexadecimal digits.

        Covers the contents of weights and tokenizer, pooling, normalisation, dimensions, max_length and the document
        instruction; not the path, device, backend, dtype or query instruction. Reads the weight files at first use.
        """
        resolved = self._resolved()
        recipe = self._recipe(resolved)
        return fingerprint(
            resolved.folder,
            {
                "pooling": recipe.pooling,
                "normalize": recipe.normalize,
                "dim": recipe.dim,
                "max_length": recipe.max_length,
                "document_prefix": recipe.document_prefix,
            },
        )

    def describe(self) -> dict[str, object]:
        """What the model receives and what it gives, and how that was found. Loads no weights; may download files."""
        resolved = self._resolved()
        recipe = self._recipe(resolved)
        return {
            "model": self.model,
            "row": resolved.spec.id if resolved.spec else None,
            "found": resolved.found_by,
            "query": recipe.query_prefix + "{text}",
            "document": recipe.document_prefix + "{text}",
            "pooling": str(recipe.pooling),
            "normalize": recipe.normalize,
            "max_length": recipe.max_length,
            "dim": recipe.dim,
            "on_truncate": self.on_truncate,
            **asdict(resolved.key),
        }

    def _encode(self, texts: Iterable[str], side: Side, show_progress: bool) -> FloatArray:
        parts = list(self._all(texts, side, show_progress))
        return _joined(parts) if parts else np.empty((0, self.dim), dtype=np.float32)

    async def _aencode(self, texts: Iterable[str], side: Side, show_progress: bool) -> FloatArray:
        parts = [rows async for rows in self._all(texts, side, show_progress)]
        return _joined(parts) if parts else np.empty((0, await asyncio.to_thread(lambda: self.dim)), dtype=np.float32)

    def _all(self, texts: Iterable[str], side: Side, show_progress: bool) -> Stream[str]:
        """All texts as one call, or, for a bar to move, in chunks."""
        listed = checked_texts(texts)
        return self._stream(listed, side, PROGRESS_CHUNK if show_progress else max(1, len(listed)), show_progress)

    def _stream(self, texts: Iterable[str], side: Side, size: int, bar: bool = False) -> Stream[str]:
        def start(chunk: list[str], index: int) -> Future[Output]:
            return self._start(checked_texts(chunk, start=index), side, index)

        return Stream(texts, start, size, report=self._report_cuts, bar=bar)

    def _report_cuts(self, cuts: list[Cut]) -> None:
        if cuts:
            self._report(cuts, self._recipe(self._resolved()).max_length, "text")

    def _start(self, texts: list[str], side: Side, first: int) -> Future[Output]:
        """Queues one call, whose texts the caller counts from `first`."""

        def prepare(resolved: Resolved) -> "Start[Output]":
            recipe = self._recipe(resolved)
            prefix = recipe.prefix(side)

            def start(engine: Engine) -> Future[Output]:
                special_tokens = engine.tokenizer.special_tokens
                if recipe.max_length <= special_tokens:
                    raise ValueError(
                        f"max_length={recipe.max_length} leaves a text no room beside {special_tokens} special tokens."
                    )
                left_out = 0 if resolved.folder.include_prompt else engine.tokenizer.prompt_length(prefix)
                return engine.submit_texts(
                    texts,
                    head=Dense(recipe.pooling, recipe.normalize, self.truncate_dim, left_out),
                    max_length=recipe.max_length,
                    prefix=prefix,
                    max_batch_tokens=self.max_batch_tokens,
                    check=self._check(recipe.max_length, "text"),
                    first=first,
                )

            return start

        return self._submit(prepare)

    def _recipe(self, resolved: Resolved) -> Recipe:
        """Raises `ValueError` for what the files show to be impossible."""
        spec, folder = resolved.spec, resolved.folder
        by_id = spec is not None and spec.id == resolved.key.model
        pooling = spec.pooling if spec and (by_id or folder.pooling is None) else folder.pooling
        query_prefix, document_prefix = self._prefixes(spec, folder)
        return self._checked(
            resolved,
            Recipe(
                pooling=pooling or Pooling.MEAN,
                normalize=(spec or folder).normalize if self.normalize is None else self.normalize,
                max_length=self._limit(folder, (spec or folder).max_length),
                dim=self.truncate_dim or folder.dim,
                query_prefix=query_prefix,
                document_prefix=document_prefix,
            ),
        )

    def _prefixes(self, spec: ModelSpec | None, folder: Folder) -> tuple[str, str]:
        """What goes before a query and before a document."""
        if spec and self.query_instruction is not None and self.task is None:
            return self.query_instruction, self.document_instruction  # a pair of the caller's own
        if spec:
            query, document = (
                spec.tasks[self.task] if self.task else (spec.query_instruction, spec.document_instruction)
            )
        else:
            query = folder.prompts.get("query", "")
            document = next((folder.prompts[n] for n in ("document", "passage", "corpus") if n in folder.prompts), "")
        return (
            query if self.query_instruction is None else self.query_instruction,
            self.document_instruction or document,
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


def _joined(parts: list[FloatArray]) -> FloatArray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
