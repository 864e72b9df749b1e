"""Modules that have moved: the old path still imports the same module, and a warning says where it is now."""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "embed.base": "embed.embedder",
    "embed.collection": "stores.fingerprint",
    "embed.folder_embedder": "embed.embedder",
    "embed.lists": "embed.embedder",
    "embed.pending": "embed.embedder",
    "embed.places": "stores.fingerprint",
    "embed.recipe": "embed.prompts",
    "embed.replay": "stores.replay",
    "embed.sparse_index": "stores.sparse_index",
    "export.check": "export.card",
    "export.openvino": "export.int8",
    "export.quantize": "export.graph",
    "inference.backends.pooling": "inference.backends.pytorch",
    "inference.backends.transfer": "inference.backends.pytorch",
    "inference.batching": "inference.batch",
    "inference.call": "inference.batch",
    "inference.device_lock": "process",
    "inference.fusion": "stores.fusion",
    "inference.inputs": "runtime.user",
    "inference.threads": "process",
    "inference.queue": "inference.engine",
    "langchain.documents": "langchain.retrieval",
    "langchain.m3": "langchain.rerank",
    "langchain.search": "langchain.retrieval",
    "llama_index.batches": "llama_index.component",
    "llama_index.m3_rerank": "llama_index.rerank",
    "llama_index.postprocessor": "llama_index.rerank",
    "populate.background": "process",
    "populate.embedding": "populate.embedders",
    "populate.halving": "populate.retry",
    "populate.identity": "populate.documents",
    "populate.ray": "ray",
    "populate.sources": "populate.documents",
    "populate.spark": "spark",
    "populate.writing": "populate.retry",
    "rerank.recipe": "rerank.prompts",
    "runtime.damage": "runtime.weights",
    "runtime.ending": "process",
    "runtime.json_files": "runtime.modules",
    "runtime.openvino": "runtime.openvino_graph",
    "runtime.pipeline": "runtime.settings",
    "runtime.residents": "runtime.loaded",
    "runtime.source": "runtime.request",
    "runtime.stream": "runtime.user",
}
"""Old path of a module in this package -> its path now."""

_PACKAGE = __name__.partition(".")[0]


class _OldPaths:
    """An import finder that, where no other finder knows an old path, imports the module's path of today instead."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        loader: Any = self
        return ModuleSpec(fullname, loader) if fullname.removeprefix(f"{_PACKAGE}.") in MOVED else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None, which leaves the making of the module object to Python."""

    def exec_module(self, module: ModuleType) -> None:
        new = f"{_PACKAGE}.{MOVED[module.__name__.partition('.')[2]]}"
        warnings.warn(f"{module.__name__} is {new} now; change the import.", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = import_module(new)


sys.meta_path.append(_OldPaths())
