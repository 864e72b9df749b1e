"""populate into real Chroma on disk and LangChain's in-memory store."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from bge_integrations import BgeEmbedder, FingerprintMismatchError, ModelCache
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.populate import PopulateReport, populate
from bge_integrations.populate.framework import LangChain
from bge_integrations.stores.fingerprint import read_fingerprint, write_fingerprint
from bge_integrations.stores.kinds import HASH_KEY

DOCUMENTS = [Document(f"Text number {n} is about pandas.", metadata={"source": f"{n % 3}.md"}) for n in range(30)]
COSINE: Any = {"hnsw": {"space": "cosine"}}


@pytest.fixture
def embeddings(bert_embedder: Path, cache: ModelCache) -> BgeEmbeddings:
    return BgeEmbeddings(model=str(bert_embedder), cache=cache)


@pytest.fixture
def client(tmp_path: Path) -> chromadb.ClientAPI:
    return chromadb.PersistentClient(str(tmp_path / "store"))


@pytest.fixture
def store(client: chromadb.ClientAPI, embeddings: BgeEmbeddings) -> Chroma:
    return Chroma("notes", embedding_function=embeddings, client=client, collection_configuration=COSINE)


def work(cache: ModelCache) -> tuple[int, int]:
    """The batches and tokens that have gone through any model."""
    models = cache.stats()["models"]
    return sum(model["batches"] for model in models), sum(model["tokens"] for model in models)


def counts(report: PopulateReport) -> tuple[int, int, int, int]:
    return report.added, report.updated, report.skipped, report.texts


@pytest.mark.parametrize("with_ids", [False, True])
def test_what_a_search_gave_back_is_unchanged_whatever_its_scores(store: Chroma, with_ids: bool) -> None:
    given = [document.model_copy(update={"id": f"d{n}" if with_ids else None}) for n, document in enumerate(DOCUMENTS)]
    populate(store, given)
    for documents in (given, store.similarity_search("pandas", k=30)):
        for scores in ({"relevance_score": 0.5}, {"relevance_score": 0.25, "retrieval_score": 1.5}):
            scored = [one.model_copy(update={"metadata": {**one.metadata, **scores}}) for one in documents]
            assert counts(populate(store, scored)) == (0, 0, 30, 0)


def test_second_run_computes_nothing(store: Chroma, embeddings: BgeEmbeddings, cache: ModelCache) -> None:
    report = populate(store, DOCUMENTS, batch_size=7)
    assert counts(report) == (30, 0, 0, 30)
    assert report.seconds > 0
    before = work(cache)
    assert before > (0, 0)
    assert counts(populate(store, DOCUMENTS, batch_size=4)) == (0, 0, 30, 0)
    assert counts(populate(store, reversed(DOCUMENTS))) == (0, 0, 30, 0)
    assert work(cache) == before

    kept = store.get(include=["documents", "metadatas", "embeddings"])
    assert sorted(kept["documents"]) == sorted(document.page_content for document in DOCUMENTS)
    assert kept["metadatas"][0].keys() == {"source"}
    expected = embeddings.embedder.encode_documents(kept["documents"])
    np.testing.assert_allclose(kept["embeddings"], expected, atol=1e-6)


def test_store_opened_again_computes_nothing(
    store: Chroma, client: chromadb.ClientAPI, embeddings: BgeEmbeddings, cache: ModelCache
) -> None:
    populate(store, DOCUMENTS)
    before = work(cache)
    again = Chroma("notes", embedding_function=embeddings, client=client)
    assert counts(populate(again, DOCUMENTS)) == (0, 0, 30, 0)
    assert work(cache) == before


def id_of(document: Document) -> str:
    return LangChain().identify(document, 0).id


def test_ids_are_stable_over_processes() -> None:
    document = Document("Ünïcode \ud800 text", metadata={"source": "a.md", "page": 3, "draft": True, "tags": ["x"]})
    code = """
import json, sys
from langchain_core.documents import Document
from bge_integrations.populate.framework import LangChain
text, metadata = json.loads(sys.argv[1])
print(LangChain().identify(Document(text, metadata=dict(reversed(metadata.items()))), 0).id)
"""
    arguments = [sys.executable, "-c", code, json.dumps([document.page_content, document.metadata])]
    outputs = {
        subprocess.run(
            arguments, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {id_of(document)}
    assert id_of(Document("Pandas eat bamboo.", metadata={"source": "a.md"})) == (
        "873783c549b0f6370bfbed7685b06789941f4f57a0195d5529962f388360f3d2"
    )


@pytest.mark.parametrize(
    "other",
    [
        Document("Pandas eat bamboo", metadata={"source": "a.md", "page": 1}),
        Document("Pandas eat bamboo.", metadata={"source": "b.md", "page": 1}),
        Document("Pandas eat bamboo.", metadata={"source": "a.md", "page": 2}),
        Document("Pandas eat bamboo.", metadata={"source": "a.md", "page": "1"}),
        Document("Pandas eat bamboo.", metadata={"source": "a.md"}),
        Document("Pandas eat bamboo."),
    ],
)
def test_another_text_source_or_metadata_is_another_document(other: Document) -> None:
    document = Document("Pandas eat bamboo.", metadata={"source": "a.md", "page": 1})
    assert id_of(document) != id_of(other)


def test_the_same_document_twice_in_one_call(store: Chroma) -> None:
    twice = [document for document in DOCUMENTS for _ in range(2)]
    assert counts(populate(store, [*twice, *DOCUMENTS], batch_size=8)) == (30, 0, 60, 30)
    assert len(store.get()["ids"]) == 30


def test_a_generator_is_read_a_few_batches_ahead(store: Chroma) -> None:
    ahead = []

    def documents() -> Iterator[Document]:
        for read, document in enumerate(DOCUMENTS, start=1):
            ahead.append(read - len(store.get()["ids"]))
            yield document

    assert counts(populate(store, documents(), batch_size=2, workers=1)) == (30, 0, 0, 30)
    assert max(ahead) <= 2 * (1 + 3)


def test_interrupted_run_is_resumed(store: Chroma, cache: ModelCache) -> None:
    def broken() -> Iterator[Document]:
        yield from DOCUMENTS[:17]
        raise ConnectionError("the source went away")

    with pytest.raises(ConnectionError):
        populate(store, broken(), batch_size=5)
    assert len(store.get()["ids"]) == 15
    assert counts(populate(store, DOCUMENTS, batch_size=5)) == (15, 0, 15, 15)


def test_own_ids_are_kept_and_changes_noticed(store: Chroma, cache: ModelCache) -> None:
    first = [Document(f"text {n}", id=f"doc-{n}", metadata={"page": n, "old": 1, "none": None}) for n in range(4)]
    assert counts(populate(store, first)) == (4, 0, 0, 4)
    assert counts(populate(store, first)) == (0, 0, 4, 0)
    assert sorted(store.get()["ids"]) == ["doc-0", "doc-1", "doc-2", "doc-3"]

    before = work(cache)
    second = [Document(document.page_content, id=document.id, metadata={"page": 9}) for document in first[:2]]
    assert counts(populate(store, [*second, *first[2:]])) == (0, 2, 2, 0)
    assert work(cache) == before
    assert store.get_by_ids(["doc-0"])[0].metadata.keys() == {"page", HASH_KEY}

    third = [Document("another text", id="doc-3", metadata={"page": 3})]
    assert counts(populate(store, third)) == (0, 1, 0, 1)
    replaced = store.get_by_ids(["doc-3"])[0]
    assert (replaced.page_content, replaced.metadata.keys()) == ("another text", {"page", HASH_KEY})
    assert store.similarity_search("another text", k=1)[0].id == "doc-3"


def test_what_a_store_gives_back_can_be_given_again(store: Chroma) -> None:
    populate(store, [Document("text", id="a", metadata={"page": 1})])
    assert counts(populate(store, store.get_by_ids(["a"]))) == (0, 0, 1, 0)


def test_given_documents_stay_as_they_are(store: Chroma) -> None:
    documents = [*DOCUMENTS, Document("own id", id="x", metadata={"nested": ["a"]}), Document("bare")]
    before = copy.deepcopy(documents)
    populate(store, documents)
    populate(store, documents)
    assert documents == before


def test_writes_stay_under_the_limit_of_the_client(
    client: chromadb.ClientAPI, embeddings: BgeEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Chroma("notes", embedding_function=embeddings, client=client)
    sizes, upsert = [], store._collection.upsert
    monkeypatch.setattr(store._collection, "upsert", lambda ids, **rest: sizes.append(len(ids)) or upsert(ids, **rest))
    monkeypatch.setattr(store._collection._client, "get_max_batch_size", lambda: 7)
    populate(store, DOCUMENTS, batch_size=100, workers=1)
    populate(store, DOCUMENTS + [Document(f"more {n}") for n in range(10)], batch_size=3)
    assert sizes[:5] == [7, 7, 7, 7, 2]
    assert max(sizes[5:]) == 3


def test_fingerprint_is_kept_and_another_model_refused(
    store: Chroma, client: chromadb.ClientAPI, embeddings: BgeEmbeddings, xlmr_embedder: Path, cache: ModelCache
) -> None:
    store._collection.modify(metadata={"owner": "me"})
    populate(store, DOCUMENTS)
    own = embeddings.embedder.fingerprint
    assert read_fingerprint(store) == own
    assert client.get_collection("notes").metadata["owner"] == "me"

    other = BgeEmbeddings(model=str(xlmr_embedder), cache=cache)
    before = work(cache)
    intruder = Chroma("notes", embedding_function=other, client=client)
    with pytest.raises(FingerprintMismatchError, match=f"{own}.*{other.embedder.fingerprint}"):
        populate(intruder, [Document("new")])
    assert work(cache) == before
    assert counts(populate(intruder, [Document("new")], force=True)) == (1, 0, 0, 1)
    assert read_fingerprint(store) == other.embedder.fingerprint


def test_query_instruction_is_no_other_model(store: Chroma, client: chromadb.ClientAPI, bert_embedder: Path) -> None:
    populate(store, DOCUMENTS)
    again = Chroma(
        "notes", embedding_function=BgeEmbeddings(model=str(bert_embedder), query_instruction="q: "), client=client
    )
    assert counts(populate(again, DOCUMENTS)) == (0, 0, 30, 0)


def test_embedder_must_be_the_stores_own(
    store: Chroma, embeddings: BgeEmbeddings, bert_embedder: Path, xlmr_embedder: Path
) -> None:
    populate(store, DOCUMENTS[:1], embedder=embeddings)
    populate(store, DOCUMENTS[:1], embedder=embeddings.embedder)
    populate(store, DOCUMENTS[:1], embedder=BgeEmbedder(str(bert_embedder), query_instruction="q: "))
    for other in (BgeEmbedder(str(xlmr_embedder)), DeterministicFakeEmbedding(size=3), "a string"):
        with pytest.raises(ValueError, match="is not the store's own"):
            populate(store, DOCUMENTS, embedder=other)
    assert len(store.get()["ids"]) == 1


@pytest.mark.parametrize("kind", ["bge", "foreign"])
def test_in_memory_store(kind: str, embeddings: BgeEmbeddings) -> None:
    own: Embeddings = embeddings if kind == "bge" else DeterministicFakeEmbedding(size=8)
    store = InMemoryVectorStore(own)
    before = copy.deepcopy(DOCUMENTS)
    assert counts(populate(store, DOCUMENTS, batch_size=9)) == (30, 0, 0, 30)
    assert before == DOCUMENTS
    assert counts(populate(store, DOCUMENTS)) == (0, 0, 30, 0)
    populate(store, [Document("text", id="a", metadata={"page": 1})])
    assert counts(populate(store, [Document("text", id="a", metadata={"page": 2})])) == (0, 1, 0, 0)
    assert store.get_by_ids(["a"])[0].metadata["page"] == 2


def test_foreign_embeddings_leave_a_fingerprint_alone(client: chromadb.ClientAPI) -> None:
    store = Chroma("notes", embedding_function=DeterministicFakeEmbedding(size=8), client=client)
    populate(store, DOCUMENTS)
    assert read_fingerprint(store) is None
    write_fingerprint(store, "abc")
    populate(store, DOCUMENTS)
    assert read_fingerprint(store) == "abc"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "Document 2 is None"),
        ("a string", "Document 2 is 'a string'"),
        (Document("x", metadata={"when": object()}), "metadata of document 2"),
    ],
)
def test_bad_documents_are_named(store: Chroma, document: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        populate(store, [*DOCUMENTS[:2], document])
    assert counts(populate(store, DOCUMENTS[:3])) == (3, 0, 0, 3)


def test_unfit_stores_and_arguments(store: Chroma, client: chromadb.ClientAPI) -> None:
    with pytest.raises(TypeError, match="str is none of them"):
        populate("a string", DOCUMENTS)
    for size in (0, -1):
        with pytest.raises(ValueError, match="batch_size"):
            populate(store, DOCUMENTS, batch_size=size)
        with pytest.raises(ValueError, match="workers"):
            populate(store, DOCUMENTS, workers=size)
    with pytest.raises(ValueError, match="on_error"):
        populate(store, DOCUMENTS, on_error="ignore")  # type: ignore[arg-type]
    assert counts(populate(store, [])) == (0, 0, 0, 0)


@pytest.mark.filterwarnings("ignore:legacy embedding function config:DeprecationWarning")
def test_relevance_scores_lie_between_0_and_1(store: Chroma) -> None:
    populate(store, DOCUMENTS)
    scores = [score for _, score in store.similarity_search_with_relevance_scores("pandas", k=30)]
    assert len(scores) == 30
    assert all(0 <= score <= 1 for score in scores)
