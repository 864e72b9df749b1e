"""The base class of the node postprocessors: copies, scores, thresholds, events."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from bge_integrations._fields import PathText
from bge_integrations.llama_index.component import BgeComponent
from bge_integrations.llama_index.nodes import copied, with_retrieval_score
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
