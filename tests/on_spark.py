"""What the tests of Spark run in a process of its own: python on_spark.py JOB FOLDER; the last line is JSON."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession

from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.populate.spark import BgeEmbeddings, BgeReranking, populate_partitions

EMBEDDER, RERANKER = "bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"
QUERY = "what do pandas eat?"
PORT = int(os.environ.get("CHROMA_PORT", "0"))


def session(master: str, *, rows_a_batch: int) -> SparkSession:
    return (
        SparkSession.builder.master(master)
        .config("spark.ui.enabled", False)
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", rows_a_batch)
        .getOrCreate()
    )


def texts_of(count: int) -> list[str]:
    return [f"Text number {number} is about pandas{' and bamboo' * (number % 9)}." for number in range(count)]


def frame(spark: SparkSession, count: int, partitions: int) -> DataFrame:
    rows = [(number, text, f"{number % 7}.md") for number, text in enumerate(texts_of(count))]
    return spark.createDataFrame(rows, "n long, text string, source string").repartition(partitions, "n")


def farthest(result: DataFrame, expected: np.ndarray) -> float:
    """Largest difference from what one process computes; infinite where a row is missing or comes twice."""
    rows = sorted(result.select("n", "embedding").collect(), key=lambda row: row.n)
    if [row.n for row in rows] != list(range(len(expected))):
        return float("inf")
    return float(np.abs(np.array([row.embedding for row in rows]) - expected).max())


@contextmanager
def killing(spark: SparkSession, is_victim: Callable[[psutil.Process], bool]) -> Iterator[dict[str, int]]:
    """Kill processes of Spark's by SIGKILL, once, when a task is done and others run; tell how many tasks failed."""
    told = {"killed": 0, "failed_tasks": 0}
    over = threading.Event()

    def watch() -> None:
        tracker = spark.sparkContext.statusTracker()
        while not over.wait(0.02):
            stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
            stages = [stage for stage in stages if stage and stage.numTasks == TASKS]
            told["failed_tasks"] = max([told["failed_tasks"], *(stage.numFailedTasks for stage in stages)])
            if not told["killed"] and any(stage.numCompletedTasks and stage.numActiveTasks for stage in stages):
                victims = [child for child in psutil.Process().children(recursive=True) if is_victim(child)]
                for victim in victims:
                    victim.send_signal(signal.SIGKILL)
                told["killed"] = len(victims)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield told
    finally:
        over.set()
        thread.join()


TASKS = 8


def is_worker(process: psutil.Process) -> bool:
    """A Python worker that Spark's daemon has forked."""
    parent = process.parent()
    return "pyspark.daemon" in process.cmdline() and parent is not None and "pyspark.daemon" in parent.cmdline()


def first_executor() -> Callable[[psutil.Process], bool]:
    chosen: list[int] = []

    def is_it(process: psutil.Process) -> bool:
        if not any("CoarseGrainedExecutorBackend" in part for part in process.cmdline()) or chosen:
            return False
        chosen.append(process.pid)
        return True

    return is_it


@contextmanager
def chroma_server(folder: Path) -> Iterator[None]:
    chroma = Path(sys.executable).with_name("chroma")
    command = [chroma, "run", "--path", folder / "chroma", "--host", "127.0.0.1", "--port", str(PORT)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/api/v2/heartbeat", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield
    finally:
        server.kill()
        server.wait()


def store_named(name: str) -> Callable[[], Any]:
    def open_store() -> Any:
        import chromadb
        from langchain_chroma import Chroma

        from bge_integrations.langchain import BgeEmbeddings

        client = chromadb.HttpClient("127.0.0.1", PORT, settings=chromadb.Settings(anonymized_telemetry=False))
        return Chroma(name, client=client, embedding_function=BgeEmbeddings(model=EMBEDDER))

    return open_store


def held(name: str) -> dict[str, Any]:
    """What a collection holds, by id."""
    collection = store_named(name)()._collection
    kept = collection.get(include=["documents", "metadatas", "embeddings"])
    return {
        key: (text, metadata, vector)
        for key, text, metadata, vector in zip(
            kept["ids"], kept["documents"], kept["metadatas"], kept["embeddings"], strict=True
        )
    }


def whole(name: str, count: int) -> float:
    """Farthest that a collection of all texts is from what one process computes; infinite where it is not whole."""
    texts, kept = texts_of(count), held(name)
    if {key: text for key, (text, _, _) in kept.items()} != {str(n): text for n, text in enumerate(texts)}:
        return float("inf")
    vectors = np.array([kept[str(number)][2] for number in range(count)])
    return float(np.abs(vectors - BgeEmbedder(EMBEDDER).encode_documents(texts)).max())


def fill(df: DataFrame, name: str, **options: Any) -> dict[str, Any]:
    return asdict(populate_partitions(df, store_named(name), id_col="n", metadata_cols=["source"], **options))


def compute(folder: Path) -> dict[str, Any]:
    """Both columns through a saved pipeline; nulls; a filter on the score."""
    spark = session("local[2]", rows_a_batch=16)
    rows = [
        (number, text if number % 10 else None, QUERY if number % 7 else None)
        for number, text in enumerate(texts_of(100))
    ]
    df = spark.createDataFrame(rows, "n long, text string, query string").repartition(3)
    Pipeline(
        stages=[
            BgeEmbeddings(inputCol="text", outputCol="embedding", model=EMBEDDER),
            BgeEmbeddings(inputCol="query", outputCol="asked", model=EMBEDDER, inputType="query"),
            BgeReranking(queryCol="query", inputCol="text", outputCol="score", model=RERANKER, maxLength=64),
            BgeReranking(queryCol="query", inputCol="text", outputCol="logit", model=RERANKER, normalize=False),
        ]
    ).fit(df).write().overwrite().save(str(folder / "pipeline"))
    result = PipelineModel.load(str(folder / "pipeline")).transform(df)
    found = sorted(result.collect(), key=lambda row: row.n)
    query = BgeEmbedder(EMBEDDER).encode_queries([QUERY])[0]
    vectors = BgeEmbedder(EMBEDDER).encode_documents(texts_of(100))
    pairs = [(QUERY, text) for text in texts_of(100)]
    scores = BgeReranker(RERANKER, max_length=64).score(pairs)
    logits = BgeReranker(RERANKER, normalize=False).score(pairs)
    both = [row for row in found if row.n % 10 and row.n % 7]
    plan = result.filter("score > 0.5")._jdf.queryExecution().toString().partition("== Physical Plan ==")[2]
    return {
        "rows": [row.n for row in found],
        "types": dict(result.dtypes),
        "no_embedding": [row.n for row in found if row.embedding is None],
        "not_asked": [row.n for row in found if row.asked is None],
        "no_score": [row.n for row in found if row.score is None],
        "embeddings": max(float(np.abs(vectors[row.n] - row.embedding).max()) for row in found if row.embedding),
        "queries": max(float(np.abs(query - row.asked).max()) for row in found if row.asked),
        "scores": max(abs(scores[row.n] - row.score) for row in both),
        "logits": max(abs(logits[row.n] - row.logit) for row in both),
        "times_scored": plan.count("[score("),
    } | refusals(df)


def refusals(df: DataFrame) -> dict[str, Any]:
    stages = {
        "no strings": BgeEmbeddings(inputCol="n", outputCol="e", model=EMBEDDER),
        "taken": BgeEmbeddings(inputCol="text", outputCol="n", model=EMBEDDER),
        "no model": BgeEmbeddings(inputCol="text", outputCol="e"),
        "a reranker": BgeEmbeddings(inputCol="text", outputCol="e", model=RERANKER),
        "no side": BgeEmbeddings(inputCol="text", outputCol="e", model=EMBEDDER, inputType="passage"),
    }
    refused = {}
    for name, stage in stages.items():
        try:
            stage.transform(df)
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}"
    return {"refused": refused}


def populated(folder: Path) -> dict[str, Any]:
    """A store filled by two partitions at a time; again; with a text changed; with a null; with a worker killed."""
    count = 400
    spark = session("local[2]", rows_a_batch=64)
    df = frame(spark, count, TASKS)
    told: dict[str, Any] = {}
    with chroma_server(folder):
        told["first"], told["again"] = fill(df, "notes"), fill(df, "notes")
        told["whole"] = whole("notes", count)
        told["metadata"] = held("notes")["8"][1]["source"]
        changed = df.selectExpr("n", "if(n = 3, 'Bamboo is a grass.', if(n = 4, null, text)) AS text", "source")
        told["changed"] = fill(changed, "notes", on_error="collect")
        try:
            with killing(spark, is_worker) as kills:
                fill(df, "killed")
            told["error"] = None
        except Exception as error:
            told["error"] = str(error)
        told |= {"kills": kills, "held": len(held("killed"))}
        told["went_on"] = fill(df, "killed")
        told["whole_after"] = whole("killed", count)
    return told


def kill_worker(folder: Path) -> dict[str, Any]:
    """Python workers die while Spark computes a column, and while it fills a store; Spark tries a task four times."""
    return killed(session("local[2,4]", rows_a_batch=32), folder, lambda: is_worker)


def kill_executor(folder: Path) -> dict[str, Any]:
    """One of two executors dies, each a JVM of its own."""
    return killed(session("local-cluster[2,1,1024]", rows_a_batch=32), folder, first_executor)


def killed(spark: SparkSession, folder: Path, victim: Callable[[], Callable[[psutil.Process], bool]]) -> dict[str, Any]:
    count = 1600
    df = frame(spark, count, TASKS)
    expected = BgeEmbedder(EMBEDDER).encode_documents(texts_of(count))
    told: dict[str, Any] = {}
    with killing(spark, victim()) as told["transform"]:
        result = BgeEmbeddings(inputCol="text", outputCol="embedding", model=EMBEDDER).transform(df)
        told["farthest"] = farthest(result, expected)
    with chroma_server(folder):
        with killing(spark, victim()) as told["populate"]:
            told["report"] = fill(df, "notes", batch_size=16)
        told["again"] = fill(df, "notes")
        told["whole"] = whole("notes", count)
    return told


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # pyspark's, of pandas 3
    jobs = {job.__name__: job for job in (compute, populated, kill_worker, kill_executor)}
    outcome = jobs[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps(outcome))
