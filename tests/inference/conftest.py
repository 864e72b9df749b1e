"""What the engine room's tests share: a queue over a small real backend, and the torch backend over tiny models."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bge_integrations.inference.backends import varlen
from bge_integrations.inference.backends.base import DeviceMemoryError, Launched
from bge_integrations.inference.backends.pytorch import TorchBackend
from bge_integrations.inference.batch import Call, Encoding, Output, TokenBatch
from bge_integrations.inference.engine import MAX_WAITING_CALLS, Queue
from bge_integrations.inference.heads import Dense, Head
from bge_integrations.inference.tokenize import TextTokenizer
from bge_integrations.process import DeviceLock


@dataclass(frozen=True)
class Seen:
    """A batch as the backend received it."""

    texts: list[str]
    head: Head
    exact: bool
    tokens: int


class RecordingBackend:
    """A backend without weights: a text's tokens are its characters, its row their number and their sum."""

    engine = "recording"
    nbytes = 0
    vocabulary = None

    def __init__(self, *, padded: bool) -> None:
        self.padded = padded
        self.seen: list[Seen] = []
        self.during: Callable[[Seen], None] = lambda seen: None
        """Called in every forward, on the worker's thread: what a test does here happens while the batch runs."""
        self.capacity = 10**9
        """Tokens that fit the device's memory."""
        self.finite: Callable[[str, bool], bool] = lambda text, exact: True

    def run(self, batch: TokenBatch, head: Head, *, exact: bool = False) -> np.ndarray:
        texts = ["".join(map(chr, ids)) for ids in np.split(batch.ids, batch.cu_seqlens[1:-1])]
        tokens = batch.max_seqlen * len(batch) if self.padded else len(batch.ids)
        self.seen.append(Seen(texts, head, exact, tokens))
        self.during(self.seen[-1])
        if tokens > self.capacity:
            raise DeviceMemoryError(f"no room for {tokens} tokens")
        rows = np.array([row_of(text) for text in texts], dtype=np.float32)
        rows[[not self.finite(text, exact) for text in texts]] = np.nan
        return rows

    def close(self) -> None:
        pass


def row_of(text: str) -> tuple[int, int]:
    return len(text), sum(map(ord, text))


def encode(texts: Sequence[str]) -> list[Encoding]:
    """One token a character; a lone surrogate is refused, as real tokenizers do."""
    return [
        Encoding(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64), None, len(text))
        for text in texts
    ]


class DetachedBackend(RecordingBackend):
    """The same on a device that goes on by itself, as CUDA does; that it has no room it says at once."""

    def __init__(self, *, padded: bool) -> None:
        super().__init__(padded=padded)
        self._device = ThreadPoolExecutor(1)

    def run(self, batch: TokenBatch, head: Head, *, exact: bool = False) -> Launched:
        compute = super().run
        if (batch.max_seqlen * len(batch) if self.padded else len(batch.ids)) > self.capacity:
            return compute(batch, head, exact=exact)
        return Launched(self._device.submit(compute, batch, head, exact=exact).result)

    def close(self) -> None:
        self._device.shutdown()


class Bench:
    """A queue over a `RecordingBackend`."""

    encode = staticmethod(encode)

    def __init__(
        self,
        *,
        padded: bool = False,
        max_waiting: int = MAX_WAITING_CALLS,
        device: DeviceLock | None = None,
        detached: bool = False,
    ) -> None:
        self.backend = DetachedBackend(padded=padded) if detached else RecordingBackend(padded=padded)
        self.ahead = int(detached)
        """Batches that the queue gives to the device while another runs."""
        self.queue = Queue(self.backend, device or DeviceLock(), max_waiting=max_waiting)

    @property
    def seen(self) -> list[Seen]:
        return self.backend.seen

    def submit(
        self,
        texts: Sequence[str],
        *,
        head: Head = Dense(),  # noqa: B008 - frozen
        max_batch_tokens: int = 64,
        encode: Callable[[Sequence[str]], list[Encoding]] = encode,
        check: Callable[[int, Encoding], None] = lambda index, encoding: None,
        patient: bool = False,
    ) -> "Future[Output]":
        call = Call(texts, encode, check, head, max_batch_tokens, patient=patient)
        self.queue.submit(call)
        return call.future

    def rows(self, texts: Sequence[str], **arguments: object) -> list[tuple[int, int]]:
        return self.submit(texts, **arguments).result(timeout=30).rows.tolist()

    def on_batch(self, number: int, action: Callable[[], object]) -> None:
        """Does something while the batch of that number (from 0) runs."""

        def during(seen: Seen) -> None:
            if len(self.seen) == number + 1:
                action()

        self.backend.during = during

    def batch_of(self, text: str) -> int:
        """Number of the one batch that computed a text."""
        (number,) = [number for number, seen in enumerate(self.seen) if text in seen.texts]
        return number


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**arguments: object) -> Bench:
        benches.append(Bench(**arguments))
        return benches[-1]

    yield make
    for bench in benches:
        bench.queue.close()
        bench.queue.join(timeout=30)
        bench.backend.close()
        assert bench.queue.worker is None or not bench.queue.worker.is_alive()


@pytest.fixture(params=[False, True], ids=["attached", "detached"])
def bench(make_bench: Callable[..., Bench], request: pytest.FixtureRequest) -> Bench:
    return make_bench(detached=request.param)


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Sequence[str]], list[list[int]]]:
    """The rows that a `RecordingBackend` owes for some texts."""
    return lambda texts: [list(row_of(text)) for text in texts]


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits until another thread has got somewhere; nothing is said about how long that takes."""

    def wait_until(happened: Callable[[], bool]) -> None:
        pause = threading.Event()
        for _ in range(30_000):
            if happened():
                return
            pause.wait(0.001)
        pytest.fail("it never happened")

    return wait_until


@pytest.fixture(scope="session")
def text_tokenizer() -> Callable[[Path], TextTokenizer]:
    """Our tokenizer of a folder, made as the loader makes it."""

    def make(folder: Path) -> TextTokenizer:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with_types = "token_type_ids" in tokenizer.model_input_names
        return TextTokenizer(copy.deepcopy(tokenizer.backend_tokenizer), with_types=with_types)

    return make


@pytest.fixture(scope="session")
def torch_backend() -> Callable[..., TorchBackend]:
    """Our torch backend over a folder's weights."""

    def make(folder: Path, *, packed: bool, dtype: torch.dtype = torch.float32, device: str = "cpu") -> TorchBackend:
        auto = AutoModel if (folder / "modules.json").exists() else AutoModelForSequenceClassification
        attention = varlen.NAME if packed else "sdpa"
        model = auto.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
        return TorchBackend(model.to(device), packed=packed, engine="packed" if packed else "padded: a test")

    return make
