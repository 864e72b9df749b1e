"""The cache of models: one copy of each model's weights per process, whoever uses it.

A call holds a lease on its model until it ends; an idle model stays loaded until another needs its memory. Keys are
made in `resolve.py`, and `loaded.py` decides which model leaves.
"""

import atexit
import os
import threading
import time
import weakref
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from typing import Any

from bge_integrations.errors import UnsupportedModelError
from bge_integrations.inference.batch import Output
from bge_integrations.inference.engine import MAX_WAITING_CALLS
from bge_integrations.inference.plan import Plan
from bge_integrations.process import (
    ForkSafeLock,
    PackageThread,
    answer,
    ending,
    refuse_lost_threads,
    stop_threads,
    wait,
)
from bge_integrations.runtime import loader
from bge_integrations.runtime.device import note_fork_during_load, parse_budget
from bge_integrations.runtime.folder import LOCAL, FolderWatch
from bge_integrations.runtime.loaded import Resident, Residents
from bge_integrations.runtime.locate import locate, names_of
from bge_integrations.runtime.request import Cache, ModelSource, Options, Request, Resolved, TextOptions, plan_of
from bge_integrations.runtime.resolve import openvino_failed, resolve

_Waiting = tuple[Request, Future[Output]]
_CLOSE_SECONDS = 1.5
"""Seconds that dropping a cache waits for a running forward."""


class ModelCache:
    """A cache that shares loaded models among every object, thread and framework of the process.

    A copy is shared by all who ask for the same model, revision, backend, device and dtype, which decide its bytes on
    the device. Instructions, lengths and batch sizes are set by each caller. A model that many callers ask for at once
    is loaded once. A model in use is never evicted; the least recently used idle one is freed when a load needs its
    memory.

    Args:
        budget: Most bytes of weights on each device: bytes, a size such as "20GiB", or a fraction of the device's
            memory as a float. None sets no limit.
        name: Unpickling a cache returns, in any process, the one cache of its name. None makes a private name.
        max_waiting: Calls that may wait for one model, or run on it. Beyond that, async calls wait for their turn, in
            the order in which they came; others raise `OverloadedError` at once, as `submit_documents` does for a
            server that would rather refuse a request than keep it waiting.

    Raises:
        ValueError: `budget` is not a size, or `max_waiting` not a whole number above 0.

    Example:
        >>> cache = ModelCache(budget="20GiB")
        >>> cache.stats()["models"]
        []
    """

    def __init__(
        self,
        budget: int | float | str | None = None,
        name: str | None = None,
        *,
        max_waiting: int = MAX_WAITING_CALLS,
    ) -> None:
        self.budget = budget
        self.name = name or f"cache-{os.urandom(6).hex()}"
        if isinstance(max_waiting, bool) or not isinstance(max_waiting, int) or max_waiting < 1:
            raise ValueError(f"max_waiting={max_waiting!r} must be a whole number above 0.")
        self.max_waiting = max_waiting
        self._residents = Residents(parse_budget(budget), self.max_waiting)
        self._lock = threading.Lock()
        self._known: dict[ModelSource, Resolved] = {}
        self._folders = FolderWatch()
        self._missed: dict[ModelSource, list[_Waiting]] = {}
        self._loaders: set[threading.Thread] = set()
        if self.name in _caches:
            raise ValueError(f'This process has a ModelCache named "{self.name}" already; share that object.')
        _caches[self.name] = self
        weakref.finalize(self, _close, self._residents, self._loaders).atexit = False

    def submit(self, request: Request) -> "Future[Output]":
        """Run a call on its model, which is loaded first if need be; never block.

        A call that the model's files show to be impossible is refused before weights load. The model is leased until
        the future is done.

        Returns:
            A future of the call's rows, cuts and tokens, or its error. Cancelling it cancels the call.

        Raises:
            ClosedError: The interpreter is ending.
            RuntimeError: Threads were monkey-patched after this package had been imported.
        """
        refuse_lost_threads()
        future: Future[Output] = Future()
        resolved = self._current(request.source)
        resident = self._residents.lease_if_ready(resolved.key, future) if resolved else None
        if resident and resolved:
            self._serve(resident, resolved, request, future)
            return future
        with self._lock:
            if request.source not in self._missed:
                thread = PackageThread("bge-loader", self._fetch, request.source)
                thread.start()
                self._loaders.add(thread)
            self._missed.setdefault(request.source, []).append((request, future))
        return future

    def run(self, request: Request) -> Output:
        """Run a call as `submit` does, and wait for its output; an interrupt cancels it."""
        return wait(self.submit(request))

    def resolve(self, source: ModelSource) -> Resolved:
        """Find a source's files and how to run them, without loading weights. May download, and blocks meanwhile."""
        resolved = self._current(source)
        if resolved is None:
            resolved = self._known[source] = resolve(source, locate(source))
        return resolved

    def plan(self, source: ModelSource, options: Options) -> Plan:
        """Return the plan for calls with these options. Blocks as `resolve` does; raises what `options` refuse."""
        return plan_of(options, self.resolve(source))

    def describe(self, source: ModelSource, options: Options) -> dict[str, Any]:
        """Return how a model was found and where it runs, and the settings of calls with these options."""
        resolved = self.resolve(source)
        row = resolved.spec.id if resolved.spec else None
        return {"row": row, "found": resolved.found_by, **options.describe(resolved), **asdict(resolved.key)}

    def fingerprint(self, source: ModelSource, options: TextOptions) -> str:
        """Return a hash of everything that decides vectors of these options; it reads the weight files."""
        return options.fingerprint(self.resolve(source))

    def depth(self, source: ModelSource) -> int:
        """Return the number of calls that wait for a model or run on it; 0 where it is not loaded."""
        resolved = self._known.get(source)
        return self._residents.depth(resolved.key) if resolved else 0

    def stats(self) -> dict[str, Any]:
        """Return the loaded models and counts of what has happened: plain builtins, for logs and dashboards.

        Returns:
            `models`, a list with one dict per loaded model (model, revision, backend, device, dtype, bytes, engine,
            leases, and the fields of `EngineStats`), `loads`, `evictions`, `budget` and `max_waiting`.
        """
        models = [
            asdict(resident.key)
            | {"bytes": resident.nbytes, "engine": resident.engine.backend.engine, "leases": len(resident.leases)}
            | asdict(resident.engine.stats)
            for resident in self._residents.loaded()
        ]
        loads, evictions = self._residents.loads, self._residents.evictions
        settings = {"budget": self.budget, "max_waiting": self.max_waiting}
        return {"models": models, "loads": loads, "evictions": evictions} | settings

    def unload(self, model: str) -> int:
        """Free a model on every device, after the calls in flight; calls that come meanwhile load it anew.

        Args:
            model: An id, alias or folder, as given to an embedder or reranker.

        Returns:
            The number of copies (devices, dtypes, backends) that were freed; 0 if it was not loaded.
        """
        names = names_of(model) | {
            known.key.model for source, known in list(self._known.items()) if source.model == model
        }
        return self._residents.leave(lambda key: key.model in names)

    def clear(self) -> int:
        """Free every model, after the calls in flight, and return how many were freed."""
        return self._residents.leave(lambda _: True)

    def __repr__(self) -> str:
        return f"ModelCache(budget={self.budget!r}, name={self.name!r}, max_waiting={self.max_waiting})"

    def __copy__(self) -> "ModelCache":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelCache":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _cache_named, (self.name, self.budget, self.max_waiting)

    def abandon(self) -> bool:
        """Begin anew in a forked child: the parent's models are neither used nor freed there.

        Returns:
            Whether there were any.
        """
        left = self._residents.abandon()
        _abandoned.append(left)
        self._known.clear()
        self._missed.clear()
        self._loaders.clear()
        self._lock, self._folders = threading.Lock(), FolderWatch()
        return bool(left)

    def _current(self, source: ModelSource) -> Resolved | None:
        """Return the model that `source` is known to name; None if none is known, or if its folder has changed since.

        A folder that has been deleted counts as unchanged, because its model may still be loaded.
        """
        resolved = self._known.get(source)
        if resolved is None or not resolved.watched:
            return resolved
        try:
            return resolved if self._folders.revision(resolved.watched) == resolved.key.revision else None
        except OSError:
            return resolved

    def _serve(self, resident: Resident, resolved: Resolved, request: Request, future: "Future[Output]") -> None:
        """Start one leased call; the lease ends before its future is answered, or when that is cancelled."""
        release = partial(self._residents.release, resident)
        future.add_done_callback(release)
        try:
            resident.engine.submit(
                request.items,
                plan_of(request.options, resolved),
                max_batch_tokens=request.max_batch_tokens,
                refuse_long=request.refuse_long,
                first=request.first,
                patient=request.patient,
                future=future,
                release=release,
            )
        except BaseException as error:
            answer(future, None, error)

    def _fetch(self, source: ModelSource) -> None:
        """Load the model that `source` names, then serve every call that waits for it; runs in a thread of its own."""
        try:
            resolved = self.resolve(source)
            if not self._still_wanted(source, resolved):
                return
            resolved, resident = self._lease(source, resolved)
        except BaseException as error:
            for _, future in self._missed_calls(source):
                answer(future, None, error)
            return
        for request, future in self._missed_calls(source):
            self._residents.lease_again(resident, future)
            self._serve(resident, resolved, request, future)
        self._residents.release(resident, source)
        key = resolved.key
        if key.revision.startswith(LOCAL):
            # No call can reach the models of the folder's former files, or of its link's former target: free them.
            known = [resolved.key for resolved in list(self._known.values())]
            reached = {k for k in known if k.model != key.model or k.revision == key.revision}
            self._residents.leave(lambda other: other.revision.startswith(LOCAL) and other not in reached)

    def _lease(self, source: ModelSource, resolved: Resolved) -> tuple[Resolved, Resident]:
        """Return a leased model; one that OpenVINO was chosen for but cannot run is loaded on torch instead."""
        try:
            return resolved, self._residents.lease(resolved, source)
        except UnsupportedModelError as error:
            if source.backend != "auto" or resolved.key.backend != "openvino":
                raise
            openvino_failed(resolved.key, str(error))
            instead = self._known[source] = resolve(source, locate(source))
            if instead.key == resolved.key:  # its files, or its dtype, are for OpenVINO alone
                raise
            return instead, self._residents.lease(instead, source)

    def _still_wanted(self, source: ModelSource, resolved: Resolved) -> bool:
        """Refuse bad calls before weights load, and return whether any call is left to load them for."""
        accepted = 0
        while True:
            with self._lock:
                waiting = self._missed[source]
                unchecked = waiting[accepted:]
                if not waiting:
                    del self._missed[source]
                    self._loaders.discard(threading.current_thread())
                if not unchecked:
                    return bool(waiting)
            for call in unchecked:
                request, future = call
                try:
                    plan_of(request.options, resolved)
                    accepted += 1
                except Exception as error:
                    with self._lock:
                        waiting[:] = [other for other in waiting if other is not call]
                    answer(future, None, error)

    def _missed_calls(self, source: ModelSource) -> list[_Waiting]:
        with self._lock:
            self._loaders.discard(threading.current_thread())
            return self._missed.pop(source)


CacheArgument = ModelCache | str | None
"""A cache of this process, the address of a server, "auto", or None for the default."""

_caches: weakref.WeakValueDictionary[str, ModelCache] = weakref.WeakValueDictionary()
_abandoned: list[list[Resident]] = []
_naming = ForkSafeLock()


def default_cache() -> ModelCache:
    """Return the process-wide cache, which `cache=None` means everywhere, unless `BGE_CACHE` names a server."""
    return _default


def cache_at(cache: CacheArgument) -> Cache:
    """Return the cache that an argument `cache=` means; None is the server that `BGE_CACHE` names, else `_default`.

    Raises:
        ValueError: `BGE_CACHE` is no address.
    """
    place = cache or os.environ.get("BGE_CACHE") or _default
    if isinstance(place, ModelCache):
        return place
    from bge_integrations.runtime.address import cache_behind

    return cache_behind(place)


def _cache_named(name: str, budget: int | float | str | None, max_waiting: int) -> ModelCache:
    with _naming:
        return _caches.get(name) or ModelCache(budget, name, max_waiting=max_waiting)


def _close(residents: Residents, loaders: set[threading.Thread]) -> None:
    """Stop the workers and free the weights of a cache that is dropped."""
    deadline = time.monotonic() + _CLOSE_SECONDS
    engines = [resident.engine for resident in residents.loaded()]
    for engine in engines:
        engine.close()
    for engine in engines:
        engine.join(max(0.0, deadline - time.monotonic()))
    for thread in list(loaders):
        thread.join(max(0.0, deadline - time.monotonic()))


def _at_exit() -> None:
    """Stop all engines and threads at exit; calls that still wait are answered late, if at all (see `answer`)."""
    ending.set()
    for cache in list(_caches.values()):
        for resident in cache._residents.loaded():  # noqa: SLF001
            resident.engine.close()
    stop_threads()


def _after_fork_in_child() -> None:
    if any(cache._loaders for cache in list(_caches.values())):  # noqa: SLF001
        note_fork_during_load()
    left = [cache.abandon() for cache in list(_caches.values())]
    if any(left):
        loader.single_threaded_from_now_on()


atexit.register(_at_exit)  # before weakref's own hook, which the first cache registers: finalizers may still call
_default = ModelCache(name="default")
os.register_at_fork(after_in_child=_after_fork_in_child)
