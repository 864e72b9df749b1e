"""Quantization of an encoder to int8 for OpenVINO, into a folder that is a model of its own."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bge_integrations.catalog import check_name
from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.errors import UnsupportedModelError
from bge_integrations.export.exporter import free
from bge_integrations.rerank.reranker import BgeReranker
from bge_integrations.runtime.cache import ModelCache
from bge_integrations.runtime.folder import OPENVINO_FACTS, OPENVINO_GRAPH, Folder, read_folder
from bge_integrations.runtime.loader import quantized_graph
from bge_integrations.runtime.locate import locate, named_folder
from bge_integrations.runtime.openvino_graph import appearing, default_texts, save_graph
from bge_integrations.runtime.request import Kind, ModelSource, Resolved
from bge_integrations.runtime.resolve import require_openvino, resolve
from bge_integrations.runtime.user import checked_texts

LEAST_TEXTS = 16
_COPIED = (".json", ".txt", ".model")
_COMPARED = 32


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """The folder that was written, and how near it is to the model it was made from.

    Attributes:
        folder: The folder, absolute.
        kind: "embedder" or "reranker".
        size: Bytes of the graph and its weights.
        agreement: On some of the texts: for an embedder, the lowest cosine of a vector; for a reranker, the largest
            difference of a score (0 to 1).
        seconds: How long the quantization took.
    """

    folder: Path
    kind: Kind
    size: int
    agreement: float
    seconds: float


def quantize_openvino(
    model: str,
    folder: str | Path,
    texts: Iterable[str] | None = None,
    *,
    like: str | None = None,
    revision: str | None = None,
    cache_folder: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> QuantizeReport:
    """Write a model in int8, calibrated on the caller's own texts, as a folder that the package runs by its path.

    The folder has a fingerprint of its own. It appears once everything in it has been written and run.

    Args:
        model: A catalogue id, a hub id, or a folder.
        folder: Where to write: a new or an empty folder.
        texts: A few hundred texts like those that the model will see; of more than 300, every n-th is used. None uses
            the package's own texts.
        like: The catalogue id that a fine-tune or a bare folder descends from.
        revision: The hub's branch, tag or commit.
        cache_folder: Where downloads are kept; None is the hub's own folder.
        token: For private or gated repositories.
        local_files_only: Never ask the hub.

    Raises:
        ValueError: `folder` is not empty, or there are fewer than 16 texts.
        MissingExtraError: The extra `openvino` is not installed.
        UnknownModelError, MissingWeightsError: `BgeEmbedder` or `BgeReranker` would refuse the model too.
        UnsupportedModelError: OpenVINO cannot run the model here.
    """
    started = time.perf_counter()
    target = free(Path(folder))
    require_openvino("nncf")
    chosen = default_texts() if texts is None else checked_texts(texts)
    if len(chosen) < LEAST_TEXTS:
        raise ValueError(
            f"{len(chosen)} texts are too few to calibrate on: give {LEAST_TEXTS} or more, better some hundred."
        )
    named = ModelSource(
        model=model, kind="embedder", path=named_folder(model), revision=revision, backend="openvino", like=like,
        cache_folder=cache_folder, token=token, local_files_only=local_files_only,
    )  # fmt: skip
    source, resolved = _find(named)
    with appearing(target) as made:
        _write(resolved, chosen, made)
        size = sum(file.stat().st_size for file in read_folder(made).weights())
        agreement = _agreement(source, made, chosen[:_COMPARED])
    return QuantizeReport(target, source.kind, size, agreement, time.perf_counter() - started)


def _find(source: ModelSource) -> tuple[ModelSource, Resolved]:
    """Return the source, with the kind that the model's files show, and the resolved model."""
    check_name(source.model)
    located = locate(source)
    if read_folder(located.path, located.base).is_reranker:
        source = replace(source, kind="reranker")
    resolved = resolve(source, located)
    if resolved.folder.adapter:
        raise UnsupportedModelError(f"{source.model} is an adapter. Merge it into its base and save that first.")
    if resolved.folder.quantized:
        raise UnsupportedModelError(f"{source.model} is quantized already. Name the model that it was made from.")
    return source, resolved


def _write(resolved: Resolved, texts: Sequence[str], target: Path) -> None:
    """Copy configuration and tokenizer, and write the graph and a record of how it was made."""
    folder = resolved.folder
    for source in _files(folder):
        copy = target / source.relative_to(folder.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    inner = target / folder.path.relative_to(folder.root)
    save_graph(quantized_graph(resolved, texts), inner / OPENVINO_GRAPH)
    key = resolved.key
    facts = {
        "dtype": "int8",
        "model": folder.root.name if key.model == str(folder.root) else key.model,
        "revision": key.revision,
        "like": resolved.spec.id if resolved.spec else None,
        "texts": len(texts),
        "texts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "versions": {name: version(name) for name in ("bge-integrations", "openvino", "nncf")},
    }
    (inner / OPENVINO_FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _files(folder: Folder) -> list[Path]:
    """Return the files of configuration and tokenizer of every part of the pipeline."""
    folders = {folder.root, folder.path, *(folder.root / module.name for module in folder.modules)}
    files = [file for parent in folders for file in parent.iterdir()]
    return [f for f in files if f.is_file() and f.suffix in _COPIED and not f.name.endswith(".index.json")]


def _agreement(source: ModelSource, made: Path, texts: list[str]) -> float:
    cache = ModelCache()  # its own cache frees both models after the comparison
    shared: dict[str, Any] = {"cache": cache, "device": "cpu", "on_truncate": "ignore"}
    exact = {**source.of_files(), "backend": "torch", "dtype": "float32", **shared}
    try:
        if source.kind == "reranker":
            pairs = [(texts[0], text) for text in texts]
            ours, theirs = BgeReranker(str(made), **shared), BgeReranker(source.model, **exact)
            return float(np.abs(np.subtract(ours.score(pairs), theirs.score(pairs))).max())
        made_embedder, embedder = BgeEmbedder(str(made), **shared), BgeEmbedder(source.model, **exact)
        a, b = made_embedder.encode_documents(texts), embedder.encode_documents(texts)
        return float(((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())
    finally:
        cache.clear()
