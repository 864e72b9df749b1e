"""The base classes for LlamaIndex: they refuse unknown keywords and can be loaded again from their own dumps."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from inspect import unwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

from llama_index.core.bridge.pydantic import model_validator
from llama_index.core.schema import BaseComponent
from llama_index.core.utils import get_tqdm_iterable

from bge_integrations._fields import MODEL_NAMES, ModelFields, PathText, path_text

_FOLDER_STATE = "folder_state"

_Method = TypeVar("_Method", bound=Callable[..., Any])
_Embedding = TypeVar("_Embedding")
_TEXTS = 256
"""Texts per batch: the framework validates its vectors on the event loop, 3 ms for this many of 1,024 numbers."""
_BATCHES = 8
"""Batches under way at a time, so that the engine has enough to choose from."""


class BgeComponent(ModelFields, BaseComponent):
    """A LlamaIndex component around one `BgeEmbedder`, `BgeM3Embedder` or `BgeReranker`.

    The model is the first argument, or `model=`, or `model_name=`: LlamaIndex's own classes know both names. Unknown
    keywords are refused, yet the class accepts its own `model_dump()` and `to_dict()`. These hold all that decides the
    results, but not the live objects (caches, callbacks) and the token.
    """

    if not TYPE_CHECKING:  # type checkers keep the signature that pydantic makes from the fields

        def __init__(self, *positional: Any, **data: Any) -> None:
            super().__init__(**_with_one_model(data, self._model_field, *positional))
            self._core()  # not in a validator: pydantic would turn the core's errors into its own

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        """Drop the class's name, which the framework writes into every dump; read the model by either name."""
        if not isinstance(data, Mapping):
            return data
        if data.get("class_name") == cls.class_name():
            data = {key: value for key, value in data.items() if key != "class_name"}
        return _with_one_model(data, cls._model_field)


class BgeEmbeddingComponent(BgeComponent):
    """The base class of the embedding models, which adds the model's name and the text before documents."""

    model_name: PathText
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
    document_instruction: str | None = None
    """Text before every document; None = the catalogue's, "" = none."""

    _model_field: ClassVar[str] = "model_name"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the framework's dump, for a local folder with the state of its files, which ingestion caches need."""
        dumped = super().to_dict(**kwargs)
        if Path(self.model_name).is_dir():
            dumped[_FOLDER_STATE] = self._core().describe()["revision"]
        return dumped

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Make an object from what `to_dict` returned."""
        return super().from_dict({key: value for key, value in data.items() if key != _FOLDER_STATE}, **kwargs)


def without_span(method: _Method) -> _Method:
    """Return the framework's method without the span round it, for use in an override, which has its own span."""
    return cast("_Method", unwrap(method))


def _with_one_model(data: Mapping[str, Any], field: str, *positional: Any) -> dict[str, Any]:
    """Return the arguments with the model under the field's name, whichever name it was given by."""
    if len(positional) > 1:
        raise TypeError(f"{len(positional)} positional arguments were given; only the model is one.")
    values = (*positional, *(data.get(name) for name in MODEL_NAMES))
    given = [path_text(value) for value in values if value is not None]
    if not given:
        return dict(data)
    if any(value != given[0] for value in given):
        raise ValueError(f"The model was given as {' and as '.join(map(repr, given))}: give it once.")
    return {**{name: value for name, value in data.items() if name not in MODEL_NAMES}, field: given[0]}


async def in_batches(
    embed: Callable[[list[str]], Awaitable[list[_Embedding]]],
    texts: list[str],
    batch_size: int,
    num_workers: int | None,
    show_progress: bool,
) -> list[_Embedding]:
    """Embed texts, several batches at a time; an error or a cancellation stops them all.

    Args:
        embed: Embeds one batch.
        texts: All texts.
        batch_size: The most texts per batch; never more than 256 are taken.
        num_workers: Batches under way at a time; None = 8.
        show_progress: Show a progress bar.

    Returns:
        One embedding per text, in order.
    """
    size = min(batch_size, _TEXTS)
    free = asyncio.Semaphore(num_workers or _BATCHES)

    async def embed_when_free(batch: list[str]) -> list[_Embedding]:
        async with free:
            return await embed(batch)

    tasks = [asyncio.create_task(embed_when_free(texts[start : start + size])) for start in range(0, len(texts), size)]
    try:
        progress = get_tqdm_iterable(tasks, show_progress, "Generating embeddings")
        return [vector for task in progress for vector in await task]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
