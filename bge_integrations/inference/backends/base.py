"""The interface between the queue and the devices."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bge_integrations.inference.batch import Rows, TokenBatch
from bge_integrations.inference.heads import Head


class DeviceMemoryError(Exception):
    """A forward did not fit the device's memory; the queue halves its budget and goes on."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A forward that a device computes asynchronously, while this thread goes on."""

    rows: Callable[[], Rows]
    """Waits for the forward and returns its rows; raises the errors that the device reports only then."""


class Backend(Protocol):
    """One model's weights on one device."""

    padded: bool
    """Whether a forward computes padding, so that it costs its longest text times the number of texts."""
    engine: str
    """How it runs and why, for logs and `stats()`: "packed", "padded: ...", "sentence_transformers: ..."."""
    nbytes: int
    """Bytes of the weights on the device."""
    vocabulary: int | None
    """Rows of the table of token embeddings: a text with an id beyond them never reaches `run`; None for no limit."""

    def run(self, batch: TokenBatch, head: Head, *, exact: bool = False) -> Rows | Launched:
        """Run one forward; return rows in the order of the batch, or `Launched` while the device still computes them.

        Args:
            batch: The texts.
            head: What to keep of the hidden states.
            exact: Compute in float32, whatever the weights' dtype.

        Raises:
            DeviceMemoryError: The forward did not fit.
        """

    def close(self) -> None:
        """Free the weights."""
