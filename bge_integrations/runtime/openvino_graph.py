"""Graphs for OpenVINO: a model is converted from its torch module once, to int8 if wanted, and kept on disk.

`bge_integrations/openvino` in the user's cache has a folder for each graph; any may be deleted at any time.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.errors import BgeError, UnsupportedModelError
from bge_integrations.inference.backends.base import Backend
from bge_integrations.inference.tokenize import TextTokenizer
from bge_integrations.runtime.folder import OPENVINO_GRAPH, Folder, content_hash
from bge_integrations.runtime.request import Resolved
from bge_integrations.runtime.resolve import require_openvino

logger = logging.getLogger(__name__)

Graph = Any
"""An `openvino.Model`."""
Module = Callable[[], Any]
"""A function that loads the torch module in float32."""

_TEXTS = Path(__file__).with_name("calibration.txt")
_NNCF_SCRIPT = Path(__file__).with_name("nncf_script.py")
_MOST_TEXTS = 300
_MOST_TOKENS = 512
_QUERY_CHARACTERS = 80
_BLOCKED = "openvino_telemetry"


def load_backend(resolved: Resolved, tokenizer: TextTokenizer, *, pad_id: int, module: Module) -> Backend:
    """Load the model on OpenVINO; `module` is called only where no graph is kept.

    Raises:
        UnsupportedModelError: OpenVINO cannot convert or compile it.
    """
    with _naming_openvino():
        import_openvino()
    from bge_integrations.inference.backends.openvino import OpenVinoBackend

    key, folder = resolved.key, resolved.folder
    read: Callable[[], Graph]
    if folder.quantized:  # not mapped: replacing its file in place would cut the weights off
        read = partial(_read, folder.path / OPENVINO_GRAPH, mapped=False)
    elif key.dtype == "int8":
        texts = default_texts()
        facts = [*_facts(folder, tokenizer), _version("nncf"), *texts]
        read = _kept(facts, partial(quantized_graph, folder, tokenizer, module, texts))
    else:
        read = _kept(_facts(folder, tokenizer), partial(_converted, tokenizer, module))
    precision = "f32" if key.dtype == "float32" else "bf16"
    with _naming_openvino():
        return OpenVinoBackend(
            read,
            precision=precision,
            pad_id=pad_id,
            vocabulary=folder.config.get("vocab_size"),
            positions=folder.positions,
        )


@contextmanager
def _naming_openvino() -> Iterator[None]:
    """Turn any error of another library into one that names OpenVINO as the cause."""
    try:
        yield
    except (BgeError, MemoryError):
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f'OpenVINO cannot run the model ({type(error).__name__}: {error!s:.500}). Use backend="torch", or "auto", '
            "which then takes torch by itself."
        ) from error


def default_texts() -> list[str]:
    """Return the texts that int8 is calibrated on where the caller names none.

    They are paragraphs of "War and Peace" (translated by Louise and Aylmer Maude) and of "Pride and Prejudice", which
    are out of copyright, and lines of code, numbers and other languages of this project's own.
    """
    return _TEXTS.read_text(encoding="utf-8").splitlines()


def quantized_graph(folder: Folder, tokenizer: TextTokenizer, module: Module, texts: Sequence[str]) -> Graph:
    """Quantize the model to int8, its ranges calibrated on texts, or on some of them if there are many.

    Raises:
        MissingExtraError: nncf is not installed.
        RuntimeError: nncf failed; the message ends with that of nncf.
    """
    require_openvino("nncf")
    import_openvino()
    inputs = _inputs(folder, tokenizer, texts[:: -(-len(texts) // _MOST_TEXTS)])
    with TemporaryDirectory(prefix="bge-openvino-") as work:
        save_graph(_converted(tokenizer, module), Path(work) / "float32.xml")
        np.savez(Path(work) / "inputs.npz", **inputs)  # type: ignore[arg-type]  # none is called "allow_pickle"
        command = [sys.executable, "-P", str(_NNCF_SCRIPT), work]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own script
        if done.returncode:
            raise RuntimeError(f"nncf could not quantize the model: {done.stderr.strip()[-1000:]}")
        return _read(Path(work) / "int8.xml", mapped=False)


def save_graph(graph: Graph, file: Path) -> None:
    """Write the graph to `file`, and its weights beside it with the suffix `.bin`."""
    import openvino  # type: ignore[import-untyped]

    openvino.save_model(graph, file, compress_to_fp16=False)


def graphs_folder() -> Path:
    """Return the folder where converted graphs are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bge_integrations" / "openvino"


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `folder` as a whole at the end; nothing is left behind after an error.

    Raises:
        OSError: The place cannot be written to, or `folder` is there already and not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as work:
        made = Path(work) / folder.name
        made.mkdir()
        yield made
        if folder.exists():
            folder.rmdir()
        made.rename(folder)


def import_openvino() -> None:
    """Import openvino without the package through which it would report its use over the network."""
    if "openvino" in sys.modules:
        return
    present = sys.modules.get(_BLOCKED)
    sys.modules[_BLOCKED] = None  # type: ignore[assignment]  # importing it now raises ImportError
    try:
        import openvino  # noqa: F401
    finally:
        del sys.modules[_BLOCKED]
        if present is not None:
            sys.modules[_BLOCKED] = present


def _kept(facts: Sequence[object], make: Callable[[], Graph]) -> Callable[[], Graph]:
    """Make the graph of these facts unless it is kept, and return the function that reads it.

    Where the disk cannot be written to, that function gives the graph from memory.
    """
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    file = graphs_folder() / name / OPENVINO_GRAPH
    read = partial(_read, file, mapped=True)
    if file.is_file():
        try:
            read()
        except RuntimeError as error:
            logger.warning("%s is damaged and will be made again: %s", file, error)
            shutil.rmtree(file.parent, ignore_errors=True)
        else:
            return read
    graph = make()
    try:
        with appearing(file.parent) as folder:
            save_graph(graph, folder / file.name)
    except (OSError, RuntimeError) as error:
        if not file.is_file():  # otherwise another process was quicker
            logger.warning("%s cannot be written, so every process makes this graph anew: %s", file, error)
            return lambda: graph
    return read


def _version(package: str) -> str:
    from importlib.metadata import version  # with what it imports, 1 MB of a process that loads no model

    return version(package)


def _facts(folder: Folder, tokenizer: TextTokenizer) -> list[object]:
    """Return the facts that decide a converted graph."""
    weights = [content_hash(file) for file in folder.weights()]
    return [_version("openvino"), weights, dict(folder.config), folder.is_reranker, _takes_types(tokenizer)]


def _takes_types(tokenizer: TextTokenizer) -> bool:
    return tokenizer.texts([""], max_length=8)[0].types is not None


def _converted(tokenizer: TextTokenizer, module: Module) -> Graph:
    import openvino
    import torch

    ids, mask = torch.ones((2, 8), dtype=torch.int64), torch.ones((2, 8), dtype=torch.int64)
    mask[1, 4:] = 0
    example = {"input_ids": ids, "attention_mask": mask}
    if _takes_types(tokenizer):
        example["token_type_ids"] = torch.zeros_like(ids)
    loaded = module().eval()
    with warnings.catch_warnings(), torch.inference_mode(), _naming_openvino():
        warnings.simplefilter("ignore")
        return openvino.convert_model(loaded, example_input=example)


def _read(file: Path, *, mapped: bool) -> Graph:
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": mapped})
    return core.read_model(file)


def _inputs(folder: Folder, tokenizer: TextTokenizer, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Tokenize texts into the arrays that `nncf_script.py` reads.

    For a reranker, the beginning of the text itself or of its neighbour serves as the query.
    """
    limit = min(_MOST_TOKENS, folder.max_length)
    if folder.is_reranker:
        pairs = [(texts[i - i % 2][:_QUERY_CHARACTERS], text) for i, text in enumerate(texts)]
        encodings = tokenizer.pairs(pairs, max_length=limit, query_max_length=limit * 3 // 4)
    else:
        encodings = tokenizer.texts(texts, max_length=limit)
    inputs: dict[str, NDArray[np.int64]] = {}
    for number, encoding in enumerate(encodings):
        arrays = {"input_ids": encoding.ids, "attention_mask": np.ones_like(encoding.ids)}
        if encoding.types is not None:
            arrays["token_type_ids"] = encoding.types
        inputs |= {f"{number}/{name}": array[None] for name, array in arrays.items()}
    return inputs
