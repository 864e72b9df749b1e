"""The commands of `bge`, with real models, real Chroma on disk, in process and as a program."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from bge_integrations import BgeEmbedder, BgeReranker, default_cache, list_models
from bge_integrations.cli.app import app
from bge_integrations.cli.store import remembered_model

GUIDE = """# Pandas

Pandas eat bamboo all day long.

## Where they live

They live in the mountains of China.
"""
MODULE = '''"""Tools for whales."""


def sing(whale):
    """Let a whale sing in the sea."""
'''


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def batches() -> int:
    return sum(model["batches"] for model in default_cache().stats()["models"])


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "guide.md").write_text(GUIDE)
    (folder / "whales.py").write_text(MODULE)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_models_lists_the_catalogue() -> None:
    result = run("models")
    assert result.exit_code == 0
    assert all(spec.id in result.stdout for spec in list_models())
    assert "not BAAI's" in " ".join(result.stdout.split())
    rerankers = run("models", "--kind", "reranker").stdout
    assert "BAAI/bge-reranker-v2-m3" in rerankers
    assert "BAAI/bge-base-en-v1.5" not in rerankers
    assert run("models", "--kind", "other").exit_code == 2


def test_second_index_computes_nothing(notes: Path, store: Path, bert_embedder: Path) -> None:
    first = run("index", notes, "--store", store, "--model", bert_embedder, "--chunk-size", 16)
    assert first.exit_code == 0, first.output
    chunks = int(first.stdout.split(" files, ")[1].split()[0])
    assert (
        f"2 files, {chunks} chunks: {chunks} added, 0 updated, 0 unchanged, 0 deleted; {chunks} embedded"
        in first.stdout
    )
    before = batches()
    second = run("index", notes, "--store", store, "--chunk-size", 16)
    assert f"0 added, 0 updated, {chunks} unchanged, 0 deleted; 0 embedded" in second.stdout
    assert batches() == before
    assert remembered_model(store) == str(bert_embedder)


def test_lines_inserted_above_a_chunk_move_it_without_the_model(notes: Path, store: Path, bert_embedder: Path) -> None:
    run("index", notes, "--store", store, "--model", bert_embedder)
    (notes / "whales.py").write_text("# a comment\n\n" + MODULE)
    before = batches()
    result = run("index", notes, "--store", store)
    assert "0 added, 2 updated, 1 unchanged, 0 deleted; 0 embedded" in result.stdout
    assert batches() == before
    assert "whales.py:7" in run("ask", "sing", "--store", store).stdout


def test_changed_chunk_alone_is_computed(notes: Path, store: Path, bert_embedder: Path) -> None:
    run("index", notes, "--store", store, "--model", bert_embedder)
    (notes / "whales.py").write_text(MODULE.replace("in the sea", "in the deep sea"))
    assert "1 added, 0 updated, 2 unchanged, 1 deleted; 1 embedded" in run("index", notes, "--store", store).stdout


def contents(store: Path) -> dict[str, set[str]]:
    """The chunks of each file, by the file's name."""
    found = chromadb.PersistentClient(str(store)).get_collection("bge").get(include=["documents", "metadatas"])
    texts: dict[str, set[str]] = {}
    for text, metadata in zip(found["documents"] or [], found["metadatas"] or [], strict=True):
        texts.setdefault(Path(str(metadata["source"])).name, set()).add(text)
    return texts


def test_text_that_is_gone_from_a_file_leaves_the_store(notes: Path, store: Path, bert_embedder: Path) -> None:
    run("index", notes, "--store", store, "--model", bert_embedder, "--chunk-size", 16)
    before = contents(store)
    (notes / "whales.py").write_text("x = 1")
    (notes / "guide.md").write_text(GUIDE.replace("all day long", "at night"))
    result = run("index", notes, "--store", store, "--chunk-size", 16)
    assert result.exit_code == 0, result.output
    (guide,) = contents(store).values()
    new, gone = len(guide - before["guide.md"]), len(before["guide.md"] - guide) + len(before["whales.py"])
    assert f" {new} added, 0 updated, {len(guide) - new} unchanged, {gone} deleted; {new} embedded" in result.stdout
    assert any("at night" in text for text in guide)
    assert not any("all day long" in text for text in guide)


def test_another_folder_and_a_file_that_cannot_be_read_keep_theirs(
    notes: Path, store: Path, bert_embedder: Path, tmp_path: Path
) -> None:
    run("index", notes, "--store", store, "--model", bert_embedder)
    before = contents(store)
    other = tmp_path / "other"
    other.mkdir()
    (other / "bread.txt").write_text("Bread needs yeast.")
    assert "1 added, 0 updated, 0 unchanged, 0 deleted" in run("index", other, "--store", store, "--prune").stdout
    assert contents(store) == {**before, "bread.txt": {"Bread needs yeast."}}
    (notes / "whales.py").write_text("def (")
    assert "0 deleted" in run("index", notes, "--store", store, "--prune").stdout
    assert contents(store).keys() == {*before, "bread.txt"}


@pytest.mark.parametrize("page", [1, 5000])
def test_prune_removes_what_belongs_to_files_that_are_gone(
    notes: Path, store: Path, bert_embedder: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr("bge_integrations.cli.store._PAGE", page)
    (notes / "kept.log").write_text("A log.")
    run("index", notes, notes / "kept.log", "--store", store, "--model", bert_embedder)
    (notes / "whales.py").unlink()
    assert "0 deleted" in run("index", notes, "--store", store).stdout
    assert contents(store).keys() == {"guide.md", "whales.py", "kept.log"}
    assert "1 files, 1 chunks: 0 added, 0 updated, 1 unchanged, 2 deleted; 0 embedded" in (
        run("index", notes, "--store", store, "--prune").stdout
    )
    assert contents(store).keys() == {"guide.md", "kept.log"}
    (notes / "guide.md").unlink()
    assert run("index", notes, "--store", store).exit_code == 2
    assert "0 files, 0 chunks: 0 added, 0 updated, 0 unchanged, 1 deleted" in (
        run("index", notes, "--store", store, "--prune").stdout
    )
    assert contents(store).keys() == {"kept.log"}


def test_chunks_are_the_same_from_any_folder_and_shown_from_where_one_is(
    notes: Path, store: Path, bert_embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("index", notes, "--store", store, "--model", bert_embedder)
    for folder, path in ((notes.parent, "notes"), (notes, "."), (notes / "..", "./notes/../notes")):
        monkeypatch.chdir(folder)
        result = run("index", path, "--store", store, "--prune")
        assert "0 added, 0 updated, 3 unchanged, 0 deleted; 0 embedded" in result.stdout
    shown = run("ask", "bamboo", "--store", store, "--top-n", 3).stdout
    assert "  notes/guide.md:1\n" in shown
    monkeypatch.chdir(store)
    assert f"  {notes}/guide.md:1\n" in run("ask", "bamboo", "--store", store, "--top-n", 3).stdout


def test_ask_without_reranker_says_so(notes: Path, store: Path, bert_embedder: Path) -> None:
    run("index", notes, "--store", store, "--model", bert_embedder, "--chunk-size", 16)
    result = run("ask", "mountains of China?", "--store", store, "--top-n", 2)
    assert result.exit_code == 0, result.output
    assert "No reranker" in result.stderr
    assert result.stdout.count("distance") == 2
    assert "relevance" not in result.stdout
    assert f"{notes}/guide.md:" in result.stdout


def test_ask_with_reranker_shows_both_scores(
    notes: Path, store: Path, bert_embedder: Path, bert_reranker: Path
) -> None:
    run("index", notes, "--store", store, "--model", bert_embedder)
    result = run("ask", "who sings [in the sea]?", "--store", store, "--reranker", bert_reranker, "--top-n", 3)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if " distance " in line]
    relevances = [float(line[line.index("relevance") + 1]) for line in lines]
    assert len(relevances) == 3
    assert relevances == sorted(relevances, reverse=True)
    texts = [GUIDE.strip(), "whales: Tools for whales.", "whales.sing: Let a whale sing in the sea."]
    expected = sorted(BgeReranker(str(bert_reranker)).score([("who sings [in the sea]?", text) for text in texts]))
    np.testing.assert_allclose(relevances, expected[::-1], atol=1e-4)


def test_the_pair_is_the_default(notes: Path, store: Path) -> None:
    assert run("index", notes, "--store", store).exit_code == 0
    assert remembered_model(store) == "bge-integrations/mini-embedder-en"
    reranked = run("ask", "what do bears eat?", "--store", store, "--top-n", 1)
    assert "bamboo" in reranked.stdout
    assert "relevance" in reranked.stdout
    plain = run("ask", "what do bears eat?", "--store", store, "--top-n", 1, "--reranker", "none")
    assert "bamboo" in plain.stdout
    assert "relevance" not in plain.stdout
    line = lines({"query": "what do bears eat?", "documents": ["Whales sing.", "Pandas eat bamboo."]})
    assert json.loads(run("rerank", stdin=line).stdout)["results"][0]["index"] == 1


def test_another_model_is_refused_with_both_fingerprints(
    notes: Path, store: Path, bert_embedder: Path, xlmr_embedder: Path
) -> None:
    run("index", notes, "--store", store, "--model", bert_embedder)
    result = run("index", notes, "--store", store, "--model", xlmr_embedder)
    assert result.exit_code == 1
    assert result.stdout == ""
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("bge: ")
    assert all(BgeEmbedder(str(model)).fingerprint in line for model in (bert_embedder, xlmr_embedder))
    assert remembered_model(store) == str(bert_embedder)


def test_a_changed_model_folder_is_refused_by_ask(notes: Path, store: Path, tmp_path: Path) -> None:
    import tiny

    model = tiny.make_bert_embedder(tmp_path / "model", seed=1)
    run("index", notes, "--store", store, "--model", model)
    tiny.make_bert_embedder(tmp_path / "model", seed=2)
    result = run("ask", "whales", "--store", store)
    assert result.exit_code == 1
    assert "was filled by a model" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ask", "x", "--store", "{tmp}/nothing"], 2, "holds no index"),
        (["index", "{tmp}/nothing", "--store", "{tmp}/store"], 2, "does not exist"),
        (["index", "{tmp}", "--store", "{tmp}/store", "--model", "BAAI/bge-small-en-v15"], 1, "BAAI/bge-small-en-v1.5"),
        (["index", "{tmp}", "--store", "{tmp}/store", "--model", "{tmp}"], 1, "bge: "),
        (["index", "{tmp}", "--store", "{tmp}/store", "--model", "BAAI/bge-reranker-base"], 1, "is a reranker"),
        (["embed", "--model", "{tmp}/nothing"], 1, "no folder"),
        (["embed", "--device", "toaster"], 1, "device='toaster' is not known"),
        (["embed", "--backend", "toaster"], 2, "toaster"),
        (["rerank", "--model", "BAAI/bge-m3"], 1, "Use BgeEmbedder"),
    ],
)
def test_errors_are_one_clear_line(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "a.md").write_text("text")
    result = run(*(argument.format(tmp=tmp_path) for argument in arguments), stdin="")
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "store").exists()


def test_unreadable_python_is_skipped_and_named(notes: Path, store: Path, bert_embedder: Path) -> None:
    (notes / "broken.py").write_text("def (")
    result = run("index", notes, "--store", store, "--model", bert_embedder)
    assert result.exit_code == 0
    assert "skipped" in result.stderr
    assert "broken.py" in result.stderr
    assert "3 added" in result.stdout


def lines(*objects: Any) -> str:
    return "".join(json.dumps(item) + "\n" for item in objects)


def test_embed(bert_embedder: Path) -> None:
    given = [{"text": "Pandas eat bamboo.", "id": 7}, {"text": "", "tags": ["x"]}, {"text": "\ud800 ünï"[1:]}]
    result = run("embed", "--model", bert_embedder, stdin=lines(*given) + "\n")
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [{key: answer[key] for key in answer if key != "embedding"} for answer in answers] == given
    expected = BgeEmbedder(str(bert_embedder)).encode_documents([line["text"] for line in given])
    np.testing.assert_allclose([answer["embedding"] for answer in answers], expected, atol=1e-6)


def test_embed_takes_the_query_path(tmp_path: Path) -> None:
    import tiny

    model = tiny.make_bert_embedder(tmp_path / "model", prompts={"query": "find: ", "document": ""})
    given = lines({"text": "pandas"})
    documents = json.loads(run("embed", "--model", model, stdin=given).stdout)["embedding"]
    queries = json.loads(run("embed", "--model", model, "--query", stdin=given).stdout)["embedding"]
    embedder = BgeEmbedder(str(model))
    np.testing.assert_allclose(queries, embedder.encode_queries(["pandas"])[0], atol=1e-6)
    np.testing.assert_allclose(documents, embedder.encode_documents(["pandas"])[0], atol=1e-6)
    assert not np.allclose(queries, documents)


def test_rerank(bert_reranker: Path) -> None:
    documents = ["Bamboo.", "Paris is a city.", "Whales sing."]
    given = [{"query": "what do pandas eat?", "documents": documents, "id": 1}, {"query": "", "documents": []}]
    result = run("rerank", "--model", bert_reranker, "--top-n", 2, stdin=lines(*given))
    assert result.exit_code == 0, result.output
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    expected = BgeReranker(str(bert_reranker)).rerank("what do pandas eat?", documents, top_n=2)
    assert [answer["index"] for answer in first["results"]] == [answer.index for answer in expected]
    assert first["results"][0].keys() == {"index", "score", "logit"}
    assert first["id"] == 1
    assert second["results"] == []


@pytest.mark.parametrize(
    ("command", "bad", "message"),
    [
        ("embed", "not json", "line 2 is not JSON"),
        ("embed", '{"txt": "x"}', 'line 2 needs "text"'),
        ("embed", '"x"', 'line 2 needs "text"'),
        ("rerank", '{"text": "x"}', 'line 2 needs "query"'),
        ("rerank", '{"query": "x", "documents": "y"}', "a list of strings"),
        ("rerank", '{"query": "x", "documents": [1]}', "a list of strings"),
    ],
)
def test_bad_lines_are_named(command: str, bad: str, message: str, bert_embedder: Path, bert_reranker: Path) -> None:
    good = lines({"text": "x", "query": "x", "documents": ["y"]})
    model = {"embed": bert_embedder, "rerank": bert_reranker}[command]
    result = run(command, "--model", model, stdin=good + bad + "\n")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize("command", ["embed", "rerank"])
def test_help_shows_the_line_format(command: str) -> None:
    text = " ".join(run(command, "--help").stdout.replace("│", " ").split())
    assert '"embedding": [' in text or '"results": [{"index": 1, "score": 0.97, "logit": 3.5}' in text


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from bge_integrations.cli.app import app
try:
    app(["--help"])
except SystemExit as end:
    assert end.code == 0
heavy = {"torch", "transformers", "numpy", "chromadb", "langchain_core"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


@pytest.mark.slow
def test_as_a_program(notes: Path, store: Path, bert_embedder: Path) -> None:
    def program(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "bge_integrations.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first = program("index", notes, "--store", store, "--model", bert_embedder)
    assert (first.returncode, first.stderr) == (0, "")
    assert "3 added" in first.stdout
    second = program("index", notes, "--store", store)
    assert "0 added, 0 updated, 3 unchanged, 0 deleted; 0 embedded" in second.stdout
    answer = program("ask", "Where do pandas live?", "--store", store, "--top-n", 1)
    assert answer.returncode == 0
    assert "guide.md:1" in answer.stdout or "whales.py:" in answer.stdout
    wrong = program("ask", "x", "--store", store, "--reranker", bert_embedder)
    assert wrong.returncode == 1
    assert "Traceback" not in wrong.stderr
