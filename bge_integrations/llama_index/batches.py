"""Many texts in async batches, small enough for the event loop."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from llama_index.core.utils import get_tqdm_iterable

_Embedding = TypeVar("_Embedding")

_TEXTS = 256
"""Texts a batch: the framework validates its vectors on the event loop, 3 ms for this many of 1,024 numbers."""
_BATCHES = 8
"""Batches under way at a time, so that the engine has enough to choose from."""


async def in_batches(
    embed: Callable[[list[str]], Awaitable[list[_Embedding]]],
    texts: list[str],
    batch_size: int,
    num_workers: int | None,
    show_progress: bool,
) -> list[_Embedding]:
    """Embed texts, several batches at a time; an error or a cancellation stops them all.

    Args:
        embed: Embeds one batch.
        texts: All of them.
        batch_size: Most texts a batch; never more than 256 are taken.
        num_workers: Batches under way at a time; None = 8.
        show_progress: Show a bar.

    Returns:
        One embedding a text, in order.
    """
    size = min(batch_size, _TEXTS)
    free = asyncio.Semaphore(num_workers or _BATCHES)

    async def embed_when_free(batch: list[str]) -> list[_Embedding]:
        async with free:
            return await embed(batch)

    tasks = [asyncio.create_task(embed_when_free(texts[start : start + size])) for start in range(0, len(texts), size)]
    try:
        progress = get_tqdm_iterable(tasks, show_progress, "Generating embeddings")
        return [vector for task in progress for vector in await task]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
