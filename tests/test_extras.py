"""What is imported without its framework says which extra has it."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # starts processes of its own


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [
        ("chroma", "chromadb", "chroma"),
        ("chroma.sparse", "chromadb", "chroma"),
        ("langchain", "langchain_core", "langchain"),
        ("langchain.sparse", "langchain_qdrant", "qdrant"),
        ("llama_index", "llama_index", "llama-index"),
        ("llama_index", "llama_index.core", "llama-index"),
        ("ray", "ray", "ray"),
        ("ray", "langchain_core", "ray"),
        ("populate.ray", "ray", "ray"),
        ("populate.spark", "pyspark", "spark"),
        ("metrics", "prometheus_client", "serve"),
        ("serve", "fastapi", "serve"),
        ("serve", "uvicorn", "serve"),
        ("spark", "pyspark", "spark"),
        ("spark", "pandas", "spark"),
        ("spark", "pyarrow", "spark"),
    ],
)
def test_the_extra_is_named(module: str, missing: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from bge_integrations import MissingExtraError\n"
        f"try: import bge_integrations.{module}\n"
        "except MissingExtraError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f'pip install "bge_integrations[{extra}]"' in run.stdout


def test_populate_needs_none_of_them() -> None:
    names = ("chromadb", "langchain_core", "llama_index", "qdrant_client", "lancedb", "pyarrow", "pyspark", "ray")
    code = f"import sys; sys.modules.update(dict.fromkeys({names!r})); import bge_integrations.populate"
    subprocess.run([sys.executable, "-c", code], check=True)
