"""A call as data: which model, what to compute, how, and within which limits."""

import functools
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from bge_integrations.catalog import ModelSpec
from bge_integrations.inference.batch import Output
from bge_integrations.inference.plan import Plan
from bge_integrations.runtime.folder import Folder

Kind = Literal["embedder", "reranker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model as a caller names it; hashable, so that a cache can remember which files it led to.

    Attributes are those of `BgeEmbedder`; `device` and `dtype` are normalised names.

    Attributes:
        path: The folder that `model` named when this was made, absolute; None where it names a repository of the hub.
            Links on the way are followed at each call.
        cache_folder: The folder for downloads that was named when this was made, absolute; None for the default.
        pooling_optional: Whether a folder that does not say how it pools is accepted.
    """

    model: str
    kind: Kind
    path: Path | None = None
    revision: str | None = None
    backend: str = "auto"
    device: str | None = None
    dtype: str | None = None
    like: str | None = None
    cache_folder: str | None = None
    token: str | None = field(default=None, repr=False)
    local_files_only: bool = False
    trust_remote_code: bool = False
    pooling_optional: bool = False

    def of_files(self) -> dict[str, Any]:
        """Return the arguments, besides the name, with which an embedder or a reranker finds the same files."""
        names = ("like", "revision", "cache_folder", "token", "local_files_only")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class ModelKey:
    """The cache's key of a model: all that decides the bytes on a device, and nothing else."""

    model: str
    revision: str
    backend: str
    device: str
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """A model that was found: its files, and how they run.

    Two are equal only if they are the same object, because the plans that were made from one are kept with it.

    Attributes:
        name: What the caller called the model.
        key: The cache's key.
        folder: The model's files.
        watched: The local folders whose files decide the revision, checked in every call; empty for files that never
            change: those of a repository of the hub, or of a model that ships with this package.
        spec: The catalogue's row, or None for a model outside it.
        found_by: How the row was found, as a phrase for messages.
        guessed: Whether the files only name the row as a parent, so that what they say themselves comes first.
        reason: Why the fast backend does not run it; "" if it does.
        trust_remote_code: Whether the folder's own Python code may run.
    """

    name: str
    key: ModelKey
    folder: Folder
    watched: tuple[Path, ...]
    spec: ModelSpec | None
    found_by: str
    guessed: bool
    reason: str
    trust_remote_code: bool


@dataclass(frozen=True, slots=True)
class Located:
    """The place of a model's files, and the name and revision under which the cache knows them.

    Attributes:
        watched: As in `Resolved`; links on the way are not followed.
        base: For an adapter, the folder of its base; None for other models.
    """

    model: str
    revision: str
    path: Path
    watched: tuple[Path, ...] = ()
    base: Path | None = None


class Options(Hashable, Protocol):
    """The options that, besides the model, decide a call's numbers: hashable data that pickles."""

    @abstractmethod
    def plan(self, resolved: Resolved) -> Plan:
        """Return the plan by which the model computes a call with these options; it depends on nothing else.

        Raises:
            ValueError: The model's files show that it can't compute it; the weights need not be loaded for that.
        """

    @abstractmethod
    def describe(self, resolved: Resolved) -> dict[str, Any]:
        """Return the settings of the plan for people to read: builtins that JSON can hold."""


class TextOptions(Options, Protocol):
    """The options of an embedder.

    Attributes:
        outputs: The names of the model's outputs that a call returns.
    """

    @property
    def outputs(self) -> tuple[str, ...]: ...

    @abstractmethod
    def fingerprint(self, resolved: Resolved) -> str:
        """Return a hash, 32 hexadecimal digits, of everything that decides the vectors; it reads the weight files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call. It pickles, so the cache that serves it may live in this process or in another.

    Attributes:
        source: The model.
        options: How the items are computed.
        items: Texts, or pairs of texts.
        max_batch_tokens: Most tokens of a forward that computes some of them; None takes the device's default.
        refuse_long: Whether an item over the limit is refused instead of cut.
        first: The index of the first item in messages.
        patient: Whether the call waits for admission where too many calls wait, instead of being refused.
    """

    source: ModelSource
    options: Options
    items: Sequence[Any]
    max_batch_tokens: int | None = None
    refuse_long: bool = False
    first: int = 0
    patient: bool = False


@functools.lru_cache(maxsize=1024)
def plan_of(options: Options, resolved: Resolved) -> Plan:
    """Return `options.plan(resolved)`, which is made once and then kept."""
    return options.plan(resolved)


class Cache(Protocol):
    """The place where models live: a `ModelCache` of this process, or one that is reached by its address."""

    @abstractmethod
    def submit(self, request: Request) -> Future[Output]:
        """Run a call on its model, which is loaded first if need be; never block."""

    @abstractmethod
    def run(self, request: Request) -> Output:
        """Run a call as `submit` does, and wait for its output; an interrupt cancels it."""

    @abstractmethod
    def describe(self, source: ModelSource, options: Options) -> dict[str, Any]:
        """Return how a model was found and where it runs, and the settings of calls with these options.

        This loads no weights, but may download files, and blocks meanwhile.
        """

    @abstractmethod
    def fingerprint(self, source: ModelSource, options: TextOptions) -> str:
        """Return `options.fingerprint` of the model. Blocks as `describe` does."""

    @abstractmethod
    def depth(self, source: ModelSource) -> int:
        """Return the number of calls that wait for a model or run on it; 0 where it is not loaded."""
