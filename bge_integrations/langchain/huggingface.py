"""A drop-in for langchain-community's `HuggingFaceBgeEmbeddings`: only the import line changes."""

import asyncio
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray
from pydantic import AliasChoices, Field, PrivateAttr, field_serializer

from bge_integrations._fields import MODEL_NAMES, PathText
from bge_integrations.catalog import ModelSpec, check_name, get_spec
from bge_integrations.embed.embedder import FolderEmbedder, to_lists
from bge_integrations.errors import UnknownModelError
from bge_integrations.langchain.fields import NamedModel
from bge_integrations.langchain.huggingface_client import Client
from bge_integrations.langchain.huggingface_kwargs import embedder_arguments, finish, shown

_DEFAULT_MODEL = "BAAI/bge-large-en"
_OLD_INSTRUCTION = "Represent this question for searching relevant passages: "
_OLD_INSTRUCTION_ZH = "为这个句子生成表示以用于检索相关文章："


class HuggingFaceBgeEmbeddings(NamedModel, Embeddings):
    """A drop-in with the old class's keywords and document vectors, so that existing indexes stay valid.

    Pooling, normalisation, limit and prompts are what sentence-transformers takes from the model's folder, the weights
    are float32 on every device unless `model_kwargs["torch_dtype"]` says otherwise, texts that are too long are cut
    silently, and a newline in a text becomes a space, all as before. For anything new use `BgeEmbeddings`.

    Two things differ. A given `query_instruction` is always honoured (the old class overwrote it for names with
    "-zh"); where none is given, the catalogue's correct one is used, and a warning says how that differs from the old
    default. And the model is shared: it loads at first use, once per process.

    Example:
        ```python
        embeddings = HuggingFaceBgeEmbeddings(
            model_name="BAAI/bge-small-en-v1.5", encode_kwargs={"normalize_embeddings": True}
        )
        vectors = embeddings.embed_documents(["The giant panda is a bear."])
        ```

    Raises:
        ValueError: A key of `model_kwargs` or `encode_kwargs` is not supported; the message says what to do.
        UnknownModelError: The id is not in the catalogue though it looks as if it should be.
        WrongKindError: The model is a reranker.
        pydantic.ValidationError: An argument is unknown or of the wrong type.
    """

    model_name: Annotated[PathText, Field(validation_alias=AliasChoices(*reversed(MODEL_NAMES)))] = _DEFAULT_MODEL
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
    cache_folder: PathText | None = None
    """Where files from the hub are kept; None = SENTENCE_TRANSFORMERS_HOME, else the hub client's own folder."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict, repr=False)
    """Arguments of `SentenceTransformer`, such as `device`, `revision`, `token` or `prompts`; `torch_dtype` may stand
    here or in a `model_kwargs` of its own. A dump leaves the token out."""
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of `SentenceTransformer.encode`, such as `normalize_embeddings`, `prompt_name` or `precision`."""
    query_instruction: str = ""
    """Text before every query; not given = the catalogue's, none for models outside it."""
    embed_instruction: str = ""
    """Text before every document."""
    show_progress: bool = False
    """Show a progress bar; `encode_kwargs["show_progress_bar"]` takes precedence."""

    _core_type: ClassVar[type] = FolderEmbedder
    _built_from: dict[str, Any] = PrivateAttr(default_factory=dict)

    if not TYPE_CHECKING:  # type checkers keep the signature that pydantic makes from the fields

        def __init__(self, model_name: str | None = None, /, **data: Any) -> None:
            super().__init__(model_name, **data)
            if "query_instruction" not in self.model_fields_set:
                self.query_instruction = _default_instruction(self.model_name)

    @property
    def client(self) -> Client:
        """The part of the old class's `SentenceTransformer` that is kept: `encode`, tokenizer, device, lengths."""
        return Client(self._model, self.model_kwargs)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents.

        Args:
            texts: Any number of texts.

        Returns:
            One vector per text, in the order of the texts; [] for []. With a `precision` of integers, lists of int.

        Raises:
            TypeError: `texts` is a bare string, or an item is no string.
        """
        texts = _one_line(texts, self.embed_instruction)
        return self._lists(self._core().encode_documents(texts, self._show_progress))

    def embed_query(self, text: str) -> list[float]:
        """Embed one query, with the query instruction.

        Raises:
            TypeError: `text` is no string.
            ValueError: The `precision` is "int8" or "uint8", which needs more than one vector.
        """
        texts = _one_line([text], self.query_instruction)
        return self._lists(self._core().encode_documents(texts, self._show_progress))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Embed documents as `embed_documents` does, without blocking the event loop."""
        texts = _one_line(texts, self.embed_instruction)
        vectors = await self._core().aencode_documents(texts, self._show_progress)
        return await asyncio.to_thread(self._lists, vectors)

    async def aembed_query(self, text: str) -> list[float]:
        """Embed one query as `embed_query` does, without blocking the event loop."""
        texts = _one_line([text], self.query_instruction)
        vectors = await self._core().aencode_documents(texts, self._show_progress)
        return (await asyncio.to_thread(self._lists, vectors))[0]

    @field_serializer("model_kwargs")
    def _shown_model_kwargs(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        return shown(model_kwargs)

    def _arguments(self) -> dict[str, Any]:
        return {**self._model, **embedder_arguments(self.model_kwargs, self.encode_kwargs)}

    @property
    def _model(self) -> dict[str, Any]:
        """The arguments of the core embedder that say where the model is."""
        model = _with_organisation(self.model_name)
        return {"model": model, "cache_folder": self.cache_folder, "on_truncate": "ignore"}

    def _core(self) -> FolderEmbedder:
        """Return the core embedder; make a new one if a key of one of the dicts has changed."""
        arguments = self._arguments()
        if self._built is None or self._built_from != arguments:
            self._built, self._built_from = FolderEmbedder(**arguments), arguments
        embedder: FolderEmbedder = self._built
        return embedder

    @property
    def _show_progress(self) -> bool:
        return bool(self.encode_kwargs.get("show_progress_bar", self.show_progress))

    def _lists(self, vectors: NDArray[np.float32]) -> list[list[float]]:
        """Return the pipeline's vectors as lists, finished as sentence-transformers' `encode` does."""
        return to_lists(finish(self.model_kwargs, self.encode_kwargs).applied(vectors))


def _with_organisation(model_name: str) -> str:
    """Return the id; a bare name gets the hub's sentence-transformers organisation, as in that library."""
    check_name(model_name)
    bare = "/" not in model_name and not Path(model_name).is_dir() and _row(model_name) is None
    return f"sentence-transformers/{model_name}" if bare else model_name


def _row(model_name: str) -> ModelSpec | None:
    try:
        return get_spec(model_name)
    except UnknownModelError:
        return None


def _default_instruction(model_name: str) -> str:
    """Return the catalogue's query instruction, "" if it has none; warn if the old class had another one."""
    row = _row(model_name)
    now, why = (row.query_instruction, "as published with it") if row else ("", "as it is not in the catalogue")
    before = _OLD_INSTRUCTION_ZH if "-zh" in model_name else _OLD_INSTRUCTION
    if now != before:
        warnings.warn(
            f"No query_instruction is given for {model_name}: queries get {now!r}, {why}, where langchain-community's "
            f"class put {before!r}. Document vectors are the same. Pass query_instruction= to choose, which also ends "
            "this warning.",
            stacklevel=3,
        )
    return now


def _one_line(texts: Iterable[str], instruction: str) -> Any:
    """Return each text on one line behind the instruction; leave what is no text for the core to refuse."""
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        return texts
    return [instruction + text.replace("\n", " ") if isinstance(text, str) else text for text in texts]
