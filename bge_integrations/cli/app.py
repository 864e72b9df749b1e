"""The commands of `bge`. Each imports its libraries when it runs, so that `bge --help` is quick."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from bge_integrations.cli.serving import serve
from bge_integrations.errors import BgeError

if TYPE_CHECKING:
    from langchain_core.documents import Document
    from rich.console import Console

    from bge_integrations.stores.fusion import Identity

EMBEDDER, RERANKER = "bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"


class _Group(TyperGroup):
    """A group of commands that turns errors of a wrong model, device or store into one red line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (BgeError, ValueError) as error:
            _console(stderr=True).print(f"bge: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Group,
    help="BGE embedders and rerankers on the command line: index and ask files, measure, embed and rerank JSON lines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)

Device = Annotated[str | None, typer.Option(help="Where models run: cpu, cuda:0, mps. Default: the best there is.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, float16, or int8 (openvino). Default: the device's.")
]
Backend = Annotated[
    Literal["auto", "torch", "openvino", "sentence_transformers"], typer.Option(help="Library that runs the model.")
]
Store = Annotated[Path, typer.Option(help="Folder of the store.", file_okay=False)]


@app.command()
def models(kind: Annotated[str | None, typer.Option(help="List only this kind: embedder or reranker.")] = None) -> None:
    """List the catalogue: every BGE text model with its facts."""
    from rich.table import Table

    from bge_integrations.catalog import list_models

    if kind not in (None, "embedder", "reranker"):
        raise typer.BadParameter("kind must be embedder or reranker.", param_hint="--kind")
    table = Table("model", "kind", "dim", "tokens", "languages", "licence", "runs")
    for spec in list_models(kind):
        facts = (spec.id, spec.kind, spec.dim or "", spec.max_length, spec.languages, spec.license)
        table.add_row(*map(str, facts), "no" if spec.unsupported else "yes")
    table.caption = f"{EMBEDDER} and {RERANKER} ship with this package: its own models, not BAAI's."
    _console().print(table)


@app.command()
def index(
    paths: Annotated[list[Path], typer.Argument(help="Files, or folders to search.", exists=True)],
    store: Store,
    model: Annotated[
        str | None,
        typer.Option(help=f"Embedder: id or folder. Default: the store's, else {EMBEDDER}, this package's own."),
    ] = None,
    chunk_size: Annotated[int, typer.Option(help="Most tokens of a chunk.", min=16)] = 256,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also remove the chunks of files under PATHS that are gone.")
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = "auto",
) -> None:
    """Index Markdown, reStructuredText and text files and the docstrings of Python files into Chroma on disk.

    Run it again after files have changed: chunks that the store holds are not embedded again, and chunks whose text is
    gone from a file are removed once the new ones are stored. The chunks of files that are not under PATHS stay.
    """
    _require("chromadb", "langchain_chroma", "langchain_text_splitters")
    from bge_integrations.cli.corpus import SUFFIXES, find_files, most_tokens
    from bge_integrations.cli.store import delete_gone, open_store, remembered_model
    from bge_integrations.langchain import BgeEmbeddings
    from bge_integrations.populate import populate

    files = find_files(paths)
    if not files and not prune:
        raise typer.BadParameter(f"There is no {', '.join(SUFFIXES)} file in {', '.join(map(str, paths))}.")
    model = _absolute(model or remembered_model(store) or EMBEDDER)
    embeddings = BgeEmbeddings(model=model, device=device, dtype=dtype, backend=backend)
    # This refuses a model that cannot be used, before a store is made.
    read = _read_files(files, model, min(chunk_size, most_tokens(embeddings.embedder)))
    chunks = [chunk for found in read.values() for chunk in found]
    chroma = open_store(store, model, embeddings)
    report = populate(chroma, chunks, cleanup="source")
    emptied = [file for file, found in read.items() if not found]
    deleted = report.deleted + delete_gone(chroma, emptied, paths if prune else ())
    _console().print(
        f"{len(files)} files, {len(chunks)} chunks: {report.added} added, {report.updated} updated, "
        f"{report.skipped} unchanged, {deleted} deleted; {report.texts} embedded in {report.seconds:.1f} s",
        highlight=False,
    )


def _read_files(files: list[Path], model: str, chunk_size: int) -> "dict[Path, list[Document]]":
    """Return the chunks of each file that can be read; warn of the others on stderr."""
    from bge_integrations.cli.corpus import make_token_counter, read_chunks

    count_tokens = make_token_counter(model)
    read = {}
    for file in files:
        try:
            read[file] = read_chunks(file, count_tokens, chunk_size)
        except (SyntaxError, ValueError) as error:
            _console(stderr=True).print(f"skipped {file}: {error}", style="yellow", markup=False, soft_wrap=True)
    return read


@app.command()
def ask(
    question: str,
    store: Store,
    top_n: Annotated[int, typer.Option(help="Passages to show.", min=1)] = 5,
    reranker: Annotated[
        str | None,
        typer.Option(
            help=f'Reranker: id or folder, or "none". Default: {RERANKER} on a store of {EMBEDDER}, else none.'
        ),
    ] = None,
    fetch_k: Annotated[int, typer.Option(help="Passages to fetch for the reranker.", min=1)] = 50,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = "auto",
) -> None:
    """Ask an indexed store: fetch passages, rerank them, show the best with both scores and their source.

    Sources below the current folder are shown relative to it.
    """
    _require("chromadb")
    from bge_integrations import BgeEmbedder, BgeReranker
    from bge_integrations.cli.store import filled_collection, model_of, nearest
    from bge_integrations.stores.fingerprint import check_fingerprint

    collection = filled_collection(store)
    if collection is None:
        raise typer.BadParameter(f"{store} holds no index; make one with: bge index PATH --store {store}")
    model = model_of(collection)
    reranker = _chosen_reranker(reranker, model)
    if reranker and fetch_k < top_n:
        raise typer.BadParameter(f"--fetch-k {fetch_k} is under --top-n {top_n}.", param_hint="--fetch-k")
    embedder = BgeEmbedder(model, device=device, dtype=dtype, backend=backend)
    check_fingerprint(collection, embedder.fingerprint)
    vector = embedder.encode_queries([question])[0]
    if reranker is None:
        for rank, (passage, distance) in enumerate(nearest(collection, vector, top_n), start=1):
            _show(rank, passage, distance=distance)
        _console(stderr=True).print("No reranker was chosen: passages are in the order of retrieval.", style="yellow")
        return
    passages = nearest(collection, vector, fetch_k)
    scorer = BgeReranker(_absolute(reranker), device=device, dtype=dtype, backend=backend)
    best = scorer.rerank(question, [passage.text for passage, _ in passages], top_n=top_n)
    for rank, result in enumerate(best, start=1):
        passage, distance = passages[result.index]
        _show(rank, passage, relevance=result.score, distance=distance)


def _show(rank: int, passage: "Identity", **scores: float) -> None:
    numbers = "  ".join(f"{name} {score:.4f}" for name, score in scores.items())
    source, folder = Path(str(passage.metadata["source"])), Path.cwd()
    if source.is_relative_to(folder):
        source = source.relative_to(folder)
    place = f"{source}:{passage.metadata['start_line']}"
    console = _console()
    console.print(f"{rank}. {numbers}  {place}", style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(passage.text, markup=False, highlight=False, soft_wrap=True)
    console.print()


@app.command("eval")
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Labelled set: corpus.jsonl, queries.jsonl, qrels/test.tsv.")],
    split: Annotated[
        str, typer.Option(help="Which judgements: qrels/SPLIT.tsv, or qrels.tsv if there is no qrels/.")
    ] = "test",
    model: Annotated[str, typer.Option(help="Embedder: id or folder.")] = EMBEDDER,
    reranker: Annotated[
        str | None,
        typer.Option(help=f'Reranker: id or folder, or "none". Default: {RERANKER} with {EMBEDDER}, else none.'),
    ] = None,
    fetch_k: Annotated[int, typer.Option(help="Passages to fetch and to rerank.", min=10)] = 50,
    queries: Annotated[
        int | None, typer.Option(help="Most queries to measure, always the same. Default: all.", min=1)
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the numbers too: a .png, .svg or .pdf file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = "auto",
) -> None:
    """Measure an embedder, and the gain of a reranker, on a labelled set in BEIR's layout: nDCG@10, MRR@10, recall.

    The search is exact, and texts over a model's length are cut. The gain's 95 % interval is that of a paired bootstrap
    over queries: an interval that includes 0 says that the gain may be chance.
    """
    _require("ir_measures", *(["matplotlib"] if picture else []), extra="cli,eval")
    from bge_integrations import BgeEmbedder, BgeReranker, evaluation
    from bge_integrations.cli import report
    from bge_integrations.cli.lines import write_line

    if picture:
        report.check_picture(picture)
    data = evaluation.read_labelled_set(folder, split, queries)
    reranker = _chosen_reranker(reranker, model)
    settings: dict[str, Any] = {"device": device, "dtype": dtype, "backend": backend, "on_truncate": "ignore"}
    result = evaluation.evaluate(
        data,
        BgeEmbedder(_absolute(model), **settings),
        BgeReranker(_absolute(reranker), **settings) if reranker else None,
        fetch_k=fetch_k,
    )
    if as_json:
        write_line({"model": model, "reranker": reranker, **report.as_json(data, result)})
    else:
        report.show(_console(), data, result)
    if picture:
        report.draw(data, result, picture)


@app.command()
def embed(
    model: Annotated[str, typer.Option(help="Embedder: id or folder.")] = EMBEDDER,
    query: Annotated[bool, typer.Option("--query", help="Embed queries, with the query instruction.")] = False,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = "auto",
) -> None:
    """Embed JSON lines from stdin to stdout.

    Each input line is an object with "text":

    {"text": "Pandas eat bamboo.", "id": 7}

    Each output line is the same object with its other keys and "embedding":

    {"text": "Pandas eat bamboo.", "id": 7, "embedding": [0.012, -0.034, ...]}
    """
    from bge_integrations.cli.lines import in_groups, read_lines, write_line
    from bge_integrations.embed.embedder import BgeEmbedder, to_lists

    embedder = BgeEmbedder(_absolute(model), device=device, dtype=dtype, backend=backend)
    embedder.describe()  # a model that cannot be used is refused before anything is read
    encode = embedder.encode_queries if query else embedder.encode_documents
    for group in in_groups(read_lines(sys.stdin, "text")):
        for line, vector in zip(group, to_lists(encode([line["text"] for line in group])), strict=True):
            write_line({**line, "embedding": vector})


@app.command()
def rerank(
    model: Annotated[str, typer.Option(help="Reranker: id or folder.")] = RERANKER,
    top_n: Annotated[int | None, typer.Option(help="Passages to keep. Default: all.", min=1)] = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = "auto",
) -> None:
    """Rerank JSON lines from stdin to stdout.

    Each input line is an object with "query" and "documents":

    {"query": "what do pandas eat?", "documents": ["Paris.", "Bamboo."]}

    Each output line is the same object with its other keys and "results", best first, where "index" counts documents
    from 0:

    {..., "results": [{"index": 1, "score": 0.97, "logit": 3.5}, ...]}
    """
    from dataclasses import asdict

    from bge_integrations.cli.lines import read_lines, write_line
    from bge_integrations.rerank.reranker import BgeReranker

    reranker = BgeReranker(_absolute(model), device=device, dtype=dtype, backend=backend)
    for line in read_lines(sys.stdin, "query", lists=["documents"]):
        results = reranker.rerank(line["query"], line["documents"], top_n=top_n)
        write_line({**line, "results": [asdict(result) for result in results]})


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Embedder or reranker: id or folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or an empty one.")],
    like: Annotated[str | None, typer.Option(help="The id that a fine-tune or a bare folder descends from.")] = None,
) -> None:
    """Export a model to ONNX: a folder that Transformers.js and ONNX Runtime take as it is.

    The command writes onnx/model.onnx (float32) and onnx/model_quantized.onnx (8-bit weights), runs both and compares
    them with the model. The folder also holds the tokenizer, the config and a card that says how to use them.
    """
    from bge_integrations.export import export_onnx

    report = export_onnx(_absolute(model), folder, like=like)
    measured = "largest difference of a score" if report.kind == "reranker" else "lowest cosine to the model"
    for file, size in report.sizes.items():
        _console().print(
            f"{file}  {size / 1e6:.1f} MB, {measured} {report.agreement[file]:.5f}", highlight=False, soft_wrap=True
        )
    _console().print(f"{report.folder} written in {report.seconds:.1f} s", highlight=False, soft_wrap=True)


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Embedder or reranker: id or folder.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder, or an empty one.")],
    texts: Annotated[
        Path | None,
        typer.Option(
            help='Some hundred texts to calibrate on: one per line, or JSON lines with "text". Default: English prose.',
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    like: Annotated[str | None, typer.Option(help="The id that a fine-tune or a bare folder descends from.")] = None,
) -> None:
    """Quantize a model to int8 for OpenVINO, the fastest way to run it on a CPU, and write it as a new model folder.

    The new model has its own fingerprint: a store that the original model filled has to be filled again.
    """
    from bge_integrations.cli.lines import read_texts
    from bge_integrations.export import quantize_openvino

    chosen = read_texts(texts.read_text(encoding="utf-8").splitlines()) if texts else None
    report = quantize_openvino(_absolute(model), folder, chosen, like=like)
    measured = "largest difference of a score" if report.kind == "reranker" else "lowest cosine to the model"
    _console().print(
        f"{report.folder}  {report.size / 1e6:.1f} MB, {measured} {report.agreement:.5f}, {report.seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def doctor(
    check: Annotated[
        bool, typer.Option("--check", help="Also run the models that ship on every backend and device.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for a bug report.")] = False,
) -> None:
    """Show what this machine has and lacks: versions, devices, backends, folders, and the defaults.

    The exit code is 1 if --check fails.
    """
    from bge_integrations.cli import doctor as work
    from bge_integrations.cli.lines import write_line

    facts = work.examine(EMBEDDER, RERANKER, check=check)
    write_line(facts) if as_json else work.show(_console(), facts)
    if not work.has_passed(facts):
        raise typer.Exit(1)


def _chosen_reranker(reranker: str | None, model: str) -> str | None:
    """Return the reranker asked for, by default this package's own for its own embedder; None for none."""
    if reranker is None and model == EMBEDDER:
        return RERANKER
    return None if reranker == "none" else reranker


def _absolute(model: str) -> str:
    """Return the absolute path of a folder; return a hub id as it is."""
    path = Path(model).expanduser()
    return str(path.resolve()) if path.is_dir() else model


def _require(*modules: str, extra: str = "cli") -> None:
    from importlib.util import find_spec

    from bge_integrations.errors import MissingExtraError

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f'This command needs {", ".join(missing)}. Install it: pip install "bge_integrations[{extra}]"'
        )


def _console(*, stderr: bool = False) -> "Console":
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 200)
