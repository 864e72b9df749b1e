"""Every kind of embedder and reranker through both frameworks: the core's numbers, over one copy."""

from pathlib import Path

import numpy as np
import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.langchain import BgeRerank as LangChainRerank
from bge_integrations.llama_index import BgeEmbedding
from bge_integrations.llama_index import BgeRerank as LlamaIndexRerank

MODELS = Path(__file__).parent / "golden" / "models"
TEXTS = ["The giant panda is a bear species.", "Paris is the capital of France.", "Bamboo is a grass.", "hi"]
QUERY = "what is panda?"
RERANKERS = {
    "gemma": ("gemma_rr", "BAAI/bge-reranker-v2-gemma", {"prompt": "Is B about A?"}),
    "layerwise": ("minicpm", "BAAI/bge-reranker-v2-minicpm-layerwise", {"cutoff_layers": [2, 4]}),
    "lightweight": (
        "lw",
        "BAAI/bge-reranker-v2.5-gemma2-lightweight",
        {"cutoff_layers": [4], "compress_layers": [2], "compress_ratio": 2},
    ),
    "cross-encoder": ("xlmr_seqcls", None, {}),
}
EMBEDDERS = {
    "gemma2": ("gemma2emb", "BAAI/bge-multilingual-gemma2", {"query_instruction": "Find it."}),
    "icl": ("icl", "BAAI/bge-en-icl", {"examples": [{"instruct": "Find.", "query": "a", "response": "b"}]}),
    "code": ("qwen2emb", "BAAI/bge-code-v1", {"task": "CosQA"}),
    "llm-embedder": ("bert", "BAAI/llm-embedder", {"task": "chat"}),
    "m3": ("m3", "BAAI/bge-m3", {}),
}


@pytest.mark.parametrize("kind", RERANKERS)
def test_rerankers(kind, cache):
    name, like, arguments = RERANKERS[kind]
    shared = {"model": str(MODELS / name), "like": like, "cache": cache, **arguments}
    results = BgeReranker(**shared).rerank(QUERY, TEXTS)
    expected = [(TEXTS[result.index], pytest.approx(result.score, abs=1e-6)) for result in results]

    documents = LangChainRerank(**shared, top_n=4).compress_documents([Document(text) for text in TEXTS], QUERY)
    assert [(d.page_content, d.metadata["relevance_score"]) for d in documents] == expected

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    best = LlamaIndexRerank(**shared, top_n=4).postprocess_nodes(nodes, QueryBundle(QUERY))
    assert [(node.text, node.score) for node in best] == expected
    assert cache.stats()["loads"] == 1


@pytest.mark.parametrize("kind", EMBEDDERS)
def test_embedders(kind, cache):
    name, like, arguments = EMBEDDERS[kind]
    shared = {"like": like, "cache": cache, **arguments}
    core = BgeEmbedder(str(MODELS / name), **shared)
    langchain = BgeEmbeddings(model=str(MODELS / name), **shared)
    llama_index = BgeEmbedding(model_name=str(MODELS / name), **shared)
    queries, documents = core.encode_queries([QUERY]), core.encode_documents(TEXTS)
    for query in (langchain.embed_query(QUERY), llama_index.get_query_embedding(QUERY)):
        np.testing.assert_allclose([query], queries, atol=1e-6)
    for vectors in (langchain.embed_documents(TEXTS), llama_index.get_text_embedding_batch(TEXTS)):
        np.testing.assert_allclose(vectors, documents, atol=1e-6)
    assert cache.stats()["loads"] == 1
