"""Cohere's protocol, embeddings and reranking; Jina's rerank requests and answers are the same."""

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, Field

from bge_integrations.serve.models import Serving
from bge_integrations.serve.replies import Dimensions, InputType, json_reply, numbers_of

router = APIRouter(tags=["Cohere and Jina"])

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


class Content(BaseModel):
    """A part of an input."""

    type: Literal["text"]
    text: str


class Input(BaseModel):
    """An input of `POST /v2/embed`: texts, which are put together."""

    content: Annotated[list[Content], Field(min_length=1)]


class EmbedRequest(BaseModel):
    """The body of `POST /v2/embed`."""

    model: str
    texts: Annotated[list[str] | None, Field(min_length=1)] = None
    inputs: Annotated[list[Input] | None, Field(min_length=1)] = None
    input_type: InputType = None
    embedding_types: Annotated[list[EmbeddingType], Field(min_length=1)] = ["float"]
    output_dimension: Dimensions = None
    truncate: Literal["NONE", "START", "END"] = "END"


class TextDocument(BaseModel):
    """A document given as an object."""

    text: str


def _text_of(value: Any) -> Any:
    return value.get("text") if isinstance(value, dict) else value


Document = Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | TextDocument)]


class RerankRequest(BaseModel):
    """The body of `POST /v1/rerank` and `POST /v2/rerank`."""

    model: str
    query: str
    documents: Annotated[list[Document], Field(min_length=1)]
    top_n: Annotated[int | None, Field(gt=0)] = None
    return_documents: bool = False
    max_tokens_per_doc: Annotated[int | None, Field(gt=0, description="Tokens at which a document is cut.")] = None


@router.post("/v2/embed", summary="Embed texts, in several number formats")
async def embed(body: EmbedRequest, http: Request, served: Serving) -> Response:
    """Embed texts; `truncate` "NONE" refuses a text over the model's limit, "END" cuts it."""
    if (body.texts is None) == (body.inputs is None):
        raise ValueError("Give either texts or inputs.")
    if body.truncate == "START":
        raise ValueError(
            'truncate="START" is not possible: a text that is too long loses its end. Use "END" or "NONE".'
        )
    texts = body.texts or ["\n".join(part.text for part in item.content) for item in body.inputs or ()]
    output = await served.embed(
        http, body.model, texts, body.input_type, dimensions=body.output_dimension, cut=body.truncate == "END"
    )

    def data() -> dict[str, Any]:
        return {
            "id": str(uuid.uuid4()),
            "embeddings": {name: numbers_of(output.rows, name) for name in body.embedding_types},
            "texts": texts,
            "meta": {"api_version": {"version": "2"}, "billed_units": {"input_tokens": output.tokens}},
            "response_type": "embeddings_by_type",
        }

    return await json_reply(data, items=len(texts))


@router.post("/v1/rerank", summary="Rerank documents")
@router.post("/v2/rerank", summary="Rerank documents")
async def rerank(body: RerankRequest, http: Request, served: Serving) -> Response:
    """Order documents by their relevance to a query, best first; a document over the limit is cut."""
    results, tokens = await served.rerank(
        http,
        body.model,
        body.query,
        body.documents,
        top_n=body.top_n,
        document_max_length=body.max_tokens_per_doc,
    )
    answers: list[dict[str, Any]] = [{"index": r.index, "relevance_score": r.score} for r in results]
    if body.return_documents:
        for answer in answers:
            answer["document"] = {"text": body.documents[answer["index"]]}
    return await json_reply(
        lambda: {
            "id": str(uuid.uuid4()),
            "model": body.model,
            "results": answers,
            "meta": {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": tokens},
            },
            "usage": {"total_tokens": tokens, "prompt_tokens": tokens},
        },
        items=0,
    )
