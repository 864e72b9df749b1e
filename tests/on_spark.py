"""What the tests of Spark run in a process of its own: python on_spark.py JOB FOLDER; the last line is JSON."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import tiny
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import pandas_udf, spark_partition_id
from serving import serving, what_it_holds

from bge_integrations import BgeEmbedder, BgeReranker, ModelCache
from bge_integrations.runtime.remote import remote_cache
from bge_integrations.spark import BgeEmbeddings, BgeReranking, populate_partitions

EMBEDDER, RERANKER = "bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"
QUERY = "what do pandas eat?"
TASKS = 8


def session(master: str, *, rows_a_batch: int, **more: str) -> SparkSession:
    return (
        SparkSession.builder.config(map=more)
        .master(master)
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
def killing(
    spark: SparkSession, find: Callable[[], list[psutil.Process]], due: Callable[[], bool]
) -> Iterator[dict[str, int]]:
    """Kill processes of Spark's by SIGKILL, once, when it is due; tell how many, and how many tasks failed."""
    told = {"killed": 0, "failed_tasks": 0}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            told["failed_tasks"] = max([told["failed_tasks"], *(stage.numFailedTasks for stage in stages(spark))])
            if not told["killed"] and due():
                victims = find()
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


def stages(spark: SparkSession) -> list[Any]:
    """The running stages that compute, or fill a store."""
    tracker = spark.sparkContext.statusTracker()
    found = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
    return [stage for stage in found if stage and stage.numTasks == TASKS]


def one_task_is_done(spark: SparkSession) -> Callable[[], bool]:
    return lambda: any(stage.numCompletedTasks and stage.numActiveTasks for stage in stages(spark))


def processes(command: str) -> list[psutil.Process]:
    """What Spark has started with a word in its command."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(command in part for part in process.cmdline()):
                found.append(process)
    return found


def workers() -> list[psutil.Process]:
    """The Python workers, which Spark's daemons have forked."""
    daemons = processes("pyspark.daemon")
    return [process for process in daemons if process.ppid() in {daemon.pid for daemon in daemons}]


def an_executor() -> list[psutil.Process]:
    return processes("CoarseGrainedExecutorBackend")[:1]


class Server:
    """Chroma's server, which any number of processes may write to at a time."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        chroma = Path(sys.executable).with_name("chroma")
        command = [chroma, "run", "--path", folder / "chroma", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(300):
            with suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v2/heartbeat", timeout=5).close()
                break
            time.sleep(0.1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def factory(self, name: str) -> Callable[[], Any]:
        port = self.port

        def open_store() -> Any:
            import chromadb
            from langchain_chroma import Chroma

            from bge_integrations.langchain import BgeEmbeddings

            client = chromadb.HttpClient("127.0.0.1", port, settings=chromadb.Settings(anonymized_telemetry=False))
            return Chroma(name, client=client, embedding_function=BgeEmbeddings(model=EMBEDDER))

        return open_store

    def collection(self, name: str) -> Any:
        return self.factory(name)()._collection

    def fill(self, df: DataFrame, name: str, **options: Any) -> dict[str, Any]:
        report = populate_partitions(df, self.factory(name), id_column="n", metadata_columns=["source"], **options)
        return asdict(report)

    def fill_killed(
        self, df: DataFrame, name: str, count: int, find: Callable[[], list[psutil.Process]]
    ) -> tuple[dict[str, int], dict[str, Any] | str]:
        """Fill, and kill when two tasks are in the middle; give the kills, and the report or error."""
        collection = self.collection(name)
        task_of = {str(row[0]): row[1] for row in df.select("n", spark_partition_id()).collect()}

        def two_are_in_the_middle() -> bool:
            held = Counter(task_of[name] for name in collection.get(include=[])["ids"])
            return sum(0.1 <= written * TASKS / count <= 0.8 for written in held.values()) >= 2

        with killing(df.sparkSession, find, two_are_in_the_middle) as kills:
            try:
                outcome: dict[str, Any] | str = self.fill(df, name, batch_size=8)
            except Exception as error:
                outcome = str(error)
        return kills, outcome

    def whole(self, name: str, count: int) -> float:
        """Farthest that a collection of all texts is from what one process computes; infinite where it is not whole."""
        texts = texts_of(count)
        kept = self.collection(name).get(include=["documents", "embeddings"])
        if dict(zip(kept["ids"], kept["documents"], strict=True)) != {str(n): text for n, text in enumerate(texts)}:
            return float("inf")
        expected = BgeEmbedder(EMBEDDER).encode_documents(texts)[[int(number) for number in kept["ids"]]]
        return float(np.abs(kept["embeddings"] - expected).max())


def local(folder: Path) -> dict[str, Any]:
    """What needs no kill, and what a kill does where Spark tries a task once."""
    spark = session("local[2]", rows_a_batch=16)
    return {"columns": columns(spark, folder), "populated": populated(spark, folder)}


def columns(spark: SparkSession, folder: Path) -> dict[str, Any]:
    """Both columns through a saved pipeline, and nulls."""
    rows = [
        (number, text if number % 10 else None, QUERY if number % 7 else None)
        for number, text in enumerate(texts_of(100))
    ]
    df = spark.createDataFrame(rows, "n long, text string, query string").repartition(3)
    logit = BgeReranker(RERANKER, normalize=False, cache=ModelCache())
    asking = BgeEmbedder(EMBEDDER, query_instruction="Which text answers this? ", token="not for the disk")
    Pipeline(
        stages=[
            BgeEmbeddings(inputCol="text", outputCol="embedding", model=EMBEDDER),
            BgeEmbeddings(inputCol="query", outputCol="asked", model=asking, inputType="query"),
            BgeReranking(queryCol="query", inputCol="text", outputCol="score", model=RERANKER, max_length=64),
            BgeReranking(queryCol="query", inputCol="text", outputCol="logit", model=logit),
        ]
    ).fit(df).write().overwrite().save(str(folder / "pipeline"))
    pipeline = PipelineModel.load(str(folder / "pipeline"))
    result = pipeline.transform(df)
    plan = result._jdf.queryExecution().executedPlan().toString()
    found = sorted(result.collect(), key=lambda row: row.n)
    query = asking.encode_queries([QUERY])[0]
    vectors = BgeEmbedder(EMBEDDER).encode_documents(texts_of(100))
    pairs = [(QUERY, text) for text in texts_of(100)]
    scores = BgeReranker(RERANKER, max_length=64).score(pairs)
    logits = BgeReranker(RERANKER, normalize=False).score(pairs)
    both = [row for row in found if row.n % 10 and row.n % 7]
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
        "workers_a_task": plan.count("ArrowEvalPython"),
        "token_saved": any("not for the disk" in part.read_text() for part in (folder / "pipeline").rglob("part-*")),
        "caches": [stage.cache for stage in pipeline.stages],
        "refused": refusals(df),
    }


def refusals(df: DataFrame) -> dict[str, str]:
    bare = BgeEmbeddings(inputCol="text", outputCol="e")
    wrong = {
        "no strings": lambda: BgeEmbeddings(inputCol="n", outputCol="e", model=EMBEDDER),
        "taken": lambda: BgeEmbeddings(inputCol="text", outputCol="n", model=EMBEDDER),
        "no model": lambda: bare,
        "a reranker": lambda: BgeEmbeddings(inputCol="text", outputCol="e", model=RERANKER),
        "a reranker, set later": lambda: bare.copy({bare.model: RERANKER}),
        "no side": lambda: BgeEmbeddings(inputCol="text", outputCol="e", model=EMBEDDER, inputType="passage"),
    }
    refused = {}
    for name, stage in wrong.items():
        try:
            stage().transform(df)
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}"
    return refused


def populated(spark: SparkSession, folder: Path) -> dict[str, Any]:
    """A store filled by two partitions at a time; again; a text changed, one null; workers killed, and again."""
    count = 320
    df = frame(spark, count, TASKS)
    changed = df.selectExpr("n", "if(n = 3, 'Bamboo is a grass.', if(n = 4, null, text)) AS text", "source")
    told: dict[str, Any] = {}
    with closing(Server(folder)) as server:
        told["first"], told["again"] = server.fill(df, "notes"), server.fill(df, "notes")
        former = {"text_col": "text", "id_col": "n", "metadata_cols": ["source"]}
        told["by_former_names"] = asdict(populate_partitions(df, server.factory("notes"), **former))
        told["whole"] = server.whole("notes", count)
        told["metadata"] = server.collection("notes").get(["8"])["metadatas"][0]
        told["changed"] = server.fill(changed, "notes", on_error="collect")
        told["kills"], told["error"] = server.fill_killed(df, "killed", count, workers)
        told["held"] = server.collection("killed").count()
        told["went_on"] = server.fill(df, "killed")
        told["whole_after"] = server.whole("killed", count)
    return told


def kill_worker(folder: Path) -> dict[str, Any]:
    """Python workers die while Spark computes a column, and while it fills a store; Spark tries a task four times."""
    return killed(session("local[2,4]", rows_a_batch=16), folder, workers)


def kill_executor(folder: Path) -> dict[str, Any]:
    """One of two executors dies, each a JVM of its own."""
    return killed(session("local-cluster[2,1,1024]", rows_a_batch=16), folder, an_executor)


def killed(spark: SparkSession, folder: Path, find: Callable[[], list[psutil.Process]]) -> dict[str, Any]:
    count = 640
    df = frame(spark, count, TASKS)
    expected = BgeEmbedder(EMBEDDER).encode_documents(texts_of(count))
    told: dict[str, Any] = {}
    with killing(spark, find, one_task_is_done(spark)) as told["transform_kills"]:
        result = BgeEmbeddings(inputCol="text", outputCol="embedding", model=EMBEDDER).transform(df)
        told["farthest"] = farthest(result, expected)
    with closing(Server(folder)) as server:
        told["populate_kills"], told["report"] = server.fill_killed(df, "notes", count, find)
        told["again"] = server.fill(df, "notes")
        told["whole"] = server.whole("notes", count)
    return told


def shared(folder: Path) -> dict[str, Any]:
    """Two workers that load the model themselves, or use a server's; what each holds, and the vectors.

    The workers inherit BGE_CACHE, and those whose configuration empties it load, or use what the stage brings.
    """
    model = tiny.make_bert_embedder(folder / "model", hidden=512, vocab_size=40_000)
    told: dict[str, Any] = {"weights": (model / "model.safetensors").stat().st_size, "workers": {}, "vectors": {}}
    expected = BgeEmbedder(str(model), backend="torch", cache=ModelCache()).encode_documents(texts_of(64))
    nowhere = {"spark.executorEnv.BGE_CACHE": ""}
    with serving("--socket", folder / "bge.sock", "--backend", "torch", models=[model]) as server:
        os.environ["BGE_CACHE"] = server.address
        for name, conf, cache in (
            ("told by the environment", {}, None),
            ("alone", nowhere, None),
            ("given an address", nowhere, server.address),
        ):
            spark = session("local[2]", rows_a_batch=16, **conf)
            stage = BgeEmbeddings(inputCol="text", outputCol="embedding", model=model, backend="torch", cache=cache)
            Pipeline(stages=[stage]).fit(frame(spark, 1, 1)).write().overwrite().save(str(folder / "pipeline"))
            result = PipelineModel.load(str(folder / "pipeline")).transform(frame(spark, 64, 2))
            rows = result.withColumn("held", pandas_udf(held, "string")("embedding")).persist()
            told["vectors"][name] = farthest(rows, expected)
            told["workers"][name] = [json.loads(row.held) for row in rows.select("held").distinct().collect()]
            spark.stop()
        told["server"] = remote_cache(server.address).stats()
    return told


def held(vectors: pd.Series) -> pd.Series:
    """What the worker holds that has made these vectors; Spark runs this after it, in the same worker."""
    return pd.Series([json.dumps(what_it_holds())] * len(vectors))


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)  # pyspark's, of pandas 3
    jobs = {job.__name__: job for job in (local, shared, kill_worker, kill_executor)}
    print(json.dumps(jobs[sys.argv[1]](Path(sys.argv[2]))))
