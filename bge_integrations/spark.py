"""Spark: a column of embeddings, a column of relevance scores, and stores filled by every partition (extra `spark`).

Example:
    ```python
    from bge_integrations.spark import BgeEmbeddings

    embeddings = BgeEmbeddings(inputCol="text", outputCol="embedding", model="BAAI/bge-base-en-v1.5")
    embeddings.transform(df).write.parquet("embedded")
    ```

Spark runs a Python worker for each task slot, and a worker loads each model once, for all tasks it is given. It
computes on `spark.task.cpus` cores (1 by default), because Spark sets OMP_NUM_THREADS by it.

Where `bge serve MODEL --socket PATH` runs on every machine, the workers of a machine share its copy and load neither
model nor torch. Give the stages `cache="unix://PATH"`, or configure `spark.executorEnv.BGE_CACHE=unix://PATH`, which
counts for `populate_partitions` too; in local mode workers also inherit BGE_CACHE from the driver. A server's key
reaches them as `spark.executorEnv.BGE_API_KEY`.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from importlib.util import find_spec
from inspect import Parameter, Signature
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.errors import MissingExtraError
from bge_integrations.populate.pipeline import OnError, populate
from bge_integrations.populate.report import Failure, PopulateReport, sum_reports
from bge_integrations.rerank.reranker import BgeReranker
from bge_integrations.runtime.address import checked_cache
from bge_integrations.runtime.cache import CacheArgument

if any(find_spec(name) is None for name in ("pyspark", "pandas", "pyarrow")):
    raise MissingExtraError(
        "bge_integrations.spark needs pyspark 4, pandas and pyarrow. Install them: "
        'pip install "bge_integrations[spark]"'
    )

import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
from pyspark.ml import Transformer
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsReader, DefaultParamsWritable, DefaultParamsWriter
from pyspark.sql.functions import col, pandas_udf, struct  # type: ignore[attr-defined]
from pyspark.sql.types import StringType

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

__all__ = ["BgeEmbeddings", "BgeReranking", "populate_partitions"]

T = TypeVar("T")

NO_PARAMETERS = ("cache", "token")
"""Options that are plain attributes: a cache may be one of this process, and a token is a secret."""

_NOBODY = Params._dummy()  # noqa: SLF001 - how pyspark.ml declares parameters


def _saved(value: Any) -> Any:
    """Return the value as it will come back from a saved pipeline, that is, from JSON."""
    return json.loads(json.dumps(value, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, Sequence):
        return list(value)
    if isinstance(value, os.PathLike) or type(value).__module__ == "torch":
        return str(value)
    raise TypeError(f"A pipeline cannot save a {type(value).__name__}.")


def _side(value: Any) -> str:
    if value not in ("document", "query"):
        raise ValueError(f'inputType is "document" or "query", not "{value}".')
    return str(value)


class _Writer(DefaultParamsWriter):
    """Saves a stage's parameters and, if its cache is an address, that."""

    instance: "_Stage"

    def saveImpl(self, path: str) -> None:  # noqa: N802
        cache = self.instance.cache
        self.saveMetadata(self.instance, path, self.sparkSession, {"cache": cache} if isinstance(cache, str) else None)


class _Reader(DefaultParamsReader[Any]):
    """Loads what `_Writer` has saved."""

    def load(self, path: str) -> Any:
        stage = super().load(path)
        stage.cache = self.loadMetadata(path, self.sparkSession).get("cache")
        return stage


class _Stage(HasInputCol, HasOutputCol, Transformer, DefaultParamsReadable[Any], DefaultParamsWritable):
    """Base class of both transformers: every option of a class of the core is a parameter of the same name."""

    token: str | None = None
    _cache: CacheArgument = None
    _core_type: ClassVar[Any]
    _defaults: ClassVar[dict[str, Any]]
    __signature__: ClassVar[Signature | None]

    def __init_subclass__(cls, core: type[Any] | None = None, own: Mapping[str, str | None] | None = None) -> None:
        """Declare the arguments of a stage: its `own`, such as its columns, and the options of `core`."""
        super().__init_subclass__()
        if core is None or own is None:  # a class derived from a stage, which may have an __init__ of its own
            cls.__signature__ = None if "__init__" in vars(cls) else cls.__signature__
            return
        defaults = {option.name: option.default for option in fields(core)}
        for name in defaults.keys() - NO_PARAMETERS:
            setattr(cls, name, Param(_NOBODY, name, f"{name} of bge_integrations.{core.__name__}", _saved))
        cls._core_type, cls._defaults = core, {**own, **defaults, "model": None}
        types = {option.name: option.type for option in fields(core)} | {"model": str | core | None}
        parameters = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=types.get(name, str | None))
            for name, default in cls._defaults.items()
        ]
        cls.__signature__ = Signature(parameters)

    def __init__(self, **options: Any) -> None:
        super().__init__()
        if unknown := [name for name in options if name not in {*self._defaults, "maxLength"}]:
            raise TypeError(
                f"{type(self).__name__} has no {'=, '.join(unknown)}=. It takes {'=, '.join(self._defaults)}=."
            )
        former = options.pop("maxLength", None)
        options["max_length"] = _latest("maxLength", former, "max_length", options.get("max_length"))
        given = self._opened({name: value for name, value in options.items() if value is not None})
        self.cache, self.token = given.pop("cache", None), given.pop("token", None)
        self._setDefault(**{name: value for name, value in self._defaults.items() if value is not None})
        self._set(**given)
        if self.isSet("model"):
            self._core()

    @property
    def cache(self) -> CacheArgument:
        """The cache, or the address of a server, without the key that may have been in it."""
        return self._cache

    @cache.setter
    def cache(self, cache: CacheArgument) -> None:
        self._cache = checked_cache(cache)

    def write(self) -> _Writer:
        """Return what saves the stage."""
        return _Writer(self)

    @classmethod
    def read(cls) -> _Reader:
        """Return what loads a saved stage."""
        return _Reader(cls)

    @property
    def maxLength(self) -> "Param[Any]":  # noqa: N802
        """The parameter `max_length`, under the name by which earlier versions saved it."""
        return self.getParam("max_length")

    def _opened(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments and, if the model is a core object, its options, beside which none may be given."""
        core, kind = given.get("model"), self._core_type
        if not isinstance(core, kind):
            return given
        options = {option.name: getattr(core, option.name) for option in fields(kind)}
        if beside := [name for name in given if name in options and name != "model"]:
            raise ValueError(
                f"{type(self).__name__} has all options from the {kind.__name__} that is its model, so it takes no "
                f"{'=, '.join(beside)}= beside it. Give the {kind.__name__} these options, or name the model."
            )
        return given | {name: value for name, value in options.items() if value is not None}

    def _core(self) -> Any:
        """Make the core object that computes; it refuses wrong values when it is made."""
        self._required("model")
        names = {option.name for option in fields(self._core_type)}
        chosen = {param.name: value for param, value in self.extractParamMap().items() if value is not None}
        options = {name: value for name, value in chosen.items() if name in names}
        return self._core_type(**options, cache=self.cache, token=self.token)

    def _required(self, name: str) -> Any:
        if not self.isDefined(name):
            raise ValueError(f"{type(self).__name__} needs {name}=.")
        return self.getOrDefault(name)

    def _with_output(self, dataset: "DataFrame", column: "Column") -> "DataFrame":
        if self.getOutputCol() in dataset.columns:
            raise ValueError(f'There is a column "{self.getOutputCol()}" already; drop it, or name another outputCol.')
        return dataset.withColumn(self.getOutputCol(), column)


class BgeEmbeddings(_Stage, core=BgeEmbedder, own={"inputCol": None, "outputCol": None, "inputType": "document"}):
    """A transformer that adds a column of embeddings: one vector (array<float>) for each text; null for null.

    Rows go to the Python workers in Arrow batches (`spark.sql.execution.arrow.maxRecordsPerBatch`, 10,000 rows) and a
    batch is one call of the model, so a worker never holds a whole partition. As always in Spark, nothing is computed
    before the result is used, and a result that is used twice is computed twice; a filter on the column counts as one
    use, the rows it lets through as another. Write or cache the result first.

    A saved pipeline keeps every argument but `token` and, unless it is an address, `cache`. These two are plain
    attributes: Spark sends them to the workers with the stage, but a loaded stage has no token until you set it
    (`stage.token = ...`). An address is kept and sent without the key in it. `trust_remote_code` is kept, so load
    pipelines only of people whose code you would run.

    Args:
        inputCol: Column of texts.
        outputCol: Column to add.
        inputType: "document" (default), or "query" for queries with the model's instruction.
        model: A catalogue id such as "BAAI/bge-base-en-v1.5", a hub id, or a folder that every worker can read; or a
            `BgeEmbedder`, whose options are taken over.

    All other arguments are those of `BgeEmbedder`, with its defaults; None counts as not given. Each is a parameter of
    the stage, which `stage.set(stage.max_length, 256)` changes. `maxLength` is the former name of `max_length`.

    Raises:
        ValueError: A value is out of its range, or is given beside a `BgeEmbedder`; by `transform`: inputCol or model
            is not set, or outputCol exists already.
        TypeError: There is no such argument; by `transform`: the column does not hold strings.
        BgeError: The model cannot be used; see `BgeEmbedder`. `transform` raises it for what was set later.

    Example:
        ```python
        pipeline = Pipeline(stages=[BgeEmbeddings(inputCol="text", outputCol="embedding", model="BAAI/bge-m3")])
        pipeline.fit(df).write().overwrite().save("pipeline")
        PipelineModel.load("pipeline").transform(df)
        ```
    """

    inputType = Param(_NOBODY, "inputType", "document or query", _side)  # noqa: N815

    def _transform(self, dataset: "DataFrame") -> "DataFrame":
        texts = _strings(dataset, self._required("inputCol"))
        embedder: BgeEmbedder = self._core()
        encode = embedder.encode_queries if self.getOrDefault("inputType") == "query" else embedder.encode_documents

        def embed(batch: pd.Series) -> pd.Series:
            return _by_row([batch], lambda rows: encode([text for (text,) in rows]))

        return self._with_output(dataset, pandas_udf(embed, "array<float>")(texts))


class BgeReranking(_Stage, core=BgeReranker, own={"queryCol": None, "inputCol": None, "outputCol": None}):
    """A transformer that adds a column of scores (double), one per query and passage; null if one of them is null.

    Otherwise it works as `BgeEmbeddings` does.

    Args:
        queryCol: Column of queries.
        inputCol: Column of passages.
        outputCol: Column to add.
        model: A catalogue id such as "BAAI/bge-reranker-v2-m3", a hub id, or a folder that every worker can read; or a
            `BgeReranker`, whose options are taken over.

    All other arguments are those of `BgeReranker`, with its defaults, as the other class has those of `BgeEmbedder`.

    Raises:
        ValueError: A value is out of its range, or is given beside a `BgeReranker`; by `transform`: queryCol, inputCol
            or model is not set, or outputCol exists already.
        TypeError: There is no such argument; by `transform`: a column does not hold strings.
        BgeError: The model cannot be used; see `BgeReranker`. `transform` raises it for what was set later.

    Example:
        ```python
        rerank = BgeReranking(queryCol="query", inputCol="text", outputCol="score", model="BAAI/bge-reranker-v2-m3")
        rerank.transform(df).orderBy("query", desc("score"))
        ```
    """

    queryCol = Param(_NOBODY, "queryCol", "query column name", TypeConverters.toString)  # noqa: N815

    def _transform(self, dataset: "DataFrame") -> "DataFrame":
        pairs = [_strings(dataset, self._required(name)) for name in ("queryCol", "inputCol")]
        reranker: BgeReranker = self._core()

        def score(queries: pd.Series, passages: pd.Series) -> pd.Series:
            return _by_row([queries, passages], reranker.score)

        return self._with_output(dataset, pandas_udf(score, "double")(*pairs))


def populate_partitions(
    df: "DataFrame",
    store_factory: Callable[[], Any],
    *,
    text_column: str = "text",
    id_column: str | None = None,
    metadata_columns: Iterable[str] = (),
    batch_size: int | None = None,
    on_error: OnError = "raise",
    text_col: str | None = None,
    id_col: str | None = None,
    metadata_cols: Iterable[str] | None = None,
) -> PopulateReport:
    """Bring a store up to date with a DataFrame's rows; the worker of each partition runs `populate` on it.

    Only the reports return to the driver. A second run computes nothing twice: after a failure the same call continues.
    A task that Spark repeats embeds only what its first run left, and reports the rest as skipped.

    Args:
        df: The rows. As many partitions are written at a time as tasks run.
        store_factory: Function that opens the store; each worker calls it once per partition, so it must pickle. All
            workers write at the same time: to a server, or each partition to a store of its own
            (`pyspark.TaskContext.get().partitionId()`). Only one process may write to a folder of Chroma's or Qdrant's.
        text_column: Column of texts. A null is a bad document, see `on_error`.
        id_column: Column of the documents' own ids, cast to strings; None, or a null, takes the hash of the content.
        metadata_columns: Columns of metadata: strings, numbers, booleans, arrays, structs. Nulls are left out.
        batch_size: As in `populate`.
        on_error: As in `populate`. A failure's `position` counts within its partition.
        text_col: The former name of `text_column`; using it warns.
        id_col: The former name of `id_column`; using it warns.
        metadata_cols: The former name of `metadata_columns`; using it warns.

    Returns:
        The sum over the partitions; `seconds` is wall time.

    Raises:
        TypeError: The column of texts does not hold strings.
        pyspark.errors.PySparkException: A task failed more often than Spark allows; the message has `populate`'s error.
    """
    started = time.perf_counter()
    text_column = _latest("text_col", text_col, "text_column", text_column)
    id_column = _latest("id_col", id_col, "id_column", id_column)
    metadata = list(_latest("metadata_cols", metadata_cols, "metadata_columns", metadata_columns))
    columns = [_strings(df, text_column).alias("text")]
    if id_column is not None:
        columns.append(col(id_column).cast("string").alias("id"))
    if metadata:
        columns.append(struct(*metadata).alias("metadata"))
    rows = df.select(*columns).mapInArrow(_filler(store_factory, batch_size, on_error), "report string").collect()
    return sum_reports([_report(row.report) for row in rows], time.perf_counter() - started)


def _latest(old: str, value: T | None, new: str, other: T) -> T:
    """Return the value given under an argument's former name, with a warning to the caller's caller; else `other`."""
    if value is None:
        return other
    warnings.warn(f"{old}= is {new}= now.", DeprecationWarning, stacklevel=3)
    return value


def _filler(
    store_factory: Callable[[], Any], batch_size: int | None, on_error: OnError
) -> Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """Return the function that a worker runs on a partition: it takes the rows and yields the report."""

    def fill(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        first = next(batches, None)
        if first is None:
            return
        documents = _documents(chain([first], batches))
        report = populate(store_factory(), documents, batch_size=batch_size, on_error=on_error, show_progress=False)
        yield pa.RecordBatch.from_pydict({"report": [json.dumps(asdict(report))]})

    return fill


def _strings(dataset: "DataFrame", name: str) -> "Column":
    """Return the column of that name, and refuse one that does not hold strings."""
    kind = dataset.select(col(name)).schema[0].dataType
    if not isinstance(kind, StringType):
        raise TypeError(f'Column "{name}" is of type {kind.simpleString()}; it has to hold strings.')
    return col(name)


def _by_row(columns: Sequence[pd.Series], compute: Callable[[list[Any]], Iterable[Any]]) -> pd.Series:
    """Return the results of `compute` for the rows that have no null, and null for the others."""
    rows = list(zip(*columns, strict=True))
    complete = [not any(map(pd.isna, row)) for row in rows]
    results = iter(compute([row for row, whole in zip(rows, complete, strict=True) if whole]))
    return pd.Series([next(results) if whole else None for whole in complete], dtype=object)


def _documents(batches: Iterable[pa.RecordBatch]) -> Iterator[Any]:
    from langchain_core.documents import Document

    for batch in batches:
        for row in batch.to_pylist():
            metadata = {key: value for key, value in (row.get("metadata") or {}).items() if value is not None}
            # The document is not validated: a null text is left to populate, which may collect it.
            yield Document.model_construct(id=row.get("id"), page_content=row["text"], metadata=metadata)


def _report(told: str) -> PopulateReport:
    fields = json.loads(told)
    return PopulateReport(**fields | {"failed": tuple(Failure(**failure) for failure in fields["failed"])})
