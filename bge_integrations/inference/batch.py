"""The data that an engine handles: texts become encodings, encodings share batches, and rows return to their call.

`BatchSize` counts what a batch holds. `Engine._assemble` fills batches up to the token budget, whose default is in
`runtime/device.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from operator import attrgetter
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.errors import InputTooLongError
from bge_integrations.inference.heads import Head
from bge_integrations.process import answer

IntArray = NDArray[np.int64]
Rows = NDArray[Any]
"""One row for each text: float32 (n, width), or objects (n, outputs) where the outputs of texts differ in length."""

WINDOW_TEXTS = 128
WINDOW_CHARACTERS = 1 << 18

_length = attrgetter("length")


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text or pair as the model sees it, special tokens included.

    Attributes:
        ids: Token ids, int64 (length,).
        types: Token type ids, int64 (length,), or None where the model takes none.
        full_length: Number of tokens before cutting; it is larger than `len(ids)` if the text was cut.
    """

    ids: IntArray
    types: IntArray | None
    full_length: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """The texts of one forward, end to end and without padding.

    Attributes:
        ids: Token ids of all texts, int64 (tokens,).
        types: Token type ids, int64 (tokens,), or None.
        cu_seqlens: Where each text begins, and where the last one ends, int64 (texts + 1,).
    """

    ids: IntArray
    types: IntArray | None
    cu_seqlens: IntArray

    @classmethod
    def of(cls, encodings: Iterable[Encoding]) -> "TokenBatch":
        ids, types, ends = list[IntArray](), list[IntArray](), [0]
        for encoding in encodings:
            ids.append(encoding.ids)
            ends.append(ends[-1] + len(encoding.ids))
            if encoding.types is not None:
                types.append(encoding.types)
        return cls(np.concatenate(ids), np.concatenate(types) if types else None, np.array(ends, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> IntArray:
        """The number of tokens of each text, int64 (texts,)."""
        return np.diff(self.cu_seqlens)

    @property
    def max_seqlen(self) -> int:
        return int(np.diff(self.cu_seqlens).max())

    def padded(self, pad_id: int, width: int | None = None) -> tuple[IntArray, IntArray, IntArray | None]:
        """Return right-padded `(ids, attention_mask, types)`, each int64 (texts, width); None takes `max_seqlen`."""
        mask = np.arange(width or self.max_seqlen) < self.lengths[:, None]
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = self.ids
        types = None
        if self.types is not None:
            types = np.zeros(mask.shape, dtype=np.int64)
            types[mask] = self.types
        return ids, mask.astype(np.int64), types


@dataclass(slots=True)
class BatchSize:
    """The number of tokens that a forward computes, as texts are added to it one by one.

    A padded forward costs its longest text times the number of texts, a packed one the sum of the lengths.

    Attributes:
        padded: Whether the forward computes padding.
        tokens: Tokens that the forward computes, padding included.
    """

    padded: bool
    tokens: int = 0
    _count: int = 0
    _longest: int = 0

    def add(self, length: int, budget: int | None = None) -> bool:
        """Add one text, unless it would take the forward over `budget`; the first text always fits.

        Returns:
            Whether it was added.
        """
        longest, count = max(self._longest, length), self._count + 1
        tokens = longest * count if self.padded else self.tokens + length
        if self._count and budget is not None and tokens > budget:
            return False
        self.tokens, self._count, self._longest = tokens, count, longest
        return True


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the texts or pairs of one call.

    Attributes:
        what: "text" or "pair", for messages.
        max_length: The most tokens; a longer text is refused. None lets longer ones be cut.
        vocabulary: Rows of the model's table of token embeddings; None for no limit.
        name: Returns how the tokenizer writes a token id.
    """

    what: str
    max_length: int | None
    vocabulary: int | None
    name: Callable[[int], str]

    def check(self, index: int, encoding: Encoding) -> None:
        """Refuse a text that is too long, or that has a token without an embedding.

        A batch with such a token would fail as a whole, or give arbitrary numbers.
        """
        if self.max_length is not None and len(encoding.ids) < encoding.full_length:
            raise InputTooLongError(
                f"{self.what} {index} has {encoding.full_length} tokens; the limit is {self.max_length}. Split it, "
                'raise max_length as far as the model allows, or pass on_truncate="warn".'
            )
        largest = int(encoding.ids.max(initial=0))
        if self.vocabulary is not None and largest >= self.vocabulary:
            raise ValueError(
                f"{self.what.capitalize()} {index} holds the token {self.name(largest)!r} (id {largest}), and the "
                f"model has embeddings of {self.vocabulary} tokens only: its tokenizer and its weights do not belong "
                "together. Resize its embeddings (resize_token_embeddings) and save it again, or leave this text out."
            )


@dataclass(frozen=True, slots=True)
class Cut:
    """A text that was cut: its index in the call and the tokens it has in full."""

    index: int
    full_length: int


@dataclass(frozen=True, slots=True)
class Output:
    """The output of a call.

    Attributes:
        rows: The rows, in the order of the texts.
        cuts: The texts that were cut.
        tokens: The number of tokens computed.
        max_length: The most tokens of a text.
    """

    rows: Rows
    cuts: tuple[Cut, ...]
    tokens: int
    max_length: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """One text of one call, ready for the device.

    Attributes:
        length: Its number of tokens.
    """

    call: "Call"
    index: int
    encoding: Encoding
    length: int

    @property
    def position(self) -> int:
        """The index of the text in the caller's list."""
        return self.call.first + self.index


@dataclass(eq=False, slots=True)
class Call:
    """One submitted list of texts or pairs.

    Long calls are tokenized in windows, so that a bulk job neither holds its tokens in memory nor keeps others waiting.

    Attributes:
        texts: The texts or pairs to compute; they are never changed.
        encode: Tokenizes a window of `texts`.
        check: Refuses an encoding by raising, with the index of its text.
        head: What to keep of the hidden states.
        max_batch_tokens: Most tokens of a forward that this call takes part in.
        first: Index of the first text in the caller's list, which may be more than this call; for messages.
        patient: Whether it waits for admission, instead of being refused, when too many calls wait.
        max_length: The most tokens of a text, for messages.
        future: The future of its output.
        release: Called with the future, right before the future is answered.
        queued: When it was made, on the clock `time.monotonic`.
        served: Number of its tokens that batches have taken.
        last_turn: Number of the queue's last step that took some of it.
        alone: Whether it shares no batch, because a batch that it shared has failed.
    """

    texts: Sequence[Any]
    encode: Callable[[Sequence[Any]], list[Encoding]]
    check: Callable[[int, Encoding], None]
    head: Head
    max_batch_tokens: int
    first: int = 0
    patient: bool = False
    max_length: int = 0
    future: "Future[Output]" = field(default_factory=Future)
    release: "Callable[[Future[Output]], object]" = lambda _: None
    queued: float = field(default_factory=monotonic)
    served: int = 0
    last_turn: int = 0
    alone: bool = False
    _tokenized: int = 0
    _finished: int = 0
    _waiting: list[Item] = field(default_factory=list)
    _waiting_tokens: int = 0
    _rows: Rows | None = None
    _cuts: list[Cut] = field(default_factory=list)
    _tokens: int = 0

    def refill(self, tokens: int) -> None:
        """Tokenize window after window until `tokens` tokens wait, or all texts are tokenized."""
        while self._waiting_tokens < tokens and self._tokenized < len(self.texts):
            self._tokenize_window()

    def take(self, size: BatchSize, budget: int) -> list[Item]:
        """Hand over the longest texts that wait, as long as a forward with them stays within `budget`.

        The longest come first, so that texts of similar length share a batch and a text that can't fit fails early.
        """
        taken: list[Item] = []
        while self._waiting and size.add(self._waiting[-1].length, budget):
            taken.append(self._waiting.pop())
            self._waiting_tokens -= taken[-1].length
            self.served += taken[-1].length
        return taken

    def put_back(self, items: Sequence[Item]) -> None:
        """Put back items that were taken but not computed."""
        self._waiting.extend(items)
        self._waiting_tokens += sum(item.length for item in items)
        self._waiting.sort(key=_length)

    def deliver(self, items: Sequence[Item], positions: Sequence[int], rows: Rows) -> None:
        """Store this call's rows of a finished batch; the last ones complete the future.

        Args:
            items: The items of the batch.
            positions: Which of the items are this call's.
            rows: One row for each of the items.
        """
        if self._rows is None:
            self._rows = np.empty((len(self.texts), rows.shape[1]), dtype=rows.dtype)
        for position in positions:
            self._rows[items[position].index] = rows[position]
        self._finished += len(positions)
        if self._finished == len(self.texts):
            cuts = sorted(self._cuts, key=attrgetter("index"))
            self.release(self.future)
            answer(self.future, Output(self._rows, tuple(cuts), self._tokens, self.max_length), None)

    def fail(self, error: BaseException) -> None:
        self.release(self.future)
        answer(self.future, None, error)

    def _tokenize_window(self) -> None:
        start, stop, characters = self._tokenized, self._tokenized, 0
        while stop < len(self.texts) and stop - start < WINDOW_TEXTS and characters < WINDOW_CHARACTERS:
            text = self.texts[stop]
            characters += len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
            stop += 1
        try:
            encodings = self.encode(self.texts[start:stop])
        except Exception:
            _refuse_surrogates(self.texts[start:stop], self.first + start)
            raise
        for index, encoding in enumerate(encodings, start):
            self.check(self.first + index, encoding)
            length = len(encoding.ids)
            if length < encoding.full_length:
                self._cuts.append(Cut(index, encoding.full_length))
            self._waiting.append(Item(self, index, encoding, length))
            self._waiting_tokens += length
            self._tokens += length
        self._tokenized = stop
        self._waiting.sort(key=_length)


def by_call(items: Sequence[Item]) -> dict[Call, list[int]]:
    """Return, for each call, the positions of its texts in `items`."""
    positions: dict[Call, list[int]] = {}
    for position, item in enumerate(items):
        positions.setdefault(item.call, []).append(position)
    return positions


def not_finite(rows: Rows) -> list[int]:
    """Return the indices of the rows that hold NaN or infinity."""
    if rows.dtype != object:
        return [int(i) for i in np.flatnonzero(~np.isfinite(rows).all(axis=1))]
    numbers = ([getattr(output, "values", output) for output in row] for row in rows)
    return [i for i, outputs in enumerate(numbers) if not all(np.isfinite(output).all() for output in outputs)]


def _refuse_surrogates(texts: Sequence[Any], start: int) -> None:
    """Raise `ValueError` for the first text that is not valid Unicode, after the tokenizer has refused its window."""
    for index, text in enumerate(texts, start):
        try:
            "".join(text).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Text {index} holds a lone surrogate ({error.object[error.start]!r} at character {error.start}), so "
                'it is not valid Unicode. Clean it first: text.encode("utf-8", "replace").decode().'
            ) from error
