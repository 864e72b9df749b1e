"""Tokenizing: texts and pairs become token ids, in one pass.

The tokenizer's own truncation and padding are switched off once and never touched again, so any number of threads may
use it with any limits: cutting, special tokens and padding are done here, on ids.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Tokenizer

from bge_integrations.inference.batch import Encoding, IntArray

_PROBE = "a"
_SEPARATOR = "\n"
"""This stands between the query, the passage and the prompt of an LLM-based reranker."""


@dataclass(frozen=True, slots=True)
class _Template:
    """The special tokens around one text or pair.

    Attributes:
        special: Ids of the special tokens before the first text, between the two, and after the last.
        special_types: Their token types.
        text_types: Token type of the first text and of the second.
    """

    special: tuple[IntArray, IntArray, IntArray]
    special_types: tuple[IntArray, IntArray, IntArray]
    text_types: tuple[int, int]

    def fill(self, first: Sequence[int], second: Sequence[int], with_types: bool) -> tuple[IntArray, IntArray | None]:
        """Return the token ids of one text or pair, and their types, which are None without `with_types`."""
        before, middle, after = self.special
        texts = (np.asarray(first, dtype=np.int64), np.asarray(second, dtype=np.int64))
        ids = np.concatenate([before, texts[0], middle, texts[1], after])
        if not with_types:
            return ids, None
        before, middle, after = self.special_types
        types = (np.full(len(first), self.text_types[0]), np.full(len(second), self.text_types[1]))
        return ids, np.concatenate([before, types[0], middle, types[1], after])

    def ending_in(self, token: int) -> "_Template":
        """Return a template that ends in `token`: this one, if it does so already."""
        last, types = self.special[2], self.special_types[2]
        if len(last) and last[-1] == token:
            return self
        return replace(
            self,
            special=(*self.special[:2], np.append(last, token)),
            special_types=(*self.special_types[:2], np.append(types, 0)),
        )


class TextTokenizer:
    """A fast tokenizer, which puts special tokens around each text or pair as the tokenizer's own files say.

    Args:
        tokenizer: A `tokenizers.Tokenizer` of this object's own; its truncation and padding are switched off.
        with_types: Whether the model takes token type ids.
        bos: The token before a prompted pair; None puts none there.
        eos: The end-of-sequence token, where there is one.
        keeps_end: Whether a text that is too long loses its beginning instead of its end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        with_types: bool,
        bos: int | None = None,
        eos: int | None = None,
        keeps_end: bool = False,
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._with_types = with_types
        self._keeps_end = keeps_end
        self._bos = [] if bos is None else [bos]
        self._single = _template(tokenizer, pair=False)
        self._ended = self._single if eos is None else self._single.ending_in(eos)
        self._pair = _template(tokenizer, pair=True)
        self.special_tokens = sum(map(len, self._single.special))
        """The number of special tokens around a single text."""
        self.pair_special_tokens = sum(map(len, self._pair.special))
        """The number of special tokens around and between the two texts of a pair."""

    def prompt_length(self, prompt: str) -> int:
        """Return the number of tokens that `prompt` takes at the head of a text, special tokens included; 0 for ""."""
        return len(self._single.special[0]) + len(self._ids([prompt])[0]) if prompt else 0

    def name(self, token: int) -> str:
        """Return the text with which the vocabulary writes a token id."""
        return str(self._tokenizer.id_to_token(token))

    def token(self, text: str) -> int:
        """Return the id of the first token of `text`, such as "Yes"."""
        return self._ids([text])[0][0]

    def texts(
        self, texts: Sequence[str], *, max_length: int, prefix: str = "", ends_in_eos: bool = False
    ) -> list[Encoding]:
        """Encode each text with its prefix and special tokens, cut to `max_length` tokens in all.

        With `ends_in_eos` the last token is the end-of-sequence token, even where the tokenizer's files leave it out.
        """
        template = self._ended if ends_in_eos else self._single
        special = sum(map(len, template.special))
        room = max(0, max_length - special)
        encodings = []
        for ids in self._ids(texts, prefix):
            filled, types = template.fill(self._kept(ids, room), (), self._with_types)
            encodings.append(Encoding(filled, types, len(ids) + special))
        return encodings

    def wrapped(
        self, texts: Sequence[str], *, max_length: int, prefix: str, before: str, after: str, ends_in_eos: bool
    ) -> list[Encoding]:
        """Encode each text with its prefix between `before` and `after`, which are never cut.

        The limits are those of FlagEmbedding's FlagICLModel: prefix and text have `max_length` tokens less those of
        `<s>`, `after` and `</s>`; the examples in `before` come on top.
        """
        start, end, head, tail = map(len, self._ids(["<s>", f"{after}</s>", before, after]))
        limit = (head + tail + max_length + 8) // 8 * 8 + 8
        room = max(0, max_length - start - end)
        prefixed = [prefix + text for text in texts]
        lost, kept = [], []
        for text, ids in zip(prefixed, self._ids(prefixed), strict=True):
            lost.append(max(0, len(ids) - room))
            fitting = self._tokenizer.decode(self._kept(ids, room), skip_special_tokens=False) if lost[-1] else text
            kept.append(before + fitting + after)
        encodings = self.texts(kept, max_length=limit, ends_in_eos=ends_in_eos)
        return [replace(e, full_length=e.full_length + more) for e, more in zip(encodings, lost, strict=True)]

    def pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        max_length: int,
        query_max_length: int,
        document_max_length: int = sys.maxsize,
        prefixes: tuple[str, str] = ("", ""),
    ) -> list[Encoding]:
        """Encode (query, passage) pairs, each cut to its own limit, and the passage to what the query leaves of all."""
        encodings = []
        for query, passage in self._ids_of_pairs(pairs, prefixes):
            kept = self._kept(query, query_max_length)
            room = min(document_max_length, max(0, max_length - self.pair_special_tokens - len(kept)))
            filled, types = self._pair.fill(kept, self._kept(passage, room), self._with_types)
            encodings.append(Encoding(filled, types, len(query) + len(passage) + self.pair_special_tokens))
        return encodings

    def prompted_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        max_length: int,
        query_max_length: int,
        prefixes: tuple[str, str],
        prompt: str,
        document_max_length: int = sys.maxsize,
    ) -> list[Encoding]:
        """Encode (query, passage) pairs as LLM-based rerankers read them: query, passage and prompt, a line each.

        As in FlagEmbedding's FlagLLMReranker, the limit applies to the tokens before the prompt, and is longer by a
        separator and the prompt. The token types say what a token belongs to: 0 query, 1 passage, 2 prompt.
        """
        separator, tail = self._ids([_SEPARATOR, prompt])
        limit = max_length + len(separator) + len(tail)
        encodings = []
        for query, passage in self._ids_of_pairs(pairs, prefixes):
            start = [*self._bos, *self._kept(query, query_max_length), *separator]
            kept = self._kept(passage, min(document_max_length, max_length, max(0, limit - len(start))))
            parts = (start, kept, [*separator, *tail])
            ids = np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
            full = len(self._bos) + len(query) + len(separator) + len(passage) + len(parts[2])
            encodings.append(Encoding(ids, np.repeat(np.arange(3), [len(part) for part in parts]), full))
        return encodings

    def _kept(self, ids: list[int], room: int) -> list[int]:
        """Return the tokens of a text that are kept when it is cut to `room` tokens."""
        return ids[max(0, len(ids) - room) :] if self._keeps_end else ids[:room]

    def _ids_of_pairs(
        self, pairs: Sequence[tuple[str, str]], prefixes: tuple[str, str]
    ) -> list[tuple[list[int], list[int]]]:
        """Return the ids of both texts of every pair; a query that occurs several times is tokenized once."""
        queries, passages = zip(*pairs, strict=True)
        different = list(dict.fromkeys(queries))
        ids_of = dict(zip(different, self._ids(different, prefixes[0]), strict=True))
        return list(zip(map(ids_of.__getitem__, queries), self._ids(passages, prefixes[1]), strict=True))

    def _ids(self, texts: Sequence[str], prefix: str = "") -> list[list[int]]:
        prefixed = [prefix + text for text in texts] if prefix else list(texts)
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(prefixed, add_special_tokens=False)]


def _template(tokenizer: Tokenizer, *, pair: bool) -> _Template:
    """Find the special tokens that the post-processor adds, by tokenizing a short probe."""
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
