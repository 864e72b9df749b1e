"""`BgeRerank`: a LlamaIndex node postprocessor that puts the most relevant nodes first."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar, Self

from llama_index.core.bridge.pydantic import Field, model_validator
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from bge_integrations.embed.collection import HASH_KEY
from bge_integrations.llama_index.component import BgeComponent
from bge_integrations.rerank.reranker import BgeReranker
from bge_integrations.types import RerankResult

_RETRIEVAL_SCORE = "retrieval_score"

_dispatcher = get_dispatcher(__name__)


class BgeRerank(BgeComponent, BaseNodePostprocessor):
    """BGE rerankers, and other cross-encoders with one label, as a node postprocessor.

    Gives new `NodeWithScore` objects round copies of the nodes, best first; what it was given stays as it was. A node's
    score is the relevance of what the embedding model sees of it (text and metadata, `MetadataMode.EMBED`).

    ```python
    reranker = BgeRerank(model="BAAI/bge-reranker-v2-m3", top_n=5)
    engine = index.as_query_engine(similarity_top_k=50, node_postprocessors=[reranker])
    ```

    Raises:
        UnknownModelError: The id is not in the catalogue though it looks as if it should be.
        WrongKindError: The model is an embedder.
        UnsupportedModelError: This version cannot run the model.
        pydantic.ValidationError: An argument is unknown or of the wrong type, or `score_threshold` can never be met.
    """

    model: str
    """Id of the model on the Hugging Face hub, or a folder that holds it."""
    top_n: int | None = Field(default=3, ge=1)
    """How many nodes to keep; None = all."""
    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """Nodes that score below it are dropped; None = none are. Between 0 and 1 unless `normalize=False`."""
    keep_retrieval_score: bool = True
    """Keep the score that a node came with as `retrieval_score` in its metadata."""
    normalize: bool = True
    """Give scores between 0 and 1 (the sigmoid of the logit); False = the raw logit."""
    query_max_length: int | None = None
    """Most tokens of the query; None = three quarters of `max_length`."""
    document_instruction: str | None = None
    """Text before every passage, for models that take one."""
    prompt: str | None = None
    """The question that models built on a language model answer with yes or no; None = the published one."""
    cutoff_layers: list[int] | None = None
    """Layers after which layerwise models give scores."""
    compress_layers: list[int] | None = None
    """Layers at which lightweight models merge tokens."""
    compress_ratio: int | None = None
    """How many tokens lightweight models merge into one."""

    _core_type: ClassVar[type] = BgeReranker
    _model_field: ClassVar[str] = "model"

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
        """The name under which the framework stores this class."""
        return "BgeRerank"

    @property
    def reranker(self) -> BgeReranker:
        """The core reranker that does the work."""
        reranker: BgeReranker = self._core()
        return reranker

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query_of(query_bundle)
        with self._reported(nodes, query) as best:
            results = self.reranker.rerank(query, _texts(nodes), self.top_n)
            best.extend(self._ranked(nodes, results))
        return best

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query_of(query_bundle)
        with self._reported(nodes, query) as best:
            results = await self.reranker.arerank(query, _texts(nodes), self.top_n)
            best.extend(self._ranked(nodes, results))
        return best

    @contextmanager
    def _reported(self, nodes: list[NodeWithScore], query: str) -> Iterator[list[NodeWithScore]]:
        """Tell the framework's observers of start and end, also when it ends in an error; yields the list to fill."""
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

    def _ranked(self, nodes: list[NodeWithScore], results: list[RerankResult]) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=self._copied(nodes[result.index]), score=result.score)
            for result in results
            if self.score_threshold is None or result.score >= self.score_threshold
        ]

    def _copied(self, found: NodeWithScore) -> BaseNode:
        """A copy of the node; the metadata key that it gains is hidden from embedding models and LLMs."""
        original = found.node
        node = original.model_copy(
            update={
                "metadata": deepcopy(original.metadata),
                "relationships": dict(original.relationships),
                "excluded_embed_metadata_keys": list(original.excluded_embed_metadata_keys),
                "excluded_llm_metadata_keys": list(original.excluded_llm_metadata_keys),
            }
        )
        if self.keep_retrieval_score and found.score is not None:
            node.metadata[_RETRIEVAL_SCORE] = float(found.score)
            for hidden_keys in (node.excluded_embed_metadata_keys, node.excluded_llm_metadata_keys):
                if _RETRIEVAL_SCORE not in hidden_keys:
                    hidden_keys.append(_RETRIEVAL_SCORE)
        return node


def _query_of(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise ValueError("Missing query bundle: pass query_bundle= or query_str=.")
    return query_bundle.query_str


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [_bare(found.node).get_content(metadata_mode=MetadataMode.EMBED) for found in nodes]


def _bare(node: BaseNode) -> BaseNode:
    """The node without the hash that `populate` keeps with it."""
    if HASH_KEY not in node.metadata:
        return node
    hidden = [*node.excluded_embed_metadata_keys, HASH_KEY]
    return node.model_copy(update={"excluded_embed_metadata_keys": hidden})
