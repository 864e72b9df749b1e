"""The errors of a server as HTTP answers, each in the shape that the protocol's clients expect."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from bge_integrations.errors import (
    BgeError,
    ClosedError,
    DeviceLostError,
    InputTooLongError,
    NotAllowedError,
    OverBudgetError,
    OverloadedError,
    UnknownModelError,
)
from bge_integrations.runtime.wire import to_json

RETRY_SECONDS = "1"
"""The value of `Retry-After` in an answer to a call that found too many waiting."""


class ClientGoneError(BgeError):
    """The client went away before its answer was computed."""


class TooManyTextsError(BgeError, ValueError):
    """A request has more texts than the server takes."""


class WrongHostError(BgeError):
    """A request asks for a host name that is not this server's."""


class BodyTooLarge(BgeError, ValueError):  # noqa: N818  clients know it by this name
    """A request has a larger body than the server takes."""


_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (UnknownModelError, 404),
    (NotAllowedError, 401),
    (WrongHostError, 403),
    (BodyTooLarge, 413),
    (TooManyTextsError, 413),
    (OverloadedError, 429),
    (ClientGoneError, 499),
    (ClosedError, 503),
    (DeviceLostError, 503),
    (OverBudgetError, 503),
    (BgeError, 400),
    (ValueError, 400),
    (TypeError, 400),
    (RecursionError, 400),
)
"""The status of each error; the first that fits counts."""


def _openai(status: int, kind: str, message: str) -> dict[str, Any]:
    family = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    named = family.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": named, "param": None, "code": kind}}


def _cohere(_: int, kind: str, message: str) -> dict[str, Any]:
    return {"message": message, "detail": message, "code": kind}  # Cohere's clients read the first, Jina's the second


def _tei(status: int, _: str, message: str) -> dict[str, Any]:
    kinds = {429: "Overloaded", 401: "Unauthorized"}
    return {"error": message, "error_type": kinds.get(status, "Backend" if status >= 500 else "Validation")}


def _ours(_: int, kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message}}


_SHAPES: dict[str, Callable[[int, str, str], dict[str, Any]]] = {
    "/v1/embeddings": _openai,
    "/v1/models": _openai,
    "/v1/rerank": _cohere,
    "/v2": _cohere,
    "/bge": _ours,
    "/embed_m3": _ours,
}


def refusal(path: str, error: Exception) -> Response:
    """Return the answer for an error, in the shape of the protocol to which the path belongs."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if _shape(path) is _tei and status == 400:
        status = 413 if isinstance(error, InputTooLongError) else 422
    headers = {"Retry-After": RETRY_SECONDS} if status == 429 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    message = str(error)
    if isinstance(error, RecursionError):
        message = "The body is nested too deeply."
    elif status >= 500 and not isinstance(error, BgeError):
        message = "The server failed; its log says why."
    return _answer(path, status, type(error).__name__, message, headers)


def install(app: FastAPI) -> None:
    """Let the application answer errors in the protocols' shapes."""

    async def known(request: Request, error: Exception) -> Response:
        return refusal(_path(request), error)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101  for mypy
        return refusal(_path(request), ValueError(sentences(error.errors())))

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  for mypy
        return _answer(_path(request), error.status_code, "HTTPException", str(error.detail), error.headers)

    for kind in (BgeError, ValueError, TypeError, RecursionError, Exception):
        app.exception_handler(kind)(known)
    app.exception_handler(RequestValidationError)(invalid)
    app.exception_handler(HTTPException)(of_http)


def _answer(path: str, status: int, kind: str, message: str, headers: Mapping[str, str] | None) -> Response:
    """Return an error in the shape of the path's protocol; a message may quote text that is not valid Unicode."""
    body = to_json(_shape(path)(status, kind, message))
    return Response(body, status, headers, media_type="application/json")


def _shape(path: str) -> Callable[[int, str, str], dict[str, Any]]:
    return next((shape for start, shape in _SHAPES.items() if path.startswith(start)), _tei)


def _path(request: Request) -> str:
    return str(request.scope["path"]).removeprefix(str(request.scope.get("root_path", "")))


def sentences(problems: Sequence[Any]) -> str:
    """Say what pydantic found wrong in a body: the first three problems, each with its place in the body.

    Args:
        problems: The problems, as `ValidationError.errors()` lists them, whose places begin with "body".
    """
    return "; ".join(map(_sentence, problems[:3]))


def _sentence(problem: dict[str, Any]) -> str:
    if problem["type"] == "json_invalid":
        return f"The body is no JSON: {problem['ctx']['error']} at character {problem['loc'][1]}."
    if len(problem["loc"]) == 1 and isinstance(problem.get("input"), bytes):
        return "The body was not sent as JSON: add the header Content-Type: application/json."
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"][1:])
    return f"{place.removeprefix('.') or 'The body'}: {problem['msg'].removeprefix('Value error, ')}"
