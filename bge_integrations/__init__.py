"""BGE embedders and rerankers for LangChain, LlamaIndex and Chroma over one shared copy of each model.

Nothing heavy is imported before it is used: `import bge_integrations` pulls in neither torch nor a framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from bge_integrations import _moved as _moved  # this import makes old import paths work

if TYPE_CHECKING:
    from bge_integrations.catalog import ModelSpec, get_spec, list_models
    from bge_integrations.embed.embedder import BgeEmbedder
    from bge_integrations.embed.m3 import BgeM3Embedder
    from bge_integrations.errors import (
        BgeError,
        ClosedError,
        DeviceLostError,
        FingerprintMismatchError,
        ForkedProcessError,
        InputTooLongError,
        MissingExtraError,
        MissingWeightsError,
        NonFiniteError,
        NotAllowedError,
        OverBudgetError,
        OverloadedError,
        ServerUnavailableError,
        UnknownModelError,
        UnsupportedModelError,
        WrongKindError,
    )
    from bge_integrations.rerank.reranker import BgeReranker
    from bge_integrations.runtime.cache import ModelCache, default_cache
    from bge_integrations.stores.sparse_index import SparseIndex
    from bge_integrations.types import M3Embeddings, Pooling, RerankResult, SparseEmbedding

__version__ = "0.1.0"

__all__ = [
    "BgeEmbedder",
    "BgeError",
    "BgeM3Embedder",
    "BgeReranker",
    "ClosedError",
    "DeviceLostError",
    "FingerprintMismatchError",
    "ForkedProcessError",
    "InputTooLongError",
    "M3Embeddings",
    "MissingExtraError",
    "MissingWeightsError",
    "ModelCache",
    "ModelSpec",
    "NonFiniteError",
    "NotAllowedError",
    "OverBudgetError",
    "OverloadedError",
    "Pooling",
    "RerankResult",
    "ServerUnavailableError",
    "SparseEmbedding",
    "SparseIndex",
    "UnknownModelError",
    "UnsupportedModelError",
    "WrongKindError",
    "__version__",
    "default_cache",
    "get_spec",
    "list_models",
]

_HOMES = {
    "BgeEmbedder": "embed.embedder",
    "BgeM3Embedder": "embed.m3",
    "BgeReranker": "rerank.reranker",
    "M3Embeddings": "types",
    "ModelCache": "runtime.cache",
    "ModelSpec": "catalog",
    "Pooling": "types",
    "RerankResult": "types",
    "SparseEmbedding": "types",
    "SparseIndex": "stores.sparse_index",
    "default_cache": "runtime.cache",
    "get_spec": "catalog",
    "list_models": "catalog",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
