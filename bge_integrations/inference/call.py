"""One caller's work in the queue: texts still to tokenize, encodings that wait, rows that have arrived."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.inference.batch import Encoding
from bge_integrations.inference.heads import Head

Rows = NDArray[Any]
"""One row a text: float32 (n, width), or objects (n, outputs) where the outputs of texts differ in length."""

WINDOW_TEXTS = 128
WINDOW_CHARACTERS = 1 << 18


@dataclass(frozen=True, slots=True)
class Cut:
    """A text that was cut: its index in the call and the tokens it has in full."""

    index: int
    full_length: int


@dataclass(frozen=True, slots=True)
class Output:
    """What a call's future gives: rows in the order of the texts, the texts that were cut, and the tokens computed."""

    rows: Rows
    cuts: tuple[Cut, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Item:
    """One text of one call, ready for the device."""

    call: "Call"
    index: int
    encoding: Encoding

    @property
    def position(self) -> int:
        """Index of the text in what the caller gave."""
        return self.call.first + self.index


@dataclass(eq=False, slots=True)
class Call:
    """One submitted list of texts or pairs.

    Long calls are tokenized in windows, so that a bulk job neither holds its tokens in memory nor keeps others waiting.

    Attributes:
        texts: What is to be computed; read, never changed.
        encode: Tokenizes a window of `texts`.
        check: Refuses an encoding by raising, with the index of its text.
        head: What to keep of the hidden states.
        max_batch_tokens: Most tokens of a forward that this call takes part in.
        first: Index of the first text in what the caller gave, where that is more than this call; for messages.
        patient: Where too many calls wait, it waits for admission instead of being refused.
        alone: It shares no batch, as one that it shared has failed.
    """

    texts: Sequence[Any]
    encode: Callable[[Sequence[Any]], list[Encoding]]
    check: Callable[[int, Encoding], None]
    head: Head
    max_batch_tokens: int
    first: int = 0
    patient: bool = False
    alone: bool = False
    future: "Future[Output]" = field(default_factory=Future)
    served: int = 0
    last_turn: int = 0
    _tokenized: int = 0
    _finished: int = 0
    _waiting: list[Item] = field(default_factory=list)
    _waiting_tokens: int = 0
    _rows: Rows | None = None
    _cuts: list[Cut] = field(default_factory=list)
    _tokens: int = 0

    @property
    def done(self) -> bool:
        return self.future.done()

    def refill(self, tokens: int) -> None:
        """Tokenizes window after window until `tokens` wait, or all texts are tokenized."""
        while self._waiting_tokens < tokens and self._tokenized < len(self.texts):
            self._tokenize_window()

    def peek(self) -> Item | None:
        """The longest text that waits: neighbours in length share a batch, and what can't fit shows early."""
        return self._waiting[-1] if self._waiting else None

    def take(self) -> Item:
        item = self._waiting.pop()
        self._waiting_tokens -= len(item.encoding)
        return item

    def put_back(self, items: Sequence[Item]) -> None:
        """Returns items that were taken but not computed."""
        self._waiting.extend(items)
        self._waiting_tokens += sum(len(item.encoding) for item in items)
        self._sort()

    def deliver(self, indices: Sequence[int], rows: Rows) -> None:
        """Takes finished rows; the last ones complete the future."""
        if self._rows is None:
            self._rows = np.empty((len(self.texts), rows.shape[1]), dtype=rows.dtype)
        self._rows[indices] = rows
        self._finished += len(indices)
        if self._finished == len(self.texts) and not self.done and self.future.set_running_or_notify_cancel():
            cuts = tuple(sorted(self._cuts, key=lambda cut: cut.index))
            self.future.set_result(Output(self._rows, cuts, self._tokens))

    def fail(self, error: BaseException) -> None:
        if not self.done and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def _tokenize_window(self) -> None:
        start, stop, characters = self._tokenized, self._tokenized, 0
        while stop < len(self.texts) and stop - start < WINDOW_TEXTS and characters < WINDOW_CHARACTERS:
            characters += _characters(self.texts[stop])
            stop += 1
        try:
            encodings = self.encode(self.texts[start:stop])
        except Exception:
            _refuse_surrogates(self.texts[start:stop], self.first + start)
            raise
        for index, encoding in enumerate(encodings, start):
            self.check(self.first + index, encoding)
            if len(encoding) < encoding.full_length:
                self._cuts.append(Cut(index, encoding.full_length))
            self._waiting.append(Item(self, index, encoding))
            self._waiting_tokens += len(encoding)
            self._tokens += len(encoding)
        self._tokenized = stop
        self._sort()

    def _sort(self) -> None:
        self._waiting.sort(key=lambda item: len(item.encoding))


def _characters(text: Any) -> int:
    return len(text) if isinstance(text, str) else sum(map(len, text))


def _refuse_surrogates(texts: Sequence[Any], start: int) -> None:
    """Says which text is not valid Unicode, once the tokenizer has refused its window."""
    for index, text in enumerate(texts, start):
        try:
            "".join(text).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Text {index} holds a lone surrogate ({error.object[error.start]!r} at character {error.start}), so "
                'it is not valid Unicode. Clean it first: text.encode("utf-8", "replace").decode().'
            ) from error
