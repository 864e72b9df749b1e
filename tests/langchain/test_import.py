"""What importing the room costs and needs."""

import subprocess
import sys


def _run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_importing_and_constructing_load_no_torch_and_no_other_framework() -> None:
    heavy = ("torch", "transformers", "sentence_transformers", "llama_index", "chromadb", "langchain_classic")
    code = (
        "import sys, bge_integrations.langchain as room\n"
        "room.BgeEmbeddings(model='BAAI/bge-m3'); room.BgeRerank(model='BAAI/bge-reranker-base')\n"
        "room.HuggingFaceBgeEmbeddings(model_name='BAAI/bge-m3', query_instruction='')\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    assert _run(code) == "[]"


def test_without_langchain_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['langchain_core'] = None\n"
        "from bge_integrations import MissingExtraError\n"
        "try: import bge_integrations.langchain\n"
        "except MissingExtraError as error: print(error)"
    )
    assert 'pip install "bge_integrations[langchain]"' in _run(code)
