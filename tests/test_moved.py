"""Old import paths work, and say where the module is now."""

import importlib
import subprocess
import sys

import pytest

from bge_integrations._moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_gives_the_module_of_today(old):
    sys.modules.pop(f"bge_integrations.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"bge_integrations.{old} is bge_integrations.{MOVED[old]} now") as told:
        module = importlib.import_module(f"bge_integrations.{old}")
    assert module is importlib.import_module(f"bge_integrations.{MOVED[old]}")
    assert len(told) == 1
    assert not module.__name__.endswith(old)


def test_names_come_from_an_old_path():
    code = "from bge_integrations.embed.sparse_index import SparseIndex; import bge_integrations as b; "
    code += "assert SparseIndex is b.SparseIndex; import bge_integrations.inference.queue as q; assert q.Queue"
    run = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.count("DeprecationWarning: ") == 2
    assert "<string>:1" in run.stderr  # the line that imports


def test_a_path_that_never_was_is_still_not_there():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("bge_integrations.embed.never")
