"""The pages for people, what they ask the server for, and the answers for load balancers and Prometheus."""

import asyncio
import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector
from pydantic import BaseModel, Field

from bge_integrations.inference.batch import Output
from bge_integrations.metrics import CacheCollector
from bge_integrations.runtime.request import Kind, Options
from bge_integrations.serve.docs import docs_page
from bge_integrations.serve.models import Served, Serving, User
from bge_integrations.serve.replies import json_reply

router = APIRouter(tags=["people"])

MOST_PASSAGES = 50
"""Passages that the page may try a query on."""

_PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
_STYLE = _PAGE.partition("<style>")[2].partition("</style>")[0]


class TryRequest(BaseModel):
    """The body of `POST /bge/try`."""

    query: str
    passages: Annotated[list[str], Field(min_length=1, max_length=MOST_PASSAGES)]
    embedder: Annotated[str | None, Field(description="Id or alias. Default: the server's first embedder.")] = None
    reranker: Annotated[str | None, Field(description="Id or alias. Default: the server's first reranker.")] = None


@router.get("/health", summary="Whether the server answers")
async def health() -> dict[str, Any]:
    """Answer as soon as the server takes requests."""
    return {"status": "ok"}


@router.get("/", include_in_schema=False)
async def home() -> Response:
    """Show what is loaded and how busy it is, and let people try a query on passages."""
    return _shown(_PAGE)


@router.get("/docs", include_in_schema=False)
async def docs(http: Request) -> Response:
    """Show the OpenAPI document."""
    return _shown(docs_page(http.app.openapi(), str(http.url.replace(query="")).removesuffix("/docs"), _STYLE))


@router.get("/metrics", include_in_schema=False)
async def metrics(http: Request, served: Serving) -> Response:
    """Give the metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(CacheCollector(served.cache))
    registry.register(_RequestCollector(http.app.state.requests))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/bge/try", include_in_schema=False)
async def choices(served: Serving) -> dict[str, Any]:
    """List the models to try, and under which name `/bge/stats` shows each."""
    facts = {name: await served.describe(user) for name, user in served.users.items()}
    shown = ("model", "device", "dtype", "backend")
    return {
        "models": [
            {"name": name, "kind": user.kind} | {key: facts[name][key] for key in shown}
            for name, user in served.users.items()
        ]
    }


@router.post("/bge/try", include_in_schema=False)
async def try_out(body: TryRequest, http: Request, served: Serving) -> Response:
    """Compare a query with passages: cosines of the embeddings, the reranker's scores, tokens, and what was cut.

    The answer has `query` and, for each passage, an entry of `results`. `tokens`, `limit` and `cut` are the tokens of
    the text, the most that the embedder reads, and how many it has lost; without an embedder they are those of `pair`.
    `pair` is the same for query and passage together as the reranker reads them.
    """
    embedder, reranker = _chosen(served, body.embedder, "embedder"), _chosen(served, body.reranker, "reranker")
    if not (embedder or reranker):
        served.find(None, "embedder")
    results: list[dict[str, Any]] = [{"cosine": None, "score": None, "pair": None} for _ in body.passages]
    query = None
    if reranker:
        for result, columns in zip(results, await _scored(http, served, reranker.model, body), strict=True):
            result.update(columns)
    if embedder:
        query, embedded = await _embedded(http, served, embedder.model, body)
        for result, columns in zip(results, embedded, strict=True):
            result.update(columns)
    return await json_reply(lambda: {"query": query, "results": results}, items=0)


def _chosen(served: Served, name: str | None, kind: Kind) -> User | None:
    """Return the model of a name, or the first of its kind; None if none is named and the server has none."""
    if name is None and all(user.kind != kind for user in served.users.values()):
        return None
    return served.find(name, kind)


async def _embedded(
    http: Request, served: Served, model: str, body: TryRequest
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Return what was read of the query, and the columns of each passage that an embedder gives."""
    embedder = served.embedder(model)
    options = embedder._options  # noqa: SLF001
    (query,) = await _one_by_one(http, served, embedder, options["query"], [body.query])
    passages = await _one_by_one(http, served, embedder, options["document"], body.passages)
    vector, vectors = query.rows[0].astype(np.float64), _stacked(passages)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector)
    cosines = (vectors @ vector / np.where(lengths > 0, lengths, 1)).tolist()
    return _reading(query), [
        {"cosine": cosine, **_reading(output)} for cosine, output in zip(cosines, passages, strict=True)
    ]


async def _scored(http: Request, served: Served, model: str, body: TryRequest) -> list[dict[str, Any]]:
    """Return the columns of each passage that a reranker gives."""
    reranker = served.reranker(model)
    pairs = [(body.query, passage) for passage in body.passages]
    outputs = await _one_by_one(http, served, reranker, reranker._options, pairs)  # noqa: SLF001
    ranked = reranker._ranked(pairs, _stacked(outputs)[:, -1], None)  # noqa: SLF001
    scores = {result.index: result.score for result in ranked}
    return [
        {"score": scores[index], "pair": _reading(output), **_reading(output)} for index, output in enumerate(outputs)
    ]


async def _one_by_one(
    http: Request, served: Served, user: User, options: Options, items: Sequence[Any]
) -> list[Output]:
    """Compute each text or pair in a call of its own, which tells its tokens; calls share batches."""
    calls = (served.compute(http, user, options, [item], first=index) for index, item in enumerate(items))
    return await asyncio.gather(*calls)


def _stacked(outputs: Sequence[Output]) -> NDArray[np.float64]:
    return np.concatenate([output.rows for output in outputs]).astype(np.float64)


def _reading(output: Output) -> dict[str, int]:
    """Return what a model has read of the one text, or pair, of a call."""
    full = output.cuts[0].full_length if output.cuts else output.tokens
    return {"tokens": full, "limit": output.max_length, "cut": full - output.tokens}


class _RequestCollector(Collector):
    """A collector of a server's answers by path and status."""

    def __init__(self, requests: Counter[tuple[str, int]]) -> None:
        self._requests = requests

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Give the counts of now."""
        family = CounterMetricFamily("bge_http_requests_total", "Answers to requests.", labels=("path", "status"))
        for (path, status), count in sorted(self._requests.items()):
            family.add_metric((path, str(status)), count)
        yield family


def _shown(html: str) -> Response:
    """Answer with a page that may run its own script, ask this server, and do nothing else."""
    policy = [
        "default-src 'none'", f"script-src {_hashes(html, 'script')}", f"style-src {_hashes(html, 'style')}",
        "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
    ]  # fmt: skip
    headers = {
        "Content-Security-Policy": "; ".join(policy),
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(html, headers=headers, media_type="text/html")


def _hashes(html: str, tag: str) -> str:
    """Return the sources by which a policy allows the page's own elements, and none that a text might bring in."""
    parts = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
