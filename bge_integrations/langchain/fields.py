"""The pydantic fields that the LangChain classes share, and the core object behind them."""

import os
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PrivateAttr,
    SecretStr,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema, PydanticOmit, core_schema

from bge_integrations.runtime.cache import ModelCache

MODEL_NAMES = ("model", "model_name")
"""What the classes call the model; each takes the other's word for it too."""

_MASK = str(SecretStr("a token"))


def torch_name(value: object) -> object:
    """`torch.float16` and `torch.device("cuda:0")` as the strings "float16" and "cuda:0"; anything else as it is."""
    return str(value).removeprefix("torch.") if type(value).__module__.split(".")[0] == "torch" else value


def unmasked(token: object) -> object:
    """The token, or None for the asterisks that a dump shows in place of one."""
    secret = token.get_secret_value() if isinstance(token, SecretStr) else token
    return None if secret == _MASK else token


def _path_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


TorchName = Annotated[str | None, BeforeValidator(torch_name)]
"""The name of a torch device or dtype; torch's own objects are taken too."""

PathText = Annotated[str, BeforeValidator(_path_text)]
"""A path, or a name; a `Path` is taken too."""

ModelName = Annotated[PathText, Field(validation_alias=AliasChoices(*MODEL_NAMES))]
"""Id or folder of the model."""

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""What one of several scores counts."""


class Live:
    """Marks a field that holds a live object, such as a store: a dump keeps it, and a JSON schema leaves it out."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # a dump in Python gets the object as it is, where pydantic's own way would take its fields apart
        kept: Any = {"serialization": core_schema.to_string_ser_schema(when_used="json")}
        return {**handler(source), **kept}

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        raise PydanticOmit


class CoreModel(BaseModel):
    """A pydantic model in front of one object of the core; unknown arguments are refused.

    The model may come first without a name, as in the core, and is known as `model` and as `model_name`.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    _core_type: ClassVar[type]
    _built: tuple[dict[str, Any], Any] | None = PrivateAttr(default=None)

    if not TYPE_CHECKING:  # type checkers keep the signature that pydantic makes from the fields

        def __init__(self, model: str | None = None, /, **data: Any) -> None:
            super().__init__(**_with_model(model, data))
            self._core()  # not in a validator: pydantic would turn the core's errors into its own

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    __hash__ = None  # type: ignore[assignment]  # like every pydantic model that can be changed

    def _arguments(self) -> dict[str, Any]:
        """The core object's arguments, from the fields as they are now."""
        raise NotImplementedError

    def _core(self) -> Any:
        """The core object for the fields as they are now; it is kept until one of them changes."""
        arguments = self._arguments()
        if self._built is None or self._built[0] != arguments:
            self._built = (arguments, self._core_type(**arguments))
        return self._built[1]


class ModelFields(CoreModel):
    """The model and where it runs: the arguments that `BgeEmbedder` and `BgeReranker` share."""

    model: ModelName
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
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
    """Where the weights live; None = the process-wide cache. Left out of `model_dump`."""
    cache_folder: PathText | None = None
    """Where files from the hub are kept; None = the hub client's own folder."""
    token: Annotated[SecretStr | None, BeforeValidator(unmasked)] = Field(default=None, exclude=True, repr=False)
    """Access token for the hub. Left out of `model_dump`."""
    local_files_only: bool = False
    """Use no network, only files that are already here."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    def _arguments(self) -> dict[str, Any]:
        names = _argument_names(self._core_type) & type(self).model_fields.keys()
        arguments = {name: getattr(self, name) for name in names}
        if isinstance(self.token, SecretStr):
            arguments["token"] = self.token.get_secret_value()
        return arguments


@cache
def _argument_names(core: type) -> frozenset[str]:
    return frozenset(signature(core).parameters)


def _with_model(model: object, data: dict[str, Any]) -> dict[str, Any]:
    """The keywords, with the model that came first without a name."""
    given = [f"{name}=" for name in MODEL_NAMES if name in data]
    if model is not None:
        data, given = {"model": model, **data}, ["the first argument", *given]
    if len(given) > 1:
        raise TypeError(f"The model is given twice, as {' and '.join(given)}. Give it once.")
    return data
