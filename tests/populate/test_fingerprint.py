"""When populate keeps a fingerprint with a store, and which stores without one it takes for the model's own."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromadb
import faiss
import numpy as np
import pytest
import tiny
from langchain_chroma import Chroma
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_qdrant import QdrantVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import MetadataMode
from qdrant_client import QdrantClient, models
from stores import STORES, Bench

from bge_integrations import FingerprintMismatchError, ModelCache
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.populate import populate
from bge_integrations.stores.fingerprint import read_fingerprint

TEXTS = [f"Text number {n} is about {animal}." for n, animal in enumerate(["pandas", "bears", "bread"] * 2)]
DOCUMENTS = [Document(text) for text in TEXTS]

pytestmark = [  # of what LlamaIndex asks its stores
    pytest.mark.filterwarnings("ignore:table_names.. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning"),
]


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model of the same width."""
    return str(tiny.make_bert_embedder(tmp_path_factory.mktemp("other"), seed=7))


@pytest.fixture(params=STORES)
def bench(request: pytest.FixtureRequest, tmp_path: Path, bert_embedder: Path, cache: ModelCache) -> Iterator[Bench]:
    bench = Bench(request.param, tmp_path, str(bert_embedder), cache)
    yield bench
    bench.close()


def fill_without_us(bench: Bench) -> None:
    """Fills a store with its own framework's methods."""
    documents = [bench.document(text, "a.md") for text in TEXTS]
    if not bench.is_llama_index:
        bench.store.add_documents(documents)
    elif isinstance(bench.store, VectorStoreIndex):
        bench.store.insert_nodes(documents)
    else:
        texts = [node.get_content(MetadataMode.EMBED) for node in documents]
        vectors = bench.embeddings.get_text_embedding_batch(texts)
        bench.store.add(
            [node.model_copy(update={"embedding": vector}) for node, vector in zip(documents, vectors, strict=True)]
        )


def test_a_store_that_was_filled_before_us(
    bench: Bench, bert_embedder: Path, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill_without_us(bench)
    bench.give(other)
    if bench.name == "llama_index faiss alone":
        return  # it knows nothing but vectors, and its record nothing of these
    keeps_texts = bench.name != "llama_index simple alone"
    for new in ([], [bench.document("A new text.", "b.md")]) if keeps_texts else ():
        with pytest.raises(FingerprintMismatchError, match="force=True"):
            populate(bench.store, new, **bench.given())
        assert read_fingerprint(bench.store) is None
    bench.give(str(bert_embedder))
    has_place = not bench.name.startswith("llama_index lancedb")  # its columns are those of the first nodes
    new = [bench.document("A new text.", "b.md")] if has_place else []
    assert populate(bench.store, new, **bench.given()).added == len(new)
    own = bench.embeddings.embedder.fingerprint
    assert read_fingerprint(bench.store) == (None if bench.name == "llama_index simple alone" else own)
    assert ("nothing guards it" in caplog.text) == (bench.name == "llama_index simple alone")


def test_nothing_written_nothing_claimed(bench: Bench, other: str, bert_embedder: Path) -> None:
    bench.give(other)
    populate(bench.store, [], **bench.given())
    assert read_fingerprint(bench.store) is None
    bench.give(str(bert_embedder))
    assert populate(bench.store, [bench.document(TEXTS[0], "a.md")], **bench.given()).added == 1
    assert read_fingerprint(bench.store) == bench.embeddings.embedder.fingerprint


@pytest.fixture
def embeddings(bert_embedder: Path, cache: ModelCache) -> BgeEmbeddings:
    return BgeEmbeddings(model=str(bert_embedder), cache=cache)


def faiss_of(index: Any, embeddings: Any, **options: Any) -> FAISS:
    return FAISS(embeddings, index, InMemoryDocstore(), {}, **options)


def qdrant_named(embeddings: Any) -> QdrantVectorStore:
    client = QdrantClient(":memory:")
    sizes = {"dense": models.VectorParams(size=32, distance=models.Distance.COSINE)}
    client.create_collection("notes", vectors_config=sizes)
    return QdrantVectorStore(client, "notes", embeddings, vector_name="dense")


UNUSUAL: dict[str, Callable[[Any], Any]] = {
    "named vectors": qdrant_named,
    "normalised by the store": lambda own: faiss_of(faiss.IndexFlatIP(32), own, normalize_L2=True),
    "kept in 16 bits": lambda own: faiss_of(faiss.IndexScalarQuantizer(32, faiss.ScalarQuantizer.QT_fp16), own),
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_what_a_store_makes_of_vectors_is_no_other_model(kind: str, bert_embedder: Path, cache: ModelCache) -> None:
    long = BgeEmbeddings(model=str(bert_embedder), cache=cache, normalize=False)
    store = UNUSUAL[kind](long)
    store.add_documents(DOCUMENTS)
    assert populate(store, [Document("new")]).added == 1
    assert read_fingerprint(store) == long.embedder.fingerprint


def test_the_length_of_vectors_counts(client: chromadb.ClientAPI, bert_embedder: Path, cache: ModelCache) -> None:
    long = BgeEmbeddings(model=str(bert_embedder), cache=cache, normalize=False)
    Chroma("notes", embedding_function=long, client=client).add_documents(DOCUMENTS)
    with pytest.raises(FingerprintMismatchError, match="document .* is another one"):
        populate(Chroma("notes", embedding_function=BgeEmbeddings(model=str(bert_embedder)), client=client), [])


@pytest.fixture
def client(tmp_path: Path) -> chromadb.ClientAPI:
    return chromadb.PersistentClient(str(tmp_path / "store"))


def test_another_width(client: chromadb.ClientAPI, embeddings: BgeEmbeddings, tmp_path: Path) -> None:
    Chroma("notes", embedding_function=embeddings, client=client).add_documents(DOCUMENTS)
    wide = BgeEmbeddings(model=str(tiny.make_bert_embedder(tmp_path / "wide", hidden=64)))
    with pytest.raises(FingerprintMismatchError):
        populate(Chroma("notes", embedding_function=wide, client=client), [])
    assert populate(Chroma("notes", embedding_function=embeddings, client=client), [Document("new")]).added == 1


def test_a_refused_write_claims_nothing(embeddings: BgeEmbeddings, bert_embedder: Path, tmp_path: Path) -> None:
    client = QdrantClient(":memory:")
    size = models.VectorParams(size=32, distance=models.Distance.COSINE)
    client.create_collection("notes", vectors_config=size)
    wide = BgeEmbeddings(model=str(tiny.make_bert_embedder(tmp_path / "wide", hidden=64)))
    with pytest.raises(ValueError):  # noqa: PT011 - numpy's, in Qdrant's local mode
        populate(QdrantVectorStore(client, "notes", wide, validate_collection_config=False), DOCUMENTS[:1])
    assert populate(QdrantVectorStore(client, "notes", embeddings), DOCUMENTS).added == 6


def test_vectors_without_texts_are_filled_up_unguarded(
    client: chromadb.ClientAPI, embeddings: BgeEmbeddings, caplog: pytest.LogCaptureFixture
) -> None:
    store = Chroma("notes", embedding_function=embeddings, client=client)
    store._collection.add(ids=["a", "b"], embeddings=np.ones((2, 32)))
    assert populate(store, DOCUMENTS[:1]).added == 1
    assert read_fingerprint(store) is None
    assert "neither a fingerprint nor texts" in caplog.text


def test_force_takes_a_store_over(embeddings: BgeEmbeddings, other: str) -> None:
    store = InMemoryVectorStore(BgeEmbeddings(model=other))
    store.add_documents(DOCUMENTS)
    store.embedding = embeddings
    populate(store, [], force=True)
    assert read_fingerprint(store) == embeddings.embedder.fingerprint


def test_two_models_at_once(client: chromadb.ClientAPI, embeddings: BgeEmbeddings, other: str) -> None:
    first = Chroma("notes", embedding_function=embeddings, client=client)
    second = Chroma("notes", embedding_function=BgeEmbeddings(model=other), client=client)

    def meanwhile() -> Iterator[Document]:
        populate(first, DOCUMENTS[1:])
        yield DOCUMENTS[0]

    with pytest.raises(FingerprintMismatchError) as caught:
        populate(second, meanwhile())
    assert "deleted again" in " ".join(caught.value.__notes__)
    assert read_fingerprint(first) == embeddings.embedder.fingerprint
    kept = first.get(include=["documents", "embeddings"])
    np.testing.assert_allclose(kept["embeddings"], embeddings.embed_documents(kept["documents"]), atol=1e-6)


def test_a_kill_between_vectors_and_fingerprint(
    client: chromadb.ClientAPI, embeddings: BgeEmbeddings, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Chroma("notes", embedding_function=embeddings, client=client)

    def killed(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("bge_integrations.stores.fingerprint.ChromaPlace.write", killed)
        with pytest.raises(SystemExit):
            populate(store, DOCUMENTS)
    assert len(store.get()["ids"]) == 6
    with pytest.raises(FingerprintMismatchError):
        populate(Chroma("notes", embedding_function=BgeEmbeddings(model=other), client=client), DOCUMENTS)
    assert populate(store, DOCUMENTS).skipped == 6
    assert read_fingerprint(store) == embeddings.embedder.fingerprint
