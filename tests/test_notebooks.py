"""The notebooks: what is committed of them, and that they run from top to bottom."""

import ast
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 240
MAX_BYTES = 200_000
PRINTING = {"display", "print", "show"}
OF_A_MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users)\b|[A-Z]:\\")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_of(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def complaints(notebook: NotebookNode) -> list[str]:
    """What went to stderr, and errors that were let through."""
    outputs = [output for cell in code_of(notebook) for output in cell.outputs]
    return [
        output.get("text") or output.get("evalue")
        for output in outputs
        if output.output_type == "error" or output.get("name") == "stderr"
    ]


def prints(source: str) -> bool:
    """Whether a cell calls for output itself, and not only in functions that it defines or a file that it writes."""
    if source.startswith("%%writefile"):
        return False
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return any(
        isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", None)) in PRINTING
        for statement in ast.parse(source).body
        if not isinstance(statement, definitions)
        for node in ast.walk(statement)
    )


def texts_of(notebook: NotebookNode) -> Iterator[str]:
    """All that is written in a notebook; pictures are left out, as chance may write anything there."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
            yield json.dumps({**output, "data": data}, ensure_ascii=False)


def test_they_are_numbered() -> None:
    assert NOTEBOOKS
    assert [path.name.partition("_")[0] for path in NOTEBOOKS] == [str(n + 1) for n in range(len(NOTEBOOKS))]


@each_notebook
def test_committed_as_it_ran_in_a_fresh_kernel(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    code = code_of(notebook)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [cell.source for cell in code if prints(cell.source) and not cell.outputs] == []
    assert complaints(notebook) == []


@each_notebook
def test_committed_small_and_without_traces_of_a_machine(path: Path) -> None:
    notebook = read(path)
    assert path.stat().st_size < MAX_BYTES
    assert [text for text in texts_of(notebook) if OF_A_MACHINE.search(text)] == []
    assert [cell.id for cell in notebook.cells if "execution" in cell.metadata] == []
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.notebook
@pytest.mark.enable_socket  # the kernel is a process of its own, spoken to over the loopback
@pytest.mark.timeout(SECONDS)
@each_notebook
def test_runs(path: Path, tmp_path: Path) -> None:
    notebook = read(path)
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
    assert complaints(notebook) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("print(1)", True),
        ("for n in [1]:\n    print(n)", True),
        ("import matplotlib.pyplot as plt\nplt.show()", True),
        ("print(await f())", True),
        ("def f():\n    print(1)", False),
        ("%%writefile a.py\nprint(1)", False),
        ("n = 1", False),
    ],
)
def test_a_printing_cell_is_known(source: str, expected: bool) -> None:
    assert prints(source) is expected


@pytest.mark.parametrize("text", ["/home/me/x.py", "in '/tmp/a'", "/Users/me", "C:\\data", "at /work"])
def test_a_path_of_a_machine_is_seen(text: str) -> None:
    assert OF_A_MACHINE.search(text)


@pytest.mark.parametrize("text", ["bge-integrations/mini-embedder-en", "https://a.b/work", "home/work"])
def test_other_slashes_are_fine(text: str) -> None:
    assert not OF_A_MACHINE.search(text)
