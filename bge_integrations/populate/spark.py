"""Spark: a column of embeddings, a column of relevance scores, and stores filled by every partition (extra `spark`).

Example:
    ```python
    from bge_integrations.populate.spark import BgeEmbeddings

    embeddings = BgeEmbeddings(inputCol="text", outputCol="embedding", model="BAAI/bge-base-en-v1.5")
    embeddings.transform(df).write.parquet("embedded")
    ```

Spark runs a Python worker for each task slot, and a worker loads each model once, for all tasks it is given. It
computes on as many cores as `spark.task.cpus` says (1), for Spark sets OMP_NUM_THREADS by it.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from itertools import chain
from typing import TYPE_CHECKING, Any

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.errors import MissingExtraError
from bge_integrations.populate.pipeline import OnError, populate
from bge_integrations.populate.report import Failure, PopulateReport, sum_reports
from bge_integrations.rerank.reranker import BgeReranker

if any(find_spec(name) is None for name in ("pyspark", "pandas", "pyarrow")):
    raise MissingExtraError(
        "bge_integrations.populate.spark needs pyspark 4, pandas and pyarrow. Install them: "
        'pip install "bge_integrations[spark]"'
    )

import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
from pyspark.ml import Transformer
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql.functions import col, pandas_udf, struct  # type: ignore[attr-defined]
from pyspark.sql.types import StringType

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

__all__ = ["BgeEmbeddings", "BgeReranking", "populate_partitions"]

_NOBODY = Params._dummy()  # noqa: SLF001 - how pyspark.ml declares parameters


class _Stage(HasInputCol, HasOutputCol, Transformer, DefaultParamsReadable[Any], DefaultParamsWritable):
    """What both transformers share: which model runs, and where."""

    model = Param(_NOBODY, "model", "catalogue id, hub id or folder", TypeConverters.toString)
    like = Param(_NOBODY, "like", "catalogue id that a fine-tune descends from", TypeConverters.toString)
    revision = Param(_NOBODY, "revision", "the hub's branch, tag or commit", TypeConverters.toString)
    maxLength = Param(_NOBODY, "maxLength", "tokens at which a text is cut", TypeConverters.toInt)  # noqa: N815
    backend = Param(_NOBODY, "backend", "what runs the model", TypeConverters.toString)
    device = Param(_NOBODY, "device", "where the model runs", TypeConverters.toString)
    dtype = Param(_NOBODY, "dtype", "dtype of the weights", TypeConverters.toString)

    def _choose(self, **chosen: Any) -> None:
        self._set(**{name: value for name, value in chosen.items() if value is not None})

    def _required(self, param: "Param[str]") -> str:
        if not self.isDefined(param):
            raise ValueError(f"{type(self).__name__} needs {param.name}=.")
        return self.getOrDefault(param)

    def _options(self) -> dict[str, Any]:
        """What was said of the model, as the core calls it."""
        names = {"maxLength": "max_length"}
        chosen = (self.like, self.revision, self.maxLength, self.backend, self.device, self.dtype)
        return {names.get(param.name, param.name): self.getOrDefault(param) for param in chosen if self.isSet(param)}

    def _with_output(self, dataset: "DataFrame", column: "Column") -> "DataFrame":
        if self.getOutputCol() in dataset.columns:
            raise ValueError(f'There is a column "{self.getOutputCol()}" already; drop it, or name another outputCol.')
        return dataset.withColumn(self.getOutputCol(), column)


class BgeEmbeddings(_Stage):
    """A column of embeddings: one vector (array<float>) for each text; null for null.

    Rows go to the Python workers in Arrow batches (`spark.sql.execution.arrow.maxRecordsPerBatch`, 10,000 rows) and a
    batch is one call of the model, so a worker never holds a partition. As with all of Spark, nothing is computed
    before the result is used, and used twice it is computed twice; a filter on the column counts as one use, the rows
    it lets through as another. Write or cache the result first.

    Args:
        inputCol: Column of texts.
        outputCol: Column to add.
        model: A catalogue id such as "BAAI/bge-base-en-v1.5", a hub id, or a folder that every worker can read.
        inputType: "document", or "query" for queries with the model's instruction.
        like: The catalogue id that a fine-tune or a bare folder descends from.
        revision: The hub's branch, tag or commit.
        maxLength: Tokens at which a text is cut. None takes the catalogue's, else the folder's.
        backend: "auto", "torch", "openvino" or "sentence_transformers"; None is "auto".
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best that the worker has.
        dtype: "float32", "float16", "bfloat16" or "int8"; None takes the device's.

    Raises:
        ValueError: By `transform`: inputCol or model is not set, inputType is neither, outputCol is taken.
        TypeError: By `transform`: the column does not hold strings.
        BgeError: By `transform`: the model cannot be used; see `BgeEmbedder`.

    Example:
        ```python
        pipeline = Pipeline(stages=[BgeEmbeddings(inputCol="text", outputCol="embedding", model="BAAI/bge-m3")])
        pipeline.fit(df).write().overwrite().save("pipeline")
        PipelineModel.load("pipeline").transform(df)
        ```
    """

    inputType = Param(_NOBODY, "inputType", "document or query", TypeConverters.toString)  # noqa: N815

    def __init__(
        self,
        *,
        inputCol: str | None = None,  # noqa: N803
        outputCol: str | None = None,  # noqa: N803
        model: str | None = None,
        inputType: str | None = None,  # noqa: N803
        like: str | None = None,
        revision: str | None = None,
        maxLength: int | None = None,  # noqa: N803
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        self._setDefault(inputType="document")
        self._choose(
            inputCol=inputCol, outputCol=outputCol, model=model, inputType=inputType, like=like, revision=revision,
            maxLength=maxLength, backend=backend, device=device, dtype=dtype,
        )  # fmt: skip

    def _transform(self, dataset: "DataFrame") -> "DataFrame":
        texts = _strings(dataset, self._required(self.inputCol))
        embedder = BgeEmbedder(self._required(self.model), **self._options())
        sides = {"document": embedder.encode_documents, "query": embedder.encode_queries}
        if self.getOrDefault(self.inputType) not in sides:
            raise ValueError(f'inputType is "document" or "query", not "{self.getOrDefault(self.inputType)}".')
        encode = sides[self.getOrDefault(self.inputType)]

        def embed(batch: pd.Series) -> pd.Series:
            return _by_row([batch], lambda rows: encode([text for (text,) in rows]))

        return self._with_output(dataset, pandas_udf(embed, "array<float>")(texts))


class BgeReranking(_Stage):
    """A column of relevance: a score (double) for each row's query and passage; null where one of them is null.

    Otherwise as `BgeEmbeddings`.

    Args:
        queryCol: Column of queries.
        inputCol: Column of passages.
        outputCol: Column to add.
        model: A catalogue id such as "BAAI/bge-reranker-v2-m3", a hub id, or a folder that every worker can read.
        normalize: Scores from 0 to 1 (default); False gives logits.
        like: The catalogue id that a fine-tune or a bare folder descends from.
        revision: The hub's branch, tag or commit.
        maxLength: Tokens at which a pair is cut. None takes the catalogue's, else the folder's.
        backend: "auto", "torch", "openvino" or "sentence_transformers"; None is "auto".
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best that the worker has.
        dtype: "float32", "float16", "bfloat16" or "int8"; None takes the device's.

    Raises:
        ValueError: By `transform`: queryCol, inputCol or model is not set, outputCol is taken.
        TypeError: By `transform`: a column does not hold strings.
        BgeError: By `transform`: the model cannot be used; see `BgeReranker`.

    Example:
        ```python
        rerank = BgeReranking(queryCol="query", inputCol="text", outputCol="score", model="BAAI/bge-reranker-v2-m3")
        rerank.transform(df).orderBy("query", desc("score"))
        ```
    """

    queryCol = Param(_NOBODY, "queryCol", "query column name", TypeConverters.toString)  # noqa: N815
    normalize = Param(_NOBODY, "normalize", "scores from 0 to 1", TypeConverters.toBoolean)

    def __init__(
        self,
        *,
        queryCol: str | None = None,  # noqa: N803
        inputCol: str | None = None,  # noqa: N803
        outputCol: str | None = None,  # noqa: N803
        model: str | None = None,
        normalize: bool | None = None,
        like: str | None = None,
        revision: str | None = None,
        maxLength: int | None = None,  # noqa: N803
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        self._setDefault(normalize=True)
        self._choose(
            queryCol=queryCol, inputCol=inputCol, outputCol=outputCol, model=model, normalize=normalize, like=like,
            revision=revision, maxLength=maxLength, backend=backend, device=device, dtype=dtype,
        )  # fmt: skip

    def _transform(self, dataset: "DataFrame") -> "DataFrame":
        pairs = [_strings(dataset, self._required(name)) for name in (self.queryCol, self.inputCol)]
        normalize = self.getOrDefault(self.normalize)
        reranker = BgeReranker(self._required(self.model), normalize=normalize, **self._options())

        def score(queries: pd.Series, passages: pd.Series) -> pd.Series:
            return _by_row([queries, passages], reranker.score)

        return self._with_output(dataset, pandas_udf(score, "double")(*pairs))


def populate_partitions(
    df: "DataFrame",
    store_factory: Callable[[], Any],
    *,
    text_col: str = "text",
    id_col: str | None = None,
    metadata_cols: Iterable[str] = (),
    batch_size: int | None = None,
    on_error: OnError = "raise",
) -> PopulateReport:
    """Bring a store up to date with a DataFrame's rows, each partition by a `populate` of its own, in its worker.

    Only reports come back. Run again, it computes nothing twice: after a failure the same call goes on, and a task that
    Spark repeats embeds only what its first run left, which it reports as skipped.

    Args:
        df: The rows. As many partitions are written at a time as tasks run.
        store_factory: Opens the store, in the worker, once a partition; pickled. All workers write at the same time: to
            a server, or each partition to a store of its own (`pyspark.TaskContext.get().partitionId()`). Folders of
            Chroma's and Qdrant's are for one process.
        text_col: Column of texts. A null is a bad document, see `on_error`.
        id_col: Column of the documents' own ids, cast to strings; None, or a null, takes the hash of the content.
        metadata_cols: Columns of metadata: strings, numbers, booleans, arrays and structs of them. Nulls are left out.
        batch_size: As in `populate`.
        on_error: As in `populate`. A failure's `position` counts within its partition.

    Returns:
        The sum over the partitions; `seconds` is wall time.

    Raises:
        TypeError: The column of texts does not hold strings.
        pyspark.errors.PySparkException: A task failed more often than Spark allows; the message has what `populate`
            raised in the worker.
    """
    started = time.perf_counter()
    metadata = list(metadata_cols)
    columns = [_strings(df, text_col).alias("text")]
    if id_col is not None:
        columns.append(col(id_col).cast("string").alias("id"))
    if metadata:
        columns.append(struct(*metadata).alias("metadata"))
    rows = df.select(*columns).mapInArrow(_filler(store_factory, batch_size, on_error), "report string").collect()
    return sum_reports([_report(row.report) for row in rows], time.perf_counter() - started)


def _filler(
    store_factory: Callable[[], Any], batch_size: int | None, on_error: OnError
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What a worker does with a partition: its rows in, its report out."""

    def fill(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        first = next(batches, None)
        if first is None:
            return
        documents = _documents(chain([first], batches))
        report = populate(store_factory(), documents, batch_size=batch_size, on_error=on_error, show_progress=False)
        yield pa.RecordBatch.from_pydict({"report": [json.dumps(asdict(report))]})

    return fill


def _strings(dataset: "DataFrame", name: str) -> "Column":
    """The column of a name, which holds strings."""
    kind = dataset.select(col(name)).schema[0].dataType
    if not isinstance(kind, StringType):
        raise TypeError(f'Column "{name}" is of type {kind.simpleString()}; it has to hold strings.')
    return col(name)


def _by_row(columns: Sequence[pd.Series], compute: Callable[[list[Any]], Iterable[Any]]) -> pd.Series:
    """What `compute` gives for the rows that have no null, and null for the others."""
    rows = list(zip(*columns, strict=True))
    complete = [not any(map(pd.isna, row)) for row in rows]
    results = iter(compute([row for row, whole in zip(rows, complete, strict=True) if whole]))
    return pd.Series([next(results) if whole else None for whole in complete], dtype=object)


def _documents(batches: Iterable[pa.RecordBatch]) -> Iterator[Any]:
    from langchain_core.documents import Document

    for batch in batches:
        for row in batch.to_pylist():
            metadata = {key: value for key, value in (row.get("metadata") or {}).items() if value is not None}
            # Not validated: a null text is left to populate, which may collect it.
            yield Document.model_construct(id=row.get("id"), page_content=row["text"], metadata=metadata)


def _report(told: str) -> PopulateReport:
    fields = json.loads(told)
    return PopulateReport(**fields | {"failed": tuple(Failure(**failure) for failure in fields["failed"])})
