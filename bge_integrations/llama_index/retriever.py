"""`RerankingRetriever`: many candidates from a vector store, the few most relevant ones returned."""

import asyncio
from copy import copy
from dataclasses import replace

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.vector_store import VectorIndexRetriever, VectorStoreIndex
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores import MetadataFilters
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from bge_integrations.embed.collection import check_fingerprint, read_fingerprint
from bge_integrations.llama_index.embedding import BgeEmbedding
from bge_integrations.llama_index.postprocessor import BgeNodePostprocessor

_FETCH_K = 50


class RerankingRetriever(BaseRetriever):
    """Retrieves `fetch_k` candidates, drops duplicates and returns the best `top_n` after reranking.

    Two candidates are one if they have the same id, or the same text from the same source. If the embedding model is a
    `BgeEmbedding`, the first retrieval checks that it is the model which filled the collection.

    ```python
    retriever = RerankingRetriever(index=index, reranker=BgeRerank(model="BAAI/bge-reranker-v2-m3", top_n=5))
    nodes = retriever.retrieve("what is a panda?")
    ```

    Args:
        index: Where candidates come from; or give one of the next two.
        vector_store: A filled vector store, queried with `Settings.embed_model`, as the framework does for a bare one.
        retriever: A `VectorIndexRetriever` is copied and asked for `fetch_k` of them;
            any other decides itself how many it gives.
        reranker: A `BgeRerank` or a `BgeM3Rerank`; scores the candidates.
        fetch_k: How many candidates to retrieve (default 50).
        top_n: How many nodes to return; None for what the reranker says.
        filters: Metadata that candidates must have; not with `retriever`.
        callback_manager: The framework's observers.

    Raises:
        ValueError: Not exactly one of `index`, `vector_store` and `retriever`; `fetch_k` less than the number of nodes
            to return; `fetch_k` or `filters` with a retriever that can't take them.
    """

    def __init__(
        self,
        *,
        reranker: BgeNodePostprocessor,
        index: VectorStoreIndex | None = None,
        vector_store: BasePydanticVectorStore | None = None,
        retriever: BaseRetriever | None = None,
        fetch_k: int | None = None,
        top_n: int | None = None,
        filters: MetadataFilters | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager)
        if not isinstance(reranker, BgeNodePostprocessor):
            raise TypeError(f"reranker must be a BgeRerank or a BgeM3Rerank, not {type(reranker).__name__}.")
        if top_n is not None:
            if top_n < 1:
                raise ValueError(f"top_n={top_n}: it must be at least 1.")
            reranker = reranker.model_copy(update={"top_n": top_n})
        self.reranker = reranker
        sources = [source for source in (index, vector_store, retriever) if source is not None]
        if len(sources) != 1:
            raise ValueError("Pass exactly one of index=, vector_store= and retriever=.")
        self.candidates = _candidates(sources[0], fetch_k, filters)
        self._collection_is_checked = False
        if isinstance(self.candidates, VectorIndexRetriever):
            _check_fetch_k(self.candidates.similarity_top_k, reranker.top_n)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self._check_collection()
        query = replace(query_bundle)
        found = self.candidates.retrieve(query)
        return self.reranker.postprocess_nodes(_without_duplicates(found), query)

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        if not self._collection_is_checked:
            await asyncio.to_thread(self._check_collection)
        query = replace(query_bundle)
        found = await self.candidates.aretrieve(query)
        return await self.reranker.apostprocess_nodes(_without_duplicates(found), query)

    def _check_collection(self) -> None:
        """Compare fingerprints, once; the model's own is worked out from its weights, so only where it is needed."""
        if self._collection_is_checked or not isinstance(self.candidates, VectorIndexRetriever):
            return
        embed_model = self.candidates._embed_model  # noqa: SLF001 - neither has a public name
        store = self.candidates._vector_store  # noqa: SLF001
        if isinstance(embed_model, BgeEmbedding) and read_fingerprint(store) is not None:
            check_fingerprint(store, embed_model.embedder.fingerprint)
            self._collection_is_checked = True


def _candidates(
    source: VectorStoreIndex | BasePydanticVectorStore | BaseRetriever,
    fetch_k: int | None,
    filters: MetadataFilters | None,
) -> BaseRetriever:
    """The retriever of the candidates, told how many to get."""
    if isinstance(source, BasePydanticVectorStore):
        source = VectorStoreIndex.from_vector_store(source)
    if isinstance(source, VectorStoreIndex):
        return source.as_retriever(similarity_top_k=_FETCH_K if fetch_k is None else fetch_k, filters=filters)
    if filters is not None:
        raise ValueError(
            "filters= goes with index= or vector_store=. With retriever=, give the filters to that retriever."
        )
    if isinstance(source, VectorIndexRetriever):
        own = copy(source)
        own.similarity_top_k = _FETCH_K if fetch_k is None else fetch_k
        return own
    if fetch_k is not None:
        raise ValueError(
            f"fetch_k={fetch_k} can't be passed on to a {type(source).__name__}: "
            "set how many nodes it gives on that retriever, or pass a VectorIndexRetriever or index=."
        )
    return source


def _check_fetch_k(fetch_k: int, top_n: int | None) -> None:
    if fetch_k < (top_n or 1):
        raise ValueError(f"fetch_k={fetch_k} candidates are fewer than top_n={top_n} nodes to return.")


def _without_duplicates(found: list[NodeWithScore]) -> list[NodeWithScore]:
    """The first of each group of nodes with one id, or with one text and source."""
    seen: set[object] = set()
    unique = []
    for candidate in found:
        node = candidate.node
        keys: set[object] = {node.node_id}
        text = node.get_content(metadata_mode=MetadataMode.NONE)
        if text:
            keys.add((text, _source(node)))
        if seen.isdisjoint(keys):
            unique.append(candidate)
        seen |= keys
    return unique


def _source(node: BaseNode) -> str | None:
    source = node.metadata.get("source") or node.metadata.get("file_path") or node.ref_doc_id
    return None if source is None else str(source)
