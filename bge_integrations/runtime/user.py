"""The base class of embedders and rerankers, the checks of their inputs, and the stream of their results."""

import inspect
import os
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import KW_ONLY, dataclass, fields, replace
from itertools import islice
from operator import length_hint
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, get_args

import numpy as np

from bge_integrations.catalog import ModelSpec, check_name, get_spec
from bge_integrations.errors import UnknownModelError
from bge_integrations.inference.batch import Cut, Output, Rows
from bge_integrations.process import awaited, wait
from bge_integrations.runtime.address import checked_cache
from bge_integrations.runtime.cache import CacheArgument, cache_at, default_cache
from bge_integrations.runtime.device import normalize_devices, normalize_dtype
from bge_integrations.runtime.locate import named_folder
from bge_integrations.runtime.replicas import spread
from bge_integrations.runtime.request import Kind, ModelSource, Options, Request, Resolved
from bge_integrations.runtime.resolve import check_kind

T = TypeVar("T")
OnTruncate = Literal["warn", "raise", "ignore"]
BackendName = Literal["auto", "torch", "openvino", "sentence_transformers"]

_OF_THE_MODEL = frozenset(field.name for field in fields(ModelSource))
"""Arguments that say which model runs, and where."""

_AT_ONCE = 256
"""Most texts, pairs or token vectors whose results are made on the event loop itself: some 1 ms of work."""

_PACKAGE = __name__.partition(".")[0]


@dataclass(repr=False, eq=False)
class ModelUser:
    """The configuration that embedders and rerankers share, and how they send a call to the model.

    The model itself lives in the cache. The arguments are documented in `BgeEmbedder`.
    """

    kind: ClassVar[Kind]
    pooling_optional: ClassVar[bool] = False
    """Whether a folder that does not say how it pools is accepted."""

    model: str
    _: KW_ONLY
    max_length: int | None = None
    on_truncate: OnTruncate = "warn"
    backend: BackendName = "auto"
    device: object = None
    dtype: object = None
    revision: str | None = None
    max_batch_tokens: int | None = None
    like: str | None = None
    cache: CacheArgument = None
    cache_folder: str | None = None
    token: str | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        self.model = os.fspath(self.model)
        self.max_length = optional_positive("max_length", self.max_length)
        self.on_truncate = _one_of("on_truncate", self.on_truncate, get_args(OnTruncate))
        self.backend = _one_of("backend", self.backend, get_args(BackendName))
        devices = normalize_devices(self.device)
        self.device = devices[0] if len(devices) == 1 else devices
        self.dtype = dtype = _dtype_of(self.dtype, self.backend)
        self.max_batch_tokens = optional_positive("max_batch_tokens", self.max_batch_tokens)
        self.cache_folder = None if self.cache_folder is None else str(self.cache_folder)
        self.cache = checked_cache(self.cache)
        check_name(self.model)
        self._row = self._find_row()
        if self._row:
            check_kind(self._row, self.kind)
        source = ModelSource(
            model=self.model, kind=self.kind, path=named_folder(self.model), revision=self.revision,
            backend=self.backend, dtype=dtype, like=self.like, cache_folder=_absolute(self.cache_folder),
            token=self.token, local_files_only=self.local_files_only, trust_remote_code=self.trust_remote_code,
            pooling_optional=self.pooling_optional,
        )  # fmt: skip
        self._sources = [replace(source, device=device) for device in devices]

    if not TYPE_CHECKING:  # type checkers take any attribute of a class that has this method

        def __setattr__(self, name: str, value: object) -> None:
            if name in _OF_THE_MODEL and "_sources" in self.__dict__:
                raise AttributeError(
                    f"{name} says which model {self!r} runs, or where, so it can't change. Make another."
                )
            object.__setattr__(self, name, value)
            self.__dict__.pop("_options", None)  # they are made anew, of what the arguments are now

    def __repr__(self) -> str:
        where = f", cache={self.cache!r}" if isinstance(self.cache, str) else ""
        return f"{type(self).__name__}({self.model!r}{where})"

    def _find_row(self) -> ModelSpec | None:
        """Return the catalogue's row where the name, or `like`, alone tells it; else None."""
        name = self.model.rstrip("/")
        if self.like is not None:
            return get_spec(name, self.like)
        try:
            return get_spec(name)
        except UnknownModelError:
            return None

    def _resolved(self) -> Resolved:
        """Find the model's files on this machine, wherever it runs."""
        return default_cache().resolve(self._sources[0])

    def _describe(self, options: Options) -> dict[str, Any]:
        return cache_at(self.cache).describe(self._sources[0], options)

    def _submit(
        self, options: Options, items: Sequence[Any], first: int = 0, *, patient: bool = False
    ) -> "Future[Output]":
        """Run one call, on as many replicas as there are devices, and return its future."""
        request, cache = self._request(options, items, first, patient=patient), cache_at(self.cache)
        return cache.submit(request) if len(self._sources) == 1 else spread(request, self._sources, cache)

    def _request(self, options: Options, items: Sequence[Any], first: int = 0, *, patient: bool = False) -> Request:
        return Request(
            source=self._sources[0], options=options, items=items, max_batch_tokens=self.max_batch_tokens,
            refuse_long=self.on_truncate == "raise", first=first, patient=patient,
        )  # fmt: skip

    def _run(self, options: Options, items: Sequence[Any], bar_every: int | None) -> Rows:
        """Compute the rows of all items in one call or, for a bar to move, in calls of `bar_every` items."""
        if not bar_every:
            if len(self._sources) == 1:
                output = cache_at(self.cache).run(self._request(options, items))
            else:
                output = wait(self._submit(options, items))
            if output.cuts:
                self._report(output.cuts, output.max_length)
            return output.rows
        return np.concatenate(list(self._stream(options, items, bar_every, convert=np.asarray, bar=True)))

    async def _arun(self, options: Options, items: Sequence[Any], bar_every: int | None) -> Rows:
        """Compute rows as `_run` does, without blocking the event loop."""
        if not bar_every:
            output = await awaited(self._submit(options, items, patient=True))
            if output.cuts:
                self._report(output.cuts, output.max_length)
            return output.rows
        return np.concatenate(
            [rows async for rows in self._stream(options, items, bar_every, convert=np.asarray, bar=True)]
        )

    def _stream(
        self, options: Options, items: Iterable[Any], size: int, *, convert: Callable[[Rows], T], bar: bool = False
    ) -> "Stream[T]":
        def start(chunk: list[Any], first: int, patient: bool) -> Future[Output]:
            return self._submit(options, chunk, first, patient=patient)

        return Stream(items, start, size, convert=convert, report=self._report, bar=bar)

    def _report(self, cuts: Sequence[Cut], limit: int) -> None:
        """Warn once per call of all items that were cut, where `on_truncate` is "warn"."""
        if not cuts or self.on_truncate != "warn":
            return
        what = "text" if self.kind == "embedder" else "pair"
        indices = ", ".join(str(cut.index) for cut in cuts[:10]) + (", ..." if len(cuts) > 10 else "")
        longest = max(cut.full_length for cut in cuts)
        warnings.warn(
            f"{self.model} cut {len(cuts)} {what}(s) to {limit} tokens (index {indices}; the longest has {longest}). "
            'Split long texts, raise max_length as far as the model allows, or pass on_truncate="ignore" or "raise".',
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """Return the `stacklevel` at which a warning names the line that called this package."""
    level, frame = 0, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(f"{_PACKAGE}."):
        level, frame = level + 1, frame.f_back
    return level


def positive(name: str, value: int) -> int:
    """Return `value` if it is a whole number above 0.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number above 0.")
    return value


def optional_positive(name: str, value: int | None) -> int | None:
    """Return `value` as `positive` does; None stays None."""
    return None if value is None else positive(name, value)


def _absolute(folder: str | None) -> str | None:
    return None if folder is None else str(Path(folder).expanduser().absolute())


def _dtype_of(dtype: object, backend: str) -> str | None:
    name = normalize_dtype(dtype)
    if name == "int8" and backend not in ("auto", "openvino"):
        raise ValueError(f'dtype="int8" runs on backend="openvino" alone, not on backend="{backend}".')
    return name


def _one_of(name: str, value: T, possible: tuple[str, ...]) -> T:
    if value not in possible:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, possible))}.")
    return value


def iter_texts(texts: Iterable[str], name: str = "texts") -> Iterator[str]:
    """Iterate over the texts, of which there may be any number; a bad one raises in its turn, as in `checked_texts`."""
    _refuse_bare(texts, name)
    return (_checked(text, index, name) for index, text in enumerate(texts))


def checked_texts(texts: Iterable[str], name: str = "texts") -> list[str]:
    """Check the texts and return them as a list.

    Args:
        texts: Any iterable of strings.
        name: The argument's name for messages.

    Raises:
        TypeError: `texts` is one bare string or no iterable, or an element is no string; the message has its index.
    """
    if not isinstance(texts, list):
        _refuse_bare(texts, name)
    listed = list(texts)
    if set(map(type, listed)) - {str}:
        for index, text in enumerate(listed):
            _checked(text, index, name)
    return listed


def checked_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Check the pairs and return them as a list of tuples.

    Raises:
        TypeError: `pairs` is no iterable, or an element is not a pair of strings; the message has its index.
    """
    if isinstance(pairs, str | bytes) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs must be a list of (query, passage) pairs, not {type(pairs).__name__}.")
    checked = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"pairs[{index}] must be two strings, (query, passage), not {pair!r:.60}.")
        checked.append((pair[0], pair[1]))
    return checked


def _refuse_bare(texts: object, name: str) -> None:
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be a list of strings, not {type(texts).__name__}. For one text pass [text].")


def _checked(text: str, index: int, name: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name}[{index}] is {type(text).__name__}, not a string: {text!r:.60}.")
    return text


class Stream(Generic[T]):
    """An iterable, sync or async, that feeds items to an engine in chunks and yields each chunk's result, in order.

    The next chunk is queued before the first is awaited, so that the device never waits for the caller.

    Args:
        items: Any iterable, read as it is needed.
        start: Function that queues a chunk, which begins at an index. Its third argument is True for async callers:
            their chunk waits for admission where too many calls wait.
        size: Number of items of a chunk.
        convert: Function that turns a chunk's rows into what is yielded.
        report: Function that is called at the end with the items that were cut, if any were, and their limit.
        bar: Whether to show a tqdm bar.
    """

    def __init__(
        self,
        items: Iterable[Any],
        start: Callable[[list[Any], int, bool], Future[Output]],
        size: int,
        *,
        convert: Callable[[Rows], T],
        report: Callable[[list[Cut], int], None],
        bar: bool = False,
    ) -> None:
        self._items = iter(items)
        self._start = start
        self._size = size
        self._convert = convert
        self._report = report
        self._queued: deque[Future[Output]] = deque()
        self._read = self._done = 0
        self._cuts: list[Cut] = []
        self._max_length = 0
        self._bar = _bar_of(items) if bar else None

    def __iter__(self) -> Iterator[T]:
        with self:
            while (future := self._next(patient=False)) is not None:
                yield self._taken(wait(future))

    async def __aiter__(self) -> AsyncIterator[T]:
        with self:
            while (future := self._next(patient=True)) is not None:
                yield self._taken(await awaited(future))

    def __enter__(self) -> "Stream[T]":
        return self

    def __exit__(self, error: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        for future in self._queued:
            future.cancel()
        if self._bar is not None:
            self._bar.close()
        if self._cuts and error in (None, GeneratorExit):
            self._report(self._cuts, self._max_length)

    def _next(self, *, patient: bool) -> Future[Output] | None:
        while len(self._queued) < 2 and (chunk := list(islice(self._items, self._size))):
            self._queued.append(self._start(chunk, self._read, patient))
            self._read += len(chunk)
        return self._queued.popleft() if self._queued else None

    def _taken(self, output: Output) -> T:
        self._cuts += [Cut(self._done + cut.index, cut.full_length) for cut in output.cuts]
        self._max_length = output.max_length
        self._done += len(output.rows)
        if self._bar is not None:
            self._bar.update(len(output.rows))
        return self._convert(output.rows)


def _bar_of(items: Iterable[Any]) -> Any:
    from tqdm import tqdm  # 4 MB of every process's memory, for those that show a bar

    return tqdm(total=length_hint(items) or None, unit="text")


async def off_loop(items: int, function: Callable[..., T], *arguments: object) -> T:
    """Call a function on so many items and return its result: for many, in a thread, so that the event loop goes on."""
    if items <= _AT_ONCE:
        return function(*arguments)
    import asyncio

    try:
        running = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    except RuntimeError:  # the interpreter ends, and no executor takes work any more
        return function(*arguments)
    return await running
