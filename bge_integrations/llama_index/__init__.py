"""BGE embedders and rerankers for LlamaIndex; needs only llama-index-core (extra `llama-index`)."""

from importlib.util import find_spec

from bge_integrations.errors import MissingExtraError

if find_spec("llama_index") is None or find_spec("llama_index.core") is None:
    raise MissingExtraError(
        'bge_integrations.llama_index needs llama-index-core. Install it: pip install "bge_integrations[llama-index]"'
    )

from bge_integrations.llama_index.embedding import BgeEmbedding
from bge_integrations.llama_index.hybrid import HybridRetriever
from bge_integrations.llama_index.rerank import BgeM3Rerank, BgeRerank
from bge_integrations.llama_index.retriever import RerankingRetriever
from bge_integrations.llama_index.sparse import BgeM3SparseEmbedding

__all__ = [
    "BgeEmbedding",
    "BgeM3Rerank",
    "BgeM3SparseEmbedding",
    "BgeRerank",
    "HybridRetriever",
    "RerankingRetriever",
]
