"""`bge eval` on a small labelled set with the pair."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.cli.app import app
from bge_integrations.evaluation import evaluate, read_labelled_set

ANIMALS = ["panda", "whale", "owl", "camel", "spider", "salmon", "eagle", "ant", "bear", "frog", "bat", "snake"]
PLACES = ["mountains", "sea", "forest", "desert", "cellar", "river", "sky", "hill", "cave", "pond", "tower", "grass"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where each animal lives; every second question is judged to be answered by the next document."""
    folder = tmp_path_factory.mktemp("zoo")
    documents = [f"The {animal} lives in the {place}." for animal, place in zip(ANIMALS, PLACES, strict=True)]
    rows = [{"_id": f"d{row}", "title": "", "text": text} for row, text in enumerate(documents)]
    queries = [{"_id": f"q{row}", "text": f"where does the {animal} live?"} for row, animal in enumerate(ANIMALS)]
    for name, lines in (("corpus.jsonl", rows), ("queries.jsonl", queries)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "qrels").mkdir()
    judgements = "".join(f"q{row}\td{(row + row % 2) % 12}\t1\n" for row in range(12))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judgements)
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


@pytest.fixture(scope="module")
def result(folder):
    data = read_labelled_set(folder)
    return evaluate(
        data,
        BgeEmbedder("bge-integrations/mini-embedder-en"),
        BgeReranker("bge-integrations/mini-reranker-en"),
        fetch_k=10,
    )


def test_json_holds_what_was_measured(folder, result):
    done = run(folder, "--json", "--fetch-k", 10)
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    facts = json.loads(done.stdout)
    assert (facts["set"], facts["documents"], facts["queries"], facts["fetch_k"]) == (folder.name, 12, 12, 10)
    assert facts["reranker"] == "bge-integrations/mini-reranker-en"
    assert list(facts["measures"]) == ["nDCG@10", "MRR@10", "Recall@10"]
    for measure, numbers in facts["measures"].items():
        assert numbers == {
            "retrieved": pytest.approx(result.retrieved.mean(measure)),
            "reranked": pytest.approx(result.reranked.mean(measure)),
            "gain": pytest.approx(result.gain(measure)),
            "interval": pytest.approx(list(result.interval(measure))),
        }
    assert 0 < facts["measures"]["nDCG@10"]["retrieved"] < 1
    assert all(time > 0 for time in facts["milliseconds"].values())


def test_the_table_and_the_bars_show_the_same_numbers(folder, result):
    done = run(folder, "--fetch-k", 10)
    assert done.exit_code == 0, done.output
    assert "12 documents, 12 queries, fetch_k 10" in done.stdout
    low, high = result.interval("MRR@10")
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("│ MRR@10")]
    assert [cell.strip() for cell in row.strip("│").split("│")] == [
        "MRR@10",
        f"{result.retrieved.mean('MRR@10'):.3f}",
        f"{result.reranked.mean('MRR@10'):.3f}",
        f"{result.gain('MRR@10'):+.3f}",
        f"{low:+.3f} to {high:+.3f}",
    ]
    (bar,) = [line for line in done.stdout.splitlines() if line.startswith("MRR@10") and "retrieved" in line]
    assert bar.count("━") == int(result.retrieved.mean("MRR@10") * 80) // 2


def test_another_embedder_brings_no_reranker_and_a_limit_holds(folder, bert_embedder):
    done = run(folder, "--model", bert_embedder, "--queries", 3, "--json")
    facts = json.loads(done.stdout)
    assert (facts["reranker"], facts["queries"], facts["documents"]) == (None, 3, 12)
    assert facts["measures"]["nDCG@10"].keys() == {"retrieved"}
    table = run(folder, "--reranker", "none").stdout
    assert "gain" not in table
    assert "reranked" not in table


@pytest.mark.parametrize("name", ["zoo.png", "zoo.SVG"])
def test_a_picture(folder, tmp_path, name):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    assert run(folder, "--queries", 2, "--picture", tmp_path / name).exit_code == 0
    written = (tmp_path / name).read_bytes()
    assert written.startswith(b"\x89PNG") if name.endswith("png") else b"<svg" in written


@pytest.mark.parametrize(("name", "message"), [("zoo.zoo", "not a picture format"), ("nothing/zoo.png", "no folder")])
def test_a_picture_that_cannot_be_is_refused_first(folder, tmp_path, name, message):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    done = run(folder / "nothing", "--picture", tmp_path / name)
    assert (done.exit_code, done.stdout) == (1, "")
    assert message in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{folder}/nothing"], 1, "There is no folder"),
        (["{folder}/qrels"], 1, "has no corpus.jsonl"),
        (["{folder}", "--split", "dev"], 1, "Its splits: test"),
        (["{folder}", "--reranker", "{folder}"], 1, "bge: "),
        (["{folder}", "--model", "BAAI/bge-small-en-v15"], 1, "BAAI/bge-small-en-v1.5"),
        (["{folder}", "--fetch-k", "5"], 2, "fetch-k"),
    ],
)
def test_errors_are_one_clear_line(folder, arguments, code, message):
    done = run(*(argument.format(folder=folder) for argument in arguments))
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in done.stderr
    assert code == 2 or len(done.stderr.strip().splitlines()) == 1


def test_what_is_not_installed_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    done = run(folder)
    assert done.exit_code == 1
    assert 'needs ir_measures. Install it: pip install "bge_integrations[cli,eval]"' in done.stderr


@pytest.mark.slow
def test_as_a_program_no_bar_without_a_terminal(folder, bert_embedder):
    command = [sys.executable, "-m", "bge_integrations.cli", "eval", str(folder), "--model", str(bert_embedder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nDCG@10" in done.stdout
