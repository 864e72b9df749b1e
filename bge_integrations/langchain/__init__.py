"""BGE embedders and rerankers for LangChain; needs only langchain-core (extra `langchain`)."""

from importlib.util import find_spec

from bge_integrations.errors import MissingExtraError

if find_spec("langchain_core") is None:
    raise MissingExtraError(
        'bge_integrations.langchain needs langchain-core. Install it: pip install "bge_integrations[langchain]"'
    )

from bge_integrations.langchain.embeddings import BgeEmbeddings
from bge_integrations.langchain.huggingface import HuggingFaceBgeEmbeddings
from bge_integrations.langchain.rerank import BgeCrossEncoder, BgeRerank
from bge_integrations.langchain.retriever import RerankingRetriever

__all__ = ["BgeCrossEncoder", "BgeEmbeddings", "BgeRerank", "HuggingFaceBgeEmbeddings", "RerankingRetriever"]
