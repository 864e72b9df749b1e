"""The pydantic fields of the LangChain classes alone: the model's name, and fields that hold live objects."""

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AliasChoices, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticOmit, core_schema

from bge_integrations._fields import MODEL_NAMES, CoreModel, ModelFields, PathText

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


class NamedModel(CoreModel):
    """The model may come first without a name, as in the core, and is known as `model` and as `model_name`."""

    if not TYPE_CHECKING:  # type checkers keep the signature that pydantic makes from the fields

        def __init__(self, model: str | None = None, /, **data: Any) -> None:
            super().__init__(**_with_model(model, data))
            self._core()  # not in a validator: pydantic would turn the core's errors into its own

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    __hash__ = None  # type: ignore[assignment]  # like every pydantic model that can be changed


class _ModelFirst(NamedModel):
    """Its own class, so that the model is the first of the fields."""

    model: ModelName
    """Id of the model on the Hugging Face hub, or a folder that holds it."""


class LangChainModel(ModelFields, _ModelFirst):
    """The model and where it runs: the arguments that `BgeEmbedder` and `BgeReranker` share."""


def _with_model(model: object, data: dict[str, Any]) -> dict[str, Any]:
    """The keywords, with the model that came first without a name."""
    given = [f"{name}=" for name in MODEL_NAMES if name in data]
    if model is not None:
        data, given = {"model": model, **data}, ["the first argument", *given]
    if len(given) > 1:
        raise TypeError(f"The model is given twice, as {' and '.join(given)}. Give it once.")
    return data
