"""The protocol of Hugging Face's text-embeddings-inference (TEI). A request names no model: the first one answers."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from bge_integrations import __version__
from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.serve.models import Serving
from bge_integrations.serve.replies import Dimensions, Texts, json_reply

router = APIRouter(tags=["text-embeddings-inference"])

Model = Annotated[str | None, Field(description="Id or alias. Default: the server's first one of the kind.")]
Side = Literal["Left", "left", "Right", "right"]


class Limits(BaseModel):
    """What happens to a text over the model's limit."""

    model: Model = None
    truncate: bool = False
    truncation_direction: Side = "Right"

    def check(self) -> None:
        """Refuse to cut at the beginning."""
        if self.truncation_direction.lower() == "left":
            raise ValueError("truncation_direction: a text that is too long loses its end. Use Right.")


class EmbedRequest(Limits):
    """The body of `POST /embed`."""

    inputs: Texts
    normalize: bool = True
    prompt_name: Annotated[
        Literal["query", "document", "passage"] | None, Field(description="The side; null is a document.")
    ] = None
    dimensions: Dimensions = None


class SparseRequest(Limits):
    """The body of `POST /embed_sparse`."""

    inputs: Texts
    prompt_name: Literal["query", "document", "passage"] | None = None


class RerankRequest(Limits):
    """The body of `POST /rerank`."""

    query: str
    texts: Annotated[list[str], Field(min_length=1)]
    raw_scores: Annotated[bool, Field(description="Give logits instead of scores between 0 and 1.")] = False
    return_text: bool = False


class TokenizeRequest(BaseModel):
    """The body of `POST /tokenize`."""

    model: Model = None
    inputs: Texts
    add_special_tokens: bool = True
    prompt_name: Literal["query", "document", "passage"] | None = None


@router.post("/embed", summary="Embed texts")
@router.post("/", summary="Embed texts, as huggingface_hub's InferenceClient asks for it")
async def embed(body: EmbedRequest, http: Request, served: Serving) -> Response:
    """Embed texts; without `truncate` a text over the model's limit is refused with status 413."""
    body.check()
    normalize = None if body.normalize else False
    output = await served.embed(
        http, body.model, body.inputs, body.prompt_name,
        dimensions=body.dimensions, normalize=normalize, cut=body.truncate,
    )  # fmt: skip
    return await json_reply(lambda: list(output.rows), items=len(output.rows))


@router.post("/embed_sparse", summary="Sparse vectors of bge-m3")
async def embed_sparse(body: SparseRequest, http: Request, served: Serving) -> Response:
    """Give the weights of each text's tokens, by token id."""
    body.check()
    output = await served.embed_m3(http, body.model, body.inputs, body.prompt_name, ("sparse",), cut=body.truncate)
    return await json_reply(
        lambda: [
            [{"index": i, "value": v} for i, v in zip(row.indices.tolist(), row.values.tolist(), strict=True)]
            for row in output.rows[:, 0]
        ],
        items=len(body.inputs),
    )


@router.post("/rerank", summary="Rerank texts")
async def rerank(body: RerankRequest, http: Request, served: Serving) -> Response:
    """Order texts by their relevance to a query, best first."""
    body.check()
    results, _ = await served.rerank(http, body.model, body.query, body.texts, cut=body.truncate)
    answers: list[dict[str, Any]] = [
        {"index": r.index, "score": r.logit if body.raw_scores else r.score} for r in results
    ]
    if body.return_text:
        for answer in answers:
            answer["text"] = body.texts[answer["index"]]
    return await json_reply(lambda: answers, items=0)


@router.post("/tokenize", summary="Tokenize texts")
async def tokenize(body: TokenizeRequest, served: Serving) -> Response:
    """Give the tokens of each text: id, text, whether it is special, and where it stands in the text."""
    texts, tokenizer = await asyncio.to_thread(served.tokenizing, body.model, body.inputs, body.prompt_name)

    def data() -> list[list[dict[str, Any]]]:
        encodings = tokenizer.encode_batch(texts, add_special_tokens=body.add_special_tokens)
        return [
            [
                {
                    "id": number,
                    "text": text[start:stop] if not special else token,
                    "special": bool(special),
                    "start": None if special else start,
                    "stop": None if special else stop,
                }
                for number, token, special, (start, stop) in zip(
                    encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
                )
            ]
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    return await json_reply(data, items=sum(map(len, texts)))


@router.get("/info", summary="The first model and the limits")
async def info(served: Serving) -> dict[str, Any]:
    """Describe the first embedder, or else the first reranker."""
    user = next((u for u in served.users.values() if isinstance(u, BgeEmbedder)), None) or served.first()
    facts = await served.describe(user)
    kind = {"embedding": {"pooling": facts.get("pooling")}} if user.kind == "embedder" else {"reranker": {}}
    return {
        "model_id": user.model,
        "model_sha": facts["revision"],
        "model_dtype": facts["dtype"],
        "model_type": kind,
        "max_concurrent_requests": served.cache.max_waiting,
        "max_input_length": facts["max_length"],
        "max_client_batch_size": served.max_texts,
        "version": __version__,
    }
