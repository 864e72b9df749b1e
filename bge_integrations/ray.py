"""Ray (extra `ray`): columns and a sink for Ray Data, which fills vector stores, and the server on a cluster.

Example:
    ```python
    import ray
    from bge_integrations.ray import BgeEmbeddings

    dataset = ray.data.read_parquet("texts").map_batches(
        BgeEmbeddings,
        fn_constructor_kwargs={"model": "BAAI/bge-base-en-v1.5", "max_length": 256},
        batch_size=1024,
        num_gpus=1,
        compute=ray.data.ActorPoolStrategy(size=8),
    )
    ```

One actor keeps one copy of the model. On GPUs give `num_gpus=1` and as many actors as GPUs. On CPUs `num_cpus=` is the
number of an actor's cores, 1 by default, because Ray sets OMP_NUM_THREADS by it. Ray restarts a killed actor and
repeats its batch.

Where `bge serve MODEL --socket PATH` runs on every machine, the actors of a machine share its copy and load neither
model nor torch: give them `cache="unix://PATH"`, or set BGE_CACHE for them by Ray's `runtime_env={"env_vars":
{"BGE_CACHE": "unix://PATH"}}`, of `ray.init` or of one `map_batches`; the tasks of a `VectorStoreDatasink` take it by
`ray_remote_args`. Workers of a Ray that a program starts itself inherit BGE_CACHE from it. A server's key reaches them
as BGE_API_KEY, in the same way.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.errors import MissingExtraError
from bge_integrations.populate.pipeline import OnError, populate
from bge_integrations.populate.report import PopulateReport, sum_reports
from bge_integrations.rerank.reranker import BgeReranker
from bge_integrations.runtime.user import ModelUser

if find_spec("ray") is None or find_spec("langchain_core") is None:
    raise MissingExtraError('bge_integrations.ray needs Ray Data. Install it: pip install "bge_integrations[ray]"')

from langchain_core.documents import Document
from ray.data.block import Block, BlockAccessor
from ray.data.datasource import Datasink, WriteResult

__all__ = ["BgeEmbeddings", "BgeReranking", "VectorStoreDatasink", "server"]

Batch = dict[str, NDArray[Any]]
"""Columns of a batch, in the format that `map_batches` gives by default."""

ROWS = 1024
"""Number of rows of a block that are turned into Python objects at a time."""


class _FromCore:
    """A mixin for a stage that is given the model, or an object of the core whose arguments it takes over."""

    model: str | ModelUser
    _core_type: ClassVar[type[ModelUser]]

    def __post_init__(self) -> None:
        if not isinstance(self.model, self._core_type):
            super().__post_init__()  # type: ignore[misc]  # the core's, which is the next base of a stage
            return
        options = {option.name: option.default for option in fields(self._core_type) if option.name != "model"}
        if beside := [f"{name}=" for name, default in options.items() if getattr(self, name) != default]:
            core = self._core_type.__name__
            raise ValueError(
                f"{type(self).__name__} has all options from the {core} that is its model, so it takes no "
                f"{', '.join(beside)} beside it. Give the {core} these options, or name the model."
            )
        columns = {name: value for name, value in vars(self).items() if name not in {"model", *options}}
        vars(self).update(vars(self.model) | columns)  # a folder stays the one that the core's object found


@dataclass(repr=False, eq=False)
class BgeEmbeddings(_FromCore, BgeEmbedder):
    """A `BgeEmbedder` that adds a column of embeddings to batches: float32 vectors, one per text.

    It holds configuration only, so Ray can send it to the actors; each loads the weights at its first batch.

    Args:
        model: A catalogue id, a hub id, or a folder that every actor can read; or a `BgeEmbedder`, whose arguments are
            taken over.
        input_column: The column of texts.
        output_column: The column to add; one of that name is replaced.
        query: Whether the texts are queries, which take the query instruction.

    All other arguments are those of `BgeEmbedder`, by name; in `fn_constructor_kwargs` too.

    Raises:
        UnknownModelError: The model is a mistyped catalogue id; the message names the nearest ones.
        WrongKindError: The model is a reranker.
        ValueError: An argument is out of its range, or is given beside a `BgeEmbedder` and is not its default.
    """

    model: str | BgeEmbedder  # type: ignore[assignment]  # a string once the object is made
    input_column: str = "text"
    output_column: str = "embedding"
    query: bool = False

    _core_type: ClassVar[type[ModelUser]] = BgeEmbedder

    @property
    def embedder(self) -> BgeEmbedder:
        """The embedder that computes, which is this object itself."""
        return self

    def __call__(self, batch: Batch) -> Batch:
        """Embed one batch.

        Args:
            batch: Columns as numpy arrays, Ray's default.

        Returns:
            The same columns and `output_column`, float32 (texts, dim).

        Raises:
            TypeError: A value is not a string, such as a null; the message has its index. Remove such rows first.
            ValueError: There is no such column, or a text is not valid Unicode.
        """
        texts = _texts(batch, self.input_column)
        encode = self.encode_queries if self.query else self.encode_documents
        return {**batch, self.output_column: encode(texts)}


@dataclass(repr=False, eq=False)
class BgeReranking(_FromCore, BgeReranker):
    """A `BgeReranker` that adds a column of relevance scores to batches, one per pair of query and passage.

    Args:
        model: A catalogue id, a hub id, or a folder that every actor can read; or a `BgeReranker`, whose arguments are
            taken over.
        query_column: The column of queries.
        input_column: The column of passages.
        output_column: The column to add; one of that name is replaced.

    All other arguments are those of `BgeReranker`, by name; in `fn_constructor_kwargs` too.

    Raises:
        UnknownModelError: The model is a mistyped catalogue id; the message names the nearest ones.
        WrongKindError: The model is an embedder.
        ValueError: An argument is out of its range, or is given beside a `BgeReranker` and is not its default.
    """

    model: str | BgeReranker  # type: ignore[assignment]  # a string once the object is made
    query_column: str = "query"
    input_column: str = "text"
    output_column: str = "score"

    _core_type: ClassVar[type[ModelUser]] = BgeReranker

    @property
    def reranker(self) -> BgeReranker:
        """The reranker that computes, which is this object itself."""
        return self

    def __call__(self, batch: Batch) -> Batch:
        """Score one batch.

        Args:
            batch: Columns as numpy arrays, Ray's default.

        Returns:
            The same columns and `output_column`, float64: between 0 and 1, or logits with `normalize=False`.

        Raises:
            TypeError: A pair is not two strings; the message has its index. Remove such rows first.
            ValueError: There is no such column, or a text is not valid Unicode.
        """
        pairs = zip(_texts(batch, self.query_column), _texts(batch, self.input_column), strict=True)
        return {**batch, self.output_column: np.asarray(self.score(pairs), dtype=np.float64)}


class VectorStoreDatasink(Datasink[PopulateReport]):
    """A sink that fills a vector store with the rows of a dataset: `dataset.write_datasink(VectorStoreDatasink(...))`.

    Each write task opens the store and calls `populate` with its rows, so the store's own embeddings compute the
    vectors, texts that the store holds are not computed again, and Ray may kill and repeat a task. Many tasks write at
    a time: the store must be one that many processes may write to, such as a Chroma or Qdrant server. Only one process
    may write to a folder of Chroma's or Qdrant's: fill it with `populate` itself, from `dataset.iter_rows()`.

    A task takes one CPU, and its process keeps a copy of the model for the next; `ray_remote_args={"num_cpus": 8}` in
    `write_datasink` gives fewer tasks at a time, with more threads each. On GPUs give `{"num_gpus": 1, "max_calls":
    0}`: without `max_calls` Ray ends the process after each task, and the next one loads the model anew.

    Args:
        store_factory: Function without arguments that each write task calls to open the store, as `populate` takes it.
            Ray pickles the function, so let it import and open what it needs itself.
        text_column: The column of texts; a null is a bad document.
        id_column: The column of the documents' own ids; None, and null, give ids made from content.
        metadata_columns: The columns to keep as metadata; nulls are left out. There is no `cleanup=` as in `populate`,
            because no task knows all documents of a source.
        batch_size: Number of documents for each look-up and write; default 512.
        on_error: "collect" puts bad documents, and those that the store refuses, into the report's `failed`, whose
            positions count from the first row of their task.

    Attributes:
        report: The sum of all tasks' reports of the last complete write, with its wall time; None before, and after a
            write that failed. Documents that a killed task had written count as skipped when it is repeated.
    """

    def __init__(
        self,
        store_factory: Callable[[], Any],
        text_column: str = "text",
        id_column: str | None = None,
        metadata_columns: Sequence[str] = (),
        *,
        batch_size: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.store_factory = store_factory
        self.text_column = text_column
        self.id_column = id_column
        self.metadata_columns = tuple(metadata_columns)
        self.batch_size = batch_size
        self.on_error = on_error
        self.report: PopulateReport | None = None
        self._started: float | None = None

    def on_write_start(self, schema: Any = None) -> None:  # noqa: ARG002 - Ray's signature
        """Note the time; Ray calls this when the first rows are there."""
        self._started = time.perf_counter()

    def write(self, blocks: Iterable[Block], ctx: Any) -> PopulateReport:  # noqa: ARG002 - Ray's signature
        """Fill the store with some blocks; Ray calls this in each write task."""
        return populate(
            self.store_factory(),
            self._documents(blocks),
            batch_size=self.batch_size,
            on_error=self.on_error,
            show_progress=False,
        )

    def on_write_complete(self, write_result: WriteResult[PopulateReport]) -> None:
        """Keep the report; Ray calls this when all tasks are done."""
        seconds = 0.0 if self._started is None else time.perf_counter() - self._started
        self.report, self._started = sum_reports(write_result.write_returns, seconds), None

    def on_write_failed(self, error: Exception) -> None:  # noqa: ARG002 - Ray's signature
        """Forget the last report; Ray calls this when a write fails, and then raises the error."""
        self.report = self._started = None

    def _documents(self, blocks: Iterable[Block]) -> Iterator[Document]:
        own = () if self.id_column is None else (self.id_column,)
        columns = list(dict.fromkeys((self.text_column, *own, *self.metadata_columns)))
        for block in blocks:
            table = BlockAccessor.for_block(block).to_arrow()
            if table.num_rows:  # an empty block may lack the columns
                for part in table.select(columns).to_batches(max_chunksize=ROWS):
                    yield from map(self._document, part.to_pylist())

    def _document(self, row: dict[str, Any]) -> Document:
        own = None if self.id_column is None else row[self.id_column]
        metadata = {name: row[name] for name in self.metadata_columns if row[name] is not None}
        # The document is not validated: a null text is left to populate, which may collect it.
        return Document.model_construct(
            id=None if own is None else str(own), page_content=row[self.text_column], metadata=metadata
        )


def server(
    models: Iterable[str],
    *,
    num_replicas: int = 1,
    ray_actor_options: dict[str, Any] | None = None,
    api_keys: Sequence[str] = (),
) -> Any:
    """Make a Ray Serve application that serves models as `bge serve` does, from the GPUs of a whole cluster.

    Every replica holds a copy of each model. One machine with one GPU needs no Ray: `bge serve` shares one copy there.

    Args:
        models: Ids or folders that every machine of the cluster can find.
        num_replicas: The number of replicas.
        ray_actor_options: What a replica takes of its machine, such as `{"num_gpus": 1}`.
        api_keys: As in `bge_integrations.serve.create_app`.

    Returns:
        An application for `ray.serve.run`.

    Raises:
        MissingExtraError: Ray Serve, or the extra `serve`, is not installed.

    Example:
        ```python
        ray.serve.run(server(["BAAI/bge-m3"], num_replicas=8, ray_actor_options={"num_gpus": 1}))
        ```
    """
    from bge_integrations.serve import create_app

    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError('Ray Serve is not installed: pip install "ray[serve]"') from error

    @serve.ingress(create_app(models, api_keys=api_keys))
    class BgeServer:
        """A replica of the server."""

    deployed: Any = serve.deployment(num_replicas=num_replicas, ray_actor_options=ray_actor_options or {})(BgeServer)
    return deployed.bind()


def _texts(batch: Batch, column: str) -> list[str]:
    if column not in batch:
        raise ValueError(f"The batch has no column {column!r}; its columns are {', '.join(map(repr, batch))}.")
    texts: list[str] = batch[column].tolist()
    return texts
