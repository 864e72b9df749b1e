"""The flat batch that every backend receives."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text or pair as the model sees it, special tokens included.

    Attributes:
        ids: Token ids, int64 (length,).
        types: Token type ids, int64 (length,), or None where the model takes none.
        full_length: Tokens before cutting; larger than `len(ids)` if the text was cut.
    """

    ids: IntArray
    types: IntArray | None
    full_length: int

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Texts of one forward, end to end, without padding.

    Attributes:
        ids: Token ids of all texts, int64 (tokens,).
        types: Token type ids, int64 (tokens,), or None.
        cu_seqlens: Where each text begins, and where the last one ends, int64 (texts + 1,).
    """

    ids: IntArray
    types: IntArray | None
    cu_seqlens: IntArray

    @classmethod
    def of(cls, encodings: Sequence[Encoding]) -> "TokenBatch":
        types = [encoding.types for encoding in encodings]
        return cls(
            ids=np.concatenate([encoding.ids for encoding in encodings]),
            types=None if types[0] is None else np.concatenate([part for part in types if part is not None]),
            cu_seqlens=np.cumsum([0, *map(len, encodings)], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> IntArray:
        """Tokens of each text, int64 (texts,)."""
        return np.diff(self.cu_seqlens)

    @property
    def max_seqlen(self) -> int:
        return int(self.lengths.max())

    def padded(self, pad_id: int, width: int | None = None) -> tuple[IntArray, IntArray, IntArray | None]:
        """Right-padded `(ids, attention_mask, types)`, each int64 (texts, width); None takes max_seqlen."""
        mask = np.arange(width or self.max_seqlen) < self.lengths[:, None]
        ids = np.full(mask.shape, pad_id, dtype=np.int64)
        ids[mask] = self.ids
        types = None
        if self.types is not None:
            types = np.zeros(mask.shape, dtype=np.int64)
            types[mask] = self.types
        return ids, mask.astype(np.int64), types
