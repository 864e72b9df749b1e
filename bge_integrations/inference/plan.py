"""Plans: data that says what the tokenizer does to each text of a call, and what is kept of the forward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bge_integrations.inference.batch import Encoding
from bge_integrations.inference.heads import M3, Dense, Head, Layers, Logit, TokenLogit
from bge_integrations.inference.tokenize import TextTokenizer

YES = "Yes"
"""The token whose logit is the score of an LLM-based reranker."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A plan that is bound to a model's tokenizer.

    Attributes:
        encode: Tokenizes texts or pairs.
        head: What to keep of a forward.
    """

    encode: Callable[[Sequence[Any]], list[Encoding]]
    head: Head


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPlan:
    """A plan that turns texts of one side, queries or documents, into vectors.

    Attributes:
        head: What to keep of a forward; its dense vector's `prompt_length` is set when the plan is bound.
        dim: Length of a dense vector.
        max_length: Most tokens of a text, special tokens included.
        prefix: Text right before each text, cut together with it.
        before: Text before the prefix, never cut: a query's examples.
        after: Text after each text, never cut.
        ends_in_eos: Whether the last token is the end-of-sequence token, whatever the tokenizer's files say.
        pools_prefix: Whether the prefix takes part in the pooling.
    """

    head: Dense | M3
    dim: int
    max_length: int
    prefix: str = ""
    before: str = ""
    after: str = ""
    ends_in_eos: bool = False
    pools_prefix: bool = True

    @property
    def dense(self) -> Dense:
        """The head that makes the dense vector."""
        return self.head.dense if isinstance(self.head, M3) else self.head

    def __str__(self) -> str:
        return f"{self.before}{self.prefix}{{text}}{self.after}"

    def bind(self, tokenizer: TextTokenizer) -> Bound:
        """Bind the plan to a tokenizer; raise `ValueError` where `max_length` leaves a text no room."""
        if self.max_length <= tokenizer.special_tokens:
            raise ValueError(
                f"max_length={self.max_length} leaves a text no room beside {tokenizer.special_tokens} special tokens."
            )
        plain = partial(tokenizer.texts, max_length=self.max_length, prefix=self.prefix, ends_in_eos=self.ends_in_eos)
        wrapped = self.before or self.after
        encode = (
            partial(tokenizer.wrapped, **plain.keywords, before=self.before, after=self.after) if wrapped else plain
        )
        if self.pools_prefix:
            return Bound(encode, self.head)
        dense = replace(self.dense, prompt_length=tokenizer.prompt_length(self.prefix))
        return Bound(encode, replace(self.head, dense=dense) if isinstance(self.head, M3) else dense)


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPlan:
    """A plan that turns pairs into scores.

    Attributes:
        prefixes: Text before each query and text before each passage.
        max_length: Most tokens of a pair.
        query_max_length: Most tokens of its query; None takes three quarters of `max_length`, as FlagEmbedding does.
        prompt: Text after each pair; "" for a cross-encoder.
        layers: The layers of a layerwise reranker; None for other rerankers.
        document_max_length: Most tokens of its passage; None sets no limit besides `max_length`.
    """

    prefixes: tuple[str, str]
    max_length: int
    query_max_length: int | None
    prompt: str
    layers: Layers | None
    document_max_length: int | None = None

    @property
    def query_limit(self) -> int:
        """The most tokens of a query."""
        return self.query_max_length or max(1, self.max_length * 3 // 4)

    def bind(self, tokenizer: TextTokenizer) -> Bound:
        """Bind the plan to a tokenizer; raise `ValueError` where the query's limit leaves a passage no room."""
        # An LLM-based reranker's limit does not count its prompt (TextTokenizer.prompted_pairs).
        room = self.max_length - (1 if self.prompt else tokenizer.pair_special_tokens)
        if (self.query_max_length or 1) >= room:
            raise ValueError(
                f"query_max_length={self.query_max_length} leaves a passage no room within "
                f"max_length={self.max_length}: use at most {room - 1}, or raise max_length."
            )
        plain = partial(
            tokenizer.pairs,
            max_length=self.max_length,
            query_max_length=min(self.query_limit, room - 1),
            document_max_length=self.document_max_length or self.max_length,
            prefixes=self.prefixes,
        )
        encode = partial(tokenizer.prompted_pairs, **plain.keywords, prompt=self.prompt) if self.prompt else plain
        head = self.layers or (TokenLogit(tokenizer.token(YES)) if self.prompt else Logit())
        return Bound(encode, head)


Plan = TextPlan | PairPlan


def length_limit(asked: int | None, default: int, positions: int | None, model: str) -> int:
    """Return the tokens at which a text is cut: `asked`, or else `default`, but no more than `positions`.

    Raises:
        ValueError: The caller's limit is more than the model can take.
    """
    if asked is None:
        return default if positions is None else min(default, positions)
    if positions is not None and asked > positions:
        raise ValueError(f"max_length={asked} is more than the {positions} tokens {model} can take.")
    return asked
