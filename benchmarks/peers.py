"""The peers on the same weights."""

import sys
from pathlib import Path

from benchmarks.harness import Call
from bge_integrations.export import export_onnx

PACKAGES = Path(__file__).parents[1] / "build" / "benchmarks" / "packages"
"""Where `make bench` puts those of peers.txt."""


def framework_calls(folder: Path, texts: list[str]) -> dict[str, Call]:
    """What LangChain and LlamaIndex users call today, and fastembed on ONNX Runtime; none where they are not there."""
    if not PACKAGES.exists():
        return {}
    sys.path.append(str(PACKAGES))
    from langchain_huggingface import HuggingFaceEmbeddings
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    langchain = HuggingFaceEmbeddings(model_name=str(folder))
    llama_index = HuggingFaceEmbedding(model_name=str(folder))
    fastembed = _fastembed(folder)
    return {
        "langchain-huggingface": lambda: langchain.embed_documents(texts),
        "llama-index-embeddings-huggingface": lambda: llama_index.get_text_embedding_batch(texts),
        "fastembed (its batch of 256)": lambda: list(fastembed.embed(texts)),
        "fastembed, batch 8": lambda: list(fastembed.embed(texts, batch_size=8)),
    }


def _fastembed(folder: Path) -> "object":
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    exported = folder.with_name("onnx")
    export_onnx(str(folder), exported)
    name = "benchmark/embedder"
    TextEmbedding.add_custom_model(
        name,
        pooling=PoolingType.CLS,
        normalization=True,
        sources=ModelSource(hf=name),
        dim=384,
    )
    return TextEmbedding(name, specific_model_path=str(exported))
