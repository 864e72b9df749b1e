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
    """The special tokens round one text or pair.

    Attributes:
        special: Ids of the tokens before the first text, between the two, and after the last.
        special_types: Their token types.
        text_types: Token type of the first text and of the second.
    """

    special: tuple[IntArray, IntArray, IntArray]
    special_types: tuple[IntArray, IntArray, IntArray]
    text_types: tuple[int, int]

    @property
    def special_tokens(self) -> int:
        return sum(map(len, self.special))

    def fill(
        self, first: Sequence[int], second: Sequence[int] | None, with_types: bool
    ) -> tuple[IntArray, IntArray | None]:
        texts = [np.asarray(text, dtype=np.int64) for text in (first, second or ())]
        ids = _between(self.special, texts)
        if not with_types:
            return ids, None
        types = [np.full(len(text), kind) for text, kind in zip(texts, self.text_types, strict=True)]
        return ids, _between(self.special_types, types)


def _between(special: Sequence[IntArray], texts: Sequence[IntArray]) -> IntArray:
    before, middle, after = special
    first, second = texts
    return np.concatenate([before, first, middle, second, after])


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
        return len(self._single.special[0]) + len(self._ids([prompt])[0]) if prompt else 0

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
    special: list[list[tuple[int, int]]] = [[], [], []]
    text_types = [0, 0]
    texts_begun = 0
    for token, kind, sequence in zip(full.ids, full.type_ids, full.sequence_ids, strict=True):
        if sequence is None:
            special[2 if texts_begun and not pair else texts_begun].append((token, kind))
        else:
            text_types[sequence], texts_begun = kind, sequence + 1
    ids, types = ([np.array([entry[i] for entry in part], dtype=np.int64) for part in special] for i in (0, 1))
    return _Template((ids[0], ids[1], ids[2]), (types[0], types[1], types[2]), (text_types[0], text_types[1]))
