"""Splitting of files into chunks: Markdown, reStructuredText, plain text, and the docstrings of Python files."""

import ast
import hashlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

from langchain_core.documents import Document
from langchain_text_splitters import Language, RecursiveCharacterTextSplitter, TextSplitter

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.runtime.locate import locate, named_folder
from bge_integrations.runtime.request import ModelSource

_LANGUAGES = {".md": Language.MARKDOWN, ".markdown": Language.MARKDOWN, ".rst": Language.RST, ".txt": None, ".py": None}

SUFFIXES = tuple(_LANGUAGES)


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the files to index, absolute, sorted, each once.

    Args:
        paths: Files, taken whatever their suffix, and folders, searched for `SUFFIXES` outside hidden folders.
    """
    files: set[Path] = set()
    for path in paths:
        root = path.resolve()
        if root.is_file():
            files.add(root)
        else:
            files.update(file for file in root.rglob("*") if file.suffix in _LANGUAGES and not _is_hidden(file, root))
    return sorted(file for file in files if file.is_file())


def read_chunks(path: Path, count_tokens: Callable[[str], int], chunk_size: int) -> list[Document]:
    """Split one file into chunks.

    Args:
        path: The file; any suffix other than .py, .md, .markdown and .rst is read as plain text.
        count_tokens: Returns the length of a text in the model's tokens.
        chunk_size: Most tokens of a chunk.

    Returns:
        Documents with the metadata `source` and `start_line`; a docstring's text begins with the name of what it
        describes. Ids depend on source and text, not on the line, so lines inserted above a chunk do not make it new.

    Raises:
        SyntaxError: A .py file that this Python cannot read.
    """
    splitter = _make_splitter(path.suffix, count_tokens, chunk_size)
    seen: Counter[str] = Counter()
    chunks = []
    for name, text, first_line in _docstrings(path) if path.suffix == ".py" else _whole_text(path):
        for part in splitter.create_documents([text]):
            content = f"{name}: {part.page_content}" if name else part.page_content
            line = first_line + text.count("\n", 0, part.metadata["start_index"])
            chunk_id = hashlib.sha256(f"{path}\0{seen[content]}\0{content}".encode()).hexdigest()
            seen[content] += 1
            chunks.append(
                Document(id=chunk_id, page_content=content, metadata={"source": str(path), "start_line": line})
            )
    return chunks


def _make_splitter(suffix: str, count_tokens: Callable[[str], int], chunk_size: int) -> TextSplitter:
    language = _LANGUAGES.get(suffix)
    separators = None if language is None else RecursiveCharacterTextSplitter.get_separators_for_language(language)
    return RecursiveCharacterTextSplitter(
        separators=separators,
        is_separator_regex=separators is not None,
        length_function=count_tokens,
        chunk_size=chunk_size,
        chunk_overlap=0,
        add_start_index=True,
    )


def _whole_text(path: Path) -> Iterator[tuple[str, str, int]]:
    yield "", path.read_text(encoding="utf-8-sig", errors="replace"), 1


def _docstrings(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (dotted name, docstring, first line) of a module, its classes and functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_bytes(), filename=str(path))
    yield from _walk(tree, path.parent.name if path.stem == "__init__" else path.stem)


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str, int]]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        raw = ast.get_docstring(node, clean=False)
        if raw and raw.strip():
            leading_lines = raw[: len(raw) - len(raw.lstrip())].count("\n")
            yield name, ast.get_docstring(node) or "", node.body[0].lineno + leading_lines
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _walk(child, f"{name}.{child.name}")
        elif isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield from _walk(child, name)


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in file.relative_to(root).parts)


def most_tokens(embedder: BgeEmbedder) -> int:
    """Return the most tokens of a chunk: an eighth of the model's limit is left for special tokens and names."""
    return cast("int", embedder.describe()["max_length"]) * 7 // 8


def make_token_counter(model: str) -> Callable[[str], int]:
    """Return a function that counts a text's tokens without special tokens.

    Args:
        model: An embedder's id or folder.
    """
    from transformers import AutoTokenizer

    located = locate(ModelSource(model=model, kind="embedder", path=named_folder(model)))
    tokenizer = AutoTokenizer.from_pretrained(located.path).backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
