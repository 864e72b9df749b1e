"""What a run of populate says: while it runs, and at its end."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that was left out.

    Attributes:
        position: Its place in the input, from 0.
        id: Its id; None where it has none that could be found.
        source: Its metadata's `source`; None where that is not known.
        reason: What was wrong with it.
    """

    position: int
    id: str | None
    source: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class PopulateReport:
    """What one call of `populate` did; each document given counts once in added, updated, skipped or failed.

    Attributes:
        added: Documents that the store did not hold.
        updated: Documents held under the same id of the caller's own, with other text or metadata.
        skipped: Documents that the store holds already, or that came twice.
        deleted: Stale documents that `cleanup=` took out of the store.
        failed: Documents left out, with `on_error="collect"`.
        texts: Texts that the model embedded, also for the sparse index alone.
        tokens: Tokens of these texts; 0 with embeddings that are not this package's.
        seconds: Wall time.
        overlapped: Whether model and writes ran at the same time; not where a store computes its vectors by itself.
    """

    added: int
    updated: int
    skipped: int
    deleted: int
    failed: tuple[Failure, ...]
    texts: int
    tokens: int
    seconds: float
    overlapped: bool = True


def sum_reports(reports: Sequence[PopulateReport], seconds: float) -> PopulateReport:
    """What calls did together that each filled a part, in so many seconds of wall time."""
    return PopulateReport(
        added=sum(report.added for report in reports),
        updated=sum(report.updated for report in reports),
        skipped=sum(report.skipped for report in reports),
        deleted=sum(report.deleted for report in reports),
        failed=tuple(failure for report in reports for failure in report.failed),
        texts=sum(report.texts for report in reports),
        tokens=sum(report.tokens for report in reports),
        seconds=seconds,
        overlapped=all(report.overlapped for report in reports),
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come; what `progress=` is called with after each batch.

    Attributes:
        documents: Documents done with.
        total: Documents given, where that is known.
        texts: Texts embedded so far.
        tokens: Tokens of these texts.
        seconds: Since the call began.
    """

    documents: int
    total: int | None
    texts: int
    tokens: int
    seconds: float
