"""Pydantic fields that the LangChain and LlamaIndex classes share, and the core object made from them."""

import os
from collections.abc import Mapping
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr
from pydantic.json_schema import SkipJsonSchema

from bge_integrations.runtime.address import checked_cache
from bge_integrations.runtime.cache import ModelCache

MODEL_NAMES = ("model", "model_name")
"""The names that the frameworks' own classes use for the model; each class of this package takes both."""

_MASK = str(SecretStr("a token"))


def torch_name(value: object) -> object:
    """Turn `torch.float16` or `torch.device("cuda:0")` into "float16" or "cuda:0"; return anything else as it is."""
    return str(value).removeprefix("torch.") if type(value).__module__.split(".")[0] == "torch" else value


def path_text(value: object) -> object:
    """Turn a `Path` into a string; return anything else as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def unmasked(token: object) -> object:
    """Return the token, or None if it is only the asterisks that a dump shows in place of one."""
    secret = token.get_secret_value() if isinstance(token, SecretStr) else token
    return None if secret == _MASK else token


TorchName = Annotated[str | None, BeforeValidator(torch_name)]
"""The name of a torch device or dtype; torch's own objects are accepted too."""

PathText = Annotated[str, BeforeValidator(path_text)]
"""A path or a name; a `Path` is accepted too."""


class CoreModel(BaseModel):
    """A pydantic model that holds the arguments of one core object and makes it; unknown arguments are refused."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    _core_type: ClassVar[type]
    _built: Any = PrivateAttr(default=None)

    if not TYPE_CHECKING:  # type checkers take any attribute of a class that has this method

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name in type(self).model_fields:
                self._built = None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy as pydantic does; updated fields change the core object of the copy alone."""
        copied = super().model_copy(update=update, deep=deep)
        copied._built = None  # noqa: SLF001  the copy is of this class
        return copied

    def _arguments(self) -> dict[str, Any]:
        """Return the core object's arguments, from the fields as they are now."""
        raise NotImplementedError

    def _core(self) -> Any:
        """Return the core object for the fields as they are now; it is kept until one of them is set."""
        if self._built is None:
            self._built = self._core_type(**self._arguments())
        return self._built


class ModelFields(CoreModel):
    """How and where a model runs: the arguments that `BgeEmbedder` and `BgeReranker` share, except the model."""

    max_length: int | None = None
    """Most tokens of a text, or of a query with a passage; None = the catalogue's limit, else the model's own."""
    query_instruction: str | None = None
    """Text put before every query; None = the catalogue's, "" = no text."""
    on_truncate: Literal["warn", "raise", "ignore"] = "warn"
    """Whether a text longer than `max_length` is cut with a warning, refused, or cut silently."""
    backend: str = "auto"
    """"auto", "torch", "openvino" or "sentence_transformers"."""
    device: TorchName | list[TorchName] = None
    """Device such as "cpu" or "cuda:0", or a list of devices with a replica on each; None = the best there is."""
    dtype: TorchName = None
    """Dtype of the weights, such as "float16", or "int8" with OpenVINO; None = the device's own, float32 on a CPU."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    max_batch_tokens: int | None = None
    """Most tokens of one forward pass."""
    like: str | None = None
    """Catalogue id of the model that a fine-tune or a bare folder descends from."""
    cache: Annotated[SkipJsonSchema[ModelCache] | str | None, AfterValidator(checked_cache)] = Field(
        default=None, exclude_if=lambda cache: not isinstance(cache, str)
    )
    """Cache that holds the weights, the address of a server, or "auto"; None = what BGE_CACHE names, else the
    process-wide one. Dumps hold an address, without its key, and leave out the rest."""
    cache_folder: PathText | None = None
    """Folder for files from the hub; None = the hub client's own folder."""
    token: Annotated[SecretStr | None, BeforeValidator(unmasked)] = Field(default=None, exclude=True, repr=False)
    """Access token for the hub. Left out of dumps."""
    local_files_only: bool = False
    """Use no network, only files that are already on this machine."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    _model_field: ClassVar[str] = "model"

    def _arguments(self) -> dict[str, Any]:
        names = _argument_names(self._core_type)
        arguments = {name: getattr(self, name) for name in names if hasattr(self, name)}
        arguments["model"] = getattr(self, self._model_field)
        if isinstance(self.token, SecretStr):
            arguments["token"] = self.token.get_secret_value()
        return arguments


class DenseFields(BaseModel):
    """The arguments that only `BgeEmbedder` takes."""

    document_instruction: str | None = None
    """Text put before every document; None = the catalogue's, "" = no text."""
    task: str | None = None
    """Name of one of the model's published tasks, which brings its instructions."""
    examples: list[dict[str, str]] | None = None
    """Few-shot examples before every query, for models trained with any, each with "query", "response", "instruct"."""
    normalize: bool | None = None
    """Scale vectors to length one; None = as the catalogue, else the model's files say."""
    truncate_dim: int | None = None
    """Keep only this many leading dimensions of each vector; None = all."""


class RerankerFields(BaseModel):
    """The arguments that only `BgeReranker` takes."""

    normalize: bool = True
    """Give scores between 0 and 1 (the sigmoid of the logit); False = the raw logit."""
    query_max_length: int | None = None
    """Most tokens of the query; None = three quarters of `max_length`."""
    document_instruction: str | None = None
    """Text put before every passage, for models that take one."""
    prompt: str | None = None
    """The question that models built on a language model answer with yes or no; None = the published one."""
    cutoff_layers: list[int] | None = None
    """Layers after which layerwise models give scores."""
    compress_layers: list[int] | None = None
    """Layers at which lightweight models merge tokens."""
    compress_ratio: int | None = None
    """How many tokens lightweight models merge into one."""


@cache
def _argument_names(core: type) -> frozenset[str]:
    return frozenset(signature(core).parameters)
