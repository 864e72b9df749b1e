"""Ray Data for real: what comes out equals what one process computes, also where a process is killed on the way."""

import json
import os
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from serving import assert_that_workers_share

import bge_integrations
from bge_integrations import BgeEmbedder, BgeReranker, ModelCache, UnknownModelError, WrongKindError
from bge_integrations.langchain import BgeEmbeddings as LangChainEmbeddings
from bge_integrations.populate import PopulateReport, populate
from bge_integrations.ray import BgeEmbeddings, BgeReranking, VectorStoreDatasink

TEXTS = ["Pandas eat bamboo.", "Bears eat honey.", "Cats eat fish."]
SCRIPT = Path(__file__).parent / "on_ray.py"


@pytest.fixture
def store(bert_embedder: Path, cache: ModelCache) -> InMemoryVectorStore:
    return InMemoryVectorStore(LangChainEmbeddings(model=str(bert_embedder), cache=cache))


def on_ray(job: str, folder: Path) -> dict[str, Any]:
    """Run a job of on_ray.py in a Python of its own, for this one may open no socket."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (Path(bge_integrations.__file__).parents[1], SCRIPT.parent))),
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    run = subprocess.run([sys.executable, SCRIPT, job, folder], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.ray
@pytest.mark.timeout(280)
def test_vectors_and_scores_are_those_of_one_process(tmp_path: Path) -> None:
    told = on_ray("compute", tmp_path)
    assert told["vectors"] < 1e-5
    assert told["scores"] < 1e-5


@pytest.mark.ray
@pytest.mark.timeout(280)
def test_actors_share_the_copy_of_a_server(tmp_path: Path) -> None:
    assert_that_workers_share(on_ray("shared", tmp_path))


@pytest.mark.ray
@pytest.mark.timeout(280)
def test_two_replicas_serve(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve")
    told = on_ray("serve", tmp_path)
    assert told["vectors"] < 1e-5
    assert told["openai"] < 1e-5
    assert told["replicas"] == 2


@pytest.mark.ray
@pytest.mark.timeout(280)
@pytest.mark.kill
def test_a_killed_actor_loses_nothing(tmp_path: Path) -> None:
    told = on_ray("kill_actor", tmp_path)
    assert told["killed"] == 1
    assert told["vectors"] < 1e-5


@pytest.mark.ray
@pytest.mark.timeout(280)
@pytest.mark.kill
def test_a_killed_write_task_loses_nothing_and_a_second_run_computes_nothing(tmp_path: Path) -> None:
    told = on_ray("kill_task", tmp_path)
    assert told["killed"] == 1
    assert (told["rows"], told["whole"]) == (120, True)
    assert told["vectors"] < 1e-5
    first, second = told["first"], told["second"]
    assert 12 <= first["skipped"] <= 40, "what the killed task had written is not computed again"
    assert first["added"] == first["texts"] == 120 - first["skipped"]
    assert first["seconds"] > 0
    assert {name: second[name] for name in ("added", "updated", "skipped", "texts")} == {
        "added": 0, "updated": 0, "skipped": 120, "texts": 0,
    }  # fmt: skip


@pytest.mark.parametrize("query", [False, True])
def test_a_batch_gets_vectors_of_its_side(bert_embedder: Path, cache: ModelCache, query: bool) -> None:
    embedder = BgeEmbedder(str(bert_embedder), query_instruction="find: ", cache=cache)
    batch = {"n": np.arange(3), "passage": np.array(TEXTS, dtype=object)}
    made = BgeEmbeddings(embedder, input_column="passage", output_column="vector", query=query)(batch)
    expected = (embedder.encode_queries if query else embedder.encode_documents)(TEXTS)
    assert list(made) == ["n", "passage", "vector"]
    assert made["vector"].dtype == np.float32
    np.testing.assert_allclose(made["vector"], expected, atol=1e-6)
    assert list(batch) == ["n", "passage"]
    assert not np.allclose(embedder.encode_queries(TEXTS), embedder.encode_documents(TEXTS), atol=1e-3)


def test_a_batch_gets_scores(bert_reranker: Path, cache: ModelCache) -> None:
    reranker = BgeReranker(str(bert_reranker), cache=cache)
    batch = {"query": np.array(TEXTS[::-1]), "text": np.array(TEXTS)}
    made = BgeReranking(reranker)(batch)
    assert made["score"].dtype == np.float64
    np.testing.assert_allclose(made["score"], reranker.score(zip(TEXTS[::-1], TEXTS, strict=True)), atol=1e-6)


@pytest.mark.parametrize(
    ("ours", "core", "columns"),
    [
        (BgeEmbeddings, BgeEmbedder, ["input_column", "output_column", "query"]),
        (BgeReranking, BgeReranker, ["query_column", "input_column", "output_column"]),
    ],
)
def test_every_option_of_the_core_is_taken(ours: Any, core: Any, columns: list[str]) -> None:
    shown = signature(ours).parameters
    positional = [name for name, each in shown.items() if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert positional == ["model", *columns]
    expected = {name: each.default for name, each in signature(core).parameters.items()}
    assert {name: each.default for name, each in shown.items() if name not in columns} == expected


def test_options_decide_what_comes_out(bert_embedder: Path, cache: ModelCache) -> None:
    options = {"query_instruction": "find: ", "max_length": 5, "on_truncate": "ignore", "cache": cache}
    made = BgeEmbeddings(str(bert_embedder), "passage", "vector", True, **options)({"passage": np.array(TEXTS)})
    expected = BgeEmbedder(str(bert_embedder), **options).encode_queries(TEXTS)
    np.testing.assert_allclose(made["vector"], expected, atol=1e-6)


def test_an_object_brings_its_options_and_its_folder(
    bert_embedder: Path, cache: ModelCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(bert_embedder.parent)
    embedder = BgeEmbedder(bert_embedder.name, max_length=64, device="cpu", cache=cache)
    monkeypatch.chdir(tmp_path)
    made = BgeEmbeddings(embedder, "passage")
    core = [option.name for option in fields(BgeEmbedder)]
    assert [getattr(made.embedder, name) for name in core] == [getattr(embedder, name) for name in core]
    assert (made.input_column, made.output_column, made.query) == ("passage", "embedding", False)
    np.testing.assert_allclose(made({"passage": np.array(TEXTS)})["embedding"], embedder.encode_documents(TEXTS))
    again = BgeEmbeddings(made, "text", "vector")
    assert (again.input_column, again.output_column, again.max_length) == ("text", "vector", 64)


def test_options_beside_an_object_are_refused(cache: ModelCache) -> None:
    with pytest.raises(ValueError, match="takes no max_length=, dtype= beside it. Give the BgeEmbedder these options"):
        BgeEmbeddings(BgeEmbedder("BAAI/bge-m3"), max_length=9, dtype="float16")
    reranker = BgeReranker("BAAI/bge-reranker-base", normalize=False)
    with pytest.raises(ValueError, match="takes no cache= beside it"):
        BgeReranking(reranker, cache=cache)
    assert BgeReranking(reranker, "question").reranker.normalize is False


def test_wrong_models_and_columns_are_named(bert_embedder: Path, cache: ModelCache) -> None:
    with pytest.raises(UnknownModelError, match="bge-base-en"):
        BgeEmbeddings("BAAI/bge-bas-en-v1.5")
    with pytest.raises(WrongKindError):
        BgeReranking("BAAI/bge-base-en-v1.5")
    embeddings = BgeEmbeddings(BgeEmbedder(str(bert_embedder), cache=cache))
    with pytest.raises(ValueError, match="no column 'text'; its columns are 'n', 'txt'"):
        embeddings({"n": np.arange(3), "txt": np.array(TEXTS)})
    with pytest.raises(TypeError, match="1"):
        embeddings({"text": np.array(["a", None], dtype=object)})


def test_rows_become_documents(store: InMemoryVectorStore) -> None:
    columns = {
        "text": TEXTS,
        "key": [1, 2, None],
        "source": ["a.md", None, "b.md"],
        "page": [1, 2, 3],
        "rest": [1, 2, 3],
    }
    table = pa.table(columns)
    sink = VectorStoreDatasink(lambda: store, id_column="key", metadata_columns=["source", "page"])
    report = sink.write([table.slice(0, 2), pa.table({}), table.slice(2)], None)
    assert (report.added, report.texts, report.failed) == (3, 3, ())
    first, second = store.get_by_ids(["1", "2"])
    assert {"source": "a.md", "page": 1}.items() <= first.metadata.items()
    assert "source" not in second.metadata
    assert "rest" not in first.metadata

    same = [Document(TEXTS[0], id="1", metadata={"source": "a.md", "page": 1})]
    same += [Document(TEXTS[2], metadata={"source": "b.md", "page": 3})]
    assert populate(store, same).skipped == 2, "one way or the other, a document has one identity"


def test_blocks_of_pandas_hold_the_same_documents(store: InMemoryVectorStore) -> None:
    table = pa.table({"text": TEXTS, "source": ["a.md", None, "b.md"], "page": [1, 2, 3]})
    sink = VectorStoreDatasink(lambda: store, metadata_columns=["source", "page"])
    assert sink.write([table], None).added == 3
    assert sink.write([table.to_pandas()], None).skipped == 3


def test_a_row_without_text_is_a_bad_document(store: InMemoryVectorStore) -> None:
    blocks = [pa.table({"text": [TEXTS[0], None], "key": [1, 2], "source": ["a.md", "b.md"]})]
    with pytest.raises(TypeError, match="Document 1"):
        VectorStoreDatasink(lambda: store).write(blocks, None)
    arguments = {"id_column": "key", "metadata_columns": ["source"], "on_error": "collect"}
    report = VectorStoreDatasink(lambda: store, **arguments).write(blocks, None)
    assert [(failure.position, failure.id, failure.source) for failure in report.failed] == [(1, "2", "b.md")]
    assert report.added == 1


def test_the_report_is_that_of_all_tasks() -> None:
    sink = VectorStoreDatasink(lambda: None)
    parts = [PopulateReport(1, 2, 3, 0, (), 5, 6, 7.0), PopulateReport(10, 20, 30, 0, (), 50, 60, 70.0)]
    sink.on_write_start()
    sink.on_write_complete(SimpleNamespace(write_returns=parts))
    report = sink.report
    assert report is not None
    assert (report.added, report.updated, report.skipped, report.texts, report.tokens) == (11, 22, 33, 55, 66)
    assert 0 < report.seconds < 7
    sink.on_write_failed(ValueError())
    assert sink.report is None
    sink.on_write_complete(SimpleNamespace(write_returns=[]))
    assert sink.report == PopulateReport(0, 0, 0, 0, (), 0, 0, 0.0)
