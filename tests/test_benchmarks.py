"""The benchmarks run and write their tables; what they measure is not checked here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import compare, measure, measure_table, ratio_table
from benchmarks.models import SHAPES, flops_per_token
from benchmarks.texts import Texts


def test_a_ratio_is_that_of_the_same_repetition(monkeypatch):
    clock = iter(range(0, 100, 10))  # every call takes as long as the one before it
    monkeypatch.setattr("benchmarks.harness.time.perf_counter", lambda: next(clock))
    (ratio,) = compare({"job": {"ours": list, "theirs": list}}, repetitions=2)
    assert (ratio.median, ratio.low, ratio.high, ratio.ours_seconds) == (1, 1, 1, 10)
    assert ratio_table([ratio], "a shape")[2] == "| job | theirs | 1.00 (1.00 to 1.00) |"


def test_a_measure_has_its_middle_and_its_spread():
    row = measure("memory", "MiB", [3.0, 1.0, 2.0])
    assert measure_table([row])[2] == "| memory | 2 (1 to 3) MiB |"


def test_texts_are_the_same_every_time_and_of_mixed_lengths():
    texts = Texts(None)
    lengths = [len(text.split()) for text in texts.mixed(200)]
    assert texts.mixed(20) == texts.mixed(20) != texts.mixed(20, seed=1)
    assert min(lengths) >= 4
    assert max(lengths) <= 380
    assert 50 < sum(lengths) / len(lengths) < 120


def test_work_of_a_token():
    """Twice the weights of the layers, without attention, in millions."""
    assert [round(flops_per_token(SHAPES[name], 0) / 1e6) for name in ("small", "base", "large")] == [42, 170, 604]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_from_end_to_end_without_one(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "--gpu", "cpu", "--shape", "tiny", "--texts", "4"]
    done = subprocess.run(
        [*command, "--repetitions", "1", "--output", str(tmp_path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results-gpu.json").read_text())
    assert len(results["ratios"]) == 5
    assert len(results["measures"]) == 4
    assert "| bge-base, one short query" in (tmp_path / "results-gpu.md").read_text()
