"""`SparseIndex` against a plain dict and dot products."""

import copy
import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bge_integrations import FingerprintMismatchError
from bge_integrations.stores import sparse_index
from bge_integrations.stores.sparse_index import SparseIndex
from bge_integrations.types import SparseEmbedding

VECTORS = st.dictionaries(st.integers(0, 8), st.sampled_from([0.125, 0.25, 0.5, 1.0]), max_size=5)
IDS = st.sampled_from("abcdef")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.tuples(IDS, VECTORS), max_size=4)),
        st.tuples(st.just("delete"), st.lists(IDS, max_size=3)),
    ),
    max_size=12,
)


def sparse(weights):
    tokens = sorted(weights)
    return SparseEmbedding(np.array(tokens, dtype=np.int64), np.array([weights[t] for t in tokens], dtype=np.float32))


def brute_force(documents, query, k):
    scores = {key: sum(query[t] * weights.get(t, 0) for t in query) for key, weights in documents.items()}
    return sorted([(key, score) for key, score in scores.items() if score > 0], key=lambda item: -item[1])[:k]


@pytest.fixture
def index():
    index = SparseIndex()
    index.add(["a", "b", "c"], [sparse({1: 0.5, 2: 0.25}), sparse({2: 1.0}), sparse({5: 1.0})], "of m3")
    return index


@pytest.mark.parametrize("spare", [0, 1024])
@settings(deadline=None)
@given(steps=STEPS, query=VECTORS, k=st.integers(1, 7))
def test_search_is_exact_after_any_changes(spare, steps, query, k):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_index, "_SPARE_ROWS", spare)
        index, documents = SparseIndex(), {}
        for kind, items in steps:
            if kind == "add":
                index.add([key for key, _ in items], [sparse(weights) for _, weights in items])
                for key in dict(items):
                    documents.pop(key, None)
                documents |= dict(items)
            else:
                index.delete(items)
                documents = {key: weights for key, weights in documents.items() if key not in items}
        for one in (index, copy.deepcopy(index), pickle.loads(pickle.dumps(index))):
            assert one.search(sparse(query), k) == brute_force(documents, query, k)
            assert len(one) == len(documents)
            assert all((key in one) == (key in documents) for key in "abcdef")


def test_random_weights_and_many_documents():
    random = np.random.default_rng(0)
    weights = [
        {int(t): float(np.float32(random.random())) for t in random.choice(300, 20, replace=False)} for _ in range(500)
    ]
    index = SparseIndex()
    index.add([str(i) for i in range(500)], [sparse(w) for w in weights])
    found = index.search(sparse(weights[7]), 50)
    expected = brute_force({str(i): w for i, w in enumerate(weights)}, weights[7], 50)
    assert [key for key, _ in found] == [key for key, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected])


def test_results_are_builtin(index):
    found = index.search(sparse({1: 1.0, 2: 1.0}), 5)
    assert found == [("b", 1.0), ("a", 0.75)]
    assert {type(score) for _, score in found} == {float}
    json.dumps(found)


def test_a_text_that_changed_is_seen(index):
    assert index.holds("a", "any text: it is not known")
    index.add(["a", "d"], [sparse({1: 1.0}), sparse({})], texts=["one", "two"])
    for one in (index, pickle.loads(pickle.dumps(index))):
        assert one.holds("a", "one")
        assert one.holds("d", "two")
        assert not one.holds("a", "other")
        assert not one.holds("z", "one")


def test_save_and_load(index, tmp_path):
    path = tmp_path / "any.name"
    index.delete(["c"])
    index.save(path)
    loaded = SparseIndex.load(path)
    assert loaded.fingerprint == "of m3"
    assert loaded.search(sparse({2: 1.0, 5: 1.0}), 5) == index.search(sparse({2: 1.0, 5: 1.0}), 5)
    loaded.add(["e"], [sparse({2: 2.0})], "of m3")
    loaded.save(str(path))
    assert SparseIndex.load(str(path)).search(sparse({2: 1.0}), 1) == [("e", 2.0)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["any.name"]
    SparseIndex().save(path)
    assert SparseIndex.load(path).search(sparse({2: 1.0}), 1) == []


def test_a_save_that_fails_leaves_the_old_file(index, tmp_path, monkeypatch):
    path = tmp_path / "index.npz"
    index.save(path)
    before = path.read_bytes()
    monkeypatch.setattr(index, "_to_arrays", lambda: {"odd": np.array([object()]), "fails": 1 / 0})
    with pytest.raises(ZeroDivisionError):
        index.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.npz"]


def test_a_killed_save_leaves_nothing_that_stays(index, tmp_path):
    path = tmp_path / "index.npz"
    index.save(path)
    before = path.read_bytes()
    code = (
        "import os, sys; from bge_integrations.stores.sparse_index import SparseIndex\n"
        "os.fsync = lambda _: os._exit(9); SparseIndex('f').save(sys.argv[1])"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert path.read_bytes() == before
    index.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.npz"]
    assert SparseIndex.load(path).ids() == index.ids()


def test_many_save_to_one_file(tmp_path):
    indexes = [SparseIndex() for _ in range(8)]
    for number, one in enumerate(indexes):
        one.add([f"{number}-{row}" for row in range(50)], [sparse({row: 1.0}) for row in range(50)])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: one.save(tmp_path / "index.npz"), indexes * 3))
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.npz"]
    assert SparseIndex.load(tmp_path / "index.npz").ids() in [one.ids() for one in indexes]


def test_another_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        SparseIndex.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.arange(3))
    np.save(tmp_path / "array.npy", np.arange(3))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"header": 1}))
    whole = tmp_path / "whole.npz"
    SparseIndex("f").save(whole)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:200])
    for name in ("other", "array", "text", "empty", "pickle", "cut"):
        with pytest.raises(ValueError, match=f"{name}.npz.*not the file of a SparseIndex"):
            SparseIndex.load(tmp_path / f"{name}.npz")


def test_another_model_is_refused(index):
    with pytest.raises(FingerprintMismatchError, match=r"of m3.*of another"):
        index.add(["d"], [sparse({1: 1.0})], "of another")
    with pytest.raises(FingerprintMismatchError):
        index.check_fingerprint("of another")
    assert "d" not in index
    index.check_fingerprint(None)
    index.check_fingerprint("of m3")


def test_what_does_not_fit_is_refused(index):
    with pytest.raises(ValueError, match="2 ids for 1"):
        index.add(["d", "e"], [sparse({1: 1.0})])
    with pytest.raises(ValueError, match="2 texts for 1"):
        index.add(["d"], [sparse({1: 1.0})], texts=["one", "two"])
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"k={k}"):
            index.search(sparse({1: 1.0}), k)
    assert len(index) == 3


def test_readers_and_writers_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(sparse_index, "_SPARE_ROWS", 8)
    index = SparseIndex()
    index.add(["fixed"], [sparse({0: 1.0, 1: 1.0})])
    problems = []

    def write(name):
        for i in range(150):
            index.add([f"{name}{i}", f"{name}{i + 1}"], [sparse({0: 0.5, 2: 0.5}), sparse({0: 0.25})])
            index.delete([f"{name}{i}"])

    def read(number):
        best = [index.search(sparse({0: 1.0}), 1) for _ in range(150)]
        if best != [[("fixed", 1.0)]] * 150:
            problems.append("search")
        index.save(tmp_path / f"{number}.npz")
        if SparseIndex.load(tmp_path / f"{number}.npz").search(sparse({1: 1.0}), 9) != [("fixed", 1.0)]:
            problems.append("file")

    threads = [threading.Thread(target=write, args=(name,)) for name in "xy"]
    threads += [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(index) == 3
    assert [key for key, _ in index.search(sparse({0: 1.0}), 9)] == [
        "fixed",
        *sorted(["x150", "y150"], key=index._rows.get),
    ]
