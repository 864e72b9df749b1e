"""This package's own protocol: bge-m3's three outputs in one answer, and the calls of `cache=`."""

import json
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from starlette.routing import Route

from bge_integrations.embed.m3 import OUTPUTS
from bge_integrations.embed.prompts import EmbedOptions, FolderOptions
from bge_integrations.rerank.prompts import RerankOptions
from bge_integrations.runtime.request import Options
from bge_integrations.runtime.user import checked_pairs, checked_texts, off_loop
from bge_integrations.runtime.wire import ARRAYS, pack_output, to_json
from bge_integrations.serve.errors import sentences
from bge_integrations.serve.models import Serving, served_by
from bge_integrations.serve.replies import InputType, Texts, json_reply

router = APIRouter(tags=["bge_integrations"])

_OPTIONS: dict[str, TypeAdapter[Any]] = {
    kind.__name__: TypeAdapter(kind) for kind in (EmbedOptions, FolderOptions, RerankOptions)
}


class M3Request(BaseModel):
    """The body of `POST /embed_m3`."""

    model: Annotated[str | None, Field(description="Id or alias. Default: the server's first embedder.")] = None
    inputs: Texts
    outputs: Annotated[list[Literal["dense", "sparse", "colbert"]], Field(min_length=1)] = [
        "dense",
        "sparse",
        "colbert",
    ]
    input_type: InputType = None
    truncate: Annotated[bool, Field(description="Cut a text over the model's limit instead of refusing it.")] = False


class ClientModel(BaseModel):
    """The model and options that a client of `cache=` names."""

    model: str
    kind: Literal["embedder", "reranker"]
    options: dict[str, Any]
    path: str | None = None
    revision: str | None = None
    dtype: str | None = None
    like: str | None = None
    cache_folder: str | None = None
    local_files_only: bool = False
    pooling_optional: bool = False

    def read_options(self) -> Options:
        """Return the options.

        Raises:
            ValueError: They are none that this version knows.
        """
        given = dict(self.options)
        kind = str(given.pop("type", None))
        if kind not in _OPTIONS or (kind == "RerankOptions") != (self.kind == "reranker"):
            raise ValueError(f"options: {kind} is unknown for an {self.kind}. Do client and server have one version?")
        _refuse_below_one(given)
        try:
            options: Options = _OPTIONS[kind].validate_python(given)
        except ValidationError as error:
            problems = [{**problem, "loc": ("body", "options", *problem["loc"])} for problem in error.errors()]
            raise ValueError(sentences(problems)) from None
        outputs = getattr(options, "outputs", OUTPUTS)
        if not outputs or outputs != tuple(name for name in OUTPUTS if name in outputs):
            raise ValueError(f"options.outputs={outputs!r:.60} must name some of {', '.join(OUTPUTS)}, in this order.")
        return options


class ClientCall(ClientModel):
    """A call of a client of `cache=`."""

    items: Annotated[list[Any], Field(min_length=1)]
    max_batch_tokens: Annotated[int | None, Field(gt=0)] = None
    refuse_long: bool = False
    first: Annotated[int, Field(ge=0)] = 0
    patient: bool = False

    def read_items(self) -> list[Any]:
        """Return the texts of an embedder, or the pairs of a reranker.

        Raises:
            TypeError: One is something else; the message has its index.
        """
        return checked_texts(self.items, "items") if self.kind == "embedder" else checked_pairs(self.items)


@router.post("/embed_m3", summary="Dense, sparse and token vectors of one forward")
async def embed_m3(body: M3Request, http: Request, served: Serving) -> Response:
    """Give up to three outputs of bge-m3 for each text; only those asked for are computed."""
    outputs = [name for name in OUTPUTS if name in body.outputs]
    output = await served.embed_m3(http, body.model, body.inputs, body.input_type, tuple(outputs), cut=body.truncate)

    def data() -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for number, name in enumerate(outputs):
            values = output.rows[:, number] if output.rows.dtype == object else output.rows
            columns[name] = (
                [{"indices": value.indices, "values": value.values} for value in values]
                if name == "sparse"
                else list(values)
            )
        return {**columns, "usage": {"total_tokens": output.tokens}}

    return await json_reply(data, items=len(output.rows))


async def submit(http: Request) -> Response:
    """Compute a call of `cache=`; the answer is an output as `runtime/wire.py` writes it."""
    served, call = served_by(http), _read(ClientCall, await http.body())
    output = await served.compute(
        http, served.of_client(call), call.read_options(), call.read_items(), pooling_optional=call.pooling_optional,
        max_batch_tokens=call.max_batch_tokens, refuse_long=call.refuse_long, first=call.first, patient=call.patient,
    )  # fmt: skip
    return Response(await off_loop(output.tokens, pack_output, output), media_type=ARRAYS)


async def describe(http: Request) -> Response:
    """Describe a model and options as `describe()` does."""
    asked = _read(ClientModel, await http.body())
    return _json(await served_by(http).described(asked, asked.read_options()))


async def fingerprint(http: Request) -> Response:
    """Give the fingerprint of a model and options."""
    asked = _read(ClientModel, await http.body())
    if asked.kind != "embedder":
        raise ValueError("A reranker has no fingerprint.")
    return _json(await served_by(http).fingerprint(asked, asked.read_options()))


async def stats(http: Request) -> Response:
    """Give `ModelCache.stats()`."""
    return _json(served_by(http).cache.stats())


ROUTES = [
    Route("/bge/submit", submit, methods=["POST"]),
    Route("/bge/describe", describe, methods=["POST"]),
    Route("/bge/fingerprint", fingerprint, methods=["POST"]),
    Route("/bge/stats", stats),
]
"""The paths of `cache=`: Starlette's routes, which look nothing up for a call that brings all it needs in its body."""


def _json(data: object) -> Response:
    return Response(to_json(data), media_type="application/json")


def _read(kind: type[Any], body: bytes) -> Any:
    try:
        data = json.loads(body)
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ValueError(f"The body is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("The body is nested too deeply.") from None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = [{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]
        raise ValueError(sentences(problems)) from None


def _refuse_below_one(value: object, name: str = "options") -> None:
    """Refuse a number below 1: all numbers in options count tokens, dimensions or layers."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_below_one(inner, f"{name}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_below_one(inner, f"{name}[{index}]")
    elif isinstance(value, int | float) and not isinstance(value, bool) and value < 1:
        raise ValueError(f"{name}={value!r} must be above 0.")
