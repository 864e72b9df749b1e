"""Prints, as JSON, by how much a 10 ms ticker of the event loop slipped at most while embedding: `ticker.py FOLDER`."""

import asyncio
import json
import sys
import time

import bge_integrations

TEXTS = [f"Text number {n} on the giant panda" for n in range(20_000)]


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


async def main():
    embedder = bge_integrations.BgeEmbedder(sys.argv[1], device="cpu")
    first = await slip(embedder.aencode_documents(["a"]))
    bulk = await slip(embedder.aencode_documents(TEXTS))
    print(json.dumps({"first load": first, "20,000 texts": bulk}))


asyncio.run(main())
