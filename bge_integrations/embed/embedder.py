"""Embedders turn texts into vectors, queries and documents with separate methods."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.embed.prompts import EmbedOptions, Example, FolderOptions, Side, check_examples, checked_examples
from bge_integrations.inference.batch import Cut, Output, Rows
from bge_integrations.process import wait
from bge_integrations.runtime.cache import cache_at
from bge_integrations.runtime.request import Kind, TextOptions
from bge_integrations.runtime.user import (
    ModelUser,
    Stream,
    checked_texts,
    iter_texts,
    off_loop,
    optional_positive,
    positive,
)

E = TypeVar("E")
FloatArray = NDArray[np.float32]

PROGRESS_CHUNK = 512

_SLICE = 1 << 14
"""This many numbers become Python floats at a time: it takes under 1 ms, during which no other thread runs."""


@dataclass(repr=False, eq=False, kw_only=True)
class Embedder(ModelUser, Generic[E]):
    """The base of embedders, which encode texts with one model; a call returns an `E`.

    The arguments are documented in `BgeEmbedder`.
    """

    kind: ClassVar[Kind] = "embedder"

    query_instruction: str | None = None
    document_instruction: str | None = None
    normalize: bool | None = None

    def encode_queries(self, texts: Iterable[str], show_progress: bool = False) -> E:
        """Embed queries, each with the query instruction before it.

        Args:
            texts: The queries, without instruction.
            show_progress: Show a tqdm bar.

        Returns:
            The embeddings in the order of the texts, as the class documents them.

        Raises:
            TypeError: `texts` is a bare string, or an element is not a string; the message has its index.
            ValueError: A text is not valid Unicode; the message has its index.
            InputTooLongError: A text is over `max_length`, with `on_truncate="raise"`.
        """
        return self._encode(texts, "query", show_progress)

    def encode_documents(self, texts: Iterable[str], show_progress: bool = False) -> E:
        """Embed documents, each with the document instruction before it; see `encode_queries`."""
        return self._encode(texts, "document", show_progress)

    async def aencode_queries(self, texts: Iterable[str], show_progress: bool = False) -> E:
        """Embed queries as `encode_queries` does, without blocking the event loop."""
        return await self._aencode(texts, "query", show_progress)

    async def aencode_documents(self, texts: Iterable[str], show_progress: bool = False) -> E:
        """Embed documents as `encode_documents` does, without blocking the event loop."""
        return await self._aencode(texts, "document", show_progress)

    def submit_documents(self, texts: Iterable[str], positions: Sequence[int] | None = None) -> "Pending[E]":
        """Queue documents and return at once, for callers that have other work while the model computes.

        Args:
            texts: The documents.
            positions: The numbers by which the warning about cut texts names them; None takes their indices.

        Raises:
            TypeError: `texts` is a bare string, or an element is not a string; the message has its index.
        """

        def report(cuts: Sequence[Cut], limit: int) -> None:
            self._report(cuts if positions is None else [replace(c, index=positions[c.index]) for c in cuts], limit)

        return Pending(self._submit(self._options["document"], checked_texts(texts)), self._result, report)

    def iter_documents(self, texts: Iterable[str], chunk_size: int = 1024) -> Iterator[E]:
        """Embed any number of documents in bounded memory.

        Args:
            texts: Any iterable of documents, read as it is needed.
            chunk_size: Number of documents per step.

        Returns:
            An iterator over the embeddings of `chunk_size` texts at a time, in order; the last step may be shorter.
        """
        return iter(self._chunks(texts, chunk_size))

    def aiter_documents(self, texts: Iterable[str], chunk_size: int = 1024) -> AsyncIterator[E]:
        """Embed documents as `iter_documents` does; only reading `texts` may block the event loop."""
        return aiter(self._chunks(texts, chunk_size))

    @property
    def dim(self) -> int:
        """The length of a dense vector."""
        if self._row and self._row.id == self.model and self._row.dim and self._sources[0].path is None:
            return self._row.dim
        return int(self._describe(self._options["document"])["dim"])

    @property
    def fingerprint(self) -> str:
        """A hash, 32 hexadecimal digits, of everything that decides document vectors.

        It covers the contents of weights and tokenizer, pooling, normalisation, dimensions, max_length, the document
        instruction and whether it runs in int8; not the path, device, backend, another dtype or the query instruction.
        The first use reads the weight files.
        """
        return cache_at(self.cache).fingerprint(self._sources[0], self._options["document"])

    def describe(self) -> dict[str, object]:
        """Return the model's settings and how they were found. This loads no weights, but may download files."""
        query, facts = (self._describe(self._options[side]) for side in ("query", "document"))
        return {
            "model": self.model,
            "query": query["text"],
            "document": facts.pop("text"),
            "outputs": self._outputs,
            "on_truncate": self.on_truncate,
            **facts,
        }

    @property
    def _outputs(self) -> tuple[str, ...]:
        """The names of the model's outputs that this object returns."""
        raise NotImplementedError

    def _result(self, rows: Rows) -> E:
        """Turn rows into the embeddings that a call returns."""
        raise NotImplementedError

    def _no_result(self) -> E:
        """Return the embeddings of an empty list of texts; this may read the model's files."""
        raise NotImplementedError

    def _encode(self, texts: Iterable[str], side: Side, show_progress: bool) -> E:
        listed = checked_texts(texts)
        if not listed:
            return self._no_result()
        return self._result(self._run(self._options[side], listed, PROGRESS_CHUNK if show_progress else None))

    async def _aencode(self, texts: Iterable[str], side: Side, show_progress: bool) -> E:
        listed = checked_texts(texts)
        if not listed:
            import asyncio

            return await asyncio.to_thread(self._no_result)
        rows = await self._arun(self._options[side], listed, PROGRESS_CHUNK if show_progress else None)
        return await off_loop(len(rows), self._result, rows)

    def _chunks(self, texts: Iterable[str], chunk_size: int) -> Stream[E]:
        size = positive("chunk_size", chunk_size)
        return self._stream(self._options["document"], iter_texts(texts), size, convert=self._result)

    @cached_property
    def _options(self) -> dict[Side, TextOptions]:
        return {"query": self._side("query"), "document": self._side("document")}

    def _side(self, side: Side) -> TextOptions:
        """Return the options that decide the vectors of one side, queries or documents."""
        return EmbedOptions(
            side=side, query_instruction=self.query_instruction, document_instruction=self.document_instruction,
            normalize=self.normalize, max_length=self.max_length, outputs=self._outputs,
        )  # fmt: skip


@dataclass(repr=False, eq=False, kw_only=True)
class BgeEmbedder(Embedder[FloatArray]):
    """A BGE embedding model, or any sentence-transformers text model.

    It is cheap to construct: the weights load at first use, once per process, and are shared with every other object
    that uses the model. It holds configuration only, so you can pickle it, deep-copy it and use it from any number of
    threads.

    A call returns a float32 array (n, dim), one vector for each text.

    Args:
        model: A catalogue id such as "BAAI/bge-base-en-v1.5", a hub id, or a folder. A relative path is resolved when
            the object is made; symbolic links are followed at each call.
        query_instruction: Text before each query, or the task for a model with a template (the LLM-based embedders:
            describe() shows it). None takes the instruction in the catalogue or, for a model outside it, the model's
            own "query" prompt; "" adds nothing.
        document_instruction: Text before each document. None takes the instruction in the catalogue (only llm-embedder
            has one, and a given `query_instruction` leaves it out) or, for a model outside it, the model's own
            "document" prompt; "" adds nothing.
        task: The name of a published pair of instructions, such as "qa" of llm-embedder.
        examples: Few-shot examples of bge-en-icl, put before every query: dicts with "query" and "response", and
            "instruct" where it is not the query instruction.
        normalize: Scale vectors to length 1. None takes the setting in the catalogue, else that of the folder.
        max_length: Tokens at which a text is cut, special tokens included. None takes the limit in the catalogue, else
            that of the folder.
        truncate_dim: Keep only this many leading dimensions, for models trained for that (Matryoshka).
        on_truncate: What a text over `max_length` causes: one warning per call, an error, or nothing.
        backend: "torch", "openvino" (on a CPU; extra `openvino`), or "sentence_transformers" for that library's own
            pipeline. "auto" takes the fastest that is installed and exact.
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best there is. A list, as ["cuda:0", "cuda:1"], keeps a
            replica on each: long calls are split among them, short ones go to the least busy.
        dtype: "float32", "float16" or "bfloat16" of the weights, or "int8" on OpenVINO; None takes float16 on cuda,
            float32 elsewhere.
        revision: The hub's branch, tag or commit.
        max_batch_tokens: Most tokens in a forward that holds texts of this object.
        like: The catalogue id that a fine-tune or a bare folder descends from.
        cache: Where the model lives: a `ModelCache` of this process, the address of a server that `bge serve` has
            started ("http://host:8080", "unix:///path/of.sock"), or "auto" for this user's own server, which is started
            if need be. None takes the address in the environment's `BGE_CACHE`, else the process-wide cache. A server
            decides `device` and `backend`; `revision`, `dtype` and `like` must be its own where they are given.
        cache_folder: Where downloads are kept; None is the hub's own folder.
        token: Access token for private or gated repositories. `repr` never shows it.
        local_files_only: Never ask the hub.
        trust_remote_code: Run Python code that the repository brings.

    Raises:
        UnknownModelError: The model is a mistyped catalogue id; the message names the nearest ones.
        WrongKindError: The model is a reranker.
        UnsupportedModelError: This version cannot run the model.
        ValueError: An argument is out of its range.

    Example:
        >>> embedder = BgeEmbedder("BAAI/bge-base-en-v1.5")
        >>> embedder.describe()["query"]
        'Represent this sentence for searching relevant passages: {text}'
    """

    task: str | None = None
    examples: Sequence[Mapping[str, str]] | None = None
    truncate_dim: int | None = None

    def __post_init__(self) -> None:
        self.examples = checked_examples(self.examples)
        self.truncate_dim = optional_positive("truncate_dim", self.truncate_dim)
        super().__post_init__()
        row = self._row
        if self.task is not None and (row is None or self.task not in row.tasks):
            names = ", ".join(row.tasks) if row and row.tasks else "none"
            raise ValueError(f'task="{self.task}" is not a published task of {self.model}. Its tasks: {names}.')
        if row:
            check_examples(self.examples, row, self.model)
        if self.truncate_dim and row and (self.like is None or row.id == self.model):
            raise ValueError(
                f"truncate_dim={self.truncate_dim}: {self.model} was not trained for shorter vectors, so cutting them "
                "loses quality. For a fine-tune that was, pass its folder and like=."
            )

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self.truncate_dim or super().dim

    def _side(self, side: Side) -> TextOptions:
        examples = [Example(e["query"], e["response"], e.get("instruct")) for e in self.examples or ()]
        return EmbedOptions(
            side=side, query_instruction=self.query_instruction, document_instruction=self.document_instruction,
            task=self.task, examples=tuple(examples), normalize=self.normalize, max_length=self.max_length,
            truncate_dim=self.truncate_dim,
        )  # fmt: skip

    @property
    def _outputs(self) -> tuple[str, ...]:
        return ("dense",)

    def _result(self, rows: Rows) -> FloatArray:
        return rows

    def _no_result(self) -> FloatArray:
        return np.empty((0, self.dim), dtype=np.float32)


class Pending(Generic[E]):
    """The embeddings that `Embedder.submit_documents` has queued; any thread may wait for them, once.

    Args:
        future: The future of the model's output.
        convert: Turns its rows into embeddings.
        report: Called with the texts that were cut, and their limit.
    """

    def __init__(
        self, future: "Future[Output]", convert: Callable[[Rows], E], report: Callable[[Sequence[Cut], int], None]
    ) -> None:
        self._future = future
        self._convert = convert
        self._report = report

    def result(self) -> tuple[E, int]:
        """Wait for the embeddings; return them, as `encode_documents` does, and the number of tokens computed."""
        output = wait(self._future)
        self._report(output.cuts, output.max_length)
        return self._convert(output.rows), output.tokens

    def cancel(self) -> None:
        """Cancel what has not been computed yet."""
        self._future.cancel()


def to_lists(vectors: FloatArray) -> list[list[float]]:
    """Turn rows into lists of builtin floats, as the frameworks want them, while other threads can run in between."""
    rows = max(1, _SLICE // max(1, vectors.shape[1]))
    lists: list[list[float]] = []
    for start in range(0, len(vectors), rows):
        lists += vectors[start : start + rows].tolist()
    return lists


async def ato_lists(vectors: FloatArray) -> list[list[float]]:
    """Turn rows into lists as `to_lists` does, in another thread where that takes long."""
    if vectors.size <= _SLICE:
        return to_lists(vectors)
    import asyncio

    return await asyncio.to_thread(to_lists, vectors)


_OF_THE_FOLDER = ("query_instruction", "document_instruction", "task", "examples", "normalize", "truncate_dim", "like")


@dataclass(repr=False, eq=False, kw_only=True)
class FolderEmbedder(BgeEmbedder):
    """An embedder that computes what `SentenceTransformer(folder).encode(text)` does, for queries and documents alike.

    Pooling (the mean where there is no modules.json), normalisation, max length and prompts come from the folder. Use
    it to reproduce the vectors of an existing index.

    Args:
        model: As in `BgeEmbedder`, like all other arguments but those that the folder decides: instructions, `task`,
            `examples`, `normalize`, `truncate_dim`, `like`.
        prompt: Text before every text; None takes the folder's prompt called `prompt_name`, else its default one.
        prompt_name: Name of one of the folder's prompts.

    Raises:
        ValueError: An argument that the folder decides is given.
    """

    pooling_optional: ClassVar[bool] = True

    prompt: str | None = None
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        if given := [f"{name}=" for name in _OF_THE_FOLDER if getattr(self, name) is not None]:
            raise ValueError(
                f"{', '.join(given)} can't be given: the files of {self.model} decide that. Use BgeEmbedder to choose."
            )
        super().__post_init__()

    def _side(self, side: Side) -> FolderOptions:  # noqa: ARG002  both sides get the same prompt
        return FolderOptions(prompt=self.prompt, prompt_name=self.prompt_name, max_length=self.max_length)
