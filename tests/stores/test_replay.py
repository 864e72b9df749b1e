"""Vectors handed to a store through its own methods."""

import threading

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

from bge_integrations.stores.replay import Replay, replaying
from bge_integrations.types import M3Embeddings

TEXTS = ["one", "two", "one"]
VECTORS = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)


class Growing(InMemoryVectorStore):
    """A store that binds an attribute anew at each addition."""

    names: tuple[str, ...] = ()

    def add_documents(self, documents, ids=None, **kwargs):
        self.names = (*self.names, *ids)
        return super().add_documents(documents, ids, **kwargs)


@pytest.fixture
def replay():
    return Replay(TEXTS, M3Embeddings(VECTORS, None, None))


async def test_vectors_come_back_as_builtin_lists(replay):
    assert replay.embed_documents(["two", "one"]) == await replay.aembed_documents(["two", "one"]) == [[0, 1], [1, 0]]
    assert replay.embed_query("two") == await replay.aembed_query("two") == [0.0, 1.0]
    assert {type(number) for number in replay.embed_query("one")} == {float}


def test_what_was_not_given_is_an_error(replay):
    with pytest.raises(LookupError, match="'three'"):
        replay.embed_query("three")
    with pytest.raises(ValueError, match="no dense"):
        Replay(TEXTS, M3Embeddings(None, [], None))
    with pytest.raises(ValueError, match="shorter"):
        Replay(TEXTS, M3Embeddings(VECTORS[:2], None, None))


def test_the_store_keeps_its_embeddings_and_what_was_added(replay):
    own = DeterministicFakeEmbedding(size=2)
    store = Growing(own)
    with replaying(store, replay) as double:
        assert double.embeddings is replay
        assert isinstance(replay, Embeddings)
        assert store.embeddings is own
        double.add_documents([Document(text) for text in TEXTS], ids=["a", "b", "c"])
    assert store.embeddings is own
    assert store.names == ("a", "b", "c")
    assert [entry["vector"] for entry in store.store.values()] == VECTORS.tolist()
    assert [document.id for document in store.similarity_search_by_vector([0.0, 1.0], k=1)] == ["b"]


def test_what_was_added_before_a_failure_stays(replay):
    store = Growing(DeterministicFakeEmbedding(size=2))
    with pytest.raises(LookupError), replaying(store, replay) as double:
        double.add_documents([Document("three")], ids=["a"])
    assert store.names == ("a",)


def test_threads_do_not_see_one_anothers_vectors():
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=2))
    barrier = threading.Barrier(2)

    def add(name, vector):
        barrier.wait()
        for i in range(200):
            with replaying(store, Replay([name], M3Embeddings(vector, None, None))) as double:
                double.add_documents([Document(name)], ids=[f"{name}{i}"])

    threads = [
        threading.Thread(target=add, args=("one", VECTORS[:1])),
        threading.Thread(target=add, args=("two", VECTORS[1:2])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(entry["text"], *entry["vector"]) for entry in store.store.values()} == {("one", 1, 0), ("two", 0, 1)}
    assert len(store.store) == 400


def test_a_store_whose_embeddings_cannot_be_found_is_refused(replay):
    for store in (InMemoryVectorStore(None), object.__new__(type("Odd", (), {}))):
        with pytest.raises(TypeError, match="does not keep its embeddings"), replaying(store, replay):
            pass
