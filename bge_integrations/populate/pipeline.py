"""`populate` and `apopulate`: they bring documents into a vector store and embed only what it does not hold yet."""

import asyncio
import time
from collections.abc import AsyncIterable, Callable, Iterable
from contextlib import closing
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.populate.cleanup import Cleanup
from bge_integrations.populate.documents import Handover, Loader, Source, asynchronous
from bge_integrations.populate.embedders import choose_embedder
from bge_integrations.populate.filling import Filling
from bge_integrations.populate.report import PopulateReport, Progress
from bge_integrations.populate.retry import asking_until
from bge_integrations.populate.sinks import HybridSink, Sink, make_sink
from bge_integrations.process import Background
from bge_integrations.stores.sparse_index import SparseIndex

OnError = Literal["raise", "collect"]

DEFAULT_BATCH_SIZE = 512


def populate(
    store: Any,
    documents: Iterable[Any] | Loader,
    *,
    embedder: Any = None,
    sparse_index: SparseIndex | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    cleanup: Cleanup | None = None,
    on_error: OnError = "raise",
    show_progress: bool = True,
    progress: Callable[[Progress], object] | None = None,
    record: str | Path | None = None,
    force: bool = False,
) -> PopulateReport:
    """Bring a vector store up to date with documents; a second run computes nothing twice.

    A document keeps its own id, with its content hash in the metadata; without an id, that hash is the id. Documents
    that the store holds, or whose metadata alone changed, are not embedded. At most `workers` + 2 batches are under
    way; if the run is killed, the same call continues it. A store that cannot be reached is tried again for a minute.

    Args:
        store: A vector store of LangChain or LlamaIndex, a `VectorStoreIndex`, or a Chroma collection.
        documents: LangChain documents or their loader, or LlamaIndex nodes for its stores; read a few batches ahead.
        embedder: The store's own embeddings, which None takes; give some for a bare LlamaIndex store, which has none.
        sparse_index: Gets the sparse vectors of the same forward pass of `embedder=BgeM3Embedder(...)`; you save it.
        batch_size: Documents per look-up and per write; default 512, never over Chroma's limit.
        workers: Threads that write to Chroma or a Qdrant server; one thread writes to other stores.
        cleanup: After all writes, delete the documents of earlier runs that this one did not bring: "source" deletes
            those of the sources (`metadata["source"]`) in this run, "full" all of them.
        on_error: "collect" puts documents that are bad, or refused by model or store, into the report's `failed`.
        show_progress: Show a progress bar if stderr is a terminal.
        progress: Called with a `Progress` after each batch.
        record: SQLite file that remembers what the store holds, if the store cannot be asked; None for memory.
        force: Fill the store even if another model has filled it.

    Raises:
        FingerprintMismatchError: Another model filled the collection (`force=False`) or the sparse index.
        TypeError: No store, no document, metadata that cannot be hashed, or `sparse_index` without `BgeM3Embedder`.
        ValueError: A document has no text, or an argument does not fit the store.
        NotImplementedError: The store cannot delete, and a document has changed or is stale.
    """
    started = time.perf_counter()
    _check_arguments(batch_size, workers, cleanup, on_error)
    source = documents if isinstance(documents, Source) else Source(documents)
    sink = _open(store, embedder, sparse_index, cleanup=cleanup, record=record, force=force)
    size, writers = min(batch_size or DEFAULT_BATCH_SIZE, sink.max_batch_size), min(workers, sink.max_writers)
    filling = Filling(sink, source.stop, size=size, writers=writers, collect=on_error == "collect", cleanup=cleanup)
    _follow(filling, source, show_progress, progress, started)
    return filling.done.report(time.perf_counter() - started, overlapped=sink.embedder is not None)


async def apopulate(
    store: Any,
    documents: Iterable[Any] | AsyncIterable[Any] | Loader,
    *,
    embedder: Any = None,
    sparse_index: SparseIndex | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    cleanup: Cleanup | None = None,
    on_error: OnError = "raise",
    show_progress: bool = True,
    progress: Callable[[Progress], object] | None = None,
    record: str | Path | None = None,
    force: bool = False,
) -> PopulateReport:
    """Run `populate` off the event loop: another thread reads `documents` and calls `progress`.

    Asynchronous iterators and generators, such as a loader's `alazy_load()`, are read on the event loop, a few batches
    ahead, and closed at the end. If you cancel the call, it stops reading, and stops waiting for a store that cannot be
    reached.
    """
    waiting = asynchronous(documents)
    handover = Handover(waiting, batch_size or DEFAULT_BATCH_SIZE) if waiting is not None else None
    source = Source(handover or documents)  # type: ignore[arg-type]
    work = partial(
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
        record=record,
        force=force,
    )
    filling = Background[PopulateReport](1, "apopulate").submit(work)
    handing = asyncio.ensure_future(handover.hand_over()) if handover else None
    try:
        return await asyncio.wrap_future(filling)
    finally:
        source.stop.set()
        if handing is not None:
            handing.cancel()
            await asyncio.wait([handing])


def _follow(
    filling: Filling,
    documents: Source,
    show_progress: bool,
    progress: Callable[[Progress], object] | None,
    started: float,
) -> None:
    """Run the filling, and report the progress after each batch."""
    total, hidden = length_hint(documents) or None, None if show_progress else True
    with (
        asking_until(documents.stop),
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
    store: Any,
    embedder: Any,
    sparse_index: SparseIndex | None,
    *,
    cleanup: Cleanup | None,
    record: str | Path | None,
    force: bool,
) -> Sink:
    """Return the store's sink, after a check of the model's fingerprint."""
    core, computes = choose_embedder(store, embedder)
    sink = make_sink(store, computes, record)
    if sparse_index is not None:
        sink = HybridSink(sink, sparse_index, _find_m3(embedder))
    if cleanup and not sink.lists:
        raise ValueError(f"cleanup= needs a store that lists what it holds; {type(store).__name__} does not.")
    if core is not None:
        sink.guard(core, force=force)
    return sink


def _check_arguments(batch_size: int | None, workers: int, cleanup: str | None, on_error: str) -> None:
    for name, number in (("batch_size", batch_size), ("workers", workers)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be 1 or more, not {number}.")
    if cleanup not in (None, "source", "full"):
        raise ValueError(f'cleanup must be None, "source" or "full", not {cleanup!r}.')
    if on_error not in ("raise", "collect"):
        raise ValueError(f'on_error must be "raise" or "collect", not {on_error!r}.')


def _find_m3(embedder: Any) -> BgeM3Embedder:
    if not isinstance(embedder, BgeM3Embedder):
        raise TypeError(
            f"sparse_index= is filled by bge-m3. Give embedder=BgeM3Embedder(...) of the store's own model, not "
            f"{embedder!r:.80}."
        )
    return embedder
