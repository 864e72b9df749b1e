"""The fingerprint kept with a collection, over real Chroma on disk."""

from pathlib import Path

import chromadb
import pytest
from langchain_chroma import Chroma
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.vector_stores.chroma import ChromaVectorStore

from bge_integrations import FingerprintMismatchError
from bge_integrations.stores.fingerprint import METADATA_KEY, check_fingerprint, read_fingerprint, write_fingerprint
from bge_integrations.stores.kinds import find_chroma_collection


@pytest.fixture
def client(tmp_path: Path) -> chromadb.ClientAPI:
    return chromadb.PersistentClient(str(tmp_path))


def stores_over(client: chromadb.ClientAPI, name: str) -> dict[str, object]:
    """Every kind of store over one collection, each with a `Collection` object of its own."""
    llama = ChromaVectorStore(chroma_collection=client.get_collection(name))
    return {
        "collection": client.get_collection(name),
        "langchain": Chroma(name, client=client),
        "llama_index": llama,
        "index": VectorStoreIndex.from_vector_store(llama, embed_model=MockEmbedding(4)),
    }


@pytest.mark.parametrize("written_through", ["collection", "langchain", "llama_index", "index"])
def test_what_one_store_writes_every_store_reads(client: chromadb.ClientAPI, written_through: str) -> None:
    client.create_collection("notes")
    stores = stores_over(client, "notes")
    assert {read_fingerprint(store) for store in stores.values()} == {None}
    write_fingerprint(stores[written_through], "abc")
    assert {read_fingerprint(store) for store in stores.values()} == {"abc"}


def test_user_keys_and_distance_stay(client: chromadb.ClientAPI) -> None:
    collection = client.create_collection(
        "notes", metadata={"owner": "me", "year": 2026}, configuration={"hnsw": {"space": "cosine"}}
    )
    write_fingerprint(collection, "abc")
    write_fingerprint(collection, "def")
    again = client.get_collection("notes")
    assert again.metadata == {"owner": "me", "year": 2026, METADATA_KEY: "def"} == collection.metadata
    assert again.configuration["hnsw"]["space"] == "cosine"


def test_the_old_way_to_name_the_distance_stays_too(client: chromadb.ClientAPI) -> None:
    collection = client.create_collection("notes", metadata={"hnsw:space": "ip", "owner": "me"})
    write_fingerprint(collection, "abc")
    again = client.get_collection("notes")
    assert again.metadata == {"hnsw:space": "ip", "owner": "me", METADATA_KEY: "abc"} == collection.metadata
    assert again.configuration["hnsw"]["space"] == "ip"


def test_keys_written_through_another_object_stay(client: chromadb.ClientAPI) -> None:
    stale = client.create_collection("notes", metadata={"owner": "me"})
    client.get_collection("notes").modify(metadata={"owner": "you"})
    write_fingerprint(stale, "abc")
    assert client.get_collection("notes").metadata == {"owner": "you", METADATA_KEY: "abc"}


def test_renamed_collection(client: chromadb.ClientAPI) -> None:
    stale = client.create_collection("notes")
    client.get_collection("notes").modify(name="papers")
    write_fingerprint(stale, "abc")
    assert read_fingerprint(client.get_collection("papers")) == "abc" == read_fingerprint(stale)


def test_mismatch_names_both_fingerprints(client: chromadb.ClientAPI) -> None:
    collection = client.create_collection("notes")
    check_fingerprint(collection, "new-model")
    write_fingerprint(collection, "old-model")
    check_fingerprint(collection, "old-model")
    check_fingerprint(collection, "new-model", force=True)
    with pytest.raises(FingerprintMismatchError, match=r"old-model.*new-model"):
        check_fingerprint(collection, "new-model")


class LooksLikeACollection:
    """Like pymongo's collections, gives something for every attribute."""

    def __getattr__(self, name: str) -> "LooksLikeACollection":
        if name.startswith("__"):
            raise AttributeError(name)
        return self


@pytest.mark.parametrize("store", [LooksLikeACollection(), object(), None])
def test_other_stores_have_no_guard(store: object) -> None:
    assert find_chroma_collection(store) is None
    write_fingerprint(store, "abc")
    assert read_fingerprint(store) is None
    check_fingerprint(store, "abc")
