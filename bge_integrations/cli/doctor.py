"""The work of `bge doctor`: it examines this machine and prints what it finds."""

import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bge_integrations import BgeEmbedder, BgeReranker, ModelCache, __version__
from bge_integrations.errors import MissingExtraError
from bge_integrations.runtime import device as devices
from bge_integrations.runtime.locate import hub_folder
from bge_integrations.runtime.openvino_graph import graphs_folder, import_openvino
from bge_integrations.runtime.resolve import openvino_pays_here, require_openvino

LIBRARIES = {
    "torch": "",
    "transformers": "",
    "sentence-transformers": "",
    "huggingface-hub": "",
    "numpy": "",
    "langchain-core": "langchain",
    "llama-index-core": "llama-index",
    "chromadb": "chroma",
    "langchain-chroma": "cli",
    "openvino": "openvino",
    "nncf": "openvino",
    "peft": "peft",
    "langchain-qdrant": "qdrant",
    "qdrant-client": "qdrant",
    "lancedb": "lancedb",
    "pyspark": "spark",
    "ray": "ray",
    "fastapi": "serve",
    "uvicorn": "serve",
    "onnxruntime": "onnx",
    "ir-measures": "eval",
}
"""Distributions, and the extra that installs each; "" for those that the package itself needs."""

_VARIABLES = (
    "BGE_CACHE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "SENTENCE_TRANSFORMERS_HOME",
    "XDG_CACHE_HOME",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)
_QUESTION = "what do pandas eat?"
_PASSAGES = ["Paris is the capital of France.", "Giant pandas eat bamboo.", "Bread needs flour and water."]
_ANSWER = 1
_SAME = 0.99
"""From this cosine on, one text's vectors on two backends or devices count as the same; float16 is above it."""


def examine(embedder: str, reranker: str, *, check: bool) -> dict[str, Any]:
    """Collect the facts that a bug report needs, in types that JSON can represent.

    Args:
        embedder: The embedder that `check` runs.
        reranker: The reranker that `check` runs.
        check: Run both on every usable backend and device; this takes some seconds and loads the models.

    Returns:
        `package`, `libraries` (version or None), `devices` (memory in bytes), `notes` (torch's warnings), `auto` (the
        defaults), `backends` (what is wrong with each; "" for nothing), `folders`, `environment`, `offline`, and
        `check`: a list of the runs, None without `check`.
    """
    found, notes = _find_devices()
    backends = _examine_backends("" if found else notes[0])
    return {
        "package": {"bge_integrations": __version__, "python": sys.version.split()[0], "platform": platform.platform()},
        "libraries": {name: _version_of(name) for name in LIBRARIES},
        "devices": found,
        "notes": notes,
        "auto": _choices(found),
        "backends": backends,
        "folders": {
            "models from the hub": _examine_folder(Path(hub_folder()), "HF_HUB_CACHE"),
            "OpenVINO graphs": _examine_folder(graphs_folder(), "XDG_CACHE_HOME"),
        },
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "offline": _is_offline(),
        "check": _check(embedder, reranker, found, backends) if check else None,
    }


def has_passed(facts: dict[str, Any]) -> bool:
    """Return whether every run of the check passed; True where nothing was checked."""
    return facts["check"] is None or (bool(facts["check"]) and not any(run["problem"] for run in facts["check"]))


def show(console: Console, facts: dict[str, Any]) -> None:
    """Print the facts as tables, with a remedy for each thing that is missing."""
    rows: list[tuple[str, ...]] = [(name, number, "") for name, number in facts["package"].items()]
    rows += [
        (name, number or "not installed", "" if number else _cure(name)) for name, number in facts["libraries"].items()
    ]
    _print_table(console, ("version", "", "to install it"), rows)
    rows = [(found["device"], found["name"], _gigabytes(found["memory"])) for found in facts["devices"]]
    _print_table(console, ("device", "", "memory"), rows)
    for note in facts["notes"]:
        console.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)
    rows = [(name, "fails" if why else "usable", why) for name, why in facts["backends"].items()]
    _print_table(console, ("backend", "", "why"), rows)
    _print_table(console, ("default", "value"), list(facts["auto"].items()))
    rows = [(name, place["path"], _state_of(place)) for name, place in facts["folders"].items()]
    rows += [(name, value, "") for name, value in facts["environment"].items()]
    rows.append(("hub", "not asked: offline" if facts["offline"] else "asked for models that are not here", ""))
    _print_table(console, ("folders and variables", "", ""), rows)
    if facts["check"] is not None:
        rows = [
            (run["backend"], run["device"], f"{run['seconds']:.1f} s", run["problem"] or "passed")
            for run in facts["check"]
        ]
        _print_table(console, ("check", "device", "", ""), rows)


def _print_table(console: Console, headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    table = Table(*headings)
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console.print(table)


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cure(name: str) -> str:
    extra = LIBRARIES[name]
    return f'pip install "bge_integrations[{extra}]"' if extra else "pip install bge_integrations"


def _find_devices() -> tuple[list[dict[str, Any]], list[str]]:
    """Return the devices, the CPU last, and notes on why there are no more; no device where torch fails."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = _torch_devices()
        except (ImportError, OSError, RuntimeError) as error:
            return [], [f"torch fails, and no model runs without it: {type(error).__name__}: {error}"]
    return found, [str(warning.message) for warning in said]


def _torch_devices() -> list[dict[str, Any]]:
    import torch

    best = devices.resolve_device(None)
    names = [(f"cuda:{number}", torch.cuda.get_device_name(number)) for number in range(torch.cuda.device_count())]
    names += [("mps", "Apple GPU")] if torch.backends.mps.is_available() else []
    if best == "cpu":
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        warnings.warn(f"torch finds no GPU; it was built {built}.", stacklevel=1)
    names.append(("cpu", f"{os.cpu_count()} cores, torch takes {torch.get_num_threads()} threads"))
    return [
        {"device": name, "name": label, "memory": devices.total_bytes(name), "best": name == best}
        for name, label in names
    ]


def _choices(found: list[dict[str, Any]]) -> dict[str, str]:
    """Return the default device, and the default backend, dtype and tokens of a forward on each kind of device."""
    choices = {"device": next((one["device"] for one in found if one["best"]), "none")}
    for kind in ("cuda", "mps", "cpu"):
        numbers = f"{devices.default_dtype(kind)}, {devices.default_batch_tokens(kind)} tokens per forward"
        large = "openvino for encoders of 10 MB or more, else " if kind == "cpu" and openvino_pays_here() else ""
        choices[f"backend on {kind}"] = f"{large}torch ({numbers})"
    choices["backend of other architectures"] = "sentence_transformers"
    return choices


def _examine_backends(no_torch: str) -> dict[str, str]:
    """Return what is wrong with each backend; sentence-transformers is slow to import, so it is only looked for."""
    missing = "" if find_spec("sentence_transformers") else f"Install it: {_cure('sentence-transformers')}"
    return {
        "torch": no_torch,
        "openvino": no_torch or _problem_of(_need_openvino),
        "openvino, int8": no_torch or _problem_of(lambda: require_openvino("nncf")),
        "sentence_transformers": no_torch or missing,
    }


def _need_openvino() -> None:
    require_openvino()
    import_openvino()


def _problem_of(work: Callable[[], object]) -> str:
    """Return the message of the error that an attempt raises; "" where it raises none."""
    try:
        work()
    except MissingExtraError as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _examine_folder(folder: Path, variable: str) -> dict[str, Any]:
    above = next(place for place in (folder, *folder.parents) if place.exists())
    return {
        "path": str(folder),
        "exists": folder.is_dir(),
        "writable": above.is_dir() and os.access(above, os.W_OK),
        "free": shutil.disk_usage(above).free,
        "variable": variable,
    }


def _state_of(folder: dict[str, Any]) -> str:
    if not folder["writable"]:
        return f"cannot be written to: set {folder['variable']} to a folder that you may write to"
    return f"{'exists' if folder['exists'] else 'created at first use'}, {_gigabytes(folder['free'])} free"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _check(embedder: str, reranker: str, found: list[dict[str, Any]], backends: dict[str, str]) -> list[dict[str, Any]]:
    """Run the models with torch on the CPU, then wherever else they run; each run must agree with the first."""
    places = [("torch", one["device"]) for one in reversed(found)]
    places += [(name, "cpu") for name in ("openvino", "sentence_transformers") if not backends[name]]
    runs, expected = list[dict[str, Any]](), dict[str, Any]()
    for backend, device in places:
        started = time.perf_counter()
        problem = _problem_of(lambda: _answer(embedder, reranker, backend, device, expected))  # noqa: B023
        seconds = time.perf_counter() - started
        runs.append({"backend": backend, "device": device, "seconds": seconds, "problem": problem})
    return runs


def _answer(embedder: str, reranker: str, backend: Any, device: str, expected: dict[str, Any]) -> None:
    """Embed, search and rerank; the first run's vectors are kept in `expected` for the others.

    Raises:
        RuntimeError: The numbers are wrong.
    """
    cache = ModelCache()
    try:
        model = BgeEmbedder(embedder, backend=backend, device=device, cache=cache)
        query, passages = model.encode_queries([_QUESTION])[0], model.encode_documents(_PASSAGES)
        results = BgeReranker(reranker, backend=backend, device=device, cache=cache).rerank(_QUESTION, _PASSAGES)
    finally:
        cache.clear()
    if (passages @ query).argmax() != _ANSWER or results[0].index != _ANSWER:
        raise RuntimeError(
            f"the search finds passage {(passages @ query).argmax()} and reranking passage {results[0].index}; "
            f"the right one is {_ANSWER}."
        )
    agreement = (passages * expected.setdefault("passages", passages)).sum(axis=1).min()
    if agreement < _SAME:
        raise RuntimeError(f"its vectors are not those of torch on the CPU: the lowest cosine is {agreement:.3f}.")
