"""Exported folders in ONNX Runtime, beside the package's own vectors and scores."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from bge_integrations import (
    BgeEmbedder,
    BgeReranker,
    MissingWeightsError,
    Pooling,
    UnknownModelError,
    UnsupportedModelError,
)
from bge_integrations.cli.app import app
from bge_integrations.export import export_onnx, exporter, graph
from bge_integrations.runtime.folder import read_folder

FILES = ("onnx/model.onnx", "onnx/model_quantized.onnx")
MINI, MINI_RERANKER = "bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"
M3 = Path(__file__).parents[1] / "golden" / "models" / "m3"
TRAINED_LOOKS = {"hidden": 40, "initializer_range": 0.15}
"""Small weights, so that a small change of the input stays small, as in a trained model; 40 fills no block."""
QUESTIONS = ["Which planet is the largest?", "Where do pandas live?", "Why was the error raised?"]
TEXTS = [
    *(line for line in tiny.TEXT.strip().splitlines()[:16]),
    "Bread",
    " ".join(tiny.TEXT.split()[:160]),
    tiny.TEXT * 4,  # cut at the limit
]


@pytest.fixture(scope="module", params=["bert", "xlmr", "m3", "packaged"])
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[BgeEmbedder, Path]:
    """An embedder and its export."""
    folder, like = tmp_path_factory.mktemp("export"), None
    if request.param == "packaged":
        model = MINI
    elif request.param == "m3":
        model, like = str(M3), "BAAI/bge-m3"
    else:
        make = {"bert": tiny.make_bert_embedder, "xlmr": tiny.make_xlmr_embedder}[request.param]
        model = str(make(folder / "source", **TRAINED_LOOKS))
    return BgeEmbedder(model, like=like, on_truncate="ignore"), export_onnx(model, folder / "model", like=like).folder


@pytest.fixture(scope="module", params=["bert", "xlmr", "packaged"])
def reranker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[BgeReranker, Path]:
    """A reranker and its export."""
    folder = tmp_path_factory.mktemp("export")
    if request.param == "packaged":
        model = MINI_RERANKER
    else:
        make = {"bert": tiny.make_bert_reranker, "xlmr": tiny.make_xlmr_reranker}[request.param]
        model = str(make(folder / "source", **TRAINED_LOOKS))
    return BgeReranker(model), export_onnx(model, folder / "model").folder


def run_onnx(folder: Path, file: str, texts: list[str], passages: list[str] | None = None) -> np.ndarray:
    """Run a graph on one padded batch, the inputs made by transformers from the exported tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, passages, padding=True, truncation=True, return_tensors="np")
    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: inputs[i.name].astype(np.int64) for i in session.get_inputs()})[0]


def vectors_of(folder: Path, file: str, texts: list[str]) -> np.ndarray:
    vectors = run_onnx(folder, file, texts)[:, 0]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1)


@pytest.mark.parametrize(("file", "least"), [(FILES[0], 0.99999), (FILES[1], 0.99)])
def test_vectors_are_the_package_s_own(embedder: tuple[BgeEmbedder, Path], file: str, least: float) -> None:
    model, folder = embedder
    expected = model.encode_documents(TEXTS)
    batch = vectors_of(folder, file, TEXTS)
    single = np.concatenate([vectors_of(folder, file, [text]) for text in TEXTS])
    assert cosines(batch, expected).min() > least
    assert cosines(single, expected).min() > least
    np.testing.assert_allclose(batch, single, atol=1e-4)  # the neighbours in a batch change nothing, in int8 too


@pytest.mark.parametrize(("file", "most"), [(FILES[0], 1e-5), (FILES[1], 0.02)])
def test_scores_are_the_package_s_own(reranker: tuple[BgeReranker, Path], file: str, most: float) -> None:
    model, folder = reranker
    pairs = [(question, text) for question in QUESTIONS for text in TEXTS[:-1]]
    logits = run_onnx(folder, file, *map(list, zip(*pairs, strict=True)))
    assert logits.shape == (len(pairs), 1)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits[:, 0])), model.score(pairs), atol=most)


def test_graph_has_the_usual_names_and_free_axes(embedder: tuple[BgeEmbedder, Path]) -> None:
    _, folder = embedder
    config = json.loads((folder / "config.json").read_text())
    names = ["input_ids", "attention_mask", *["token_type_ids"] * (config["model_type"] == "bert")]
    for file in FILES:
        session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
        assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
            (name, "tensor(int64)", ["batch", "sequence"]) for name in names
        ]
        assert [(o.name, o.shape) for o in session.get_outputs()] == [
            ("last_hidden_state", ["batch", "sequence", config["hidden_size"]])
        ]
    assert config["dtype"] == "float32"


def test_int8_file_is_a_third_at_most_and_holds_no_paths(embedder: tuple[BgeEmbedder, Path]) -> None:
    _, folder = embedder
    full, quantized = (folder / file for file in FILES)
    assert quantized.stat().st_size < full.stat().st_size / 2.5
    root = str(Path(__file__).parents[2]).encode()
    assert all(root not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_folder_says_how_it_pools_cuts_and_prompts(embedder: tuple[BgeEmbedder, Path]) -> None:
    model, folder = embedder
    facts, exported = model.describe(), read_folder(folder)
    assert exported.pooling is Pooling.CLS
    assert exported.normalize
    assert exported.max_length == facts["max_length"]
    assert exported.prompts["query"] + "{text}" == facts["query"]
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == facts["max_length"]


def test_card_tells_origin_licence_pooling_and_instruction(embedder: tuple[BgeEmbedder, Path]) -> None:
    model, folder = embedder
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"# {model.model if model.model == MINI else Path(model.model).name} in ONNX" in card
    assert ("license: apache-2.0\n" in card) == (model.model == MINI)
    assert "Pooling is CLS, not mean" in card
    assert str(model.describe()["query"]).removesuffix("{text}") in card
    assert "$" not in card


def python_of_card(folder: Path) -> str:
    card = (folder / "README.md").read_text(encoding="utf-8")
    return re.search(r"^```python\n(.*?)^```", card, flags=re.DOTALL | re.MULTILINE)[1]


def run_python(code: str, folder: Path) -> list[list[float]]:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_python_of_an_embedder_s_card_runs(embedder: tuple[BgeEmbedder, Path]) -> None:
    model, folder = embedder
    vectors = np.array(run_python(python_of_card(folder), folder.parent))
    assert cosines(vectors[:1], model.encode_queries(["what do pandas eat?"]))[0] > 0.99
    assert cosines(vectors[1:], model.encode_documents(["Giant pandas eat bamboo."]))[0] > 0.99


def test_python_of_a_reranker_s_card_runs(reranker: tuple[BgeReranker, Path]) -> None:
    model, folder = reranker
    expected = model.score([("what do pandas eat?", "Giant pandas eat bamboo.")])
    np.testing.assert_allclose(run_python(python_of_card(folder), folder.parent), [expected], atol=0.02)


def test_report_is_measured(tmp_path: Path, bert_embedder: Path) -> None:
    (tmp_path / "there").mkdir()
    report = export_onnx(str(bert_embedder), tmp_path / "there")  # an empty folder is taken
    assert report.folder == tmp_path / "there"
    assert report.kind == "embedder"
    assert report.sizes == {file: (report.folder / file).stat().st_size for file in FILES}
    assert report.agreement[FILES[0]] > 0.9999
    assert 0.99 < report.agreement[FILES[1]] < 0.99999
    card = (report.folder / "README.md").read_text(encoding="utf-8")
    assert all(f"{value:.5f}" in card for value in report.agreement.values())
    assert list(tmp_path.iterdir()) == [report.folder]


def test_weights_beyond_one_file_lie_beside_it(
    tmp_path: Path, xlmr_embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "LARGEST_FILE", 1000)
    report = export_onnx(str(xlmr_embedder), tmp_path / "model")
    assert (report.folder / "onnx" / "model.onnx_data").stat().st_size > 100_000
    assert (report.folder / "onnx" / "model.onnx").stat().st_size < 100_000
    assert report.sizes[FILES[0]] > 200_000
    assert report.agreement[FILES[0]] > 0.9999
    config = json.loads((report.folder / "config.json").read_text())
    assert config["transformers.js_config"] == {"use_external_data_format": {"model.onnx": True}}
    assert not any(tensor.external_data for tensor in onnx.load(report.folder / FILES[1]).graph.initializer)


def test_lower_casing_of_the_pipeline_is_kept(tmp_path: Path) -> None:
    model = tiny.make_xlmr_embedder(tmp_path / "source")
    settings = model / "sentence_bert_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_lower_case": True}))
    report = export_onnx(str(model), tmp_path / "model")
    tokenizer = Tokenizer.from_file(str(report.folder / "tokenizer.json"))
    assert tokenizer.encode("THE GIANT PANDA").ids == tokenizer.encode("the giant panda").ids
    assert report.agreement[FILES[0]] > 0.9999


def a_decoder(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gemma", "architectures": ["GemmaModel"]}')
    return folder


def without_a_tensor(folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny.make_bert_embedder(folder) / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda _: "BAAI/bge-multilingual-gemma2", UnsupportedModelError, "What can be exported: embedders of BERT"),
        (lambda _: "BAAI/bge-reranker-v2-gemma", UnsupportedModelError, "and cross-encoder rerankers"),
        (lambda _: "BAAI/bge-small-en-v15", UnknownModelError, "BAAI/bge-small-en-v1.5"),
        (lambda path: path / "nothing", UnknownModelError, "no folder"),
        (a_decoder, UnsupportedModelError, "architecture gemma"),
        (lambda path: tiny.make_bert_embedder(path, pooling="mean"), UnsupportedModelError, "pool by CLS"),
        (lambda path: tiny.make_bert_embedder(path, modules=False), UnknownModelError, "like="),
        (lambda path: tiny.make_bert_reranker(path, num_labels=3), UnsupportedModelError, "3 labels"),
        (without_a_tensor, MissingWeightsError, "lacks 1 tensor"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path, make, error, message) -> None:
    model = make(tmp_path / "source")
    with pytest.raises(error, match=message):
        export_onnx(str(model), tmp_path / "out" / "model")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path, bert_embedder: Path) -> None:
    (tmp_path / "kept").write_text("x")
    for taken in (tmp_path, tmp_path / "kept"):
        with pytest.raises(ValueError, match="not an empty folder"):
            export_onnx(str(bert_embedder), taken)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, bert_embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(file: Path, target: Path) -> None:
        assert file.stat().st_size > 100_000
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    monkeypatch.setattr(exporter, "write_quantized", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        export_onnx(str(bert_embedder), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_missing_extra_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['onnxscript'] = None\n"
        "from bge_integrations import MissingExtraError\n"
        "from bge_integrations.export import export_onnx\n"
        f"try: export_onnx({MINI!r}, {str(tmp_path / 'model')!r})\n"
        "except MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "needs onnxscript" in done.stdout, done.stderr
    assert "bge_integrations[onnx]" in done.stdout


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_command_says_what_it_measured_and_nothing_else(tmp_path: Path, xlmr_reranker: Path) -> None:
    command = [sys.executable, "-W", "always", "-m", "bge_integrations.cli", "export", xlmr_reranker, "model"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    assert re.fullmatch(r"onnx/model.onnx  0.2 MB, largest difference of a score 0.0000\d", first)
    assert re.fullmatch(r"onnx/model_quantized.onnx  0.1 MB, largest difference of a score 0.\d{5}", second)
    assert last.startswith(f"{tmp_path / 'model'} written in ")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BAAI/bge-en-icl", "{tmp}/out"], "What can be exported"),
        (["{tmp}/nothing", "{tmp}/out"], "no folder"),
        ([MINI, "{tmp}/full"], "not an empty folder"),
        (["{tmp}/full", "{tmp}/out", "--like", "BAAI/bge-bse-en"], "is not in the catalogue"),
    ],
)
def test_errors_are_one_clear_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    result = run("export", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("bge: ")
    assert message in result.stderr
    assert not (tmp_path / "out").exists()
