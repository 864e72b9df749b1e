"""Files into chunks with the right lines and ids that last."""

from pathlib import Path

import pytest

from bge_integrations import BgeEmbedder
from bge_integrations.cli.corpus import find_files, make_token_counter, most_tokens, read_chunks

MARKDOWN = """# Pandas

Pandas eat bamboo all day long.

## Where they live

They live in the mountains of China.
"""
PYTHON = '''"""What this module is for."""

class Panda:
    """A bear that eats bamboo."""

    async def eat(self):
        """
        Eat bamboo.

        Until there is none.
        """
        if True:
            def inner():
                "Deep inside."

def undocumented(): pass
'''


def test_counts_tokens_without_padding_or_cut(minilm: Path) -> None:
    count = make_token_counter(str(minilm))
    assert [count(text) for text in ("", "pandas", "pandas eat bamboo", "bamboo " * 1000)] == [0, 2, 4, 1000]
    assert most_tokens(BgeEmbedder(str(minilm))) == 224


def count_words(text: str) -> int:
    return len(text.split())


def lines_of(path: Path, chunk_size: int = 1000) -> list[tuple[str, int]]:
    chunks = read_chunks(path, count_words, chunk_size)
    return [(chunk.page_content, chunk.metadata["start_line"]) for chunk in chunks]


def test_finds_files(tmp_path: Path) -> None:
    for name in ("a.md", "b/c.rst", "b/d.txt", "b/e.py", "f.markdown", "g.png", ".hidden/h.md", "b/__pycache__/i.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    names = [str(file.relative_to(tmp_path)) for file in find_files([tmp_path, tmp_path / "a.md", tmp_path / "b"])]
    assert names == ["a.md", "b/c.rst", "b/d.txt", "b/e.py", "f.markdown"]
    assert find_files([tmp_path / "g.png"]) == [tmp_path / "g.png"]


def test_searches_inside_a_hidden_folder_that_is_named(tmp_path: Path) -> None:
    (tmp_path / ".notes").mkdir()
    (tmp_path / ".notes" / "a.md").touch()
    assert len(find_files([tmp_path / ".notes"])) == 1


def test_chunks_name_the_line_where_they_start(tmp_path: Path) -> None:
    path = tmp_path / "pandas.md"
    path.write_text(MARKDOWN)
    chunks = lines_of(path, chunk_size=11)
    assert len(chunks) == 2
    lines = MARKDOWN.splitlines()
    for text, line in chunks:
        assert text.splitlines()[0] == lines[line - 1]
    assert [line for _, line in chunks] == [1, 5]


@pytest.mark.parametrize("suffix", [".md", ".rst", ".txt"])
def test_no_text_is_lost_and_no_chunk_too_long(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"long{suffix}"
    paragraphs = [f"Title {n}\n=======\n\n" + "word " * n for n in range(1, 60)]
    path.write_text("\n\n".join(paragraphs))
    chunks = lines_of(path, chunk_size=30)
    words = " ".join(text for text, _ in chunks).split()
    assert [word for word in words if "=" not in word] == [word for word in path.read_text().split() if "=" not in word]
    assert max(count_words(text) for text, _ in chunks) <= 30
    starts = path.read_text().splitlines()
    assert all(text.split()[0] in starts[line - 1] for text, line in chunks)


def test_docstrings_with_their_names_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "zoo.py"
    path.write_text(PYTHON)
    assert lines_of(path) == [
        ("zoo: What this module is for.", 1),
        ("zoo.Panda: A bear that eats bamboo.", 4),
        ("zoo.Panda.eat: Eat bamboo.\n\nUntil there is none.", 8),
        ("zoo.Panda.eat.inner: Deep inside.", 14),
    ]
    package = tmp_path / "animals" / "__init__.py"
    package.parent.mkdir()
    package.write_text('"""All of them."""')
    assert lines_of(package) == [("animals: All of them.", 1)]


def test_ids_outlast_lines_inserted_above(tmp_path: Path) -> None:
    path = tmp_path / "pandas.md"
    path.write_text(MARKDOWN)
    before = {chunk.id for chunk in read_chunks(path, count_words, 10)}
    path.write_text("# New\n\nSomething new was written above all of this text.\n\n" + MARKDOWN)
    after = {chunk.id for chunk in read_chunks(path, count_words, 10)}
    assert before < after


def test_equal_chunks_of_a_file_are_two(tmp_path: Path) -> None:
    path = tmp_path / "twice.py"
    path.write_text('def f():\n    "Same words."\n\ndef f():\n    "Same words."\n')
    chunks = read_chunks(path, count_words, 100)
    assert [chunk.metadata["start_line"] for chunk in chunks] == [2, 5]
    assert len({chunk.id for chunk in chunks}) == 2


def test_odd_files(tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(b"\xef\xbb\xbfbegins with a mark \xff and has a wrong byte")
    assert lines_of(path) == [("begins with a mark \ufffd and has a wrong byte", 1)]
    path.write_bytes(b" \n\n ")
    assert lines_of(path) == []
    broken = tmp_path / "broken.py"
    broken.write_text("def (")
    with pytest.raises(SyntaxError):
        lines_of(broken)
    escapes = tmp_path / "escapes.py"
    escapes.write_text('"""A backslash \\d in a docstring."""')
    assert lines_of(escapes) == [("escapes: A backslash \\d in a docstring.", 1)]
