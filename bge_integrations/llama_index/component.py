"""What the embedding model and the reranker share: the core's arguments, strict keywords, dumps that load again."""

from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature, unwrap
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

from llama_index.core.bridge.pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    model_validator,
)
from llama_index.core.schema import BaseComponent
from pydantic.json_schema import SkipJsonSchema

from bge_integrations.runtime.cache import ModelCache

_FOLDER_STATE = "folder_state"
_MODEL_NAMES = ("model", "model_name")
_MASK = str(SecretStr("a token"))

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _torch_name(value: object) -> object:
    """`torch.float16` and `torch.device("cuda:0")` as the strings "float16" and "cuda:0"."""
    return str(value).removeprefix("torch.") if type(value).__module__.split(".")[0] == "torch" else value


def _path_name(value: object) -> object:
    return fspath(value) if isinstance(value, PathLike) else value


def _unmasked(token: object) -> object:
    """The token, or None for the asterisks that a dump may show in its place."""
    shown = token.get_secret_value() if isinstance(token, SecretStr) else token
    return None if shown == _MASK else token


PathName = Annotated[str, BeforeValidator(_path_name)]
"""A path or an id; a `Path` is taken too."""

TorchName = Annotated[str | None, BeforeValidator(_torch_name)]
"""The name of a torch device or dtype; torch's own objects are taken too."""


class BgeComponent(BaseComponent):
    """A component in front of one object of the core.

    The model is the first argument, or `model=`, or `model_name=`: LlamaIndex's own classes know both names. Unknown
    keywords are refused, yet the class accepts its own `model_dump()` and `to_dict()`. What decides the results is in
    these; the live objects (caches, callbacks) and the token are not.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    max_length: int | None = None
    """Most tokens of a text, or of a query with a passage; None = the catalogue's, else the model's own."""
    query_instruction: str | None = None
    """Text before every query; None = the catalogue's, "" = none."""
    on_truncate: Literal["warn", "raise", "ignore"] = "warn"
    """What happens when a text is longer than `max_length`."""
    backend: str = "auto"
    """"auto", "torch", "openvino" or "sentence_transformers"."""
    device: TorchName | list[TorchName] = None
    """Such as "cpu" or "cuda:0", or a list with a replica on each; None = the best there is."""
    dtype: TorchName = None
    """Such as "float16", or "int8" with OpenVINO; None = the device's default, float32 on a CPU."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    max_batch_tokens: int | None = None
    """Most tokens of one forward pass."""
    like: str | None = None
    """Catalogue id whose facts a fine-tune takes."""
    cache: SkipJsonSchema[ModelCache | None] = Field(default=None, exclude=True, repr=False)
    """Where the weights live; None = the process-wide cache."""
    cache_folder: PathName | None = None
    """Where files from the hub are kept; None = the hub client's own folder."""
    token: Annotated[SecretStr | None, BeforeValidator(_unmasked)] = Field(default=None, exclude=True, repr=False)
    """Access token for the hub."""
    local_files_only: bool = False
    """Use no network, only files that are already here."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    _core_type: ClassVar[type]
    _model_field: ClassVar[str]
    _built: tuple[dict[str, Any], Any] | None = PrivateAttr(default=None)

    if not TYPE_CHECKING:  # type checkers keep the signature that pydantic makes from the fields

        def __init__(self, *positional: Any, **data: Any) -> None:
            super().__init__(**_with_one_model(data, self._model_field, *positional))
            self._core()  # not in a validator: pydantic would turn the core's errors into its own

    @model_validator(mode="before")
    @classmethod
    def _read(cls, data: Any) -> Any:
        """Take out the class's name, which the framework writes into every dump, and read the model's by either."""
        if not isinstance(data, Mapping):
            return data
        if data.get("class_name") == cls.class_name():
            data = {key: value for key, value in data.items() if key != "class_name"}
        return _with_one_model(data, cls._model_field)

    def _core(self) -> Any:
        """The core object for the fields as they are now; it is kept until one of them changes."""
        arguments = {name: getattr(self, name) for name in _argument_names(self._core_type)}
        arguments["model"] = getattr(self, self._model_field)
        if isinstance(self.token, SecretStr):
            arguments["token"] = self.token.get_secret_value()
        if self._built is None or self._built[0] != arguments:
            self._built = (arguments, self._core_type(**arguments))
        return self._built[1]


class BgeEmbeddingComponent(BgeComponent):
    """What embedding models share besides: the model's name and what goes before documents."""

    model_name: PathName
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
    document_instruction: str | None = None
    """Text before every document; None = the catalogue's, "" = none."""

    _model_field: ClassVar[str] = "model_name"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """As the framework's; for a local folder also the state of its files, which an ingestion cache has to see."""
        dumped = super().to_dict(**kwargs)
        if Path(self.model_name).is_dir():
            dumped[_FOLDER_STATE] = self._core().describe()["revision"]
        return dumped

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Make an object from what `to_dict` gave."""
        return super().from_dict({key: value for key, value in data.items() if key != _FOLDER_STATE}, **kwargs)


@cache
def _argument_names(core: type) -> tuple[str, ...]:
    return tuple(signature(core).parameters)[1:]


def without_span(method: _Method) -> _Method:
    """The framework's method as it is written; the framework puts one span round it, and one round an override."""
    return cast("_Method", unwrap(method))


def _with_one_model(data: Mapping[str, Any], field: str, *positional: Any) -> dict[str, Any]:
    """The arguments with the model under the field's name, by whichever it was given."""
    if len(positional) > 1:
        raise TypeError(f"{len(positional)} positional arguments were given; only the model is one.")
    values = (*positional, *(data.get(name) for name in _MODEL_NAMES))
    given = [_path_name(value) for value in values if value is not None]
    if not given:
        return dict(data)
    if any(value != given[0] for value in given):
        raise ValueError(f"The model was given as {' and as '.join(map(repr, given))}: give it once.")
    return {**{name: value for name, value in data.items() if name not in _MODEL_NAMES}, field: given[0]}
