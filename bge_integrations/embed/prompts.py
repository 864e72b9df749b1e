"""How an embedder's arguments, the catalogue and the model's files become a plan: prompts, limits and the head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from bge_integrations.catalog import ModelSpec
from bge_integrations.embed.fingerprint import fingerprint
from bge_integrations.errors import MissingWeightsError, UnsupportedModelError
from bge_integrations.inference.heads import M3, Dense
from bge_integrations.inference.plan import TextPlan, length_limit
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.request import Resolved, TextOptions, plan_of
from bge_integrations.types import Pooling

Side = Literal["query", "document"]


class Example(NamedTuple):
    """A few-shot example; `instruct` is None where it is the query instruction."""

    query: str
    response: str
    instruct: str | None


class _OfTexts:
    """The part that the options of all embedders share: what they tell of their plan."""

    __slots__ = ()

    outputs: tuple[str, ...]

    def describe(self: TextOptions, resolved: Resolved) -> dict[str, Any]:
        """Return the plan's settings, with the place of the text in "text"."""
        plan, folder = cast("TextPlan", plan_of(self, resolved)), resolved.folder
        return {
            "text": str(plan),
            "pooling": str(plan.dense.pooling if folder.pooling else folder.poolings or plan.dense.pooling),
            "normalize": plan.dense.normalize,
            "max_length": plan.max_length,
            "dim": plan.dim,
        }

    def fingerprint(self: TextOptions, resolved: Resolved) -> str:
        """Return a hash, 32 hexadecimal digits, of everything that decides the vectors."""
        return fingerprint(resolved, cast("TextPlan", plan_of(self, resolved)), self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions(_OfTexts):
    """The options, besides the model, that decide the vectors of one side: arguments of `BgeEmbedder`."""

    side: Side
    query_instruction: str | None = None
    document_instruction: str | None = None
    task: str | None = None
    examples: tuple[Example, ...] = ()
    normalize: bool | None = None
    max_length: int | None = None
    truncate_dim: int | None = None
    outputs: tuple[str, ...] = ("dense",)

    def plan(self, resolved: Resolved) -> TextPlan:
        """Return the plan by which the model computes texts of this side.

        Raises:
            ValueError: The files show that an argument is impossible.
            MissingWeightsError: The folder lacks a head of an output.
            UnsupportedModelError: The backend does not compute an output.
        """
        spec, folder = resolved.spec, resolved.folder
        _check_outputs(self.outputs, resolved)
        check_examples(self.examples, spec, resolved.name)
        dense = self._dense(resolved)
        dim = self.truncate_dim or min(folder.truncate_dim or folder.dim, folder.dim)
        _check_vector(dim, dense, resolved)
        facts = folder if spec is None or (resolved.guessed and folder.modules) else spec
        worded = None if resolved.guessed and self.task is None and _prompts_of(folder) != ("", "") else spec
        query, document = self._instructions(worded, folder)
        template = worded.query_template if worded and self.side == "query" else None
        before, prefix, after = (
            query_frame(template, query, self.examples) if self.side == "query" else ("", document, "")
        )
        return TextPlan(
            head=dense if self.outputs == ("dense",) else M3(self.outputs, dense),
            dim=dim,
            max_length=length_limit(self.max_length, facts.max_length, folder.positions, resolved.name),
            prefix=prefix,
            before=before,
            after=after,
            ends_in_eos=spec is not None and spec.ends_in_eos,
            pools_prefix=folder.include_prompt,
        )

    def _dense(self, resolved: Resolved) -> Dense:
        spec, folder = resolved.spec, resolved.folder
        by_id = spec is not None and spec.id == resolved.key.model
        pooling = spec.pooling if spec and (by_id or folder.pooling is None) else folder.pooling
        facts = folder if spec is None or (resolved.guessed and folder.modules) else spec
        return Dense(
            pooling or Pooling.MEAN,
            facts.normalize if self.normalize is None else self.normalize,
            self.truncate_dim or folder.truncate_dim,
            cut_last=self.truncate_dim is None and folder.truncate_dim is not None,
        )

    def _instructions(self, spec: ModelSpec | None, folder: Folder) -> tuple[str, str]:
        """Return the query's instruction, which is the task for a model with a template, and the document's."""
        if spec and self.query_instruction is not None and self.task is None:
            return self.query_instruction, self.document_instruction or ""  # the caller chooses both
        if spec:
            query, document = (
                spec.tasks[self.task] if self.task else (spec.query_instruction, spec.document_instruction)
            )
        else:
            query, document = _prompts_of(folder)
        return (
            query if self.query_instruction is None else self.query_instruction,
            document if self.document_instruction is None else self.document_instruction,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOptions(_OfTexts):
    """The options, besides the model, that decide the vectors of `FolderEmbedder`: its arguments."""

    prompt: str | None = None
    prompt_name: str | None = None
    max_length: int | None = None
    outputs: tuple[str, ...] = ("dense",)

    def plan(self, resolved: Resolved) -> TextPlan:
        """Return the plan by which sentence-transformers computes a text, with the folder's own settings.

        Raises:
            ValueError: The folder has no prompt of that name, or `max_length` is more than the model can take.
        """
        folder = resolved.folder
        dense = Dense(
            folder.pooling or Pooling.MEAN, folder.normalize, folder.truncate_dim,
            cut_last=folder.truncate_dim is not None,
        )  # fmt: skip
        return TextPlan(
            head=dense,
            dim=min(folder.truncate_dim or folder.dim, folder.dim),
            max_length=folder.max_length
            if self.max_length is None
            else length_limit(self.max_length, folder.max_length, folder.positions, resolved.name),
            prefix=self._prompt(folder, resolved.name),
            pools_prefix=folder.include_prompt,
        )

    def _prompt(self, folder: Folder, model: str) -> str:
        if self.prompt is not None:
            return self.prompt
        if self.prompt_name is None:
            return folder.default_prompt
        if self.prompt_name not in folder.prompts:
            names = ", ".join(folder.prompts) or "none"
            raise ValueError(f'prompt_name="{self.prompt_name}" is not a prompt of {model}. It has: {names}.')
        return folder.prompts[self.prompt_name]


def query_frame(template: str | None, instruction: str, examples: Sequence[Example]) -> tuple[str, str, str]:
    """Return the text before a query that is never cut, the prefix that is cut with it, and the text after it.

    Args:
        template: The model's template, with `{instruction}` and `{query}`; None where the instruction is simply put
            before.
        instruction: The instruction, or the task of a template; "" leaves out the part that names it.
        examples: The few-shot examples to put before the query.
    """
    if template is None:
        return "", instruction, ""
    head, _, suffix = template.partition("{query}")
    shown = [
        head.replace("{instruction}", instruction if instruct is None else instruct) + f"{query}{suffix}{response}\n\n"
        for query, response, instruct in examples
    ]
    return "".join(shown), head.replace("{instruction}", instruction) if instruction else "", suffix


def checked_examples(examples: Sequence[Mapping[str, str]] | None) -> tuple[dict[str, str], ...]:
    """Check few-shot examples and return a copy of them.

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


def check_examples(examples: Sequence[object], spec: ModelSpec | None, model: str) -> None:
    """Refuse examples for a model that was not trained with any.

    Raises:
        ValueError
    """
    if examples and not (spec and spec.few_shot):
        raise ValueError(
            f"examples= are for models trained with examples, such as BAAI/bge-en-icl; {model} is not one."
        )


def _prompts_of(folder: Folder) -> tuple[str, str]:
    """Return the folder's own prompts, as sentence-transformers' `encode_query` and `encode_document` find them."""
    document = next((folder.prompts[n] for n in ("document", "passage", "corpus") if n in folder.prompts), "")
    return folder.prompts.get("query", ""), document


def _check_vector(dim: int, dense: Dense, resolved: Resolved) -> None:
    """Refuse a dense vector that the model can't give."""
    if dim > resolved.folder.dim:
        raise ValueError(f"truncate_dim={dim} is more than the {resolved.folder.dim} dimensions of {resolved.name}.")
    if resolved.folder.normalize and not dense.normalize and resolved.key.backend == "sentence_transformers":
        raise ValueError(
            f"normalize=False is not possible: the pipeline of {resolved.name} ends in Normalize and runs as a whole."
        )


def _check_outputs(outputs: tuple[str, ...], resolved: Resolved) -> None:
    """Refuse outputs of bge-m3 for which the folder has no head, or that the backend does not compute."""
    if outputs == ("dense",):
        return
    heads, backend = resolved.folder.heads, resolved.key.backend
    if lacking := [name for name in outputs if name != "dense" and name not in heads]:
        raise MissingWeightsError(
            f"{resolved.folder.root} lacks {', '.join(f'{name}_linear.pt' for name in lacking)}, so {resolved.name} "
            f"cannot give its {' and '.join(lacking)} output: heads are never initialised at random. "
            "Download the files, or leave that output out of outputs=."
        )
    if backend in ("openvino", "sentence_transformers"):
        raise UnsupportedModelError(
            f'backend="{backend}" gives dense vectors only, and this embedder gives {", ".join(outputs)}. Use '
            'backend="torch".'
        )
