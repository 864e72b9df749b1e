"""`bge doctor` on this machine, whole and with parts missing."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import bge_integrations
from bge_integrations import BgeEmbedder
from bge_integrations.cli import doctor
from bge_integrations.cli.app import EMBEDDER, RERANKER, app
from bge_integrations.runtime import resolve

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments])


def facts(*arguments):
    return json.loads(run("--json", *arguments).stdout)


def after(preparation):
    """The facts of a new Python with --check, after some lines of code, and its exit code."""
    code = f"{preparation}\nfrom bge_integrations.cli.app import app\napp(['doctor', '--json', '--check'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    return json.loads(done.stdout), done.returncode


def test_it_tells_what_a_bug_report_needs():
    told = facts()
    assert told["package"]["bge_integrations"] == bge_integrations.__version__
    assert told["package"]["python"] in sys.version
    assert told["libraries"].keys() == doctor.LIBRARIES.keys()
    assert told["libraries"]["torch"] == version("torch")
    *_, cpu = told["devices"]
    assert (cpu["device"], cpu["memory"] > 10**8) == ("cpu", True)
    assert f"torch takes {torch.get_num_threads()} threads" in cpu["name"]
    assert len([device for device in told["devices"] if device["best"]]) == 1
    assert told["backends"] == dict.fromkeys(("torch", "openvino", "openvino, int8", "sentence_transformers"), "")
    assert told["check"] is None


def test_the_table_has_the_same(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "[7]")
    result = run()
    assert (result.exit_code, result.stderr) == (0, "")
    for part in (version("transformers"), "sentence_transformers", "[7]", "openvino", "16384 tokens", "GB free"):
        assert part in result.stdout
    assert "passed" not in result.stdout


def test_every_extra_is_looked_for():
    extras = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    wanted = extras.keys() - {"all", "demo", "training", "dev"}
    assert wanted <= set(doctor.LIBRARIES.values())


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(doctor.LIBRARIES, "no-such-library", "ray")
    monkeypatch.setitem(doctor.LIBRARIES, "no-such-need", "")
    assert facts()["libraries"]["no-such-library"] is None
    lines = {line.split()[1]: line for line in run().stdout.splitlines() if "not installed" in line}
    assert lines.keys() == {"no-such-library", "no-such-need"}
    assert 'pip install "bge_integrations[ray]"' in lines["no-such-library"]
    assert "pip install bge_integrations " in lines["no-such-need"]


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "models"))
    told = facts()
    graphs, models = told["folders"]["OpenVINO graphs"], told["folders"]["models from the hub"]
    assert (graphs["exists"], graphs["writable"]) == (False, False)
    assert (models["path"], models["exists"], models["writable"]) == (str(tmp_path / "models"), False, True)
    assert told["environment"]["SENTENCE_TRANSFORMERS_HOME"] == str(tmp_path / "models")
    assert "cannot be written to: set XDG_CACHE_HOME" in run().stdout
    assert not (tmp_path / "models").exists()


def test_offline_is_said():
    command = [sys.executable, "-m", "bge_integrations.cli", "doctor", "--json"]
    done = subprocess.run(command, env=os.environ | {"TRANSFORMERS_OFFLINE": "1"}, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["offline"] is True
    assert told["environment"]["TRANSFORMERS_OFFLINE"] == "1"
    assert facts()["offline"] is False


@pytest.mark.parametrize("there", [True, False])
def test_what_is_taken_is_what_an_embedder_takes(there, bert_embedder, cache, monkeypatch):
    find_spec = resolve.find_spec
    monkeypatch.setattr(resolve, "find_spec", lambda name: find_spec(name) if there or name != "openvino" else None)
    monkeypatch.setattr(resolve, "_WORTH_COMPILING", 0)
    taken = BgeEmbedder(str(bert_embedder), cache=cache, device="cpu").describe()
    told = facts()["auto"]
    assert told["backend on cpu"].split()[0] == taken["backend"] == ("openvino" if there else "torch")
    assert f"({taken['dtype']}, 1024 tokens" in told["backend on cpu"]
    assert told["device"] == BgeEmbedder(str(bert_embedder), cache=cache, backend="torch").describe()["device"]


def test_the_check_runs_the_pair_everywhere():
    result = run("--check", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)["check"]
    assert (told[0]["backend"], told[0]["device"]) == ("torch", "cpu")
    assert {one["backend"] for one in told} == {"torch", "openvino", "sentence_transformers"}
    assert {one["problem"] for one in told} == {""}
    screen = Console(file=StringIO(), width=200)
    doctor.show(screen, json.loads(result.stdout))
    assert screen.file.getvalue().count("passed") == len(told)


def test_a_pair_that_answers_wrongly_fails_the_check(monkeypatch):
    monkeypatch.setattr(doctor, "_ANSWER", 2)
    result = run("--check", "--json")
    problems = {one["problem"] for one in json.loads(result.stdout)["check"]}
    assert (result.exit_code, problems) == (
        1,
        {"RuntimeError: the search finds passage 1 and reranking passage 1; the right one is 2."},
    )


def test_vectors_that_differ_fail_the_check(monkeypatch):
    monkeypatch.setattr(doctor, "_SAME", 1.1)
    told = doctor.examine(EMBEDDER, RERANKER, check=True)
    assert not doctor.has_passed(told)
    assert all("not those of torch on the CPU" in one["problem"] for one in told["check"])


def test_a_model_that_cannot_be_had_fails_the_check(tmp_path):
    told = doctor.examine(EMBEDDER, str(tmp_path / "none"), check=True)
    assert all("There is no folder" in one["problem"] for one in told["check"])
    assert not doctor.has_passed(told)


def test_without_openvino():
    told, code = after("from bge_integrations.runtime import resolve\nresolve.find_spec = lambda name: None")
    for backend in ("openvino", "openvino, int8"):
        assert 'pip install "bge_integrations[openvino]"' in told["backends"][backend]
    assert told["backends"]["torch"] == ""
    assert told["auto"]["backend on cpu"].startswith("torch")
    assert (code, {one["backend"] for one in told["check"]}) == (0, {"torch", "sentence_transformers"})


def test_without_torch_it_still_tells():
    told, code = after("import sys\nsys.modules['torch'] = None")
    assert all("torch fails" in why for why in told["backends"].values())
    assert (told["devices"], told["check"], code) == ([], [], 1)
    assert told["libraries"]["torch"] == version("torch")
