"""Labelled sets: folders in BEIR's layout."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LAYOUT = "A labelled set in BEIR's layout holds corpus.jsonl, queries.jsonl and qrels/test.tsv or qrels.tsv."
_JUDGEMENT = re.compile(r"([^\t]+)\t([^\t]+)\t(-?\d+)\s*")


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Documents, queries, and which documents answer which query.

    Attributes:
        name: The folder's name.
        documents: Text by id; a title comes first, then a space.
        queries: Text by id, for queries with at least one relevant document.
        judgements: For each query, the relevance of the judged documents: above 0 is relevant, more is better.
    """

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    judgements: dict[str, dict[str, int]]

    def relevant(self, query: str) -> set[str]:
        """Return the ids of the documents that answer the query of this id."""
        return {document for document, relevance in self.judgements[query].items() if relevance > 0}


def read_labelled_set(folder: str | Path, split: str = "test", queries: int | None = None) -> LabelledSet:
    """Read a folder in BEIR's layout.

    Args:
        folder: Holds corpus.jsonl and queries.jsonl, with "_id", "text" and, of documents, maybe "title" in each line,
            and qrels/SPLIT.tsv, with query id, document id and relevance, a whole number, between tabs. A folder
            without splits has qrels.tsv instead. A first line of qrels that names its columns is skipped.
        split: Which judgements to take: "test", "dev", "train" or whatever the folder has.
        queries: The most queries, drawn at random but always the same ones. None takes all.

    Raises:
        ValueError: A file is missing or a line wrong; the message names the file and the line. Or `queries` is under 1.
    """
    if queries is not None and queries < 1:
        raise ValueError(f"queries must be 1 or more, not {queries}.")
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise ValueError(f"There is no folder {folder}. {LAYOUT}")
    documents, texts, qrels = (
        _texts(_file(root, "corpus.jsonl")),
        _texts(_file(root, "queries.jsonl")),
        _qrels(root, split),
    )
    judgements = _judgements(qrels, documents, texts)
    judged = sorted(query for query, found in judgements.items() if any(relevance > 0 for relevance in found.values()))
    if not judged:
        raise ValueError(f"{qrels} judges no document relevant to any query: there is nothing to measure.")
    drawn = set(judged if queries is None else random.Random(0).sample(judged, min(queries, len(judged))))  # noqa: S311
    kept = {query: text for query, text in texts.items() if query in drawn}
    return LabelledSet(root.name, documents, kept, {query: judgements[query] for query in kept})


def _file(folder: Path, name: str) -> Path:
    file = folder / name
    if not file.is_file():
        raise ValueError(f"{folder} has no {name}. {LAYOUT}")
    return file


def _qrels(folder: Path, split: str) -> Path:
    splits = sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))
    if not splits:
        return _file(folder, "qrels.tsv")
    if split not in splits:
        raise ValueError(f'{folder / "qrels"} has no split "{split}". Its splits: {", ".join(splits)}.')
    return folder / "qrels" / f"{split}.tsv"


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank, after the file and number that name it in messages."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            try:
                text = line.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"{where} is not UTF-8: {error}.") from error
            if text.strip():
                yield where, text


def _texts(file: Path) -> dict[str, str]:
    texts: dict[str, str] = {}
    for where, line in _lines(file):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON: {error}.") from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("_id", "text")):
            raise ValueError(f'{where} needs "_id" and "text", two strings: {line.strip():.80}')
        if row["_id"] in texts:
            raise ValueError(f'{where} has the "_id" of an earlier line, {row["_id"]}.')
        texts[row["_id"]] = f"{row.get('title') or ''} {row['text']}".strip()
    return texts


def _judgements(file: Path, documents: dict[str, str], queries: dict[str, str]) -> dict[str, dict[str, int]]:
    judgements: dict[str, dict[str, int]] = {}
    for index, (where, line) in enumerate(_lines(file)):
        found = _JUDGEMENT.fullmatch(line)
        if found is None:
            if index == 0:
                continue  # the names of the columns
            raise ValueError(
                f"{where} needs query id, document id and relevance, a whole number, between tabs: {line.strip():.80}"
            )
        query, document, relevance = found.groups()
        if query not in queries:
            raise ValueError(f"{where} judges a query that queries.jsonl lacks, {query}.")
        if document not in documents:
            raise ValueError(f"{where} judges a document that corpus.jsonl lacks, {document}.")
        judgements.setdefault(query, {})[document] = int(relevance)
    return judgements
