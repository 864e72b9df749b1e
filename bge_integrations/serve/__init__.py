"""The server: one copy of each model for all processes of a machine, or of several (`bge serve`).

Example:
    >>> from bge_integrations.serve import create_app
    >>> app = create_app(["bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"])
"""

from importlib.util import find_spec

from bge_integrations.errors import MissingExtraError

if not all(map(find_spec, ("fastapi", "orjson", "prometheus_client", "uvicorn"))):
    raise MissingExtraError(
        "bge_integrations.serve needs fastapi, orjson, prometheus-client and uvicorn. Install them: "
        'pip install "bge_integrations[serve]"'
    )

from bge_integrations.serve.app import create_app

__all__ = ["create_app"]
