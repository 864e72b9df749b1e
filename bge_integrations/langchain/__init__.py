"""BGE embedders and rerankers for LangChain; needs only langchain-core (extra `langchain`)."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from bge_integrations.errors import MissingExtraError

if find_spec("langchain_core") is None:
    raise MissingExtraError(
        'bge_integrations.langchain needs langchain-core. Install it: pip install "bge_integrations[langchain]"'
    )

from bge_integrations.langchain.embeddings import BgeEmbeddings
from bge_integrations.langchain.huggingface import HuggingFaceBgeEmbeddings
from bge_integrations.langchain.hybrid import HybridRetriever
from bge_integrations.langchain.rerank import BgeCrossEncoder, BgeM3Rerank, BgeRerank
from bge_integrations.langchain.retriever import RerankingRetriever

if TYPE_CHECKING:
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


def __getattr__(name: str) -> object:
    if name != "BgeM3SparseEmbeddings":  # it alone needs langchain-qdrant, which takes its time to import
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bge_integrations.langchain.sparse import BgeM3SparseEmbeddings

    return BgeM3SparseEmbeddings
