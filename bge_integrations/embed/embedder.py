"""Texts to dense vectors, queries and documents each by their own path."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bge_integrations.embed.base import Embedder
from bge_integrations.inference.call import Rows
from bge_integrations.inference.heads import Dense
from bge_integrations.runtime.cache import ModelCache
from bge_integrations.runtime.user import BackendName, OnTruncate

FloatArray = NDArray[np.float32]


class BgeEmbedder(Embedder[FloatArray]):
    """A BGE embedding model, or any sentence-transformers text model.

    Cheap to construct: weights load at first use, once a process, and are shared with every other object that uses the
    model. Holds configuration only, so it pickles, deep-copies and may be used from any number of threads.

    A call gives float32 (n, dim), one vector a text.

    Args:
        model: A catalogue id such as "BAAI/bge-base-en-v1.5", a hub id, or a folder: the one that the path names when
            the object is made. Links are followed at each call.
        query_instruction: Text before each query, or the task of a model with a template (the LLM-based embedders:
            describe() shows it). None takes the catalogue's (or, outside it, the model's own "query"
            prompt); "" adds nothing.
        document_instruction: Text before each document. None takes the catalogue's, which only llm-embedder has (or,
            outside it, the model's own "document" prompt), and none beside a `query_instruction`; "" adds nothing.
        task: Name of a published pair of instructions, such as "qa" of llm-embedder.
        examples: Few-shot examples of bge-en-icl, put before every query: dicts with "query" and "response", and
            "instruct" where it is not the query instruction.
        normalize: Scale vectors to length 1. None takes the catalogue's, else what the folder says.
        max_length: Tokens at which a text is cut, special tokens included. None takes the catalogue's, else the
            folder's.
        truncate_dim: Keep the first so many dimensions, for models trained for that (Matryoshka).
        on_truncate: What a text over `max_length` causes: one warning a call, an error, or nothing.
        backend: "torch", "openvino" (on a CPU; extra `openvino`), or "sentence_transformers" for that library's own
            pipeline. "auto" takes the fastest that is installed and exact.
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the best there is. A list, as ["cuda:0", "cuda:1"], keeps a
            replica on each: long calls are split among them, short ones go to the least busy.
        dtype: "float32", "float16" or "bfloat16" of the weights, or "int8" on OpenVINO; None takes float16 on cuda,
            float32 elsewhere.
        revision: The hub's branch, tag or commit.
        max_batch_tokens: Most tokens in a forward that holds texts of this object.
        like: The catalogue id that a fine-tune or a bare folder descends from.
        cache: Where the model lives; None is the process-wide cache.
        cache_folder: Where downloads are kept; None is the hub's own folder.
        token: For private or gated repositories. Never shown by `repr`.
        local_files_only: Never ask the hub.
        trust_remote_code: Run Python code that the repository brings.

    Raises:
        UnknownModelError: A mistyped catalogue id; the message names the nearest ones.
        WrongKindError: A reranker.
        UnsupportedModelError: A model this version cannot run.
        ValueError: An argument out of its range.

    Example:
        >>> embedder = BgeEmbedder("BAAI/bge-base-en-v1.5")
        >>> embedder.describe()["query"]
        'Represent this sentence for searching relevant passages: {text}'
    """

    def __init__(
        self,
        model: str,
        *,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        task: str | None = None,
        examples: Sequence[Mapping[str, str]] | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        on_truncate: OnTruncate = "warn",
        backend: BackendName = "auto",
        device: object = None,
        dtype: object = None,
        revision: str | None = None,
        max_batch_tokens: int | None = None,
        like: str | None = None,
        cache: ModelCache | None = None,
        cache_folder: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            model, query_instruction=query_instruction, document_instruction=document_instruction, task=task,
            examples=examples, normalize=normalize, max_length=max_length, truncate_dim=truncate_dim,
            on_truncate=on_truncate, backend=backend, device=device, dtype=dtype, revision=revision,
            max_batch_tokens=max_batch_tokens, like=like, cache=cache, cache_folder=cache_folder, token=token,
            local_files_only=local_files_only, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        if truncate_dim and self._row and (like is None or self._row.id == self.model):
            raise ValueError(
                f"truncate_dim={truncate_dim}: {self.model} was not trained for shorter vectors, so cutting them loses "
                "quality. For a fine-tune that was, pass its folder and like=."
            )

    @property
    def _outputs(self) -> tuple[str, ...]:
        return ("dense",)

    def _head(self, dense: Dense) -> Dense:
        return dense

    def _result(self, rows: Rows) -> FloatArray:
        return rows

    def _no_result(self) -> FloatArray:
        return np.empty((0, self.dim), dtype=np.float32)
