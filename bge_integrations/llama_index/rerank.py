"""LlamaIndex's node postprocessors, which put the most relevant nodes first."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from typing import Any, ClassVar, Self

from llama_index.core.bridge.pydantic import Field, model_validator
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from bge_integrations._fields import PathText, RerankerFields
from bge_integrations.embed.m3 import OUTPUTS, BgeM3Embedder, arank, rank
from bge_integrations.llama_index.component import BgeComponent
from bge_integrations.llama_index.nodes import copied, with_retrieval_score
from bge_integrations.rerank.reranker import BgeReranker
from bge_integrations.stores.kinds import HASH_KEY

_dispatcher = get_dispatcher(__name__)


class BgeNodePostprocessor(BgeComponent, BaseNodePostprocessor):
    """A base class that scores nodes against the query and puts the best first.

    It returns new `NodeWithScore` objects with copies of the nodes; its input is not changed. It scores what the
    embedding model sees of a node (text and metadata, `MetadataMode.EMBED`).
    """

    model: PathText
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
    top_n: int | None = Field(default=3, ge=1)
    """How many nodes to keep; None = all."""
    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """The lowest score of a node that is kept; None = all are kept."""
    keep_retrieval_score: bool = True
    """Keep the score that a node came with as `retrieval_score` in its metadata, through later rerankings too. The
    node's `hash` does not change."""

    def _rank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        """Return the positions and scores of the `top_n` best texts, best first.

        This is no abstract method, as the framework would put a span round each.
        """
        raise NotImplementedError

    async def _arank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        """Rank texts like `_rank`, off the event loop."""
        raise NotImplementedError

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query_of(query_bundle)
        with self._reported(nodes, query) as best:
            best.extend(self._ranked(nodes, self._rank(query, _texts(nodes))))
        return best

    @_dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query_of(query_bundle)
        with self._reported(nodes, query) as best:
            best.extend(self._ranked(nodes, await self._arank(query, _texts(nodes))))
        return best

    @contextmanager
    def _reported(self, nodes: list[NodeWithScore], query: str) -> Iterator[list[NodeWithScore]]:
        """Report start and end, also after an error, to the framework's observers; yield the list to fill."""
        best: list[NodeWithScore] = []
        top_n = len(nodes) if self.top_n is None else self.top_n
        _dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: self.top_n,
        }
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield best
                event.on_end(payload={EventPayload.NODES: best})
        finally:
            _dispatcher.event(ReRankEndEvent(nodes=best))

    def _ranked(self, nodes: list[NodeWithScore], ranking: list[tuple[int, float]]) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=self._copied(nodes[position]), score=score)
            for position, score in ranking
            if self.score_threshold is None or score >= self.score_threshold
        ]

    def _copied(self, found: NodeWithScore) -> BaseNode:
        if self.keep_retrieval_score and found.score is not None:
            return with_retrieval_score(found.node, found.score)
        return copied(found.node)


def _query_of(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise ValueError("Missing query bundle: pass query_bundle= or query_str=.")
    return query_bundle.query_str


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [_bare(found.node).get_content(metadata_mode=MetadataMode.EMBED) for found in nodes]


def _bare(node: BaseNode) -> BaseNode:
    """Return the node; if `populate` keeps a hash in its metadata, a copy that hides it from the model."""
    if HASH_KEY not in node.metadata:
        return node
    hidden = [*node.excluded_embed_metadata_keys, HASH_KEY]
    return node.model_copy(update={"excluded_embed_metadata_keys": hidden})


class BgeRerank(RerankerFields, BgeNodePostprocessor):
    """BGE rerankers, and other cross-encoders with one label, as a node postprocessor.

    It returns new `NodeWithScore` objects with copies of the nodes, best first; its input is not changed. A node's
    score is the relevance of what the embedding model sees of it (text and metadata, `MetadataMode.EMBED`).

    ```python
    reranker = BgeRerank(model="BAAI/bge-reranker-v2-m3", top_n=5)
    engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[reranker])
    ```

    Raises:
        UnknownModelError, WrongKindError, UnsupportedModelError: `BgeReranker` refuses the model.
        pydantic.ValidationError: An argument is unknown or of the wrong type, or `score_threshold` can never be met:
            outside [0, 1] without `normalize=False`.
    """

    _core_type: ClassVar[type] = BgeReranker

    @model_validator(mode="after")
    def _check_threshold(self) -> Self:
        if self.normalize and self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise ValueError(
                f"score_threshold={self.score_threshold} is outside [0, 1], where all scores lie. "
                "For a threshold on the raw logits pass normalize=False."
            )
        return self

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the framework stores this class."""
        return "BgeRerank"

    @property
    def reranker(self) -> BgeReranker:
        """The `BgeReranker` that computes the scores."""
        reranker: BgeReranker = self._core()
        return reranker

    def _rank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        return [(result.index, result.score) for result in self.reranker.rerank(query, texts, self.top_n)]

    async def _arank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        return [(result.index, result.score) for result in await self.reranker.arerank(query, texts, self.top_n)]


class BgeM3Rerank(BgeNodePostprocessor):
    """Multi-vector reranking with bge-m3: each token of the query is compared with its best token of the node.

    It returns new `NodeWithScore` objects with copies of the nodes, best first; its input is not changed. It scores
    what the embedding model sees of a node (text and metadata, `MetadataMode.EMBED`). However many candidates there
    are, the vectors of 256 at most are in memory together.

    ```python
    reranker = BgeM3Rerank(top_n=5)
    engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[reranker])
    ```

    Raises:
        UnknownModelError, WrongKindError, UnsupportedModelError: `BgeM3Embedder` refuses the model.
        pydantic.ValidationError: An argument is unknown, of the wrong type or out of its range.
    """

    model: PathText = "BAAI/bge-m3"
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
    weights: tuple[float, float, float] = (0.0, 0.0, 1.0)
    """Weights of the scores of dense, sparse and token vectors (`maxsim`); the score is their weighted mean. Outputs
    of weight 0 are not computed."""
    document_instruction: str | None = None
    """Text before every node; None = the catalogue's, "" = none."""
    normalize: bool | None = None
    """Scale dense vectors to length 1; None = as the catalogue says."""

    _core_type: ClassVar[type] = BgeM3Embedder

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if any(weight < 0 or not isfinite(weight) for weight in self.weights) or not any(self.weights):
            raise ValueError(
                f"weights={self.weights}: give three numbers, for dense, sparse and colbert, 0 or more and not all 0."
            )
        return self

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which the framework stores this class."""
        return "BgeM3Rerank"

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs whose weight is not 0."""
        return tuple(output for output, weight in zip(OUTPUTS, self.weights, strict=True) if weight)

    @property
    def embedder(self) -> BgeM3Embedder:
        """The `BgeM3Embedder` that computes the vectors, and only its `outputs`."""
        embedder: BgeM3Embedder = self._core()
        return embedder

    def _rank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        return rank(self.embedder, query, texts, self.weights, self.top_n)

    async def _arank(self, query: str, texts: list[str]) -> list[tuple[int, float]]:
        return await arank(self.embedder, query, texts, self.weights, self.top_n)
