"""LanceDB tables that several writers fill at once, and tables that somebody has filled twice."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import lancedb
import pytest
from langchain_community.vectorstores import LanceDB
from langchain_core.documents import Document

from bge_integrations import ModelCache
from bge_integrations.langchain import BgeEmbeddings
from bge_integrations.populate import PopulateReport, populate
from bge_integrations.stores.fingerprint import read_fingerprint

WRITERS, COUNT = 4, 60
DOCUMENTS = [Document(f"Text number {n} is about pandas.", metadata={"source": f"{n % 3}.md"}) for n in range(COUNT)]


@pytest.fixture
def store(bert_embedder: Path, cache: ModelCache, tmp_path: Path) -> LanceDB:
    embeddings = BgeEmbeddings(model=str(bert_embedder), cache=cache)
    return LanceDB(connection=lancedb.connect(str(tmp_path)), embedding=embeddings)


def ids(store: Any) -> list[str]:
    return sorted(store.get_table().to_arrow()["id"].to_pylist())


@pytest.mark.parametrize("begun", ["new", "by LangChain"])
def test_four_writers_at_once(begun: str, store: LanceDB, tmp_path: Path) -> None:
    if begun == "by LangChain":
        store.add_documents(DOCUMENTS[:2], ids=["a", "b"])
    together = Barrier(WRITERS)

    def fill(_: int) -> PopulateReport:
        own = LanceDB(connection=lancedb.connect(str(tmp_path)), embedding=store.embeddings)
        together.wait()
        return populate(own, DOCUMENTS, batch_size=10)

    with ThreadPoolExecutor(WRITERS) as pool:
        for report in pool.map(fill, range(WRITERS)):
            assert report.added + report.skipped == COUNT
    held = ids(store)
    assert len(held) == len(set(held)) == COUNT + (2 if begun == "by LangChain" else 0)
    assert populate(store, DOCUMENTS).skipped == COUNT
    assert read_fingerprint(store) == store.embeddings.embedder.fingerprint


def test_ids_that_are_there_twice(store: LanceDB) -> None:
    populate(store, DOCUMENTS[:10])
    table = store.get_table()
    table.add(table.to_arrow().slice(0, 4))
    assert len(ids(store)) == 14
    assert populate(store, DOCUMENTS[:10]).skipped == 10
    assert len(ids(store)) == len(set(ids(store))) == 10
    table = store.get_table()
    table.add(table.to_arrow().slice(0, 4))
    assert populate(store, [], cleanup="full").deleted == 10
    assert ids(store) == []


def test_ids_that_cannot_be_a_key(store: LanceDB, caplog: pytest.LogCaptureFixture) -> None:
    store.add_documents(DOCUMENTS[:2], ids=["a", "b"])
    table = store.get_table()
    table.update(where="id = 'a'", values_sql={"id": "NULL"})
    assert populate(store, DOCUMENTS[:3]).added == 3
    assert "cannot be made its key" in caplog.text
