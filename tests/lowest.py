"""Prints the lower bounds of pyproject.toml as a constraints file: python tests/lowest.py > constraints-lowest.txt."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
OWN_TOOLS = ("training", "dev")
"""Extras of the project itself: their packages come as new as the others allow."""
EXACT = ("torch",)
"""Pinned in constraints.txt."""
REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,-]+\])?(?:>=(?P<bound>[\d.]+))?")


def requirements() -> Iterator[tuple[str, str | None]]:
    """Give name and lower bound of everything that a user may install."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    users = [project["dependencies"], *(extras[name] for name in extras if name not in OWN_TOOLS)]
    for line in (line for group in users for line in group if not line.startswith("bge-integrations")):
        match = REQUIREMENT.fullmatch(line)
        assert match, f"{line!r} is not of the form name>=version"
        yield match["name"], match["bound"]


def constraints() -> list[str]:
    """Give the lines of the constraints file."""
    return sorted({f"{name}=={bound}" for name, bound in requirements() if name not in EXACT})


if __name__ == "__main__":
    print("\n".join(constraints()))
