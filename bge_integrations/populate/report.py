"""The progress and the final report of a populate run."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """A document that was left out.

    Attributes:
        position: Its place in the input, from 0.
        id: Its id; None if none could be found.
        source: What it was taken from, such as its metadata's `source`; None if that is not known.
        reason: The message of the error that kept it out.
    """

    position: int
    id: str | None
    source: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class PopulateReport:
    """The outcome of one call of `populate`; each document counts once, as added, updated, skipped or failed.

    Attributes:
        added: Documents that the store did not hold before.
        updated: Documents that the store held under the caller's own id, with another text or other metadata.
        skipped: Documents that the store held already, or that came twice.
        deleted: Stale documents that `cleanup=` deleted from the store.
        failed: Documents that were left out; always empty with `on_error="raise"`.
        texts: Texts that the model embedded, including those for the sparse index alone.
        tokens: Tokens of these texts; 0 if the embeddings are not this package's.
        seconds: Wall time of the call.
        overlapped: Whether the model computed while the store wrote; False if the store computes its vectors itself.
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
    """Add up the reports of calls that each filled a part; `seconds` is the wall time of all together."""
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
    """The state of a run, given to the `progress=` callback after each batch.

    Attributes:
        documents: Documents that are finished.
        total: Documents in the input; None if that is not known.
        texts: Texts embedded so far.
        tokens: Tokens of these texts.
        seconds: Seconds since the call began.
    """

    documents: int
    total: int | None
    texts: int
    tokens: int
    seconds: float
