"""BGE embedders and rerankers for LangChain; needs only langchain-core (extra `langchain`).

Each class is imported when it is first asked for: retrievers need more of LangChain than embeddings do.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bge_integrations.errors import MissingExtraError

if find_spec("langchain_core") is None:
    raise MissingExtraError(
        'bge_integrations.langchain needs langchain-core. Install it: pip install "bge_integrations[langchain]"'
    )

if TYPE_CHECKING:
    from bge_integrations.langchain.embeddings import BgeEmbeddings
    from bge_integrations.langchain.huggingface import HuggingFaceBgeEmbeddings
    from bge_integrations.langchain.hybrid import HybridRetriever
    from bge_integrations.langchain.rerank import BgeCrossEncoder, BgeM3Rerank, BgeRerank
    from bge_integrations.langchain.retriever import RerankingRetriever
    from bge_integrations.langchain.sparse import BgeM3SparseEmbeddings

__all__ = [
    "BgeCrossEncoder",
    "BgeEmbeddings",
    "BgeM3Rerank",
    "BgeM3SparseEmbeddings",
    "BgeRerank",
    "HuggingFaceBgeEmbeddings",
    "HybridRetriever",
    "RerankingRetriever",
]

_HOMES = {
    "BgeCrossEncoder": "rerank",
    "BgeEmbeddings": "embeddings",
    "BgeM3Rerank": "rerank",
    "BgeM3SparseEmbeddings": "sparse",
    "BgeRerank": "rerank",
    "HuggingFaceBgeEmbeddings": "huggingface",
    "HybridRetriever": "hybrid",
    "RerankingRetriever": "retriever",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
