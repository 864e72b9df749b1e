"""Reading and writing of JSON lines."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import typer

GROUP = 1024


def read_lines(stream: Iterable[str], *strings: str, lists: Iterable[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the objects of JSON lines; blank lines are skipped.

    Args:
        stream: The lines.
        strings: Keys that must hold a string.
        lists: Keys that must hold a list of strings.

    Raises:
        typer.BadParameter: A line is wrong; the message names it and what it lacks.
    """
    for number, text in enumerate(stream, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise typer.BadParameter(f"line {number} is not JSON: {error}") from error
        for key in strings:
            if not isinstance(line, dict) or not isinstance(line.get(key), str):
                raise typer.BadParameter(f'line {number} needs "{key}", a string: {text.strip():.80}')
        for key in lists:
            if not isinstance(line.get(key), list) or not all(isinstance(item, str) for item in line[key]):
                raise typer.BadParameter(f'line {number} needs "{key}", a list of strings: {text.strip():.80}')
        yield line


def read_texts(lines: list[str]) -> list[str]:
    """Return the texts of lines, or of JSON lines with "text" if the first begins with a brace; skip blank lines.

    Raises:
        typer.BadParameter: A line is wrong; the message names it and what it lacks.
    """
    if next((line for line in lines if line.strip()), "").lstrip().startswith("{"):
        lines = [line["text"] for line in read_lines(lines, "text")]
    return [line for line in lines if line.strip()]


def in_groups(lines: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield lists of at most `GROUP` lines, so that any number of lines takes bounded memory."""
    lines = iter(lines)
    while group := list(islice(lines, GROUP)):
        yield group


def write_line(line: Mapping[str, Any]) -> None:
    """Write one object to stdout as a JSON line."""
    sys.stdout.write(json.dumps(line) + "\n")
