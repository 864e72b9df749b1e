"""Forks at several moments and prints, as JSON, what each child came to: `forks.py FOLDER`."""

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import warnings

from bge_integrations import BgeEmbedder, ModelCache, default_cache

warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
folder = sys.argv[1]
embedder = BgeEmbedder(folder, device="cpu", on_truncate="ignore")
TEXTS = ["The giant panda is a bear.", "A vector store keeps vectors.", "Bread needs flour."] * 8
results = []


def child(moment, encode=embedder.encode_documents, leave=os._exit):
    """Encodes in a forked child that says where it is after 20 s, and that the system kills after 30 s."""
    reader, writer = os.pipe()
    trace = tempfile.TemporaryFile("w+")  # noqa: SIM115  the child writes to it, too
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        faulthandler.dump_traceback_later(20, file=trace)
        began = time.monotonic()
        try:
            said = encode(TEXTS).tolist()
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        with os.fdopen(writer, "w") as stream:
            json.dump([said, time.monotonic() - began], stream)
        leave(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        answer = stream.read()
    _, status = os.waitpid(pid, 0)
    said, seconds = json.loads(answer) if answer else ("nothing", 0.0)
    trace.seek(0)
    results.append({"moment": moment, "status": status, "seconds": seconds, "said": said, "trace": trace.read()})
    trace.close()


def fork_during_the_first_load():
    thread = threading.Thread(target=embedder.encode_documents, args=(TEXTS,))
    thread.start()
    for module in ("torch", "transformers", "bge_integrations.inference.backends.pytorch"):
        while module not in sys.modules:
            time.sleep(0.001)
        child(f"while {module} is imported")
    thread.join()


def fork_while_threads_encode():
    done = threading.Event()

    def encode():
        while not done.is_set():
            embedder.encode_documents([" ".join(TEXTS * 3)] * 20)

    threads = [threading.Thread(target=encode) for _ in range(2)]
    for thread in threads:
        thread.start()
    before = default_cache().stats()["models"][0]["batches"]
    for n in range(1, 7):
        while default_cache().stats()["models"][0]["batches"] < before + 3 * n:
            time.sleep(0.001)
        child("while threads encode", leave=sys.exit if n == 1 else os._exit)
    done.set()
    for thread in threads:
        thread.join()


child("before anything")
fork_during_the_first_load()
child("after encoding")
fork_while_threads_encode()
with multiprocessing.get_context("fork").Pool(2) as pool:
    parts = pool.map(embedder.encode_documents, [TEXTS] * 3, chunksize=1)
results += [
    {"moment": "in a pool", "status": 0, "seconds": 0.0, "said": vectors.tolist(), "trace": ""} for vectors in parts
]
other = BgeEmbedder(folder, device="cpu", cache=ModelCache())
other.encode_documents(TEXTS)
del other
for _ in range(4):
    embedder.encode_documents(TEXTS)
    default_cache().clear()
    child("after everything is unloaded")  # the threads that computed are on their way out
print(json.dumps({"parent": embedder.encode_documents(TEXTS).tolist(), "children": results}))
