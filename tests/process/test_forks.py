"""A forked child encodes what its parent would, or says at once that spawn is the way; it never hangs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "scripts" / "forks.py"
MOMENTS = ["before anything", "after encoding", "while threads encode", "in a pool", "after everything is unloaded"]


@pytest.fixture(scope="module")
def outcome(bert_embedder):
    script = subprocess.run(
        [sys.executable, SCRIPT, str(bert_embedder)], capture_output=True, text=True, timeout=110, check=False
    )
    assert (script.returncode, script.stderr) == (0, "")
    return json.loads(script.stdout)


@pytest.mark.parametrize("moment", MOMENTS)
def test_children_encode(moment, outcome):
    children = [child for child in outcome["children"] if child["moment"] == moment]
    assert len(children) == {"while threads encode": 6, "in a pool": 3, "after everything is unloaded": 4}.get(
        moment, 1
    )
    for child in children:
        assert child["status"] == 0, child["trace"]
        np.testing.assert_allclose(child["said"], outcome["parent"], rtol=0, atol=1e-6)


def test_children_of_a_parent_that_loads_encode_or_name_spawn(outcome):
    children = [child for child in outcome["children"] if child["moment"].endswith("is imported")]
    assert len(children) == 3
    for child in children:
        assert child["status"] == 0, child["trace"]
        if isinstance(child["said"], str):
            assert child["said"].startswith("ForkedProcessError: ")
            assert "spawn" in child["said"]
            assert child["seconds"] < 10  # the promise is 2 s, on a machine that does nothing else
        else:
            np.testing.assert_allclose(child["said"], outcome["parent"], rtol=0, atol=1e-6)
