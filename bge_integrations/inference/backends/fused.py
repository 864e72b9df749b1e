"""An encoder's layers, fused by torch.compile once the model has computed many tokens.

All layers share one compiled function for every batch: the sizes in it are symbols, and attention over the texts is one
step (`varlen`). It is compiled in a thread of its own, while batches still run unfused.
"""

import copy
import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from bge_integrations.process import PackageThread

logger = logging.getLogger(__name__)

FUSE_AFTER = 5_000_000
"""A model computes this many tokens before its layers are compiled: they take some seconds, as compiling does."""


class Fusing:
    """Compiles a model's layers, in a thread, once the model has computed enough tokens.

    Args:
        layers: Equal layers, called one after the other.
        after: Tokens that the model computes before that.
        compiler: The name of torch.compile's backend.
    """

    def __init__(
        self, layers: Sequence[torch.nn.Module], *, after: int = FUSE_AFTER, compiler: str = "inductor"
    ) -> None:
        self._layers = layers
        self._tokens_left = after
        self._compiler = compiler
        self.thread: threading.Thread | None = None

    def count(self, tokens: int) -> None:
        """Count the tokens of the next forward; the one that reaches the limit starts compiling, with its inputs."""
        if self._tokens_left > 0:
            self._tokens_left -= tokens
            if self._tokens_left <= 0:
                self._record()

    def _record(self) -> None:
        def start(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hook.remove()
            self.thread = PackageThread("bge-fusing", self._compile, args, kwargs)
            self.thread.start()

        hook = self._layers[0].register_forward_pre_hook(start, with_kwargs=True)

    def _compile(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        started = time.perf_counter()
        layer = copy.deepcopy(self._layers[0])
        try:
            layer.compile(dynamic=True, backend=self._compiler)
            with torch.inference_mode():
                layer(*args, **kwargs)
        except Exception as error:  # whatever the compiler raises, batches run on unfused
            logger.warning("layers run unfused, torch.compile failed: %s", error)
            return
        for each in self._layers:
            each.compile(dynamic=True, backend=self._compiler)
        logger.info("fused the layers in %.1f s", time.perf_counter() - started)
