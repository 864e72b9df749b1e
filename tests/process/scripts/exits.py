"""Calls while the interpreter ends, in a way, and prints what came of each: `exits.py WAY EMBEDDER RERANKER`."""

import asyncio
import atexit
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

way, folder, other = sys.argv[1:]
box = {}
LONG = ["The giant panda is a bear that lives in the mountains of central China."] * 200_000


def tell(name, call):
    try:
        said = str(call())
    except Exception as error:
        said = type(error).__name__
    sys.stdout.write(f"{name}: {said}\n")  # as a whole, beside other threads
    sys.stdout.flush()


def in_a_thread(call):
    results = []
    thread = threading.Thread(target=lambda: tell("thread", lambda: results.append(call())))
    thread.start()
    thread.join()
    return "joined"


def hook():
    def shape():
        return box["embedder"].encode_documents(["late"]).shape

    tell("sync", shape)
    tell("async", lambda: asyncio.run(box["embedder"].aencode_queries(["late"])))
    tell("long async", lambda: asyncio.run(box["embedder"].aencode_queries(["late"] * 1000)))
    tell("stream", lambda: next(box["embedder"].iter_documents(["late"])))
    tell("not loaded", lambda: box["reranker"].score([("late", "late")]))
    tell("in a thread", lambda: in_a_thread(shape))


def wait_for_the_thread():
    began = time.monotonic()
    box["thread"].join()
    print(f"in time: {time.monotonic() - began < 10}", flush=True)


if way == "before":
    atexit.register(hook)
if way == "join":
    atexit.register(wait_for_the_thread)

from bge_integrations import BgeEmbedder, BgeReranker, default_cache  # noqa: E402

box["embedder"] = BgeEmbedder(folder, device="cpu", on_truncate="ignore")
box["reranker"] = BgeReranker(other, device="cpu")


class Flushing:
    """Something that calls when it goes, at the very end."""

    def __init__(self):
        self._embedder, self._write = box["embedder"], sys.stdout.write  # no global is left when it goes

    def __del__(self):
        try:
            self._embedder.encode_documents(["late"])
        except Exception as error:
            self._write(f"__del__: {type(error).__name__}\n")


def encode(text):
    return box["embedder"].encode_documents([text]).shape


def before():
    encode("early")


def after():
    from multiprocessing.util import Finalize  # whose own exit hook is registered by its first import

    encode("early")
    kept = box["flushing"] = Flushing()
    atexit.register(tell, "atexit", lambda: encode("late"))
    weakref.finalize(kept, tell, "finalize", lambda: encode("late"))
    threading._register_atexit(tell, "threading", lambda: encode("late"))
    Finalize(None, tell, ("multiprocessing", lambda: encode("late")), exitpriority=1)
    atexit.register(tell, "not loaded", lambda: len(box["reranker"].score([("late", "late")])))
    atexit.register(tell, "concurrent", lambda: in_a_thread(lambda: encode("late")))


def join():
    began = threading.Event()

    def call():
        encode("early")
        began.set()
        tell("waiting", lambda: box["embedder"].encode_documents(LONG))

    box["thread"] = threading.Thread(target=call, daemon=True)
    box["thread"].start()
    began.wait()
    while default_cache().stats()["models"][0]["batches"] < 3:
        time.sleep(0.001)


def pool():
    """The first load begins when the script has ended, the second one later."""
    threads = ThreadPoolExecutor(4)
    ended = threading.Event()
    threading._register_atexit(ended.set)
    threads.submit(ended.wait)
    for number in range(50):
        threads.submit(lambda number=number: (ended.wait(), tell(f"text {number}", lambda: encode(f"text {number}"))))
    threads.submit(tell, "pair", lambda: len(box["reranker"].score([("late", "late")])))


def others():
    """Threads of others have any name they like, and are left alone."""
    encode("early")

    def work(name):
        try:
            while True:
                time.sleep(0.01)
        except SystemExit:
            print(f"hit: {name}", flush=True)

    for name in ("bge-sync", "bge-engine", "bge-loader"):
        threading.Thread(target=work, args=(name,), name=name, daemon=True).start()


globals()[way]()
