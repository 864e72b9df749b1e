"""On a CPU, beside the peers: documents, reranking, many callers, one caller. Models have bge-small's shape."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from benchmarks.harness import Call, Jobs, Ratio, compare
from benchmarks.models import SHAPES, make_embedder, make_reranker
from benchmarks.peers import framework_calls
from benchmarks.texts import Texts
from bge_integrations import BgeEmbedder, BgeReranker
from bge_integrations.inference.backends.pytorch import TorchBackend
from bge_integrations.inference.engine import Engine
from bge_integrations.inference.heads import Dense
from bge_integrations.inference.plan import TextPlan
from bge_integrations.inference.tokenize import TextTokenizer

QUERY = "how do I wrap a paragraph to a given width?"
LIVE = 64
"""Threads, or asyncio tasks, that each ask one query at a time."""
WAYS = {
    "torch": {"backend": "torch"},
    "openvino float32": {"backend": "openvino", "dtype": "float32"},
    "openvino bfloat16": {"backend": "openvino", "dtype": "bfloat16"},
    "openvino int8": {"backend": "openvino", "dtype": "int8"},
}
"""How ours runs; the second is `backend="auto"` where OpenVINO is installed."""
OURS = "bge_integrations"


def measure_speed(folder: Path, texts: Texts, count: int, repetitions: int) -> list[Ratio]:
    """Every job, on one embedder and one reranker."""
    embedder_folder = make_embedder(folder / "embedder", SHAPES["small"])
    reranker_folder = make_reranker(folder / "reranker", SHAPES["small"])
    embedders = {
        way: BgeEmbedder(str(embedder_folder), query_instruction="", on_truncate="ignore", **arguments)
        for way, arguments in WAYS.items()
    }
    rerankers = {
        way: BgeReranker(str(reranker_folder), on_truncate="ignore", **arguments) for way, arguments in WAYS.items()
    }
    return compare(
        {
            **document_jobs(embedders, embedder_folder, texts.mixed(count)),
            **reranking_jobs(rerankers, reranker_folder, [(QUERY, text) for text in texts.mixed(50, seed=1)]),
            **live_jobs(embedders, embedder_folder, [f"{QUERY} {number}" for number in range(4 * LIVE)]),
            **lone_jobs(embedders, embedder_folder, [f"{QUERY} {number}" for number in range(LIVE)]),
        },
        repetitions,
    )


def document_jobs(embedders: dict[str, BgeEmbedder], folder: Path, texts: list[str]) -> Jobs:
    """Documents of mixed lengths."""
    library, padded = SentenceTransformer(str(folder)), padded_call(folder, texts)
    peers: dict[str, Call] = {
        "sentence-transformers": lambda: library.encode(texts),
        "sentence-transformers, batch 8": lambda: library.encode(texts, batch_size=8),
    }
    more = {"torch": {"the same, padded": padded}, "openvino float32": framework_calls(folder, texts)}
    return {
        f"{len(texts)} documents, {way}": {
            OURS: partial(embedder.encode_documents, texts),
            **peers,
            **more.get(way, {}),
        }
        for way, embedder in embedders.items()
    }


def reranking_jobs(rerankers: dict[str, BgeReranker], folder: Path, pairs: list[tuple[str, str]]) -> Jobs:
    """One query's passages."""
    library = CrossEncoder(str(folder))
    return {
        f"reranking {len(pairs)} passages, {way}": {
            OURS: partial(reranker.score, pairs),
            "CrossEncoder.predict": lambda: library.predict(pairs),
        }
        for way, reranker in rerankers.items()
    }


def live_jobs(embedders: dict[str, BgeEmbedder], folder: Path, queries: list[str]) -> Jobs:
    """Single queries from many callers at a time, against sentence-transformers and against one large batch."""
    library = SentenceTransformer(str(folder))

    def threads(encode: "partial[object]") -> None:
        with ThreadPoolExecutor(LIVE) as pool:
            list(pool.map(encode, queries))

    async def tasks(embedder: BgeEmbedder) -> None:
        places = asyncio.Semaphore(LIVE)

        async def one(query: str) -> None:
            async with places:
                await embedder.aencode_queries([query])

        await asyncio.gather(*map(one, queries))

    jobs: dict[str, dict[str, Call]] = {}
    for way in ("torch", "openvino float32"):
        embedder = embedders[way]
        alone = partial(lambda embedder, query: embedder.encode_queries([query]), embedder)
        peers = {
            "sentence-transformers from 64 threads": partial(threads, partial(library.encode)),
            f"{OURS}, one batch": partial(embedder.encode_queries, queries),
        }
        jobs[f"{len(queries)} single queries from {LIVE} threads, {way}"] = {OURS: partial(threads, alone), **peers}
        jobs[f"{len(queries)} single queries from {LIVE} asyncio tasks, {way}"] = {
            OURS: lambda embedder=embedder: asyncio.run(tasks(embedder)),
            **peers,
        }
    return jobs


def lone_jobs(embedders: dict[str, BgeEmbedder], folder: Path, queries: list[str]) -> Jobs:
    """Single queries, one after the other: against the library, and against tokenizer and model called by hand."""
    library, tokenizer = SentenceTransformer(str(folder)), AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()

    def by_hand(query: str) -> object:
        with torch.inference_mode():
            hidden = model(**tokenizer(query, return_tensors="pt")).last_hidden_state[:, 0]
            return torch.nn.functional.normalize(hidden, dim=-1).numpy()

    def each(encode: "partial[object]") -> None:
        for query in queries:
            encode(query)

    jobs = {}
    for way, embedder in embedders.items():
        alone = partial(lambda embedder, query: embedder.encode_queries([query]), embedder)
        jobs[f"{len(queries)} single queries, one caller, {way}"] = {
            OURS: partial(each, alone),
            "sentence-transformers": partial(each, partial(library.encode)),
            "transformers by hand": partial(each, partial(by_hand)),
        }
    return jobs


def padded_call(folder: Path, texts: list[str]) -> Call:
    """The reference path over the same weights, to show that packing pays."""
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(folder).backend_tokenizer, with_types=True)
    engine = Engine(
        tokenizer, TorchBackend(model, packed=False, engine="padded"), device="benchmark", max_batch_tokens=1024
    )
    return lambda: engine.submit(texts, TextPlan(head=Dense(), dim=0, max_length=512)).result()
