"""The filling of a store: batches of documents are looked up, embedded and written at the same time."""

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Event
from typing import Any

from bge_integrations.populate.cleanup import Cleanup, delete_stale, remember
from bge_integrations.populate.documents import Entry, Held, storable
from bge_integrations.populate.embedders import ForeignEmbedder, Pending
from bge_integrations.populate.framework import PLAIN_TEXT
from bge_integrations.populate.record import Record
from bge_integrations.populate.report import Failure, PopulateReport
from bge_integrations.populate.retry import Halving, Refused, ends_run, is_server_away, patiently
from bge_integrations.populate.sinks.base import Sink, dense
from bge_integrations.process import Background
from bge_integrations.stores.kinds import HASH_KEY

_SECONDS_TO_WRITE = 0.7
"""How many seconds an interrupted run waits for writes to finish."""
_SECONDS_TO_STOP = 0.3
"""How many seconds it waits for a thread to stop."""
_SECONDS_A_LOOK = 0.2
"""Seconds after which a run that waits for a batch checks again whether it has been stopped."""


@dataclass(slots=True)
class Tally:
    """The counts of what has been done so far, or in one batch."""

    added: int = 0
    updated: int = 0
    skipped: int = 0
    deleted: int = 0
    failed: list[Failure] = field(default_factory=list)
    texts: int = 0
    tokens: int = 0

    @property
    def documents(self) -> int:
        """The number of documents that are finished."""
        return self.added + self.updated + self.skipped + len(self.failed)

    def add(self, other: "Tally") -> None:
        """Add the counts of another batch."""
        self.added += other.added
        self.updated += other.updated
        self.skipped += other.skipped
        self.failed += other.failed
        self.texts += other.texts
        self.tokens += other.tokens

    def report(self, seconds: float, *, overlapped: bool) -> PopulateReport:
        """Return the counts as the report that the caller gets."""
        failed = tuple(sorted(self.failed, key=lambda failure: failure.position))
        counted = (self.added, self.updated, self.skipped, self.deleted, failed, self.texts, self.tokens)
        return PopulateReport(*counted, seconds, overlapped)


@dataclass(frozen=True, slots=True)
class Plan:
    """The work to do for one batch.

    Attributes:
        new: Documents that the store lacks.
        changed: Documents that the store holds with another content hash, and that are embedded again.
        moved: Documents that the store holds with the same text and other metadata, which alone is replaced.
        same: Documents that the store holds as they are.
        held: What the store holds of all of them, by id.
        left_out: Bad documents, which are left out.
        twice: The number of documents that came twice in the batch.
    """

    new: list[Entry]
    changed: list[Entry]
    moved: list[Entry]
    same: list[Entry]
    held: dict[str, Any]
    left_out: list[Failure]
    twice: int

    @property
    def to_embed(self) -> list[Entry]:
        """Documents that need vectors."""
        return [*self.new, *self.changed]

    @property
    def to_write(self) -> list[Entry]:
        """Documents that will be written to the store."""
        return [*self.to_embed, *self.moved]


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch that is being embedded and written."""

    plan: Plan
    pending: Pending | None
    written: "Future[Tally]"

    def cancel(self) -> None:
        self.written.cancel()
        if self.pending:
            self.pending.cancel()


class Filling:
    """A run that fills a sink, with a few batches under way at a time.

    The caller's thread reads, identifies and looks up documents; the model's own thread embeds them; writer threads
    wait for a batch's vectors and write them.

    Args:
        sink: The store.
        stop: Set it to end the run; the run sets it too, when the store must not be asked again.
        size: Documents per batch.
        writers: The number of threads that write.
        collect: Leave bad documents out instead of raising.
        cleanup: Which stale documents to delete, once all documents are written; None deletes none.

    Attributes:
        done: The counts of what has been done.
    """

    def __init__(
        self, sink: Sink, stop: Event, *, size: int, writers: int, collect: bool, cleanup: Cleanup | None
    ) -> None:
        self._sink = sink
        self._size = size
        self._writers = writers
        self._collect = collect
        self._cleanup = cleanup
        self._stop = stop
        self._seen = Record("") if cleanup else None
        self._under_way: deque[_Batch] = deque()
        self._written: tuple[Entry, Any] | None = None
        self._looking_up = Halving("looking up", collect=collect)
        self._embedding = Halving("embedding", collect=collect)
        self._writing = Halving("writing", collect=collect)
        self._moving = Halving("updating the metadata of", collect=collect)
        self.done = Tally()

    def run(self, documents: Iterable[Any]) -> Generator[Tally]:
        """Fill the sink; yield the counts so far after each batch.

        After an error of a document, or of the iterable `documents`, the batches under way are still written. After
        other errors, and after an interrupt, the run waits a second at most for writes that have begun.
        """
        numbered = enumerate(self._sink.framework.arrange(documents, self._size))
        writers = Background[Tally](self._writers, "populate")
        try:
            while read := list(islice(numbered, self._size)):
                self._start(self._plan(read), writers)
                while len(self._under_way) > self._writers + 1:
                    self._finish_one()
                    yield self.done
            while self._under_way:
                self._finish_one()
                yield self.done
            if self._cleanup and self._seen:
                self.done.deleted = delete_stale(self._sink, self._cleanup, self._seen, self.done.failed)
            self._sink.settle()
        except BaseException as error:
            if isinstance(error, Exception) and not self._stop.is_set():
                wait([batch.written for batch in self._under_way])
            else:
                self._interrupt(writers)
            raise
        finally:
            writers.close()
            if isinstance(self._sink.embedder, ForeignEmbedder):
                self._sink.embedder.close()
            if self._seen:
                self._seen.close()

    def _interrupt(self, writers: Background[Tally]) -> None:
        """Cancel what is under way, except for writes that have begun and finish in a moment."""
        self._stop.set()
        for batch in self._under_way:
            batch.cancel()
        if isinstance(self._sink.embedder, ForeignEmbedder):
            self._sink.embedder.stop(_SECONDS_TO_STOP)
        wait([batch.written for batch in self._under_way], timeout=_SECONDS_TO_WRITE)
        writers.stop(_SECONDS_TO_STOP)

    def _start(self, plan: Plan, writers: Background[Tally]) -> None:
        pending = self._sink.submit(plan.to_embed) if plan.to_embed else None
        self._under_way.append(_Batch(plan, pending, writers.submit(partial(self._write, plan, pending))))

    def _finish_one(self) -> None:
        first = self._under_way[0].written
        while not wait([first], timeout=_SECONDS_A_LOOK).done:
            self._check_wanted()
        self._check_wanted()
        try:
            written = first.result()
        except Exception as error:
            if ends_run(error):
                self._stop.set()
            raise
        self._under_way.popleft()
        self.done.add(written)

    def _check_wanted(self) -> None:
        if self._stop.is_set():
            raise asyncio.CancelledError

    def _identified(self, numbered: list[tuple[int, Any]]) -> tuple[dict[str, Entry], list[Failure]]:
        """Return the documents of a batch by id, and the bad ones."""
        entries, left_out = dict[str, Entry](), list[Failure]()
        for position, document in numbered:
            try:
                entry = storable(self._sink.identify(document, position))
            except Exception as error:
                if not self._collect:
                    raise
                source = self._sink.framework.source_of(document)
                left_out.append(Failure(position, getattr(document, "id", None), source, str(error)))
            else:
                entries[entry.id] = entry
        if self._seen:
            remember(self._seen, entries.values())
        return entries, left_out

    def _plan(self, numbered: list[tuple[int, Any]]) -> Plan:
        """Find out what the sink lacks of a batch."""
        entries, left_out = self._identified(numbered)
        twice = len(numbered) - len(left_out) - len(entries)
        while any(entry.id in entries for batch in self._under_way for entry in batch.plan.to_write):
            self._finish_one()
        held, refused = self._held(list(entries.values()))
        left_out += [_failure(entries.pop(entry.id), error) for entry, error in refused]
        new, changed, moved, same = list[Entry](), list[Entry](), list[Entry](), list[Entry]()
        for entry in entries.values():
            stored = held.get(entry.id)
            if stored is None:
                new.append(entry)
            elif entry.content_hash in (None, stored.metadata.get(HASH_KEY)):
                same.append(entry)
            elif self._sink.takes_metadata_alone and stored.text == entry.text:
                moved.append(entry)
            else:
                changed.append(entry)
        return Plan(new, changed, moved, same, held, left_out, twice)

    def _held(self, entries: list[Entry]) -> tuple[dict[str, Held], list[Refused]]:
        """Return what the sink holds of these documents by id, and the documents whose ids it refuses."""

        def look_up(part: slice) -> dict[str, Held]:
            return patiently(lambda: self._sink.look_up([entry.id for entry in entries[part]]))

        held, refused = dict[str, Held](), list[Refused]()
        for _, found in self._looking_up.run(entries, look_up, refused, self._look_up_any):
            held |= found
        return held, refused

    def _write(self, plan: Plan, pending: Pending | None) -> Tally:
        """Write one batch, in a writer's thread; return its counts."""
        refused, texts, tokens = list[Refused](), 0, 0
        embed = partial(self._embed, plan.to_embed, pending)
        for part, (embeddings, computed) in self._embedding.run(plan.to_embed, embed, refused, self._embed_any):
            entries = plan.to_embed[part]
            store = partial(self._store, entries, embeddings, plan.held)
            again = partial(self._write_any, embeddings)
            for _ in self._writing.run(entries, store, refused, again):
                pass
            texts, tokens = texts + len(entries), tokens + computed
        for _ in self._moving.run(plan.moved, partial(self._move, plan), refused, lambda others: others()):
            pass
        out = {entry.id for entry, _ in refused}
        present = [entry for entry in (*plan.same, *plan.moved) if entry.id not in out]
        completed, more = patiently(lambda: self._sink.complete(present), when=is_server_away)
        return Tally(
            added=sum(entry.id not in out for entry in plan.new),
            updated=sum(entry.id not in out for entry in (*plan.changed, *plan.moved)),
            skipped=len(plan.same) + plan.twice,
            failed=[*plan.left_out, *(_failure(entry, error) for entry, error in refused)],
            texts=texts + completed,
            tokens=tokens + more,
        )

    def _embed(self, entries: list[Entry], pending: Pending | None, part: slice) -> tuple[Any, int]:
        """Return the vectors and tokens of a batch, or of a part of it, which is embedded anew."""
        started = [pending] if part.stop - part.start == len(entries) else []

        def embed() -> tuple[Any, int]:
            waited_for = started.pop() if started else self._sink.submit(entries[part])
            return waited_for.result() if waited_for else (None, 0)

        return patiently(embed, when=is_server_away)

    def _store(self, entries: list[Entry], embeddings: Any, held: dict[str, Held], part: slice) -> None:
        if self._stop.is_set():
            raise CancelledError
        ours, theirs = entries[part], None if embeddings is None else embeddings[part]
        patiently(lambda: self._sink.write(ours, theirs, held))
        self._sink.claim(ours)
        self._written = ours[-1], None if theirs is None else theirs[-1:]

    def _move(self, plan: Plan, part: slice) -> None:
        patiently(lambda: self._sink.update_metadata(plan.moved[part], plan.held))

    def _look_up_any(self, others: Callable[[], bool]) -> bool:
        if not self._looking_up.fits and others():
            return True
        patiently(lambda: self._sink.look_up([str(uuid.uuid4())]))
        return self._looking_up.fits > 0  # a store that takes such an id need not take ours

    def _embed_any(self, _: Callable[[], bool]) -> bool:
        if self._sink.embedder:
            self._sink.embedder.submit_documents([PLAIN_TEXT], [0]).result()
        return True

    def _write_any(self, embeddings: Any, others: Callable[[], bool]) -> bool:
        """Write again what the store took before, else other documents; return whether it took them.

        If it took neither, search the store: that raises too if the vectors have a wrong width.
        """
        with suppress(NotImplementedError):  # from a store that cannot replace documents, or not be searched
            if self._written is not None:
                entry, its = self._written
                held = patiently(lambda: self._sink.look_up([entry.id]))
                patiently(lambda: self._sink.write([entry], its, held))
                return True
            if others():
                return True
            vector = None if embeddings is None else dense(embeddings)[0].tolist()
            patiently(lambda: self._sink.framework.search(self._sink.store, vector))
        return False


def _failure(entry: Entry, error: Exception) -> Failure:
    reason = getattr(error, "orig", None) or error  # the driver's error, without SQLAlchemy's statement and values
    return Failure(entry.position, entry.id, entry.source, str(reason))
