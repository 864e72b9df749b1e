"""Dense and sparse retrieval from one forward pass of bge-m3, over any LangChain vector store."""

import asyncio
import logging
import operator
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self
from uuid import UUID, uuid4

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.errors import FingerprintMismatchError
from bge_integrations.langchain.fields import Live, Weight
from bge_integrations.langchain.retrieval import identity_of, searches, texts_of, with_scores
from bge_integrations.stores.fingerprint import check_fingerprint, write_fingerprint
from bge_integrations.stores.fusion import reciprocal_rank_fusion, relative_score_fusion, without_duplicates
from bge_integrations.stores.kinds import find_chroma_collection
from bge_integrations.stores.replay import Replay, replaying
from bge_integrations.stores.sparse_index import SparseIndex
from bge_integrations.types import M3Embeddings

_LOGGER = logging.getLogger(__name__)

Found = tuple[Document, float]


class HybridRetriever(BaseRetriever):
    """A hybrid retriever: it fuses the dense results of any store with the sparse results of a `SparseIndex`.

    One forward pass of bge-m3 gives both vectors, for a query and for the documents that `add_documents` (or `populate`
    with `sparse_index=`) puts into both places. The store does the dense search, with the dense vector of that pass.

    It returns copies of the documents, best first, with the fused score as the float `retrieval_score` in their
    metadata; a copy equals its original. Of documents with the same text from the same source it returns the best.

    A call can set its own `k` and `fetch_k`, and arguments for the store's search. With such arguments or
    `search_kwargs`, for instance a filter, only documents that the store's own search returns are candidates, and the
    sparse vectors only rank them, as this package cannot apply a store's filter. Raise `fetch_k` in that case.

    Use Qdrant's store in its dense mode here: in its own hybrid mode it would run the sparse model again.

    Example:
        ```python
        store = Chroma("notes", embedding_function=BgeEmbeddings(model="BAAI/bge-m3"))
        retriever = HybridRetriever(
            vector_store=store, sparse_index=SparseIndex(), embedder=BgeM3Embedder("BAAI/bge-m3"), k=5
        )
        retriever.add_documents(documents)
        best = retriever.invoke("what is a panda?")
        retriever.sparse_index.save("notes.sparse.npz")
        ```

    Raises:
        pydantic.ValidationError: Arguments cannot be combined; the message says which.
        TypeError: At a call, the store does not hold its embeddings in an attribute.
        ValueError: At a call, `k` is under 1 or over `fetch_k`, or the store's documents have no ids.
        FingerprintMismatchError: At the first call, another model fills or has filled the store or the index.
    """

    vector_store: Annotated[VectorStore, Live()]
    """The store of the texts and dense vectors, with the embeddings of the same model."""
    sparse_index: Annotated[SparseIndex, Live()]
    """The index of the sparse vectors, under the same ids."""
    embedder: Annotated[BgeM3Embedder, Live()]
    """The embedder of the dense and sparse vectors; its own `outputs` do not matter here."""
    k: int = Field(default=4, ge=1)
    """Documents to return."""
    fetch_k: int = Field(default=50, ge=1)
    """Number of candidates from the dense and from the sparse search."""
    fusion: Literal["rrf", "weights"] = "rrf"
    """"rrf" fuses ranks; "weights" fuses scores, scaled on each side to 1 for the best and 0 for the last candidate."""
    weights: tuple[Weight, Weight] = (1.0, 1.0)
    """Weights of the dense and the sparse side, with either fusion."""
    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More arguments for the store's search, such as `filter`. A `fetch_k` in them is the store's own, if it has one:
    how many documents it looks at before it filters. If you leave it out, it is enough for `fetch_k` candidates."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    _checked: tuple[object, ...] | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_arguments(self) -> Self:
        if "k" in self.search_kwargs:
            raise ValueError('search_kwargs has "k". Give fetch_k= instead.')
        if not any(self.weights):
            raise ValueError(f"weights={self.weights} for dense and sparse: at least one must be above 0.")
        scores = type(self.vector_store).similarity_search_with_score
        if self.fusion == "weights" and scores is VectorStore.similarity_search_with_score:
            raise ValueError(f'{type(self.vector_store).__name__} gives no scores. Take fusion="rrf".')
        self._checked_numbers(None, None)
        return self

    def add_documents(self, documents: Sequence[Document], ids: Sequence[str] | None = None) -> list[str]:
        """Put documents into the store and the sparse index, with one forward pass for both.

        Args:
            documents: The documents, which are not changed; for more than fit into memory use `populate`.
            ids: One id per document; None = the documents' own, and new ones for documents without an id.

        Returns:
            The ids.

        Raises:
            ValueError: There are not as many ids as documents.
        """
        ids, texts = _ids(documents, ids), texts_of(documents)
        if not ids:
            return []
        self._check_models()
        embeddings = self._both.encode_documents(texts)
        with replaying(self.vector_store, Replay(texts, embeddings)) as store:
            ids = store.add_documents(list(documents), ids=ids)
        fingerprint = self._claim()
        self.sparse_index.add(ids, embeddings.sparse or [], fingerprint, texts)
        return ids

    async def aadd_documents(self, documents: Sequence[Document], ids: Sequence[str] | None = None) -> list[str]:
        """Put documents into both as `add_documents` does, without blocking the event loop."""
        ids, texts = _ids(documents, ids), texts_of(documents)
        if not ids:
            return []
        await asyncio.to_thread(self._check_models)
        embeddings = await self._both.aencode_documents(texts)
        with replaying(self.vector_store, await asyncio.to_thread(Replay, texts, embeddings)) as store:
            ids = await store.aadd_documents(list(documents), ids=ids)
        fingerprint = await asyncio.to_thread(self._claim)
        await asyncio.to_thread(self.sparse_index.add, ids, embeddings.sparse or [], fingerprint, texts)
        return ids

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
        **search_kwargs: Any,
    ) -> list[Document]:
        k, fetch_k = self._checked_numbers(k, fetch_k)
        search_kwargs = {**self.search_kwargs, **search_kwargs}
        self._check_models()
        embeddings = self._both.encode_queries([query])
        dense: dict[str, Found] = {}
        with replaying(self.vector_store, Replay([query], embeddings)) as store:
            for arguments in searches(store, fetch_k, search_kwargs):
                dense = _by_key(getattr(store, self._search)(query, **arguments))
                if len(dense) >= fetch_k:
                    break
        sparse = self._search_sparse(embeddings, fetch_k, dense if search_kwargs else None)
        return self._fused(dense, sparse, self._read(_lacking(sparse, dense)), k)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
        **search_kwargs: Any,
    ) -> list[Document]:
        k, fetch_k = self._checked_numbers(k, fetch_k)
        search_kwargs = {**self.search_kwargs, **search_kwargs}
        await asyncio.to_thread(self._check_models)
        embeddings = await self._both.aencode_queries([query])
        dense: dict[str, Found] = {}
        with replaying(self.vector_store, Replay([query], embeddings)) as store:
            for arguments in searches(store, fetch_k, search_kwargs):
                dense = _by_key(await getattr(store, f"a{self._search}")(query, **arguments))
                if len(dense) >= fetch_k:
                    break
        sparse = await asyncio.to_thread(self._search_sparse, embeddings, fetch_k, dense if search_kwargs else None)
        return self._fused(dense, sparse, await self._aread(_lacking(sparse, dense)), k)

    @property
    def _both(self) -> BgeM3Embedder:
        return self.embedder.with_outputs("dense", "sparse")

    @property
    def _search(self) -> str:
        """The name of the store's search method that returns what the fusion needs."""
        return "similarity_search" if self.fusion == "rrf" else "similarity_search_with_score"

    def _search_sparse(
        self, embeddings: M3Embeddings, fetch_k: int, among: Mapping[str, Found] | None
    ) -> list[tuple[str, float]]:
        """Return the ids and scores of the sparse candidates; only those in `among`, unless it is None."""
        (query,) = embeddings.sparse or []
        if among is None:
            return self.sparse_index.search(query, fetch_k)
        scored = self.sparse_index.search(query, max(1, len(self.sparse_index)))
        return [(document_id, score) for document_id, score in scored if _key(document_id) in among]

    def _read(self, ids: list[str]) -> list[Document]:
        """Return the store's documents with these ids, which only the sparse side found."""
        collection = find_chroma_collection(self.vector_store)
        if not ids or collection is None:
            return self.vector_store.get_by_ids(ids) if ids else []
        found = collection.get(ids=ids, include=["documents", "metadatas"])  # get_by_ids fails without metadata
        rows = zip(found["ids"], found["documents"], found["metadatas"], strict=True)
        return [Document(text, id=document_id, metadata=metadata or {}) for document_id, text, metadata in rows]

    async def _aread(self, ids: list[str]) -> list[Document]:
        if not ids or find_chroma_collection(self.vector_store) is not None:
            return await asyncio.to_thread(self._read, ids)
        return await self.vector_store.aget_by_ids(ids)

    def _fused(
        self, dense: Mapping[str, Found], sparse: list[tuple[str, float]], others: list[Document], k: int
    ) -> list[Document]:
        """Return copies of the best candidates, best first; `others` are those that only the sparse side found."""
        documents = {key: document for key, (document, _) in dense.items()}
        documents |= {_key(document.id): document for document in map(_with_id, others)}
        known = [(_key(document_id), score) for document_id, score in sparse if _key(document_id) in documents]
        if len(known) < len(sparse):
            _LOGGER.warning(
                "%d documents of the sparse index are no longer in the store and are left out: delete them there too.",
                len(sparse) - len(known),
            )
        if self.fusion == "rrf":
            fused = reciprocal_rank_fusion([list(dense), [key for key, _ in known]], self.weights)
        else:
            scored = [(key, score) for key, (_, score) in dense.items()]
            fused = relative_score_fusion([scored, known], self.weights)
        best = without_duplicates(fused.items(), lambda hit: identity_of(documents[hit[0]]))[:k]
        return [with_scores(documents[key], retrieval_score=score) for key, score in best]

    def _checked_numbers(self, k: int | None, fetch_k: int | None) -> tuple[int, int]:
        """Return the call's `k` and `fetch_k`, or this retriever's where the call has None."""
        k = self.k if k is None else k
        fetch_k = self.fetch_k if fetch_k is None else fetch_k
        if k < 1:
            raise ValueError(f"k={k} must be 1 or more.")
        if fetch_k < k:
            raise ValueError(f"fetch_k={fetch_k} is less than k={k}. Raise fetch_k or lower k.")
        return k, fetch_k

    def _check_models(self) -> None:
        """Refuse a store or an index of another model; checked once, as hashing a model's files takes time."""
        parts = (self.vector_store, self.sparse_index, self.embedder)
        if self._checked is not None and all(map(operator.is_, parts, self._checked)):
            return
        dense = self.embedder.with_outputs("dense").fingerprint
        own = getattr(self.vector_store.embeddings, "embedder", None)
        if isinstance(own, BgeEmbedder) and own.fingerprint != dense:
            raise FingerprintMismatchError(
                f"The store embeds with {own.model}, fingerprint {own.fingerprint}; the retriever's "
                f"{self.embedder.model} has {dense}. Give both the same model with the same settings."
            )
        check_fingerprint(self.vector_store, dense)
        self.sparse_index.check_fingerprint(self.embedder.with_outputs("sparse").fingerprint)
        self._checked = parts

    def _claim(self) -> str:
        """Write the dense model's fingerprint to the store, which has taken its vectors; return the sparse one's."""
        write_fingerprint(self.vector_store, self.embedder.with_outputs("dense").fingerprint)
        return self.embedder.with_outputs("sparse").fingerprint


def _ids(documents: Sequence[Document], ids: Sequence[str] | None) -> list[str]:
    if ids is None:
        return [document.id or str(uuid4()) for document in documents]
    if len(ids) != len(documents):
        raise ValueError(f"{len(ids)} ids for {len(documents)} documents: give each document one id.")
    return list(ids)


def _key(document_id: object) -> str:
    """Return an id in a form to compare: Qdrant returns UUIDs with hyphens, however they were given to it."""
    try:
        return UUID(str(document_id)).hex
    except ValueError:
        return str(document_id)


def _with_id(document: Document) -> Document:
    """Return the document itself, or a copy with the id that Qdrant's store puts into the metadata."""
    if document.id is not None:
        return document
    if "_id" in document.metadata:
        return document.model_copy(update={"id": str(document.metadata["_id"])})
    raise ValueError(
        f"The store gives documents without ids, so they cannot be found in the sparse index: {document!r:.80}. Take a "
        "store that gives them, such as Chroma, FAISS, Qdrant or InMemoryVectorStore."
    )


def _by_key(found: list[Document] | list[Found]) -> dict[str, Found]:
    """Return the store's candidates by id, best first; with score 0 if the search returned no scores."""
    pairs = [(hit, 0.0) if isinstance(hit, Document) else (hit[0], float(hit[1])) for hit in found]
    documents = [(_with_id(document), score) for document, score in pairs]
    return {_key(document.id): (document, score) for document, score in documents}


def _lacking(sparse: list[tuple[str, float]], dense: Mapping[str, Found]) -> list[str]:
    return [document_id for document_id, _ in sparse if _key(document_id) not in dense]
