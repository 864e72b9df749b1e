"""How a model's texts are made ready, and what is made of them: catalogue, folder and arguments put together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from bge_integrations.inference.batch import Encoding
from bge_integrations.inference.heads import Dense
from bge_integrations.inference.tokenize import TextTokenizer
from bge_integrations.types import Pooling

Side = Literal["query", "document"]


@dataclass(frozen=True, slots=True)
class QueryFrame:
    """What stands round a query.

    Attributes:
        prefix: Right before the query, and cut with it.
        examples: Before that, never cut.
        suffix: After the query, never cut.
    """

    prefix: str = ""
    examples: str = ""
    suffix: str = ""

    def __str__(self) -> str:
        return f"{self.examples}{self.prefix}{{text}}{self.suffix}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How texts become vectors.

    Attributes:
        dim: Length of the vectors.
        truncate_dim: How many leading numbers are kept; None keeps all.
        cut_last: Whether they are cut after the normalisation, as a folder's own `truncate_dim` asks.
    """

    pooling: Pooling
    normalize: bool
    max_length: int
    dim: int
    query: QueryFrame
    document_prefix: str
    ends_in_eos: bool = False
    truncate_dim: int | None = None
    cut_last: bool = False

    def dense(self, left_out: int) -> Dense:
        """How a forward's dense vector is made; `left_out` leading tokens take no part in a pipeline's pooling."""
        cut_last = self.cut_last and self.truncate_dim is not None
        return Dense(self.pooling, self.normalize, self.truncate_dim, left_out, cut_last)

    def prefix(self, side: Side) -> str:
        """What goes right before a text of one side."""
        return self.query.prefix if side == "query" else self.document_prefix

    def encode(self, tokenizer: TextTokenizer, side: Side) -> Callable[[Sequence[str]], list[Encoding]]:
        """The function that tokenizes texts of one side."""
        frame = self.query
        plain = partial(
            tokenizer.texts, max_length=self.max_length, prefix=self.prefix(side), ends_in_eos=self.ends_in_eos
        )
        if side == "document" or not (frame.examples or frame.suffix):
            return plain
        return partial(tokenizer.wrapped, **plain.keywords, before=frame.examples, after=frame.suffix)


def query_frame(template: str | None, instruction: str, examples: Sequence[Mapping[str, str]]) -> QueryFrame:
    """What stands round a query of a model.

    Args:
        template: The model's, with `{instruction}` and `{query}`; None where the instruction is simply put before.
        instruction: The instruction, or the task of a template; "" leaves out the part that names it.
        examples: Each with "query" and "response", and "instruct" where it is not `instruction`.
    """
    if template is None:
        return QueryFrame(instruction)
    head, _, suffix = template.partition("{query}")
    shown = [
        head.replace("{instruction}", example.get("instruct", instruction))
        + f"{example['query']}{suffix}{example['response']}\n\n"
        for example in examples
    ]
    return QueryFrame(head.replace("{instruction}", instruction) if instruction else "", "".join(shown), suffix)


def checked_examples(examples: Sequence[Mapping[str, str]] | None) -> tuple[dict[str, str], ...]:
    """The examples, copied.

    Raises:
        ValueError: One lacks a query or a response, or holds something else; the message has its index.
    """
    checked = []
    for index, example in enumerate(examples or ()):
        fine = isinstance(example, Mapping) and {"query", "response"} <= set(example) <= {
            "instruct", "query", "response",
        }  # fmt: skip
        if not fine or not all(isinstance(text, str) for text in example.values()):
            raise ValueError(
                f'examples[{index}] must be {{"query": ..., "response": ...}}, both strings, and may have "instruct" '
                f"where that is not the query instruction; it is {example!r:.80}."
            )
        checked.append(dict(example))
    return tuple(checked)
