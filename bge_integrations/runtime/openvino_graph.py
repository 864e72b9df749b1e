"""Graphs for OpenVINO: a model's is made once, in int8 if wanted, and kept on disk, where processes share its memory.

`bge_integrations/openvino` in the user's cache has a folder for each graph; any may be deleted at any time.
"""

import hashlib
import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
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
from bge_integrations.runtime.weights import Tensors

logger = logging.getLogger(__name__)

Graph = Any
"""An `openvino.Model`."""
Weights = Callable[[], Tensors]
"""A function that gives a model's tensors."""
_RECIPE = 2
"""Raise it when `encoder_graph` makes another graph: those that are kept are then made anew."""

_TEXTS = Path(__file__).with_name("calibration.txt")
_NNCF_SCRIPT = Path(__file__).with_name("nncf_script.py")
_MOST_TEXTS = 300
_MOST_TOKENS = 512
_QUERY_CHARACTERS = 80
_CONVERTER = "openvino.tools.ovc"


def load_backend(resolved: Resolved, tokenizer: TextTokenizer, *, pad_id: int, tensors: Weights) -> Backend:
    """Load the model on OpenVINO; `tensors` is called only where no graph is kept.

    Raises:
        UnsupportedModelError: OpenVINO cannot run it.
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
        read = _kept(facts, partial(quantized_graph, folder, tokenizer, tensors, texts))
    else:
        read = _kept(_facts(folder, tokenizer), partial(_graph, folder, tokenizer, tensors))
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


def quantized_graph(folder: Folder, tokenizer: TextTokenizer, tensors: Weights, texts: Sequence[str]) -> Graph:
    """Quantize the model to int8, its ranges calibrated on texts, or on some of them if there are many.

    Raises:
        MissingExtraError: nncf is not installed.
        RuntimeError: nncf failed; the message ends with that of nncf.
    """
    require_openvino("nncf")
    import_openvino()
    inputs = _inputs(folder, tokenizer, texts[:: -(-len(texts) // _MOST_TEXTS)])
    with TemporaryDirectory(prefix="bge-openvino-") as work:
        save_graph(_graph(folder, tokenizer, tensors), Path(work) / "float32.xml")
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
    """Return the folder where graphs are kept."""
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
    """Import openvino without its converter, which tells its makers over the network that it was imported.

    The converter is also a third of what openvino takes to import. It is imported when somebody calls it.
    """
    if "openvino" in sys.modules:
        return
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # importing it now raises ImportError
    try:
        import openvino
    finally:
        del sys.modules[_CONVERTER]
    openvino.convert_model = _convert_model


def _convert_model(*arguments: Any, **named: Any) -> Any:
    return importlib.import_module(_CONVERTER).convert_model(*arguments, **named)


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
    """Return the facts that decide a graph."""
    weights = [content_hash(file) for file in folder.weights()]
    return [_RECIPE, _version("openvino"), weights, dict(folder.config), folder.is_reranker, _takes_types(tokenizer)]


def _takes_types(tokenizer: TextTokenizer) -> bool:
    return tokenizer.texts([""], max_length=8)[0].types is not None


def _graph(folder: Folder, tokenizer: TextTokenizer, tensors: Weights) -> Graph:
    from bge_integrations.runtime.encoder_graph import encoder_graph

    weights = tensors()
    with _naming_openvino():
        return encoder_graph(folder, weights, typed=_takes_types(tokenizer))


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
