"""The main job, offline: real passages into a real vector store, and answers through two frameworks.

The docstrings of the running Python's standard library go into Chroma. Then LangChain and LlamaIndex answer questions
from that one collection: retrieve, then rerank, with one copy of each model between them. The models are the small pair
that ships with the package.

    python examples/demo.py [--store FOLDER] [--passages 4100]

Run it twice with the same --store: the second time nothing is computed.
"""

import argparse
import ast
import hashlib
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import chromadb
from langchain_chroma import Chroma
from langchain_core.documents import Document
from llama_index.core import VectorStoreIndex
from llama_index.vector_stores.chroma import ChromaVectorStore
from rich.console import Console
from rich.table import Table

from bge_integrations import default_cache
from bge_integrations.langchain import BgeEmbeddings, BgeRerank, RerankingRetriever
from bge_integrations.llama_index import BgeEmbedding
from bge_integrations.llama_index import BgeRerank as NodeReranker
from bge_integrations.llama_index import RerankingRetriever as NodeRetriever
from bge_integrations.populate import populate

QUESTIONS = [
    "How do I wrap a long paragraph to a given line width?",
    "find the longest matching block between two sequences",
    "run a command and capture what it prints",
    "How can I read one file inside a zip archive?",
    "Which function escapes characters that are special in HTML?",
    "How do I copy a whole folder with everything in it?",
]
EMBEDDER, RERANKER = "bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"
COLLECTION = "stdlib"
FETCH, SHOW = 50, 3
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "tkinter", "distutils"}
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
MIN_WORDS, MAX_CHARACTERS = 8, 240

console = Console(width=None if sys.stdout.isatty() else 140)


def main() -> None:
    """Index, ask through both frameworks, and show what the cache holds."""
    parser = argparse.ArgumentParser(description="Index the standard library's docstrings and ask questions.")
    parser.add_argument("--store", type=Path, help="folder of the store; default: a temporary one")
    parser.add_argument("--passages", type=int, default=4100, help="how many passages to index")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        run(arguments.store or Path(temporary), arguments.passages)


def run(folder: Path, passages: int) -> None:
    """Fill the store in `folder` and ask it."""
    started = time.perf_counter()
    documents = sorted(standard_library(), key=digest)[:passages]
    console.rule(f"{len(documents)} docstrings of the standard library")

    client = chromadb.PersistentClient(str(folder))
    store = Chroma(
        COLLECTION,
        embedding_function=BgeEmbeddings(model=EMBEDDER),
        client=client,
        collection_configuration={"hnsw": {"space": "cosine"}},
    )
    report = populate(store, documents)
    console.print(
        f"{report.added} added, {report.skipped} already there, {report.texts} embedded in {report.seconds:.1f} s"
    )

    chain = RerankingRetriever(vector_store=store, reranker=BgeRerank(model=RERANKER), fetch_k=FETCH, top_n=SHOW)
    vector_store = ChromaVectorStore(chroma_collection=client.get_collection(COLLECTION))
    index = VectorStoreIndex.from_vector_store(vector_store, embed_model=BgeEmbedding(model_name=EMBEDDER))
    nodes = NodeRetriever(index=index, reranker=NodeReranker(model=RERANKER, top_n=SHOW), fetch_k=FETCH)
    for question in QUESTIONS:
        console.rule(question, align="left")
        show("retrieved", [document.page_content for document in store.similarity_search(question, k=SHOW)])
        show("LangChain", [document.page_content for document in chain.invoke(question)])
        show("LlamaIndex", [node.text for node in nodes.retrieve(question)])

    show_cache()
    console.print(f"{time.perf_counter() - started:.0f} s in all, nothing downloaded")


def standard_library() -> Iterator[Document]:
    """Yield the docstrings of the running Python's standard library, but for very short ones."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts):
            module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            yield from docstrings(path, module)


def digest(document: Document) -> bytes:
    """A key that shuffles documents, the same way each time."""
    return hashlib.sha256(document.page_content.encode()).digest()


def docstrings(path: Path, module: str) -> Iterator[Document]:
    """Yield what one file says about its module, classes and functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            todo: list[tuple[ast.AST, str]] = [(ast.parse(path.read_bytes()), module)]
        except (SyntaxError, ValueError):
            return
    while todo:
        node, name = todo.pop()
        if isinstance(node, (ast.Module, *DEFINITIONS)):
            text = first_paragraphs(ast.get_docstring(node) or "")
            if len(text.split()) >= MIN_WORDS:
                yield Document(f"{name}: {text}", id=name)
        children = ast.iter_child_nodes(node)
        todo += [(child, f"{name}.{child.name}") for child in children if isinstance(child, DEFINITIONS)]


def first_paragraphs(text: str) -> str:
    """Return as many whole paragraphs as fit, at least the first, cut if it alone is too long."""
    kept, *others = text.split("\n\n")
    for paragraph in others:
        if len(kept) + len(paragraph) > MAX_CHARACTERS:
            break
        kept += "\n\n" + paragraph
    return kept[:MAX_CHARACTERS]


def show(how: str, passages: list[str]) -> None:
    """Print passages, one line each."""
    for rank, passage in enumerate(passages, start=1):
        console.print(f"{how:>10} {rank}. {' '.join(passage.split())}", markup=False, no_wrap=True, overflow="ellipsis")


def show_cache() -> None:
    """Print what the process-wide cache holds: one row a copy of a model."""
    table = Table("model", "device", "dtype", "engine", "MB", "batches", "tokens", title="Models in memory")
    for entry in default_cache().stats()["models"]:
        facts = (entry["model"], entry["device"], entry["dtype"], entry["engine"])
        table.add_row(*facts, f"{entry['bytes'] / 1e6:.0f}", str(entry["batches"]), f"{entry['tokens']:,}")
    console.print(table)


if __name__ == "__main__":
    main()
