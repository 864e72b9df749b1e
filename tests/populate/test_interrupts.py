"""Ctrl-C, and other ends, while populate waits for a store, an embedder or documents."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import InMemoryVectorStore

from bge_integrations.populate import apopulate, populate

pytestmark = pytest.mark.slow  # starts processes of its own

SCRIPT = Path(__file__).parent / "scripts" / "waiting.py"
DOCUMENTS = [Document(f"Text {n}") for n in range(40)]
SECONDS = 5
"""Two for the call, and three for the interpreter to end on a busy machine."""


@pytest.mark.parametrize(
    ("kind", "number", "name", "status"),
    [
        ("away", signal.SIGINT, "KeyboardInterrupt", -signal.SIGINT),
        ("look-up", signal.SIGINT, "KeyboardInterrupt", -signal.SIGINT),
        ("call", signal.SIGINT, "KeyboardInterrupt", -signal.SIGINT),
        ("embedder", signal.SIGINT, "KeyboardInterrupt", -signal.SIGINT),
        ("forwards", signal.SIGINT, "KeyboardInterrupt", -signal.SIGINT),
        ("task", signal.SIGINT, "KeyboardInterrupt", -signal.SIGINT),
        ("source", signal.SIGINT, "KeyboardInterrupt", -signal.SIGINT),
        ("terminated", signal.SIGTERM, "SystemExit", 7),
    ],
)
def test_a_signal_ends_call_and_process(kind: str, number: signal.Signals, name: str, status: int) -> None:
    command = [sys.executable, str(SCRIPT), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.3)  # into the wait; any moment is fine
        sent = time.monotonic()
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
    assert name in said.split()
    assert float(said.split()[-1]) - sent < 2
    assert time.monotonic() - sent < SECONDS
    assert process.returncode == status
    assert "Fatal" not in errors


class Away(InMemoryVectorStore):
    """A store that is away until it is let back."""

    def __init__(self) -> None:
        super().__init__(DeterministicFakeEmbedding(size=4))
        self.asked, self.back = threading.Event(), False

    def add_documents(self, *arguments: Any, **keywords: Any) -> list[str]:
        self.asked.set()
        if not self.back:
            raise ConnectionError("away")
        return super().add_documents(*arguments, **keywords)


def test_an_error_of_the_callers_own_does_not_wait_for_a_store() -> None:
    store = Away()

    class Enough(BaseException):
        pass

    def documents() -> Iterator[Document]:
        yield from DOCUMENTS[:10]
        assert store.asked.wait(30)
        raise Enough

    started = time.monotonic()
    with pytest.raises(Enough):
        populate(store, documents(), batch_size=5)
    assert time.monotonic() - started < SECONDS
    store.back = True
    assert populate(store, DOCUMENTS).added == 40
    assert len(store.store) == 40


async def test_a_cancelled_task_does_not_wait_for_a_store_and_writes_nothing_later() -> None:
    store = Away()
    filling = asyncio.ensure_future(apopulate(store, DOCUMENTS, batch_size=5, cleanup="full"))
    await asyncio.to_thread(store.asked.wait, 30)
    before = {thread for thread in threading.enumerate() if thread.name.startswith(("populate", "apopulate"))}
    assert before
    filling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await filling
    for thread in before:
        await asyncio.to_thread(thread.join, SECONDS)
    assert not any(thread.is_alive() for thread in before)
    assert store.store == {}


def test_no_thread_is_left_behind() -> None:
    before = set(threading.enumerate())
    populate(InMemoryVectorStore(DeterministicFakeEmbedding(size=4)), DOCUMENTS)
    for thread in set(threading.enumerate()) - before:
        thread.join(SECONDS)
        assert not thread.is_alive()
