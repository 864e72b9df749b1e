"""Technical English: the prose in the docstrings of permissively licensed packages of science and engineering."""

import ast
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PACKAGES = (  # MIT, BSD, Apache-2.0 or the like
    "aerosandbox",
    "astropy",
    "Bio",
    "cantera",
    "chemicals",
    "control",
    "fluids",
    "ht",
    "lifelines",
    "mne",
    "networkx",
    "nilearn",
    "numpy",
    "openmdao",
    "pint",
    "plasmapy",
    "pymatgen",
    "scipy",
    "skimage",
    "sklearn",
    "statsmodels",
    "sympy",
    "thermo",
)
MOST = 2_500  # of one package
MIN_WORDS, MAX_WORDS = 8, 140
LETTERS = 0.72  # of a text's characters, at least


def read_docstrings(*sites: Path) -> list[str]:
    """The prose of the packages of ``PACKAGES`` that lie in these folders, ``MOST`` pieces a package at most."""
    texts: list[str] = []
    for folder in [site / package for site in sites for package in PACKAGES]:
        found = list(dict.fromkeys(piece for path in sorted(folder.rglob("*.py")) for piece in prose(path)))
        rows = np.sort(np.random.default_rng(0).permutation(len(found))[:MOST])
        texts += [found[row] for row in rows]
    return list(dict.fromkeys(texts))


def prose(path: Path) -> Iterator[str]:
    """The paragraphs of a module's docstrings, neighbours put together up to ``MAX_WORDS`` words."""
    if "test" in path.stem or "tests" in path.parts:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            together = ""
            for paragraph in inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(paragraph.split())
                if not is_prose(text):
                    continue
                if together and len(together.split()) + len(text.split()) > MAX_WORDS:
                    yield together
                    together = ""
                together = f"{together} {text}".strip()
            if together:
                yield together


def is_prose(text: str) -> bool:
    """Sentences rather than code, a table or a formula."""
    letters = sum(character.isalpha() for character in text)
    return (
        len(text.split()) >= MIN_WORDS and letters >= LETTERS * len(text) and ">>>" not in text and "----" not in text
    )
