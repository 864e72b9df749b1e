"""JSON files of a model folder; one that cannot be read is refused by its name."""

import json
from pathlib import Path
from typing import Any

AGAIN = "Download or save the folder again."
_POINTER = b"version https://git-lfs"


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object; {} where there is no such file.

    Raises:
        ValueError: It holds something else.
    """
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(  # noqa: TRY004 - the file is wrong, not an argument
            f"{path} should hold a JSON object, not {type(content).__name__}. {AGAIN}"
        )
    return content


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: It is a pointer of Git LFS, or no JSON in UTF-8.
    """
    content = path.read_bytes()
    if content.startswith(_POINTER):
        raise ValueError(f"{path} is a pointer of Git LFS, not the file itself. Get the files with `git lfs pull`.")
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON in UTF-8 ({error}). {AGAIN}") from error
