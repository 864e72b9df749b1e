"""Exported folders in Transformers.js under Node, beside the package's own vectors and scores."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny

from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.export import export_onnx, graph

pytestmark = [pytest.mark.node, pytest.mark.timeout(600)]
PACKAGE = "@huggingface/transformers@4"
TEXTS = [*tiny.TEXT.strip().splitlines(), "Bread", " ".join(tiny.TEXT.split()[:60])]
TOO_LONG = tiny.TEXT * 4
Node = Callable[..., list]


@pytest.fixture(scope="module")
def node(pytestconfig: pytest.Config) -> Node:
    """Run a script of this folder, or its text, in a folder where Transformers.js is installed."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node and npm")
    home = pytestconfig.cache.mkdir("transformers-js")
    if not (home / "node_modules").exists():
        # Without scripts: onnxruntime-node would fetch CUDA.
        install = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", home, PACKAGE]
        done = subprocess.run(install, capture_output=True, text=True, timeout=500)
        if done.returncode:
            shutil.rmtree(home / "node_modules", ignore_errors=True)
            pytest.skip(f"the npm registry cannot be reached: {done.stderr[-300:]}")

    def run(script: str, *arguments: object, given: object = None, cwd: Path | None = None) -> list:
        source = Path(__file__).with_name(script).read_text(encoding="utf-8") if script.endswith(".mjs") else script
        file = home / "script.mjs"  # imports are looked up from where the script lies
        file.write_text(source, encoding="utf-8")
        done = subprocess.run(
            ["node", file, *map(str, arguments)], input=json.dumps(given), cwd=cwd, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module", params=["packaged", "xlmr", "m3"])
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[BgeEmbedder, Path]:
    folder, like = tmp_path_factory.mktemp("export"), None
    if request.param == "packaged":
        model = "bge-integrations/mini-embedder-en"
    elif request.param == "m3":
        model, like = str(Path(__file__).parents[1] / "golden" / "models" / "m3"), "BAAI/bge-m3"
    else:
        model = str(tiny.make_xlmr_embedder(folder / "source", hidden=64, initializer_range=0.15))
    return BgeEmbedder(model, like=like, on_truncate="ignore"), export_onnx(model, folder / "model", like=like).folder


@pytest.fixture(scope="module", params=["packaged", "xlmr"])
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[BgeReranker, Path]:
    folder, model = tmp_path_factory.mktemp("export"), "bge-integrations/mini-reranker-en"
    if request.param == "xlmr":
        model = str(tiny.make_xlmr_reranker(folder / "source", hidden=64, initializer_range=0.15))
    return BgeReranker(model), export_onnx(model, folder / "model").folder


def javascript_of_card(folder: Path, dtype: str) -> str:
    card = (folder / "README.md").read_text(encoding="utf-8")
    return re.search(r"^```js\n(.*?)^```", card, flags=re.DOTALL | re.MULTILINE)[1].replace('"q8"', f'"{dtype}"')


def lowest_cosine(vectors: list[list[float]], expected: np.ndarray) -> float:
    return float((np.array(vectors) * expected).sum(1).min())


@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0.9999), ("q8", 0.99)])
def test_vectors_are_the_package_s_own(
    node: Node, embedder: tuple[BgeEmbedder, Path], dtype: str, least: float
) -> None:
    model, folder = embedder
    expected = model.encode_documents(TEXTS)
    assert lowest_cosine(node("vectors.mjs", folder, dtype, given=TEXTS), expected) > least
    assert lowest_cosine(node("vectors.mjs", folder, dtype, given=TEXTS[:1]), expected[:1]) > least


def test_a_text_over_the_limit_is_cut(node: Node, embedder: tuple[BgeEmbedder, Path]) -> None:
    model, folder = embedder
    vectors = node("vectors.mjs", folder, "fp32", given=[TOO_LONG])
    assert lowest_cosine(vectors, model.encode_documents([TOO_LONG])) > 0.999  # its closing token is cut off too


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 1e-5), ("q8", 0.02)])
def test_scores_are_the_package_s_own(node: Node, reranker: tuple[BgeReranker, Path], dtype: str, most: float) -> None:
    model, folder = reranker
    query, passages = "Which planet is the largest?", TEXTS
    given = node("scores.mjs", folder, dtype, given={"query": query, "passages": passages})
    np.testing.assert_allclose(given, model.score([(query, passage) for passage in passages]), atol=most)


@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0.9999), ("q8", 0.99)])
def test_javascript_of_an_embedder_s_card_runs(
    node: Node, embedder: tuple[BgeEmbedder, Path], dtype: str, least: float
) -> None:
    model, folder = embedder
    vectors = node(javascript_of_card(folder, dtype), cwd=folder.parent)
    assert lowest_cosine(vectors[:1], model.encode_queries(["what do pandas eat?"])) > least
    assert lowest_cosine(vectors[1:], model.encode_documents(["Giant pandas eat bamboo."])) > least


def test_javascript_of_a_reranker_s_card_runs(node: Node, reranker: tuple[BgeReranker, Path]) -> None:
    model, folder = reranker
    expected = model.score([("what do pandas eat?", "Giant pandas eat bamboo.")])
    np.testing.assert_allclose(node(javascript_of_card(folder, "fp32"), cwd=folder.parent), [expected], atol=1e-5)


def test_weights_beside_the_graph_are_found(
    node: Node, tmp_path: Path, bert_embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "LARGEST_FILE", 1000)
    folder = export_onnx(str(bert_embedder), tmp_path / "model").folder
    expected = BgeEmbedder(str(bert_embedder)).encode_documents(TEXTS[:3])
    assert lowest_cosine(node("vectors.mjs", folder, "fp32", given=TEXTS[:3]), expected) > 0.9999
