"""The demo's own code, on few passages."""

import importlib.util
from pathlib import Path

import pytest

from bge_integrations import default_cache


@pytest.mark.slow
def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo", path)
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)

    assert len({document.id for document in demo.standard_library()}) > 4000
    demo.run(tmp_path, passages=60)
    first = capsys.readouterr().out
    assert "60 added" in first
    for line in ("LangChain 1.", "LlamaIndex 1.", "retrieved 1."):
        assert line in first
    answers = [line.removeprefix(" LangChain ") for line in first.splitlines() if line.startswith(" LangChain")]
    assert answers == [line.removeprefix("LlamaIndex ") for line in first.splitlines() if line.startswith("LlamaIndex")]

    demo.run(tmp_path, passages=60)
    assert "0 added, 60 already there, 0 embedded" in capsys.readouterr().out
    loaded = [model["model"] for model in default_cache().stats()["models"]]
    assert [loaded.count(name) for name in (demo.EMBEDDER, demo.RERANKER)] == [1, 1]
