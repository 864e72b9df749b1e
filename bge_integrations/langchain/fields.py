"""The pydantic fields that LangChain's classes share: the model's name, fields that hold live objects, bge-m3's."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AliasChoices, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticOmit, core_schema

from bge_integrations._fields import MODEL_NAMES, CoreModel, ModelFields, PathText
from bge_integrations.embed.m3 import BgeM3Embedder

ModelName = Annotated[PathText, Field(validation_alias=AliasChoices(*MODEL_NAMES))]
"""Id or folder of the model."""

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""The weight of one of several scores."""


class Live:
    """A mark for a field that holds a live object, such as a store: a dump keeps it, a JSON schema leaves it out."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # a dump in Python keeps the object as it is; pydantic alone would dump its fields
        kept: Any = {"serialization": core_schema.to_string_ser_schema(when_used="json")}
        return {**handler(source), **kept}

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> Any:
        raise PydanticOmit


class NamedModel(CoreModel):
    """A class whose model may be the first argument, as in the core, or be given as `model` or `model_name`."""

    if not TYPE_CHECKING:  # type checkers keep the signature that pydantic makes from the fields

        def __init__(self, model: str | None = None, /, **data: Any) -> None:
            super().__init__(**_with_model(model, data))
            self._core()  # not in a validator: pydantic would turn the core's errors into its own

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    __hash__ = None  # type: ignore[assignment]  # like every pydantic model that can be changed


class _ModelFirst(NamedModel):
    """The field of the model, in a class of its own so that it is the first field."""

    model: ModelName
    """Id of the model on the Hugging Face hub, or a folder that holds it."""


class LangChainModel(ModelFields, _ModelFirst):
    """The model and where it runs: the arguments that `BgeEmbedder` and `BgeReranker` share."""


class M3Fields(LangChainModel):
    """The model and where it runs: the arguments of `BgeM3Embedder` except `outputs`."""

    model: ModelName = "BAAI/bge-m3"
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
    document_instruction: str | None = None
    """Text before every document; None = the catalogue's, "" = none."""

    _core_type: ClassVar[type] = BgeM3Embedder

    @property
    def embedder(self) -> BgeM3Embedder:
        """The `BgeM3Embedder` that computes the outputs."""
        embedder: BgeM3Embedder = self._built or self._core()
        return embedder

    @property
    def outputs(self) -> tuple[str, ...]:
        """The model's outputs that the class needs."""
        raise NotImplementedError


def _with_model(model: object, data: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords, with the model that was given as the first argument."""
    given = [f"{name}=" for name in MODEL_NAMES if name in data]
    if model is not None:
        data, given = {"model": model, **data}, ["the first argument", *given]
    if len(given) > 1:
        raise TypeError(f"The model is given twice, as {' and '.join(given)}. Give it once.")
    return data
