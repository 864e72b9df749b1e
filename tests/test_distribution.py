"""Wheel and source distribution: what is in them, and that an installed wheel works without the tree."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import lowest
import pytest
import smoke

ROOT = Path(__file__).parents[1]


def run(*command: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", folder, source)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    with tarfile.open(build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))) as archive:
        folder = tmp_path_factory.mktemp("unpacked")
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return unpacked


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel; what it needs is this Python's."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel)
    return folder


def record(wheel: Path) -> list[str]:
    """Every file with its hash and size."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        return sorted(archive.read(name).decode().splitlines())


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = {line.partition(",")[0] for line in record(wheel)}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "bge_integrations").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    rest = names - package
    assert package <= names
    assert {"bge_integrations/py.typed", "bge_integrations/models/mini-embedder-en/model.safetensors"} <= package
    assert all(".dist-info/" in name for name in rest)
    assert any(name.endswith("/licenses/LICENSE") for name in rest)


def test_the_sdist_makes_the_same_wheel(sdist, wheel, tmp_path):
    assert record(build("wheel", sdist, tmp_path)) == record(wheel)
    assert all(
        (sdist / name).exists() for name in ("README.md", "LICENSE", "tests/conftest.py", "benchmarks", "training")
    )


@pytest.mark.slow
def test_an_installed_wheel_works(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(installed)}
    said = run(sys.executable, "-P", smoke.__file__, cwd=tmp_path, env=environment)
    assert str(installed) in said
    help_ = run(installed / "bin" / "bge", "--help", cwd=tmp_path, env=environment)
    assert "models" in help_
    assert "bge-integrations/mini-embedder-en" in run(
        installed / "bin" / "bge", "models", cwd=tmp_path, env=environment
    )


def test_everything_a_user_may_install_has_a_lower_bound():
    assert [name for name, bound in lowest.requirements() if not bound] == []
