"""The pydantic fields that the LangChain classes share, and the core object behind them."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, SecretStr

from bge_integrations.runtime.cache import ModelCache


def _torch_name(value: object) -> object:
    """`torch.float16` and `torch.device("cuda:0")` as the strings "float16" and "cuda:0"."""
    return str(value).removeprefix("torch.") if type(value).__module__.split(".")[0] == "torch" else value


TorchName = Annotated[str | None, BeforeValidator(_torch_name)]
"""The name of a torch device or dtype; torch's own objects are taken too."""

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""What one of several scores counts."""


class CoreModel(BaseModel):
    """A pydantic model in front of one object of the core; unknown arguments are refused."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())

    _core_type: ClassVar[type]
    _built: tuple[dict[str, Any], Any] | None = PrivateAttr(default=None)

    if not TYPE_CHECKING:  # type checkers keep the signature that pydantic makes from the fields

        def __init__(self, **data: Any) -> None:
            super().__init__(**data)
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

    model: str
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
    cache: ModelCache | None = Field(default=None, exclude=True, repr=False)
    """Where the weights live; None = the process-wide cache. Left out of `model_dump`."""
    cache_folder: str | None = None
    """Where files from the hub are kept; None = the hub client's own folder."""
    token: SecretStr | None = None
    """Access token for the hub."""
    local_files_only: bool = False
    """Use no network, only files that are already here."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""

    _no_arguments: ClassVar[frozenset[str]] = frozenset()
    """Fields that are the LangChain class's own."""

    def _arguments(self) -> dict[str, Any]:
        arguments = {name: getattr(self, name) for name in type(self).model_fields if name not in self._no_arguments}
        if isinstance(self.token, SecretStr):
            arguments["token"] = self.token.get_secret_value()
        return arguments
