"""Ends in the middle of a call, in the way that is asked for: `endings.py WAY FOLDER`. Says "now" when it is there."""

import asyncio
import signal
import sys
import threading
import time

from bge_integrations import BgeEmbedder, default_cache
from bge_integrations.runtime import loader

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

TEXTS = ["The giant panda is a bear that lives in the mountains of central China."] * 200_000
way, folder = sys.argv[1:]
embedder = BgeEmbedder(folder, device="cpu", on_truncate="ignore")


def computing():
    models = default_cache().stats()["models"]
    return bool(models and models[0]["batches"])


def wait_for(condition):
    while not condition():
        time.sleep(0.001)


def say_when(condition):
    """In a thread, as the main one is in the call."""

    def say():
        wait_for(condition)
        print("now", flush=True)

    threading.Thread(target=say, daemon=True).start()


def in_the_background():
    """Two calls: one in the batch that runs, one that waits."""
    for _ in range(2):
        threading.Thread(target=embedder.encode_documents, args=(TEXTS,), daemon=True).start()


def end():
    in_the_background()
    wait_for(computing)
    print("now", flush=True)


def end_while_loading():
    in_the_background()
    wait_for(lambda: "transformers" in sys.modules)
    print("now", flush=True)


def end_while_loading_again():
    embedder.encode_documents(["a"])
    default_cache().clear()
    in_the_background()
    wait_for(loader._one_load._lock.locked)
    print("now", flush=True)


def exit_code():
    end()
    sys.exit(3)


def error():
    for _ in embedder.iter_documents(TEXTS):
        print("now", flush=True)
        raise RuntimeError("the script's own")


def interrupt():
    say_when(computing)
    embedder.encode_documents(TEXTS)


def interrupt_while_importing_torch():
    say_when(lambda: "torch" in sys.modules)
    embedder.encode_documents(TEXTS)


def interrupt_while_importing_transformers():
    say_when(lambda: "transformers" in sys.modules)
    embedder.encode_documents(TEXTS)


def interrupt_a_long_forward():
    long = BgeEmbedder(folder, device="cpu", on_truncate="ignore", max_batch_tokens=10**6)
    long.encode_documents(["a"])
    model = default_cache()._residents.loaded()[0].engine.backend._model
    model.register_forward_pre_hook(lambda *_: print("now", flush=True))
    long.encode_documents([TEXTS[0] * 60] * 1000)


def error_in_a_coroutine():
    async def main():
        call = asyncio.create_task(embedder.aencode_documents(TEXTS))
        await asyncio.to_thread(wait_for, computing)
        print("now", flush=True)
        raise RuntimeError(f"the script's own, with {call.get_name()} pending")

    asyncio.run(main())


def interrupt_a_coroutine():
    say_when(computing)
    asyncio.run(embedder.aencode_documents(TEXTS))


globals()[way]()
