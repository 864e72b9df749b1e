"""Texts and pairs to token ids, in one pass.

The tokenizer's own truncation and padding are switched off once and never touched again, so any number of threads may
use it with any limits: cutting, special tokens and padding are done here, on ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from bge_integrations.inference.batch import Encoding, IntArray

_PROBE = "a"


@dataclass(frozen=True, slots=True)
class _Template:
    """The special tokens round one text or pair, and the token types of each part."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    types: tuple[int, int, int, int, int]

    @property
    def special_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def fill(
        self, first: Sequence[int], second: Sequence[int] | None, with_types: bool
    ) -> tuple[IntArray, IntArray | None]:
        parts = (self.before, first, self.between, second or (), self.after)
        ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
        return ids, np.repeat(np.array(self.types), [len(part) for part in parts]) if with_types else None


class TextTokenizer:
    """A fast tokenizer with BERT-like special tokens round each text or pair.

    Args:
        tokenizer: A `tokenizers.Tokenizer` of this object's own; its truncation and padding are switched off.
        with_types: Whether the model takes token type ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, with_types: bool) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._with_types = with_types
        self._single = _template(tokenizer, pair=False)
        self._pair = _template(tokenizer, pair=True)

    @property
    def special_tokens(self) -> int:
        """Special tokens that a single text carries."""
        return self._single.special_tokens

    @property
    def pair_special_tokens(self) -> int:
        """Special tokens that a pair carries besides its two texts."""
        return self._pair.special_tokens

    def prompt_length(self, prompt: str) -> int:
        """Tokens that `prompt` takes at the head of a text, the special tokens before it included; 0 for ""."""
        return len(self._single.before) + len(self._ids([prompt])[0]) if prompt else 0

    def texts(self, texts: Sequence[str], *, max_length: int) -> list[Encoding]:
        """Each text with its special tokens, cut on the right to `max_length` tokens in all."""
        room = max(0, max_length - self._single.special_tokens)
        encodings = []
        for ids in self._ids(texts):
            filled, types = self._single.fill(ids[:room], None, self._with_types)
            encodings.append(Encoding(filled, types, len(ids) + self._single.special_tokens))
        return encodings

    def pairs(self, pairs: Sequence[tuple[str, str]], *, max_length: int, query_max_length: int) -> list[Encoding]:
        """Each (query, passage): the query cut to `query_max_length`, then only the passage, to `max_length` in all."""
        queries = list(dict.fromkeys(query for query, _ in pairs))
        ids_of = dict(zip(queries, self._ids(queries), strict=True))
        encodings = []
        for (query, _), passage_ids in zip(pairs, self._ids([passage for _, passage in pairs]), strict=True):
            query_ids = ids_of[query]
            kept = query_ids[:query_max_length]
            room = max(0, max_length - self._pair.special_tokens - len(kept))
            filled, types = self._pair.fill(kept, passage_ids[:room], self._with_types)
            encodings.append(Encoding(filled, types, len(query_ids) + len(passage_ids) + self._pair.special_tokens))
        return encodings

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _template(tokenizer: Tokenizer, *, pair: bool) -> _Template:
    """Reads the post-processor's special tokens off a probe."""
    full = tokenizer.encode(_PROBE, _PROBE if pair else None)
    part = 0  # 0 before, 1 first text, 2 between, 3 second text, 4 after
    ids: list[list[int]] = [[], [], [], [], []]
    types = [0] * 5
    for token, kind, sequence in zip(full.ids, full.type_ids, full.sequence_ids, strict=True):
        part = 2 * sequence + 1 if sequence is not None else (part + 1 if part % 2 else part)
        ids[part].append(token)
        types[part] = kind
    if not pair:
        ids[2], ids[4] = [], ids[2]
        types[4] = types[2]
    return _Template(tuple(ids[0]), tuple(ids[2]), tuple(ids[4]), (types[0], types[1], types[2], types[3], types[4]))
