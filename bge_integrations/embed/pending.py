"""Documents that a model is computing."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from bge_integrations.inference.call import Cut, Output, Rows
from bge_integrations.runtime.stream import wait

E = TypeVar("E")


class Pending(Generic[E]):
    """What `Embedder.submit_documents` gives; any thread may wait for it, once.

    Args:
        future: Of the model's output.
        convert: Makes embeddings of its rows.
        report: Told which texts were cut.
    """

    def __init__(
        self, future: "Future[Output]", convert: Callable[[Rows], E], report: Callable[[list[Cut]], None]
    ) -> None:
        self._future = future
        self._convert = convert
        self._report = report

    def result(self) -> tuple[E, int]:
        """Waits for the embeddings, as `encode_documents` gives them, and the number of tokens computed."""
        output = wait(self._future)
        self._report(list(output.cuts))
        return self._convert(output.rows), output.tokens

    def cancel(self) -> None:
        """Gives up what has not been computed."""
        self._future.cancel()
