"""The output of `bge eval`: a table, bars, and a picture."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress_bar import ProgressBar
from rich.table import Table

from bge_integrations.evaluation import Evaluation, LabelledSet, Measured

_BAR_WIDTH = 40
_COLOURS = {"retrieved": "blue", "reranked": "green"}


def as_json(data: LabelledSet, result: Evaluation) -> dict[str, Any]:
    """Return the result in types that JSON can represent, with gains and intervals if there was a reranker."""
    measures: dict[str, dict[str, Any]] = {}
    for measure in result.measures:
        measures[measure] = {name: measured.mean(measure) for name, measured in _sides(result).items()}
        if result.reranked:
            measures[measure] |= {"gain": result.gain(measure), "interval": result.interval(measure)}
    times = {name: measured.run.milliseconds for name, measured in _sides(result).items()}
    return {
        "set": data.name,
        "documents": len(data.documents),
        "queries": len(data.queries),
        "fetch_k": result.fetch_k,
        "measures": measures,
        "milliseconds": times,
    }


def show(console: Console, data: LabelledSet, result: Evaluation) -> None:
    """Print the table, and a bar for each number."""
    table, bars = Table(title=_title(data, result), title_justify="left"), Table.grid(padding=(0, 1))
    table.add_column("measure")
    for heading in (*_sides(result), *(("gain", "95 % interval") if result.reranked else ())):
        table.add_column(heading, justify="right")
    for measure in result.measures:
        cells = [f"{measured.mean(measure):.3f}" for measured in _sides(result).values()]
        if result.reranked:
            low, high = result.interval(measure)
            cells += [f"{result.gain(measure):+.3f}", f"{low:+.3f} to {high:+.3f}"]
        table.add_row(measure, *cells)
        for name, measured in _sides(result).items():
            mean, colour = measured.mean(measure), _COLOURS[name]
            bar = ProgressBar(1, mean, _BAR_WIDTH, complete_style=colour, finished_style=colour)
            bars.add_row(measure, name, bar, f"{mean:.3f}")
    table.add_row(
        "ms per query (median)", *(f"{measured.run.milliseconds:.0f}" for measured in _sides(result).values())
    )
    console.print(table)
    console.print(bars)


def check_picture(file: Path) -> None:
    """Refuse a picture that could not be written, before anything is computed.

    Raises:
        ValueError: Its folder does not exist, or its suffix is not that of a supported picture format.
    """
    from matplotlib.figure import Figure

    kinds = Figure().canvas.get_supported_filetypes()
    if file.suffix.removeprefix(".").lower() not in kinds:
        raise ValueError(f"The suffix of {file} is not a picture format. Possible are {', '.join(sorted(kinds))}.")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"There is no folder {file.parent} for the picture.")


def draw(data: LabelledSet, result: Evaluation, file: Path) -> None:
    """Draw the numbers as bars.

    Args:
        data: The labelled set.
        result: The numbers measured on it.
        file: The picture; its suffix chooses the format: .png, .svg, .pdf.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    sides = _sides(result)
    for index, (name, measured) in enumerate(sides.items()):
        means = [measured.mean(measure) for measure in result.measures]
        places = [place + index * 0.4 for place in range(len(means))]
        axes.bar_label(axes.bar(places, means, 0.38, label=name, color=f"tab:{_COLOURS[name]}"), fmt="%.3f")
    axes.set_xticks([place + 0.2 * (len(sides) - 1) for place in range(len(result.measures))], result.measures)
    axes.set_ylim(0, 1.05)
    axes.set_title(_title(data, result))
    figure.legend(loc="outside lower center", ncols=len(sides))
    figure.savefig(file, dpi=150)


def _title(data: LabelledSet, result: Evaluation) -> str:
    return f"{data.name}: {len(data.documents)} documents, {len(data.queries)} queries, fetch_k {result.fetch_k}"


def _sides(result: Evaluation) -> dict[str, Measured]:
    """Return the measured sides by name: "retrieved", and "reranked" if there was a reranker."""
    return {"retrieved": result.retrieved} | ({"reranked": result.reranked} if result.reranked else {})
