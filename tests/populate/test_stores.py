"""What populate promises, on every kind of store that it fills."""

import copy
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from chromadb.errors import ChromaError
from stores import DURABLE, STORES, Bench

from bge_integrations import FingerprintMismatchError, ModelCache
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.populate import PopulateReport, populate
from bge_integrations.stores.fingerprint import read_fingerprint
from bge_integrations.stores.sparse_index import SparseIndex

TEXTS = [f"Text number {n} is about {animal}." for n, animal in enumerate(["pandas", "bears", "bread"] * 5)]
OWN = str(uuid.uuid5(uuid.NAMESPACE_URL, "own"))

pytestmark = [  # of what LlamaIndex asks its stores
    pytest.mark.filterwarnings("ignore:table_names.. is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant:UserWarning"),
]


@pytest.fixture(params=STORES)
def bench(request: pytest.FixtureRequest, tmp_path: Path, bert_embedder: Path, cache: ModelCache) -> Iterator[Bench]:
    bench = Bench(request.param, tmp_path, str(bert_embedder), cache)
    yield bench
    bench.close()


def run(bench: Bench, documents: list[object], **options: object) -> PopulateReport:
    return populate(bench.store, documents, **bench.given(), **options)  # type: ignore[arg-type]


def counts(report: PopulateReport) -> tuple[int, int, int, int, int]:
    return report.added, report.updated, report.skipped, report.deleted, report.texts


def test_a_second_run_computes_nothing(bench: Bench) -> None:
    def documents() -> list[object]:
        return [bench.document(text, f"{n % 3}.md") for n, text in enumerate(TEXTS)]

    first = documents()
    before = copy.deepcopy(first)
    assert counts(run(bench, first, batch_size=4)) == (15, 0, 0, 0, 15)
    assert first == before
    assert counts(run(bench, documents())) == (0, 0, 15, 0, 0)
    if bench.is_durable:
        bench.open(bench.model)
        assert counts(run(bench, documents()[::-1], batch_size=7)) == (0, 0, 15, 0, 0)
    found = bench.find(TEXTS[3], k=20)
    assert len(found) == 15
    if not (set(TEXTS) - set(found)):
        assert bench.find(TEXTS[3], k=2)[0] == TEXTS[3] or bench.is_llama_index  # there metadata are embedded too


def test_changes_of_text_and_of_metadata(bench: Bench) -> None:
    documents = [bench.document(text, "a.md", page=0) for text in TEXTS[:3]]
    own = bench.document("Pandas eat bamboo.", "a.md", OWN, page=1)
    assert counts(run(bench, [*documents, own])) == (4, 0, 0, 0, 4)
    changed = bench.document("Bread needs flour.", "a.md", OWN, page=1)
    if not bench.deletes:
        with pytest.raises(NotImplementedError, match=OWN):
            run(bench, [changed])
        return
    assert counts(run(bench, [changed])) == (0, 1, 0, 0, 1)
    assert counts(run(bench, [changed])) == (0, 0, 1, 0, 0)
    moved = bench.document("Bread needs flour.", "a.md", OWN, page=2)
    report = run(bench, [moved])
    keeps_no_text = bench.name == "llama_index simple alone"
    assert counts(report) == (0, 1, 0, 0, 1 if keeps_no_text else 0)
    assert counts(run(bench, [moved])) == (0, 0, 1, 0, 0)
    if bench.is_durable:
        bench.open(bench.model)
        assert counts(run(bench, [moved])) == (0, 0, 1, 0, 0)
    found = bench.find("Bread needs flour.", k=9)
    assert len(found) == 4
    if not keeps_no_text:
        assert "Bread needs flour." in found
        assert "Pandas eat bamboo." not in found


@pytest.mark.parametrize("kind", ["source", "full"])
def test_stale_documents_go(bench: Bench, kind: str) -> None:
    def of(source: str, *texts: str) -> list[object]:
        return [bench.document(text, source) for text in texts]

    run(bench, [*of("a.md", *TEXTS[:3]), *of("b.md", *TEXTS[3:6])])
    new = of("a.md", TEXTS[0], TEXTS[7])
    if not bench.deletes:
        with pytest.raises(NotImplementedError, match="delete"):
            run(bench, new, cleanup=kind)
        return
    gone = 2 if kind == "source" else 5
    assert counts(run(bench, new, cleanup=kind)) == (1, 0, 1, gone, 1)
    assert len(bench.find(TEXTS[0], k=20)) == 7 - gone
    assert counts(run(bench, of("a.md", TEXTS[0], TEXTS[7]), cleanup=kind)) == (0, 0, 2, 0, 0)


def test_another_model_is_refused(bench: Bench, tmp_path: Path) -> None:
    documents = [bench.document(text, "a.md") for text in TEXTS[:4]]
    run(bench, documents)
    kept = bench.embeddings.embedder.fingerprint
    assert read_fingerprint(bench.store) == kept
    other = str(tiny.make_bert_embedder(tmp_path / "other", seed=7))
    store = bench.store
    bench.open(other)
    if not bench.is_durable:
        if bench.name.endswith("alone"):
            bench.store = store
        else:
            return  # gone with its object
    with pytest.raises(FingerprintMismatchError, match=kept):
        run(bench, documents)
    assert read_fingerprint(bench.store) == kept
    run(bench, documents, force=True)
    assert read_fingerprint(bench.store) == bench.embeddings.embedder.fingerprint


def promises(bench: Bench, **options: object) -> None:
    """What holds whoever computes the vectors."""

    def run_with(*documents: object, **more: object) -> tuple[int, int, int, int, int]:
        return counts(populate(bench.store, documents, **{**bench.given(), **options, **more}))

    first = [bench.document(text, "a.md") for text in TEXTS[:5]]
    own = bench.document("Pandas eat bamboo.", "b.md", OWN)
    assert run_with(*first, own, batch_size=4) == (6, 0, 0, 0, 6)
    assert run_with(*first, own) == (0, 0, 6, 0, 0)
    if bench.deletes:
        changed = bench.document("Bread needs flour.", "b.md", OWN)
        assert run_with(*first[:3], changed, cleanup="full") == (0, 1, 3, 2, 1)
        assert len(bench.find(TEXTS[0], k=9)) == 4


@pytest.mark.parametrize("name", STORES)
def test_anybodys_embeddings(name: str, tmp_path: Path, cache: ModelCache) -> None:
    bench = Bench(name, tmp_path, None, cache)
    promises(bench)
    assert read_fingerprint(bench.store) is None
    bench.close()


@pytest.mark.parametrize("name", STORES)
def test_a_sparse_index_beside_it(name: str, tmp_path: Path, m3: Path, cache: ModelCache) -> None:
    bench, index = Bench(name, tmp_path, str(m3), cache, like="BAAI/bge-m3"), SparseIndex()
    embedder = BgeM3Embedder(str(m3), like="BAAI/bge-m3", cache=cache)
    promises(bench, embedder=embedder, sparse_index=index)
    assert len(index) == (4 if bench.deletes else 6)
    assert read_fingerprint(bench.store) == embedder.with_outputs("dense").fingerprint
    bench.close()


@pytest.mark.parametrize("kind", ["source", "full"])
def test_there_is_nothing_to_clean_up(bench: Bench, kind: str) -> None:
    assert counts(run(bench, [], cleanup=kind)) == (0, 0, 0, 0, 0)
    assert counts(run(bench, [bench.document(TEXTS[0], "a.md")], cleanup=kind)) == (1, 0, 0, 0, 1)
    if bench.deletes:
        assert run(bench, [], cleanup="full").deleted == 1
        assert run(bench, [], cleanup=kind).deleted == 0


GONE = {"langchain qdrant": LookupError, "langchain chroma": ChromaError, "llama_index chroma": ChromaError}


@pytest.mark.parametrize("name", [name for name in STORES if any(kind in name for kind in DURABLE)])
def test_deleted_while_it_is_open(name: str, tmp_path: Path, bert_embedder: Path, cache: ModelCache) -> None:
    bench = Bench(name, tmp_path, str(bert_embedder), cache)
    document = bench.document(TEXTS[0], "a.md")
    run(bench, [document])
    bench.drop()
    refused = GONE.get(name.removesuffix(" alone"))
    if refused is None:
        assert counts(run(bench, [], cleanup="full")) == (0, 0, 0, 0, 0)
        assert counts(run(bench, [document])) == (1, 0, 0, 0, 1)
        assert read_fingerprint(bench.store) == bench.embeddings.embedder.fingerprint
    else:
        with pytest.raises(refused):
            run(bench, [document])
    bench.close()
