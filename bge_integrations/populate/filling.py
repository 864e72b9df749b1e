"""Batches of documents on their way into a store: looked up, computed and written at the same time."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from bge_integrations.embed.collection import HASH_KEY
from bge_integrations.errors import NonFiniteError
from bge_integrations.populate.cleanup import Cleanup, Seen, delete_stale
from bge_integrations.populate.embedding import Pending
from bge_integrations.populate.identity import Entry
from bge_integrations.populate.report import Failure, PopulateReport
from bge_integrations.populate.sinks.base import Sink
from bge_integrations.populate.writing import Refused, in_parts, patiently


@dataclass(slots=True)
class Tally:
    """What has been done so far, or in one batch."""

    added: int = 0
    updated: int = 0
    skipped: int = 0
    deleted: int = 0
    failed: list[Failure] = field(default_factory=list)
    texts: int = 0
    tokens: int = 0

    @property
    def documents(self) -> int:
        """Documents done with."""
        return self.added + self.updated + self.skipped + len(self.failed)

    def add(self, other: "Tally") -> None:
        """Count another batch's work in."""
        self.added += other.added
        self.updated += other.updated
        self.skipped += other.skipped
        self.failed += other.failed
        self.texts += other.texts
        self.tokens += other.tokens

    def report(self, seconds: float, *, overlapped: bool) -> PopulateReport:
        """What the caller gets."""
        failed = tuple(sorted(self.failed, key=lambda failure: failure.position))
        counted = (self.added, self.updated, self.skipped, self.deleted, failed, self.texts, self.tokens)
        return PopulateReport(*counted, seconds, overlapped)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done for one batch.

    Attributes:
        new: Documents that the store lacks.
        changed: Documents held with another text, or with unknown changes.
        moved: Documents held with other metadata only.
        same: Documents held as they are.
        held: What the store holds of all of them.
        left_out: Bad documents.
        twice: Documents that came twice in the batch.
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
        """Documents that the store is going to change."""
        return [*self.to_embed, *self.moved]


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch under way."""

    plan: Plan
    pending: Pending | None
    written: "Future[Tally]"

    def cancel(self) -> None:
        self.written.cancel()
        if self.pending:
            self.pending.cancel()


class Filling:
    """Documents on their way into a sink, a few batches at a time.

    The caller's thread reads, identifies and looks up; the model's own thread computes; writers wait for a batch's
    vectors and write them.

    Args:
        sink: The store.
        size: Documents a batch.
        writers: Threads that write.
        collect: Leave bad documents out instead of raising.
        cleanup: Which stale documents to delete, once all are written.

    Attributes:
        done: What has been done.
    """

    def __init__(self, sink: Sink, *, size: int, writers: int, collect: bool, cleanup: Cleanup | None) -> None:
        self._sink = sink
        self._size = size
        self._writers = writers
        self._collect = collect
        self._cleanup = cleanup
        self._seen = Seen() if cleanup else None
        self._under_way: deque[_Batch] = deque()
        self.done = Tally()

    def run(self, documents: Iterable[Any]) -> Generator[Tally]:
        """Fill; after each batch yields what has been done.

        After an error what is under way is still written if the store takes it, after an interrupt only what is being
        written.
        """
        numbered = enumerate(self._sink.framework.arrange(documents, self._size))
        with ThreadPoolExecutor(self._writers, "populate") as pool:
            try:
                while read := list(islice(numbered, self._size)):
                    self._start(self._plan(read), pool)
                    while len(self._under_way) > self._writers + 1:
                        self._finish_one()
                        yield self.done
                while self._under_way:
                    self._finish_one()
                    yield self.done
                if self._cleanup and self._seen:
                    self.done.deleted = delete_stale(self._sink, self._cleanup, self._seen, self.done.failed)
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                for batch in self._under_way:
                    batch.cancel()
                raise
            finally:
                if self._seen:
                    self._seen.close()

    def _start(self, plan: Plan, pool: ThreadPoolExecutor) -> None:
        pending = self._sink.submit(plan.to_embed) if plan.to_embed else None
        self._under_way.append(_Batch(plan, pending, pool.submit(self._write, plan, pending)))

    def _finish_one(self) -> None:
        written = self._under_way[0].written.result()
        self._under_way.popleft()
        self.done.add(written)

    def _identified(self, numbered: list[tuple[int, Any]]) -> tuple[dict[str, Entry], list[Failure]]:
        """Give the documents of a batch by id, and the bad ones."""
        entries, left_out = dict[str, Entry](), list[Failure]()
        for position, document in numbered:
            try:
                entry = self._sink.identify(document, position)
            except (TypeError, ValueError) as error:
                if not self._collect:
                    raise
                source = self._sink.framework.source_of(document)
                left_out.append(Failure(position, getattr(document, "id", None), source, str(error)))
            else:
                entries[entry.id] = entry
        if self._seen:
            self._seen.add(entries.values())
        return entries, left_out

    def _plan(self, numbered: list[tuple[int, Any]]) -> Plan:
        """Tell what the sink lacks of a batch."""
        entries, left_out = self._identified(numbered)
        while any(entry.id in entries for batch in self._under_way for entry in batch.plan.to_write):
            self._finish_one()
        held = patiently(lambda: self._sink.look_up(list(entries))) if entries else {}
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
        return Plan(new, changed, moved, same, held, left_out, len(numbered) - len(left_out) - len(entries))

    def _write(self, plan: Plan, pending: Pending | None) -> Tally:
        """Write one batch, in a writer's thread."""
        write, refused, texts, tokens = partial(self._sink.write, held=plan.held), list[Refused](), 0, 0
        for entries, embeddings, computed in self._embedded(plan.to_embed, pending, refused):
            refused += in_parts(write, entries, embeddings)
            texts, tokens = texts + len(entries), tokens + computed
        if refused and not self._collect:
            entry, error = refused[0]
            error.add_note(f"This is about document {entry.position}, id {entry.id}.")
            raise error
        if plan.moved:
            patiently(lambda: self._sink.update_metadata(plan.moved, plan.held))
        completed, more = self._sink.complete([*plan.same, *plan.moved])
        out = {entry.id for entry, _ in refused}
        return Tally(
            added=sum(entry.id not in out for entry in plan.new),
            updated=sum(entry.id not in out for entry in plan.changed) + len(plan.moved),
            skipped=len(plan.same) + plan.twice,
            failed=[*plan.left_out, *(_refusal(entry, error) for entry, error in refused)],
            texts=texts + completed,
            tokens=tokens + more,
        )

    def _embedded(
        self, entries: list[Entry], pending: Pending | None, refused: list[Refused]
    ) -> Iterator[tuple[list[Entry], Any, int]]:
        """Wait for vectors; where the model refuses a text, halves are computed until that one is found."""
        try:
            embeddings, tokens = pending.result() if pending else (None, 0)
        except (ValueError, NonFiniteError) as error:
            if len(entries) == 1:
                refused.append((entries[0], error))
                return
            middle = len(entries) // 2
            for part in (entries[:middle], entries[middle:]):
                yield from self._embedded(part, self._sink.submit(part), refused)
        else:
            yield entries, embeddings, tokens


def _refusal(entry: Entry, error: Exception) -> Failure:
    return Failure(entry.position, entry.id, entry.source, str(error))
