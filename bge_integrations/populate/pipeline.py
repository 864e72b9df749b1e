"""populate: documents into a vector store, computing only what the store does not hold yet."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from operator import length_hint
from typing import Any, Literal

from tqdm import tqdm

from bge_integrations.embed.collection import check_fingerprint, write_fingerprint
from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.embed.sparse_index import SparseIndex
from bge_integrations.populate.cleanup import Cleanup
from bge_integrations.populate.filling import Filling
from bge_integrations.populate.identity import Document
from bge_integrations.populate.report import PopulateReport, Progress
from bge_integrations.populate.sinks import Core, HybridSink, LangChainSink, make_sink, own_embeddings

OnError = Literal["raise", "collect"]

DEFAULT_BATCH_SIZE = 512


def populate(
    store: Any,
    documents: Iterable[Document],
    *,
    embedder: Any = None,
    sparse_index: SparseIndex | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    cleanup: Cleanup | None = None,
    on_error: OnError = "raise",
    show_progress: bool = True,
    progress: Callable[[Progress], object] | None = None,
    force: bool = False,
) -> PopulateReport:
    """Bring a vector store up to date with documents; run again, it computes nothing twice.

    A document's own id is kept, its content hash goes into the metadata; without an id, it is the SHA-256 of text and
    metadata. What the store holds never reaches the model; where only metadata changed, Chroma is updated without it.
    Reading, the model and writes overlap, on `workers` + 2 batches at most; after a kill the same call goes on. A store
    out of reach is tried again for a minute, one that refuses a batch gets halves. Chroma keeps the fingerprint.

    Args:
        store: A Chroma collection, or a LangChain vector store that answers `get_by_ids`, with its own embeddings.
        documents: LangChain documents; a generator is read a few batches ahead. None of them is changed.
        embedder: None for the store's own; no other is accepted, for the store answers queries with its own.
        sparse_index: Takes the same forward's sparse vectors; needs `embedder=`, a `BgeM3Embedder`. Yours to save.
        batch_size: Documents a look-up and a write; default 512, never over the limit of Chroma's client.
        workers: Threads that write to Chroma; other stores are written to by one.
        cleanup: Once all is written, delete what populate has put there in earlier runs and this one did not bring:
            "source", of the sources (`metadata["source"]`) that came; "full", of all. Chroma only.
        on_error: "collect" leaves bad documents, and those that the store refuses, to the report's `failed`.
        show_progress: A progress bar, where stderr is a terminal.
        progress: Called with a `Progress` after each batch, in the caller's thread.
        force: Fill a collection that another model has filled.

    Raises:
        FingerprintMismatchError: Another model filled the collection (`force=False`) or the sparse index.
        TypeError: No store, no document, metadata that cannot be hashed, or a `sparse_index` without `BgeM3Embedder`.
        ValueError: `batch_size` or `workers` under 1, another `embedder`, or `cleanup` where a store cannot list.
        NotImplementedError: The store's class leaves `get_by_ids` out.
    """
    started = time.perf_counter()
    _check_arguments(batch_size, workers, cleanup, on_error)
    sink = _open(store, embedder, sparse_index, cleanup=cleanup, force=force)
    size, writers = min(batch_size or DEFAULT_BATCH_SIZE, sink.max_batch_size), min(workers, sink.max_writers)
    filling = Filling(sink, size=size, writers=writers, collect=on_error == "collect", cleanup=cleanup)
    _follow(filling, documents, show_progress, progress, started)
    return filling.done.report(time.perf_counter() - started)


async def apopulate(
    store: Any,
    documents: Iterable[Document],
    *,
    embedder: Any = None,
    sparse_index: SparseIndex | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    cleanup: Cleanup | None = None,
    on_error: OnError = "raise",
    show_progress: bool = True,
    progress: Callable[[Progress], object] | None = None,
    force: bool = False,
) -> PopulateReport:
    """As `populate`, off the event loop: `documents` are read, and `progress` called, in another thread.

    Cancelling it ends the reading; batches under way are still written.
    """
    source = _Stoppable(documents)
    try:
        return await asyncio.to_thread(
            populate,
            store,
            source,
            embedder=embedder,
            sparse_index=sparse_index,
            batch_size=batch_size,
            workers=workers,
            cleanup=cleanup,
            on_error=on_error,
            show_progress=show_progress,
            progress=progress,
            force=force,
        )
    finally:
        source.stopped = True


@dataclass(slots=True)
class _Stoppable:
    """Documents until they are no longer wanted."""

    documents: Iterable[Document]
    stopped: bool = False

    def __iter__(self) -> Iterator[Document]:
        for document in self.documents:
            if self.stopped:
                raise asyncio.CancelledError
            yield document

    def __length_hint__(self) -> int:
        return length_hint(self.documents)


def _follow(
    filling: Filling,
    documents: Iterable[Document],
    show_progress: bool,
    progress: Callable[[Progress], object] | None,
    started: float,
) -> None:
    """Fill, and tell after each batch how far it has come."""
    total, hidden = length_hint(documents) or None, None if show_progress else True
    with (
        tqdm(total=total, unit="doc", desc="populate", disable=hidden) as bar,
        closing(filling.run(documents)) as steps,
    ):
        for done in steps:
            so_far = Progress(done.documents, total, done.texts, done.tokens, time.perf_counter() - started)
            bar.set_postfix_str(f"{so_far.tokens / so_far.seconds:,.0f} tokens/s", refresh=False)
            bar.update(so_far.documents - bar.n)
            if progress is not None:
                progress(so_far)


def _open(
    store: Any, embedder: Any, sparse_index: SparseIndex | None, *, cleanup: Cleanup | None, force: bool
) -> LangChainSink:
    """The store as a sink, with its model's fingerprint checked and kept."""
    core = _check_embedder(store, embedder)
    sink = make_sink(store, core)
    if sparse_index is not None:
        sink = HybridSink(sink, sparse_index, _find_m3(embedder))
    if cleanup and not sink.lists:
        raise ValueError(f"cleanup= needs a store that lists what it holds; {type(store).__name__} does not.")
    _guard(store, core, force)
    return sink


def _check_arguments(batch_size: int | None, workers: int, cleanup: str | None, on_error: str) -> None:
    for name, number in (("batch_size", batch_size), ("workers", workers)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be 1 or more, not {number}.")
    if cleanup not in (None, "source", "full"):
        raise ValueError(f'cleanup must be None, "source" or "full", not {cleanup!r}.')
    if on_error not in ("raise", "collect"):
        raise ValueError(f'on_error must be "raise" or "collect", not {on_error!r}.')


def _guard(store: Any, core: Core | None, force: bool) -> None:
    """Refuse another model than the one that filled the store, and keep the model's fingerprint with the store."""
    if core is not None:
        check_fingerprint(store, core.fingerprint, force=force)
        write_fingerprint(store, core.fingerprint)


def _check_embedder(store: Any, embedder: Any) -> Core | None:
    """Return the core embedder behind the store's own embeddings, None for foreign ones; refuse any other embedder."""
    own = own_embeddings(store)
    core = _find_core(own)
    if embedder is None or embedder is own:
        return core
    given = _find_core(embedder)
    if core is None or given is None or given.fingerprint != core.fingerprint:
        raise ValueError(
            f"embedder={embedder!r:.80} is not the store's own, which answers its queries: {own!r:.80}. "
            "Make the store with the embeddings that are to fill it."
        )
    return core


def _find_core(embeddings: Any) -> Core | None:
    """The core embedder of the dense vectors, where they are ours."""
    core = getattr(embeddings, "embedder", embeddings)
    if isinstance(core, BgeM3Embedder):
        return core.with_outputs("dense")
    return core if isinstance(core, BgeEmbedder) else None


def _find_m3(embedder: Any) -> BgeM3Embedder:
    if not isinstance(embedder, BgeM3Embedder):
        raise TypeError(
            f"sparse_index= is filled by bge-m3. Give embedder=BgeM3Embedder(...) of the store's own model, not "
            f"{embedder!r:.80}."
        )
    return embedder
