"""The application (ASGI) that serves models by HTTP."""

from collections import Counter
from collections.abc import Iterable, Sequence

from fastapi import FastAPI
from fastapi.routing import APIRoute

from bge_integrations import __version__
from bge_integrations.runtime.cache import ModelCache
from bge_integrations.serve import cohere, errors, openai, own, page, tei
from bge_integrations.serve.gate import Gate
from bge_integrations.serve.models import Served, User

MAX_BODY = 32 << 20
MAX_TEXTS = 4096
_ROUTERS = [part.router for part in (openai, cohere, tei, own, page)]
_PATHS = {
    "/openapi.json",
    *(route.path for route in own.ROUTES),
    *(route.path for router in _ROUTERS for route in router.routes if isinstance(route, APIRoute)),
}


def create_app(
    models: Iterable[str | User] = (),
    *,
    cache: ModelCache | None = None,
    api_keys: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
    max_body: int = MAX_BODY,
    max_texts: int = MAX_TEXTS,
    any_model: bool = False,
) -> FastAPI:
    """Make the application; it can be mounted in another one, and deployed with `ray.serve.ingress`.

    Args:
        models: What it serves: catalogue ids, hub ids or folders, or `BgeEmbedder` and `BgeReranker` objects, whose
            arguments say how and where they run. A request that names another model gets status 404.
        cache: The cache that holds the weights; None makes one without a budget.
        api_keys: Keys, one of which each request has to bring as `Authorization: Bearer KEY`; none lets everybody in.
        hosts: Names that a request's `Host` may have besides localhost and IP addresses, against pages that lead a
            browser to a server of its own machine (DNS rebinding). None lets every name pass.
        max_body: Most bytes of a request's body.
        max_texts: Most texts, or passages, of a request.
        any_model: Load whatever model a client of `cache=` names. For a socket that only its own user can reach.

    Returns:
        A FastAPI application.

    Raises:
        UnknownModelError: A model can't be found.
        UnsupportedModelError: A model can't be run.
        ValueError: A model is named twice.

    Example:
        >>> app = create_app(["bge-integrations/mini-embedder-en"])
        >>> app.title
        'bge_integrations'
    """
    app = FastAPI(title="bge_integrations", version=__version__, docs_url=None, redoc_url=None, routes=[*own.ROUTES])
    app.state.served = Served(models, cache or ModelCache(), max_texts=max_texts, any_model=any_model)
    app.state.requests = Counter[tuple[str, int]]()
    app.add_middleware(
        Gate, keys=list(api_keys), max_body=max_body, requests=app.state.requests, paths=_PATHS, hosts=hosts
    )
    errors.install(app)
    for router in _ROUTERS:
        app.include_router(router)
    return app
