"""Spark for real: columns equal what one process computes, stores get every row once, whichever process dies."""

import importlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import fields
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyspark
import pytest
import torch
from langchain_core.vectorstores import InMemoryVectorStore
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter
from serving import assert_that_workers_share

import bge_integrations
from bge_integrations import BgeEmbedder, BgeReranker, UnknownModelError
from bge_integrations.langchain import BgeEmbeddings as LangChainEmbeddings
from bge_integrations.populate import populate
from bge_integrations.spark import BgeEmbeddings, BgeReranking, _documents, populate_partitions

SCRIPT = Path(__file__).parent / "on_spark.py"
COUNT, KILLED_COUNT = 320, 640

pytestmark = pytest.mark.timeout(600)


def on_spark(job: str, folder: Path) -> dict[str, Any]:
    """Run a job of on_spark.py in a process of its own, for this one may open no socket."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (Path(bge_integrations.__file__).parents[1], SCRIPT.parent))),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_HOME": str(spark_home(folder / "spark")),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, SCRIPT, job, folder]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def spark_home(home: Path) -> Path:
    """Spark as it is installed, but its local cluster's files come here."""
    home.mkdir()
    for part in ("bin", "jars", "python"):
        (home / part).symlink_to(Path(pyspark.__file__).parent / part)
    return home


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return on_spark("local", tmp_path_factory.mktemp("local"))


def numbers(report: dict[str, Any]) -> tuple[int, int, int, int, int]:
    return report["added"], report["updated"], report["skipped"], len(report["failed"]), report["texts"]


@pytest.mark.spark
def test_columns_of_a_saved_pipeline_are_those_of_one_process(local):
    columns = local["columns"]
    assert columns["rows"] == list(range(100))
    assert {columns["types"][name] for name in ("embedding", "asked")} == {"array<float>"}
    assert {columns["types"][name] for name in ("score", "logit")} == {"double"}
    assert max(columns[name] for name in ("embeddings", "queries", "scores", "logits")) < 1e-5
    assert columns["token_saved"] is False
    assert columns["caches"] == [None] * 4


@pytest.mark.spark
def test_null_gives_null(local):
    columns = local["columns"]
    assert columns["no_embedding"] == list(range(0, 100, 10))
    assert columns["not_asked"] == list(range(0, 100, 7))
    assert columns["no_score"] == sorted({*range(0, 100, 10), *range(0, 100, 7)})


@pytest.mark.spark
def test_the_stages_of_a_pipeline_share_a_worker(local):
    assert local["columns"]["workers_a_task"] == 1


@pytest.mark.spark
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("no strings", 'TypeError: Column "n" is of type bigint; it has to hold strings.'),
        ("taken", 'ValueError: There is a column "n" already; drop it, or name another outputCol.'),
        ("no model", "ValueError: BgeEmbeddings needs model=."),
        ("a reranker", "WrongKindError: bge-integrations/mini-reranker-en is a reranker. Use BgeReranker for it."),
        (
            "a reranker, set later",
            "WrongKindError: bge-integrations/mini-reranker-en is a reranker. Use BgeReranker for it.",
        ),
        ("no side", 'ValueError: inputType is "document" or "query", not "passage".'),
    ],
)
def test_what_cannot_be_is_refused_before_a_job_starts(local, wrong, message):
    assert local["columns"]["refused"][wrong] == message


@pytest.mark.spark
def test_partitions_fill_a_store_and_a_second_run_computes_nothing(local):
    told = local["populated"]
    assert numbers(told["first"]) == (COUNT, 0, 0, 0, COUNT)
    assert numbers(told["again"]) == (0, 0, COUNT, 0, 0)
    assert told["again"]["tokens"] == 0 < told["first"]["tokens"]
    assert numbers(told["by_former_names"]) == (0, 0, COUNT, 0, 0)
    assert told["whole"] < 1e-5
    assert told["metadata"]["source"] == "1.md"


@pytest.mark.spark
def test_a_changed_text_is_updated_and_a_null_reported(local):
    told = local["populated"]["changed"]
    assert numbers(told) == (0, 1, COUNT - 2, 1, 1)
    assert (told["failed"][0]["id"], told["failed"][0]["source"]) == ("4", "4.md")
    assert "it needs a page_content" in told["failed"][0]["reason"]


@pytest.mark.spark
def test_where_spark_tries_a_task_once_the_next_call_goes_on(local):
    told = local["populated"]
    assert told["kills"]["killed"] >= 1
    assert "Python worker exited unexpectedly" in told["error"]
    assert 0 < told["held"] < COUNT
    assert numbers(told["went_on"]) == (COUNT - told["held"], 0, told["held"], 0, COUNT - told["held"])
    assert told["whole_after"] < 1e-5


@pytest.mark.spark
def test_workers_share_the_copy_of_a_server(tmp_path):
    assert_that_workers_share(on_spark("shared", tmp_path))


@pytest.mark.spark
@pytest.mark.kill
@pytest.mark.parametrize("job", ["kill_worker", "kill_executor"])
def test_a_killed_process_of_spark_loses_nothing(job, tmp_path):
    told = on_spark(job, tmp_path)
    for kills in (told["transform_kills"], told["populate_kills"]):
        assert kills["killed"] >= 1
        assert kills["failed_tasks"] >= 1
    assert told["farthest"] < 1e-5
    added, updated, skipped, failed, texts = numbers(told["report"])
    assert (added + skipped, updated, failed, texts) == (KILLED_COUNT, 0, 0, added)
    assert skipped > 0, "no task was killed in the middle"
    assert numbers(told["again"]) == (0, 0, KILLED_COUNT, 0, 0)
    assert told["whole"] < 1e-5


def test_rows_are_read_as_they_are_needed(bert_embedder, cache):
    store = InMemoryVectorStore(LangChainEmbeddings(model=str(bert_embedder), cache=cache))
    ahead = []

    def batches():
        for number in range(40):
            ahead.append(number * 8 - len(store.store))
            texts = [f"Text {number * 8 + row} is about pandas." for row in range(8)]
            yield pa.RecordBatch.from_pydict({"text": texts, "metadata": [{"source": "a.md", "page": None}] * 8})

    report = populate(store, _documents(batches()), batch_size=8, show_progress=False)
    assert report.added == len(store.store) == 320
    assert max(ahead) <= 8 * 5
    assert all(kept["metadata"] == {"source": "a.md"} for kept in store.store.values())


def test_a_stage_keeps_what_it_is_given():
    embeddings = BgeEmbeddings(inputCol="text", outputCol="embedding", model="BAAI/bge-m3", max_length=512)
    assert (embeddings.getInputCol(), embeddings.getOutputCol()) == ("text", "embedding")
    assert (embeddings.getOrDefault("model"), embeddings.getOrDefault("maxLength")) == ("BAAI/bge-m3", 512)
    assert embeddings.getOrDefault("inputType") == "document"
    assert not embeddings.isDefined("device")
    again = BgeReranking(queryCol="query", inputCol="text", model="BAAI/bge-reranker-base").copy({})
    assert again.getOrDefault("queryCol") == "query"
    assert again.getOrDefault("normalize") is True


def saved(stage: Any) -> dict[str, Any]:
    """What a saved pipeline has of a stage."""
    return json.loads(DefaultParamsWriter._get_metadata_to_save(stage, SimpleNamespace(version="4.3.0")))


def loaded(kept: dict[str, Any]) -> Any:
    stage = {"BgeEmbeddings": BgeEmbeddings, "BgeReranking": BgeReranking}[kept["class"].rpartition(".")[2]]()
    stage._resetUid(kept["uid"])
    DefaultParamsReader.getAndSetParams(stage, kept)
    return stage


def options_of(core: Any) -> dict[str, Any]:
    return {option.name: getattr(core, option.name) for option in fields(core)}


@pytest.mark.parametrize(("stage", "core"), [(BgeEmbeddings, BgeEmbedder), (BgeReranking, BgeReranker)])
def test_every_option_of_the_core_is_one_of_the_stage(stage, core):
    shown = {name: parameter.default for name, parameter in signature(stage).parameters.items()}
    expected = {option.name: option.default for option in fields(core) if option.name != "model"}
    assert expected.items() <= shown.items()
    assert shown["model"] is None
    assert {param.name for param in stage().params} == shown.keys() - {"cache", "token"}


@pytest.mark.parametrize(
    ("stage", "core", "options"),
    [
        (
            BgeEmbeddings,
            BgeEmbedder,
            {
                "model": "BAAI/bge-en-icl",
                "examples": ({"query": "q", "response": "r"},),
                "query_instruction": "Find: ",
                "max_length": 99,
                "on_truncate": "raise",
                "device": ["cpu", "cpu"],
                "dtype": torch.float16,
                "cache_folder": Path("hub"),
                "local_files_only": True,
            },
        ),
        (
            BgeReranking,
            BgeReranker,
            {"model": "BAAI/bge-reranker-v2-minicpm-layerwise", "cutoff_layers": range(8, 10), "normalize": False},
        ),
    ],
)
def test_options_are_saved_and_loaded(stage, core, options):
    expected = options_of(core(**options))
    for made in (stage(**options), stage(model=core(**options))):
        assert options_of(loaded(saved(made))._core()) == options_of(made._core()) == expected


def test_a_token_and_a_cache_go_with_a_stage_and_are_never_saved(cache):
    private = {"token": "hf_secret", "cache": cache}
    for stage in (
        BgeEmbeddings(model="BAAI/bge-m3", **private),
        BgeEmbeddings(model=BgeEmbedder("BAAI/bge-m3", **private)),
    ):
        core = stage.copy()._core()
        assert (core.token, core.cache) == ("hf_secret", cache)
        kept = saved(stage)
        assert "hf_secret" not in json.dumps(kept)
        assert not {"token", "cache"} & {*kept["paramMap"], *kept["defaultParamMap"]}
        again = loaded(kept)
        assert (again.token, again.cache) == (None, None)


def test_an_address_is_kept_without_its_key():
    stage = BgeEmbeddings(model="BAAI/bge-m3", cache="http://:secret@127.0.0.1:9")
    assert stage.cache == stage.copy()._core().cache == "http://127.0.0.1:9"
    stage.cache = "http://:secret@127.0.0.1:10"
    assert (stage.cache, b"secret" in pickle.dumps(stage)) == ("http://127.0.0.1:10", False)
    with pytest.raises(ValueError, match="is no address"):
        BgeReranking(cache="127.0.0.1:9")


def test_what_is_wrong_is_refused_when_a_stage_is_made():
    with pytest.raises(TypeError, match="BgeEmbeddings has no max_len=, modle=. It takes .*max_length="):
        BgeEmbeddings(max_len=3, modle=None)
    with pytest.raises(ValueError, match="max_length='x' must be a whole number above 0"):
        BgeEmbeddings(model="BAAI/bge-m3", max_length="x")
    with pytest.raises(UnknownModelError, match="bge-base-en"):
        BgeEmbeddings(model="BAAI/bge-bas-en-v1.5")
    with pytest.raises(ValueError, match="it takes no normalize=, token= beside it"):
        BgeReranking(model=BgeReranker("BAAI/bge-reranker-base"), normalize=True, token="t", device=None)
    with pytest.raises(TypeError, match="cannot save a BgeReranker"):
        BgeEmbeddings(model=BgeReranker("BAAI/bge-reranker-base"))
    later = BgeEmbeddings(model="BAAI/bge-m3")
    later.set(later.max_length, 0)
    with pytest.raises(ValueError, match="max_length=0"):
        later._core()


def test_a_derived_stage_has_the_arguments_of_its_own_init():
    class Same(BgeEmbeddings):
        pass

    class Fixed(BgeEmbeddings):
        def __init__(self, *, column="text"):
            super().__init__(inputCol=column, model="BAAI/bge-m3")

    assert signature(Same) == signature(BgeEmbeddings)
    assert list(signature(Fixed).parameters) == ["column"]
    assert loaded(saved(Fixed(column="a")) | {"class": "BgeEmbeddings"}).getInputCol() == "a"


def test_none_is_not_given():
    stage = BgeReranking(model="BAAI/bge-reranker-base", normalize=None, device=None)
    assert not stage.isSet("normalize")
    assert stage._core().normalize is True


def test_the_former_name_of_max_length_works_and_warns():
    with pytest.warns(DeprecationWarning, match="maxLength= is max_length= now") as told:
        stage = BgeEmbeddings(model="BAAI/bge-m3", maxLength=512)
    assert told[0].filename == __file__
    assert stage.getOrDefault("max_length") == stage.getOrDefault(stage.maxLength) == stage._core().max_length == 512
    kept = saved(stage)
    assert "maxLength" not in kept["paramMap"]
    kept["paramMap"] = {"model": "BAAI/bge-m3", "maxLength": 64}  # as version 0.1 saved it
    assert loaded(kept)._core().max_length == 64


@pytest.mark.parametrize(
    ("old", "new", "value", "texts"),
    [
        ("text_col", "text_column", "a", "a"),
        ("id_col", "id_column", "a", "text"),
        ("metadata_cols", "metadata_columns", ["a"], "text"),
    ],
)
def test_former_names_of_columns_warn(monkeypatch, old, new, value, texts):
    def read(_, name):
        raise LookupError(name)

    monkeypatch.setattr("bge_integrations.spark._strings", read)
    with (
        pytest.warns(DeprecationWarning, match=f"{old}= is {new}= now") as told,
        pytest.raises(LookupError, match=f"^{texts}$"),
    ):
        populate_partitions(None, dict, **{old: value})
    assert told[0].filename == __file__


@pytest.mark.parametrize("name", ["ray", "spark"])
def test_the_former_module_gives_the_same_objects_and_warns(name):
    sys.modules.pop(f"bge_integrations.populate.{name}", None)
    with pytest.warns(DeprecationWarning, match=f"bge_integrations.populate.{name} is bge_integrations.{name} now"):
        former = importlib.import_module(f"bge_integrations.populate.{name}")
    present = importlib.import_module(f"bge_integrations.{name}")
    assert former.__all__ == present.__all__
    assert all(getattr(former, each) is getattr(present, each) for each in present.__all__)
