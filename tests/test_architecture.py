"""The laws of the house: which part may import what, how long things may be, and what no module may do."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import bge_integrations

PACKAGE = Path(bge_integrations.__file__).parent
TESTS = Path(__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
ANYTHING = frozenset({"*"})
MAX_MODULE_LINES = 400
MIN_MODULE_LINES = 60
SHORT_MODULES = {
    "cli.__main__": "python -m bge_integrations.cli needs a module of that name",
    "inference.backends.base": "the one seam: every backend imports it, and it imports none",
    "inference.backends.sentence_transformers": "another library does the work",
    "runtime.nncf_script": "it runs in a process of its own, as nncf takes over the one that imports it",
}
"""Modules that are shorter, and why: a fragment of a thought belongs to the rest of it."""
MAX_TEST_LINES = 600
MAX_FUNCTION_LINES = 50


@dataclass(frozen=True)
class Law:
    """What a part may import: of ours, of others when it is imported, of others inside its functions besides."""

    ours: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    others_inside: frozenset[str] = frozenset()


def law(ours: str = "", others: str = "", inside: str = "") -> Law:
    return Law(frozenset(ours.split()), frozenset(others.split()), frozenset(inside.split()))


INFERENCE = "inference process architectures errors types"
CORE = "runtime inference process architectures catalog errors types"
FOR_ADAPTERS = "_fields embed rerank stores catalog errors types runtime.cache.ModelCache"
LAWS = {
    "": law("_moved embed rerank runtime stores catalog errors types"),
    "_moved": law(),
    "errors": law(),
    "process": law("errors"),
    "architectures": law(),
    "_fields": law("runtime.cache.ModelCache runtime.address", "pydantic"),
    "types": law("errors", "numpy"),
    "catalog": law("errors types"),
    "inference": law(INFERENCE, "numpy tokenizers"),
    "inference.backends.pytorch": law(INFERENCE, "numpy torch"),
    "inference.backends.m3": law(INFERENCE, "numpy torch"),
    "inference.backends.fused": law(INFERENCE, "torch"),
    "inference.backends.graphs": law(INFERENCE, "numpy torch"),
    "inference.backends.proof": law(INFERENCE, "numpy torch"),
    "inference.backends.layerwise": law(INFERENCE, "numpy torch transformers"),
    "inference.backends.varlen": law(INFERENCE, "numpy torch transformers"),
    "inference.backends.openvino": law(INFERENCE, "numpy openvino"),
    "inference.backends.sentence_transformers": law(INFERENCE, "numpy torch sentence_transformers"),
    "runtime": law(
        CORE,
        "numpy",
        "huggingface_hub nncf openvino peft safetensors sentence_transformers tokenizers torch tqdm transformers",
    ),
    "runtime.encoder_graph": law(CORE, "numpy openvino"),
    "runtime.plain_tokenizer": law(CORE, "tokenizers"),
    "runtime.auto": law(f"__version__ {CORE}"),
    "runtime.connections": law(CORE, "h11"),
    "serve": law(
        f"serve metrics embed rerank __version__ {CORE}",
        "fastapi numpy orjson prometheus_client pydantic starlette uvicorn",
    ),
    "metrics": law("runtime.cache errors", "prometheus_client"),
    "embed": law(f"embed {CORE}", "numpy"),
    "rerank": law(f"rerank {CORE}", "numpy"),
    "stores": law("stores embed errors types", "numpy"),
    "langchain": law(
        f"langchain {FOR_ADAPTERS}",
        "langchain_core numpy pydantic pydantic_core",
        "sentence_transformers torch transformers",
    ),
    "langchain.sparse": law(f"langchain {FOR_ADAPTERS}", "langchain_qdrant"),
    "llama_index": law(f"llama_index {FOR_ADAPTERS}", "llama_index pydantic"),
    "chroma": law(f"chroma {FOR_ADAPTERS} runtime.user.ModelUser", "chromadb numpy"),
    "populate": law("populate embed stores process errors types", "numpy tenacity tqdm"),
    "populate.embedders": law("populate embed stores chroma process errors types", "numpy"),
    "populate.nodes": law("populate embed stores errors types", "llama_index"),
    "populate.sinks.llama_index": law("populate embed stores errors types", "llama_index numpy"),
    "populate.sinks.qdrant": law("populate embed stores errors types", "numpy qdrant_client"),
    "populate.sinks.lancedb": law("populate embed stores errors types", "numpy pyarrow"),
    "populate.sinks.recorded": law("populate embed stores errors types", "numpy", inside="llama_index"),
    "ray": law("populate embed rerank serve runtime.user.ModelUser errors types", "langchain_core numpy ray"),
    "spark": law(
        "populate embed rerank runtime.address runtime.cache.CacheArgument errors types",
        "numpy pandas pyarrow pyspark",
        "langchain_core",
    ),
    "export": law(
        f"export embed rerank {CORE}",
        "numpy",
        "huggingface_hub onnx onnx_ir onnxruntime tokenizers torch transformers",
    ),
    "evaluation": law("evaluation embed rerank errors types", "numpy tqdm", "ir_measures"),
    "cli": law("*", "typer", "*"),
    "cli.doctor": law("*", "rich", "huggingface_hub torch"),
    "cli.report": law("*", "rich", "matplotlib"),
    "cli.corpus": law("*", "langchain_core langchain_text_splitters", "transformers"),
    "cli.store": law("*", "chromadb numpy", "langchain_chroma langchain_core"),
}
FRAMEWORK_SIGNATURES = (
    "langchain",
    "llama_index",
    "chroma",
    "spark",  # pyspark's own stages take what they are given so, by `_set` and `setParams`
    "inference.backends.varlen",  # transformers calls it with whatever the model was called with
)


def part_of(path: Path) -> str:
    """Give "inference.engine" for inference/queue.py, "inference" for its __init__.py, "" for the package's."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_within(name: str, allowed: frozenset[str]) -> bool:
    return allowed == ANYTHING or any(name == part or name.startswith(f"{part}.") for part in allowed)


def law_of(part: str) -> Law:
    """Give the law of the nearest part; the top of the package has a law of its own."""
    nearest = part
    while nearest not in LAWS:
        nearest, dot, _ = nearest.rpartition(".")
        assert dot, f"{part} has no law: add one"
    return LAWS[nearest]


def imported(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return []


def statements(body: list[ast.stmt], *, runs_at_import: bool = True) -> Iterator[tuple[ast.stmt, bool]]:
    """Give every statement, and whether it runs when the module is imported."""
    for node in body:
        yield node, runs_at_import
        inside = runs_at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for name in ("body", "handlers", "orelse", "finalbody"):
            for_types = name == "body" and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            children = [
                child
                for entry in getattr(node, name, [])
                for child in (entry.body if isinstance(entry, ast.ExceptHandler) else [entry])
            ]
            yield from statements(children, runs_at_import=inside and not for_types)


def wrong_imports(source: str, part: str) -> list[str]:
    allowed = law_of(part)
    wrong = []
    for node, runs_at_import in statements(ast.parse(source).body):
        for name in imported(node):
            root, _, rest = name.partition(".")
            if root == PACKAGE.name:
                fine = is_within(rest, allowed.ours)
            elif root in sys.stdlib_module_names:
                fine = True
            else:
                fine = is_within(root, allowed.others) or (
                    not runs_at_import and is_within(root, allowed.others_inside)
                )
            if not fine:
                wrong.append(f"line {node.lineno}: {part or PACKAGE.name} may not import {name} here")
    return wrong


def functions(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def too_long(source: str, limit: int = MAX_MODULE_LINES) -> list[str]:
    lines = len(source.splitlines())
    wrong = [f"the module has {lines} lines, {limit} are allowed"] if lines > limit else []
    for node in functions(source):
        length = (node.end_lineno or 0) - node.lineno + 1
        if length > MAX_FUNCTION_LINES:
            wrong.append(f"line {node.lineno}: {node.name} has {length} lines, {MAX_FUNCTION_LINES} are allowed")
    return wrong


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def public_kwargs(body: list[ast.stmt]) -> list[str]:
    wrong = []
    for node in body:
        if isinstance(node, ast.ClassDef) and not is_private(node.name):
            wrong += public_kwargs(node.body)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_private(node.name) and node.args.kwarg:
            wrong.append(f"line {node.lineno}: {node.name} takes **{node.args.kwarg.arg}")
    return wrong


def prints(source: str) -> list[str]:
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        f"line {call.lineno}: print" for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]


each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))


@each_module
def test_imports(path):
    assert wrong_imports(path.read_text(encoding="utf-8"), part_of(path)) == []


@each_module
def test_modules_and_functions_are_short(path):
    assert too_long(path.read_text(encoding="utf-8")) == []


def test_only_modules_with_a_reason_are_fragments():
    short = {
        part_of(path)
        for path in MODULES
        if path.name != "__init__.py" and len(path.read_text(encoding="utf-8").splitlines()) < MIN_MODULE_LINES
    }
    assert short == set(SHORT_MODULES)


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_test_modules_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_TEST_LINES


@each_module
def test_public_signatures_name_their_arguments(path):
    if not is_within(part_of(path), frozenset(FRAMEWORK_SIGNATURES)):
        assert public_kwargs(ast.parse(path.read_text(encoding="utf-8")).body) == []


@each_module
def test_nothing_is_printed(path):
    assert prints(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("errors", "import numpy"),
        ("types", "from bge_integrations.catalog import ModelSpec"),
        ("catalog", "def f():\n    import torch"),
        ("inference.engine", "import torch"),
        ("inference.engine", "def f():\n    async def g():\n        import torch"),
        ("inference.engine", "from bge_integrations import catalog"),
        ("inference.tokenize", "from bge_integrations.runtime.cache import ModelCache"),
        ("runtime.loader", "import torch"),
        ("runtime.loader", "class A:\n    import torch"),
        ("runtime.loader", "try:\n    pass\nexcept ImportError:\n    import torch"),
        ("runtime.loader", "try:\n    pass\nfinally:\n    from torch import nn"),
        ("runtime.loader", "if True:\n    pass\nelse:\n    import torch"),
        ("runtime.loader", "from bge_integrations.embed.embedder import BgeEmbedder"),
        ("embed.embedder", "import bge_integrations.langchain"),
        ("embed.embedder", "from .. import runtime"),
        ("rerank.reranker", "if TYPE_CHECKING:\n    import torch"),
        ("langchain.rerank", "import llama_index.core"),
        ("langchain.rerank", "from bge_integrations.llama_index import BgeRerank"),
        ("langchain.rerank", "from bge_integrations.inference.engine import Queue"),
        ("llama_index.retriever", "from bge_integrations.langchain import RerankingRetriever"),
        ("chroma", "from bge_integrations.runtime.cache import default_cache"),
        ("chroma", "import bge_integrations.runtime.cache"),
        ("populate.pipeline", "from bge_integrations.rerank.reranker import BgeReranker"),
        ("populate.pipeline", "import chromadb"),
        ("cli.app", "import chromadb"),
        ("", "import numpy"),
        ("", "from bge_integrations.langchain import BgeEmbeddings"),
    ],
)
def test_a_wrong_import_is_seen(part, source):
    assert len(wrong_imports(source, part)) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("inference.engine", "import numpy as np\nimport threading"),
        ("inference.backends.pytorch", "import torch.nn"),
        ("runtime.loader", "def f():\n    import torch"),
        ("runtime.loader", "if TYPE_CHECKING:\n    import torch"),
        ("langchain.rerank", "from bge_integrations.runtime.cache import ModelCache\nimport langchain_core.documents"),
        ("cli.app", "def f():\n    import chromadb\n    from bge_integrations import BgeEmbedder"),
    ],
)
def test_a_right_import_passes(part, source):
    assert wrong_imports(source, part) == []


def test_a_part_without_a_law_is_seen():
    with pytest.raises(AssertionError, match="add one"):
        wrong_imports("import numpy", "cellar.wine")


def test_length_is_seen():
    assert too_long("\n" * MAX_MODULE_LINES) == []
    assert len(too_long("\n" * (MAX_MODULE_LINES + 1))) == 1
    assert too_long("def f():\n" + "    pass\n" * (MAX_FUNCTION_LINES - 1)) == []
    assert len(too_long("class A:\n  async def f():\n" + "    pass\n" * MAX_FUNCTION_LINES)) == 1


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("def f(**options): pass", 1),
        ("class A:\n    def __init__(self, **options): pass\n    async def g(self, **options): pass", 2),
        ("def _f(**options): pass\nclass _A:\n    def g(self, **options): pass\ndef g(*texts): pass", 0),
    ],
)
def test_public_kwargs_are_seen(source, wrong):
    assert len(public_kwargs(ast.parse(source).body)) == wrong


def test_a_print_is_seen():
    assert len(prints("def f():\n    print('x')")) == 1
    assert prints("console.print('x')") == []
