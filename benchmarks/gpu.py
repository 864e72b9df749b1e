"""On a GPU: shares of its matrix products' ceiling, and the peers in float16. Models have BGE's shapes.

With a `shape` named, all models have that one: `--gpu cpu --shape tiny` tries the jobs where there is no GPU, and its
figures mean nothing.
"""

import threading
import time
from functools import partial
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoTokenizer

from benchmarks.harness import Call, Measure, Ratio, compare, measure, seconds_of
from benchmarks.models import SHAPES, flops_per_token, make_embedder, make_reranker
from benchmarks.texts import Texts
from bge_integrations import BgeEmbedder, BgeReranker, default_cache
from bge_integrations.inference.backends.fused import FUSE_AFTER
from bge_integrations.langchain import BgeEmbeddings

QUERY = "how do I wrap a paragraph to a given width?"
BATCHES = (32, 128, 512)
"""Batch sizes of sentence-transformers in float16, of which the best counts."""
WORDS_OF_256, WORDS_OF_512 = 150, 380
"""Words that make about 256 tokens, and 512 or more."""
PRODUCT_SIDE, PRODUCTS = 8192, 20


class GpuBenchmark:
    """The jobs over one set of texts.

    Args:
        folder: Where models are written.
        texts: What is embedded.
        count: Texts of 512 tokens in a call; of mixed lengths four times as many.
        repetitions: Of every job.
        device: "cuda", or "cpu" to try the jobs.
        shape: A name of `SHAPES` for all models; None takes each model's own.
    """

    def __init__(
        self, folder: Path, texts: Texts, *, count: int, repetitions: int, device: str, shape: str | None
    ) -> None:
        names = ("small", "base", "large")
        self._shapes = {name: SHAPES[shape or name] for name in names}
        self._folders = {name: make_embedder(folder / f"gpu-{name}", self._shapes[name]) for name in names}
        self._reranker_folder = make_reranker(folder / "gpu-reranker", self._shapes["large"])
        self._long, self._mixed = texts.of_words(count, WORDS_OF_512), texts.mixed(4 * count)
        self._pairs = [(QUERY, text) for text in texts.of_words(100, WORDS_OF_256)]
        self._repetitions = repetitions
        self._device = device

    def measures(self) -> list[Measure]:
        """Shares of the ceiling, the share that tokenizing alone would take, and one query's latency."""
        return [
            self._share_of_ceiling("large", "512 tokens", self._long),
            self._share_of_ceiling("large", "mixed lengths", self._mixed),
            self._share_of_tokenizing("small", self._mixed),
            self._one_query("base"),
        ]

    def ratios(self) -> list[Ratio]:
        """Documents and reranking beside the peers, in their best and their default way."""
        folder, half = self._folders["base"], {"dtype": torch.float16}
        library = SentenceTransformer(str(folder), device=self._device, model_kwargs=half)
        default = SentenceTransformer(str(folder), device=self._device)
        cross_encoder = CrossEncoder(str(self._reranker_folder), device=self._device, model_kwargs=half)
        reranker = BgeReranker(str(self._reranker_folder), device=self._device, on_truncate="ignore")
        peers: dict[str, Call] = {
            f"sentence-transformers, float16, batch {size}": partial(library.encode, self._mixed, batch_size=size)
            for size in BATCHES
        }
        return compare(
            {
                f"{len(self._mixed)} documents of mixed lengths, bge-base": {
                    "bge_integrations": self._bulk("base", self._mixed),
                    **peers,
                    "sentence-transformers": lambda: default.encode(self._mixed),
                },
                "reranking 100 passages of some 256 tokens, bge-reranker-v2-m3": {
                    "bge_integrations": lambda: reranker.score(self._pairs),
                    "CrossEncoder.predict, float16": lambda: cross_encoder.predict(self._pairs),
                },
            },
            self._repetitions,
        )

    def _share_of_ceiling(self, name: str, lengths: str, documents: list[str]) -> Measure:
        """The ceiling is measured in turn with the call."""
        tokenizer = AutoTokenizer.from_pretrained(self._folders[name])
        tokens = sum(map(len, tokenizer(documents, truncation=True, max_length=512)["input_ids"]))
        work = tokens * flops_per_token(self._shapes[name], tokens / len(documents))
        calls: dict[str, Call] = {"call": self._bulk(name, documents), "ceiling": self._products}
        seconds = seconds_of(calls, self._repetitions)
        ceiling = 2 * PRODUCT_SIDE**3 * PRODUCTS
        shares = [
            100 * (work / call) / (ceiling / products)
            for call, products in zip(seconds["call"], seconds["ceiling"], strict=True)
        ]
        return measure(f"bge-{name}, {lengths}: share of the ceiling of float16 matrix products", "%", shares)

    def _share_of_tokenizing(self, name: str, documents: list[str]) -> Measure:
        """Near 100 %, the tokenizer is the limit."""
        tokenizer = AutoTokenizer.from_pretrained(self._folders[name]).backend_tokenizer
        calls: dict[str, Call] = {
            "call": self._bulk(name, documents),
            "tokenizer": lambda: tokenizer.encode_batch_fast(documents),
        }
        seconds = seconds_of(calls, self._repetitions)
        shares = [100 * t / c for c, t in zip(seconds["call"], seconds["tokenizer"], strict=True)]
        return measure(f"bge-{name}, mixed lengths: tokenizing alone, of the whole call", "%", shares)

    def _one_query(self, name: str) -> Measure:
        embeddings = BgeEmbeddings(model=str(self._folders[name]), device=self._device)
        milliseconds = []
        for number in range(300):
            started = time.perf_counter()
            embeddings.embed_query(f"{QUERY} {number}")
            milliseconds.append(1e3 * (time.perf_counter() - started))
        return measure(f"bge-{name}, one short query through LangChain's embed_query", "ms", milliseconds[50:])

    def _bulk(self, name: str, documents: list[str]) -> Call:
        """A bulk call of a model that, on a GPU, has computed enough for its layers to be fused."""
        embedder = BgeEmbedder(str(self._folders[name]), device=self._device, on_truncate="ignore")
        embedder.encode_documents(documents)
        if self._device == "cuda":
            while _tokens_of(str(self._folders[name])) <= FUSE_AFTER:
                embedder.encode_documents(documents)
            for thread in threading.enumerate():
                if thread.name == "bge-fusing":
                    thread.join()
        return lambda: embedder.encode_documents(documents)

    def _products(self) -> None:
        """Large matrix products, as many as `PRODUCTS`; few small ones where there is no GPU."""
        side = PRODUCT_SIDE if self._device == "cuda" else 64
        factor = torch.ones(side, side, device=self._device, dtype=torch.float16)
        for _ in range(PRODUCTS):
            factor @ factor
        if self._device == "cuda":
            torch.cuda.synchronize()


def _tokens_of(model: str) -> int:
    """Tokens that a model has computed in this process."""
    return sum(entry["tokens"] for entry in default_cache().stats()["models"] if entry["model"] == model)
