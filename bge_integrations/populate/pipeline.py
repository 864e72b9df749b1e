"""populate: documents into a vector store, computing only what the store does not hold yet."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tqdm import tqdm

from bge_integrations.embed.collection import HASH_KEY, check_fingerprint, write_fingerprint
from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.embed.sparse_index import SparseIndex
from bge_integrations.populate.identity import Document, Entry, identify
from bge_integrations.populate.sinks import HybridSink, LangChainSink, VectorStore, make_sink

Core = BgeEmbedder | BgeM3Embedder

DEFAULT_BATCH_SIZE = 512


@dataclass(frozen=True, slots=True)
class PopulateReport:
    """What one call of `populate` did; each document given counts once in added, updated or skipped.

    Attributes:
        added: Documents that the store did not hold.
        updated: Documents held under the same id of the caller's own, with other text or metadata.
        skipped: Documents that the store holds already, or that came twice.
        texts: Texts that the model embedded, also for the sparse index alone.
        seconds: Wall time.
    """

    added: int
    updated: int
    skipped: int
    texts: int
    seconds: float


def populate(
    store: VectorStore,
    documents: Iterable[Document],
    *,
    embedder: Any = None,
    sparse_index: SparseIndex | None = None,
    batch_size: int | None = None,
    show_progress: bool = True,
    force: bool = False,
) -> PopulateReport:
    """Bring a LangChain vector store up to date with documents; run again, it computes nothing twice.

    A document with an id of its own keeps it, and its content hash goes into the metadata of the stored copy. Without
    an id, the id is the SHA-256 of text and metadata. Documents whose id (and hash) the store holds never reach the
    model; where only the metadata changed, Chroma is updated without the model too. Each batch is in the store before
    the next begins, so an interrupted call is resumed by the same call. The fingerprint of the store's model is kept
    with the collection (Chroma): filling it with another model is refused.

    With a `sparse_index`, one forward of bge-m3 gives dense vectors for the store and sparse ones for the index, under
    the same ids. Documents that only the store holds get into the index too. The index is yours to save.

    Args:
        store: A vector store that answers `get_by_ids`, with its own embeddings.
        documents: LangChain documents; a generator is read one batch at a time. None of them is changed.
        embedder: None for the store's own; no other is accepted, for the store answers queries with its own.
        sparse_index: Takes sparse vectors; it needs `embedder=`, a `BgeM3Embedder` of the store's own model.
        batch_size: Documents a look-up and a write; default 512, never over the limit of Chroma's client.
        show_progress: A progress bar, where stderr is a terminal.
        force: Fill a collection that another model has filled.

    Raises:
        FingerprintMismatchError: Another model filled the collection (`force=False`) or the sparse index.
        TypeError: The store cannot look up ids, a document is none, its metadata cannot be hashed, or a `sparse_index`
            comes without a `BgeM3Embedder`.
        ValueError: `batch_size` under 1, or `embedder` is not the store's own.
        NotImplementedError: The store's class leaves `get_by_ids` out.
    """
    started = time.perf_counter()
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}.")
    sink = make_sink(store)
    core = _check_embedder(store, embedder)
    if sparse_index is not None:
        sink = HybridSink(sink, sparse_index, _find_m3(embedder))
    size = min(batch_size or DEFAULT_BATCH_SIZE, sink.max_batch_size or sys.maxsize)
    _guard(store, core, force)
    total = len(documents) if isinstance(documents, Sequence) else None
    with tqdm(total=total, unit="doc", desc="populate", disable=None if show_progress else True) as progress:
        added, updated, skipped, texts = _fill(sink, _batches(documents, size), progress.update)
    return PopulateReport(added, updated, skipped, texts, time.perf_counter() - started)


def _fill(
    sink: LangChainSink, batches: Iterable[list[Entry]], advance: Callable[[int], object]
) -> tuple[int, int, int, int]:
    """Write batch by batch; return how many were added, updated, skipped, embedded."""
    added = updated = skipped = texts = 0
    for batch in batches:
        new, changed, moved, embedded = _write(sink, batch)
        added += new
        updated += changed + moved
        skipped += len(batch) - new - changed - moved
        texts += embedded
        advance(len(batch))
    return added, updated, skipped, texts


def _guard(store: VectorStore, core: Core | None, force: bool) -> None:
    """Refuse another model than the one that filled the store, and keep the model's fingerprint with the store."""
    if core is not None:
        check_fingerprint(store, core.fingerprint, force=force)
        write_fingerprint(store, core.fingerprint)


def _check_embedder(store: VectorStore, embedder: Any) -> Core | None:
    """Return the core embedder behind the store's own embeddings, None for foreign ones; refuse any other embedder."""
    own = store.embeddings
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


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Entry]]:
    numbered = enumerate(documents)
    while batch := [identify(document, position) for position, document in islice(numbered, size)]:
        yield batch


def _write(sink: LangChainSink, batch: list[Entry]) -> tuple[int, int, int, int]:
    """Write what a sink lacks of a batch.

    Returns:
        How many documents were new, had another text (or unknown changes), had other metadata only, were embedded.
    """
    entries = {entry.id: entry for entry in batch}
    held = sink.look_up(list(entries))
    new, changed, moved, same = [], [], [], []
    for entry in entries.values():
        stored = held.get(entry.id)
        if stored is None:
            new.append(entry)
        elif entry.content_hash in (None, stored.metadata.get(HASH_KEY)):
            same.append(entry)
        elif sink.takes_metadata_alone and stored.text == entry.document.page_content:
            moved.append(entry)
        else:
            changed.append(entry)
    if new or changed:
        sink.write([*new, *changed])
    if moved:
        sink.update_metadata(moved, held)
    completed = sink.complete([*same, *moved])
    return len(new), len(changed), len(moved), len(new) + len(changed) + completed
