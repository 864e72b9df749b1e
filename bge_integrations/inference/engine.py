"""One loaded model with its worker: texts or pairs in, one future a call out."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from bge_integrations.inference.backends.base import Backend
from bge_integrations.inference.batch import Encoding
from bge_integrations.inference.call import Call, Output
from bge_integrations.inference.device_lock import device_lock
from bge_integrations.inference.heads import Head
from bge_integrations.inference.queue import MAX_WAITING_CALLS, Queue
from bge_integrations.inference.tokenize import TextTokenizer

T = TypeVar("T")
Check = Callable[[int, Encoding], None]


def accept(index: int, encoding: Encoding) -> None:
    """The check that refuses nothing."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done so far."""

    queue_depth: int
    batches: int
    tokens: int
    truncations: int


class Engine:
    """Tokenizer, backend and queue of one loaded model.

    Args:
        tokenizer: The model's tokenizer.
        backend: The model's weights on a device.
        device: The device's name; forwards on one device take turns.
        max_batch_tokens: Tokens of a forward where a call names no limit.
        max_waiting: Calls that may wait.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        backend: Backend,
        *,
        device: str,
        max_batch_tokens: int,
        max_waiting: int = MAX_WAITING_CALLS,
    ) -> None:
        self.tokenizer = tokenizer
        self.backend = backend
        self.max_batch_tokens = max_batch_tokens
        self._queue = Queue(backend, device_lock(device), max_waiting=max_waiting)

    def submit(
        self,
        items: Sequence[T],
        encode: Callable[[Sequence[T]], list[Encoding]],
        *,
        head: Head,
        max_batch_tokens: int | None = None,
        check: Check = accept,
        first: int = 0,
        patient: bool = False,
    ) -> Future[Output]:
        """Queues texts or pairs; `encode` tokenizes a window of them, with this engine's tokenizer.

        Messages count them from `first`. Where too many calls wait, a `patient` one waits for admission.

        Returns:
            A future of the rows that `head` describes, and of the items that were cut. It fails with a ValueError
            for an item with a token that the model has no embedding of; others in its batches do not.

        Raises:
            OverloadedError: Too many calls wait, and the call is not `patient`.
            ClosedError: The engine is closed.
        """
        if not items:
            raise ValueError("An engine needs at least one text.")
        what = "Text" if isinstance(items[0], str) else "Pair"

        def checked(index: int, encoding: Encoding) -> None:
            check(index, encoding)
            self._check_tokens(f"{what} {index}", encoding)

        call = Call(items, encode, checked, head, max_batch_tokens or self.max_batch_tokens, first, patient)
        self._queue.submit(call)
        return call.future

    def _check_tokens(self, what: str, encoding: Encoding) -> None:
        """Refuses a token without an embedding; a batch would fail with it as a whole, or give whatever is there."""
        largest, vocabulary = int(encoding.ids.max(initial=0)), self.backend.vocabulary
        if vocabulary is not None and largest >= vocabulary:
            raise ValueError(
                f"{what} holds the token {self.tokenizer.name(largest)!r} (id {largest}), and the model has embeddings "
                f"of {vocabulary} tokens only: its tokenizer and its weights do not belong together. Resize its "
                "embeddings (resize_token_embeddings) and save it again, or leave this text out."
            )

    @property
    def stats(self) -> EngineStats:
        queue = self._queue
        return EngineStats(queue.depth, queue.batches, queue.tokens, queue.truncated)

    @property
    def worker(self) -> threading.Thread | None:
        """The thread that computes, once a call has come."""
        return self._queue.worker

    def close(self) -> None:
        """Ends the worker after its running batch; calls that wait get `ClosedError`."""
        self._queue.close()

    def join(self, timeout: float | None = None) -> None:
        """Waits for a closed engine's worker, then frees the weights."""
        self._queue.join(timeout)
        self.backend.close()
