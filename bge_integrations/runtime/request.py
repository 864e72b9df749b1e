"""A call as data: which model, what to compute, how, and within which limits."""

import functools
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from bge_integrations.catalog import ModelSpec
from bge_integrations.inference.plan import Plan
from bge_integrations.runtime.folder import Folder

Kind = Literal["embedder", "reranker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What a caller names. Hashable, so that a cache can remember what it led to.

    Attributes are those of `BgeEmbedder`; `device` and `dtype` are normalised names.

    Attributes:
        path: The folder that `model` named when this was made, absolute; None where it names a repository of the hub.
            Links on the way are followed at each call.
        cache_folder: Absolute, for the same reason: it means what it named when this was made.
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


@dataclass(frozen=True, slots=True)
class ModelKey:
    """What decides the bytes on a device, and nothing else."""

    model: str
    revision: str
    backend: str
    device: str
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """What a source led to. Two are equal only if they are the same object: what was made from one is kept with it.

    Attributes:
        name: What the caller called the model.
        key: The cache's key.
        folder: The model's files.
        watched: The local folders whose files decide the revision, looked at in every call; none for files that never
            change: a repository of the hub, or a model that ships with this package.
        spec: The catalogue's row, or None for a model outside it.
        found_by: How the row was found, for people.
        guessed: Whether the files only name the row as a parent: what they say themselves goes before it.
        reason: Why the fast backend does not run it; empty if it does.
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
    """Where a model's files are, and under which name and revision the cache knows them.

    Attributes:
        watched: As in `Resolved`; links on the way are not followed.
        base: Of an adapter, the folder of its base.
    """

    model: str
    revision: str
    path: Path
    watched: tuple[Path, ...] = ()
    base: Path | None = None


class Options(Hashable, Protocol):
    """What besides the model decides a call's numbers: hashable data that pickles."""

    @abstractmethod
    def plan(self, resolved: Resolved) -> Plan:
        """How the resolved model computes a call with these options. Reads nothing else and changes nothing.

        Raises:
            ValueError: The model's files show that it can't; the weights need not be loaded for that.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call. It pickles, so the cache that serves it may live in this process or in another.

    Attributes:
        source: The model.
        options: What becomes of the items.
        items: Texts, or pairs of texts.
        max_batch_tokens: Most tokens of a forward that computes some of them; None takes the device's default.
        refuse_long: Refuse an item over the limit instead of cutting it.
        first: What messages call the first item.
        patient: Where too many calls wait, wait for admission instead of being refused.
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
    """`options.plan(resolved)`, made once."""
    return options.plan(resolved)
