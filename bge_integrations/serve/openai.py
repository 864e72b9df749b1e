"""OpenAI's protocol: embeddings, and the list of models."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, field_validator

from bge_integrations.serve.models import Serving
from bge_integrations.serve.replies import Dimensions, InputType, Texts, json_reply, numbers_of

router = APIRouter(tags=["OpenAI"])


class EmbeddingsRequest(BaseModel):
    """The body of `POST /v1/embeddings`."""

    model: Annotated[str, Field(description="Id or alias; an ending -query or -passage chooses the side.")]
    input: Texts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Dimensions = None
    input_type: InputType = None
    task: Annotated[
        Literal["retrieval.query", "retrieval.passage", "text-matching", "classification", "separation"] | None,
        Field(description="The side as Jina's clients name it; only `retrieval.query` means queries."),
    ] = None

    @field_validator("input", mode="before")
    @classmethod
    def _refuse_token_ids(cls, value: object) -> object:
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, int | list):
            raise ValueError(  # noqa: TRY004  pydantic takes no other
                "lists of token ids are refused, as they belong to another model's tokenizer. Send texts; for "
                "langchain-openai pass check_embedding_ctx_length=False."
            )
        return value


@router.post("/v1/embeddings", summary="Embed texts")
async def embeddings(body: EmbeddingsRequest, http: Request, served: Serving) -> Response:
    """Embed texts as queries or documents; a text over the model's limit is refused."""
    output = await served.embed(http, body.model, body.input, body.input_type or body.task, dimensions=body.dimensions)

    def data() -> dict[str, Any]:
        vectors = numbers_of(output.rows, body.encoding_format)
        return {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)],
            "model": body.model,
            "usage": {"prompt_tokens": output.tokens, "total_tokens": output.tokens},
        }

    return await json_reply(data, items=len(body.input))


@router.get("/v1/models", summary="List the models")
async def models(served: Serving) -> dict[str, Any]:
    """List the models that this server answers for, embedders and rerankers."""
    return {
        "object": "list",
        "data": [
            {"id": name, "object": "model", "created": served.started, "owned_by": "bge_integrations"}
            for name in served.users
        ],
    }
