"""Prints, as JSON, by how much a 10 ms ticker of the event loop slipped at most.

`ticker.py EMBEDDER M3` measures this package, `ticker.py` alone what importing torch costs anybody: its native library
holds Python's lock while it is loaded.
"""

import asyncio
import importlib
import json
import sys
import time

import bge_integrations

TEXTS = [f"Text number {n} on the giant panda" for n in range(20_000)]

LONG = "The giant panda is a bear that lives in the mountains of central China. " * 8


def now():
    return time.perf_counter(), time.process_time()


async def slip(work):
    """Seconds of the worst slip while `work` runs.

    Of wall time and this process's CPU time the smaller counts: where other processes have the cores, wall time alone
    says nothing on this one.
    """
    worst = 0.0

    async def tick():
        nonlocal worst
        while True:
            began = now()
            await asyncio.sleep(0.01)
            worst = max(worst, min(end - start for start, end in zip(began, now(), strict=True)) - 0.01)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0.05)
    await work
    await asyncio.sleep(0.05)
    ticker.cancel()
    return worst


async def best(call):
    """Of three tries, as what else the machine does may get in the way of any of them."""
    return min([await slip(call()) for _ in range(3)])


async def import_torch():
    print(json.dumps(await slip(asyncio.to_thread(importlib.import_module, "torch"))))


async def main(folder, m3):
    embedder = bge_integrations.BgeEmbedder(folder, device="cpu")
    first = await slip(embedder.aencode_documents(["a"]))
    bulk = await slip(embedder.aencode_documents(TEXTS))
    scorer = bge_integrations.BgeM3Embedder(m3, like="BAAI/bge-m3", device="cpu", on_truncate="ignore")
    pairs = [(f"query {n}", f"{n} {LONG}") for n in range(128)]
    await scorer.ascore(pairs[:1])
    scores = await best(lambda: scorer.ascore(pairs))
    print(json.dumps({"first load": first, "20,000 texts": bulk, "m3's scores": scores}))


asyncio.run(main(*sys.argv[1:]) if sys.argv[1:] else import_torch())
