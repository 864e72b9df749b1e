"""What an embedder and a reranker share: where their model comes from, and how a call reaches it."""

import inspect
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar, get_args

from bge_integrations.catalog import ModelSpec, check_name, get_spec
from bge_integrations.errors import InputTooLongError, UnknownModelError
from bge_integrations.inference.batch import Encoding
from bge_integrations.inference.call import Cut, Output
from bge_integrations.inference.engine import Check, accept
from bge_integrations.runtime.cache import ModelCache, Prepare, default_cache
from bge_integrations.runtime.device import normalize_devices, normalize_dtype
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.locate import named_folder
from bge_integrations.runtime.replicas import spread
from bge_integrations.runtime.resolve import check_kind
from bge_integrations.runtime.source import Kind, ModelSource, Resolved

T = TypeVar("T")
Item = TypeVar("Item")
OnTruncate = Literal["warn", "raise", "ignore"]
BackendName = Literal["auto", "torch", "openvino", "sentence_transformers"]

_PACKAGE = __name__.partition(".")[0]


class ModelUser:
    """Configuration of something that uses one model; the model itself lives in the cache.

    Its arguments are documented in `BgeEmbedder`.
    """

    kind: Kind

    def __init__(
        self,
        model: str,
        *,
        max_length: int | None,
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
        self.model = os.fspath(model)
        self.max_length = None if max_length is None else positive("max_length", max_length)
        self.on_truncate = _one_of("on_truncate", on_truncate, ("warn", "raise", "ignore"))
        self.backend = _one_of("backend", backend, get_args(BackendName))
        devices = normalize_devices(device)
        self.device = devices[0] if len(devices) == 1 else devices
        self.dtype = _dtype_of(dtype, self.backend)
        self.revision = revision
        self.max_batch_tokens = None if max_batch_tokens is None else positive("max_batch_tokens", max_batch_tokens)
        self.like = like
        self.cache = cache
        self.cache_folder = None if cache_folder is None else str(cache_folder)
        self.token = token
        self.local_files_only = local_files_only
        self.trust_remote_code = trust_remote_code
        check_name(self.model)
        self._row = self._find_row()
        if self._row:
            check_kind(self._row, self.kind)
        self._source = ModelSource(
            model=self.model, kind=self.kind, path=named_folder(self.model), revision=revision, backend=self.backend,
            device=devices[0], dtype=self.dtype, like=like, cache_folder=_absolute(cache_folder), token=token,
            local_files_only=local_files_only, trust_remote_code=trust_remote_code,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @property
    def _cache(self) -> ModelCache:
        return self.cache or default_cache()

    def _find_row(self) -> ModelSpec | None:
        """The catalogue's row where the name, or `like`, alone tells it."""
        name = self.model.rstrip("/")
        if self.like is not None:
            return get_spec(name, self.like)
        try:
            return get_spec(name)
        except UnknownModelError:
            return None

    def _resolved(self) -> Resolved:
        return self._cache.resolve(self._source)

    def _submit(self, items: list[Item], prepare: Callable[[list[Item], int], Prepare[Output]]) -> "Future[Output]":
        """Runs one call, on as many replicas as there are devices.

        Args:
            items: Texts or pairs.
            prepare: Given some of them and the index of their first, what `ModelCache.submit` takes.
        """

        def start(source: ModelSource, part: list[Item], index: int) -> "Future[Output]":
            return self._cache.submit(source, prepare(part, index))

        return spread(items, self._replicas, start, self._cache.depth)

    @property
    def _replicas(self) -> tuple[ModelSource, ...]:
        """What to load on each device."""
        if not isinstance(self.device, tuple):
            return (self._source,)
        return tuple(replace(self._source, device=device) for device in self.device)

    def _limit(self, folder: Folder, default: int) -> int:
        """Tokens at which a text is cut: the caller's, else `default`, as far as the model's positions go.

        Raises:
            ValueError: The caller's limit is more than the model can take.
        """
        positions = folder.positions
        if self.max_length is None:
            return default if positions is None else min(default, positions)
        if positions is not None and self.max_length > positions:
            raise ValueError(f"max_length={self.max_length} is more than the {positions} tokens {self.model} can take.")
        return self.max_length

    def _check(self, limit: int, what: str) -> Check:
        """What refuses a text over the limit with `on_truncate="raise"`."""
        if self.on_truncate != "raise":
            return accept

        def check(index: int, encoding: Encoding) -> None:
            if len(encoding) < encoding.full_length:
                raise InputTooLongError(
                    f"{what} {index} has {encoding.full_length} tokens; the limit is {limit}. Split it, raise "
                    'max_length as far as the model allows, or pass on_truncate="warn".'
                )

        return check

    def _report(self, cuts: Sequence[Cut], limit: int | None, what: str) -> None:
        """One warning a call for all texts that were cut."""
        if not cuts or self.on_truncate != "warn":
            return
        indices = ", ".join(str(cut.index) for cut in cuts[:10]) + (", ..." if len(cuts) > 10 else "")
        longest = max(cut.full_length for cut in cuts)
        warnings.warn(
            f"{self.model} cut {len(cuts)} {what}(s) to {limit} tokens (index {indices}; the longest has {longest}). "
            'Split long texts, raise max_length as far as the model allows, or pass on_truncate="ignore" or "raise".',
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """The `stacklevel` at which a warning names the line that called this package."""
    level, frame = 0, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith(f"{_PACKAGE}."):
        level, frame = level + 1, frame.f_back
    return level


def positive(name: str, value: int) -> int:
    """`value`, if it is a whole number above 0.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be a whole number above 0.")
    return value


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
