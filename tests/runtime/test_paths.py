"""A path means the folder that it named when the object was made; links are followed at each call."""

import pickle
import shutil

import numpy as np
import pytest
import tiny
from holding import models, until

from bge_integrations import BgeEmbedder, BgeReranker, ModelCache, UnknownModelError
from bge_integrations.runtime.folder import FolderWatch

PAIRS = [("panda", "bamboo"), ("panda", "bread and salt")]


@pytest.fixture(scope="session")
def two(tmp_path_factory):
    """Two models of one size that were written at one time."""
    root = tmp_path_factory.mktemp("two")
    folders = [tiny.make_bert_embedder(root / name, seed=seed, pooling="mean") for name, seed in (("a", 1), ("b", 2))]
    rerankers = [tiny.make_bert_reranker(root / name, seed=seed) for name, seed in (("ra", 1), ("rb", 2))]
    return folders, rerankers


@pytest.fixture
def vectors(two, cache):
    return [BgeEmbedder(str(folder), device="cpu").encode_documents(["panda"]) for folder in two[0]]


def place(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target)


@pytest.mark.parametrize("name", ["m", "./m", "deep/m", "deep/../deep/m", "m/"])
def test_after_chdir_an_object_keeps_its_folder_and_a_new_one_takes_the_other(
    name, two, vectors, make, tmp_path, monkeypatch
):
    objects = []
    for here, folder in zip(("one", "other"), two[0], strict=True):
        place(folder, tmp_path / here / "m")
        place(folder, tmp_path / here / "deep" / "m")
        monkeypatch.chdir(tmp_path / here)
        objects.append(make(name))
        np.testing.assert_array_equal(objects[-1].encode_documents(["panda"]), vectors[len(objects) - 1])
    monkeypatch.chdir("/")
    for embedder, expected in zip(objects, vectors, strict=True):
        np.testing.assert_array_equal(embedder.encode_documents(["panda"]), expected)
        assert embedder.model == name
    last = name.rstrip("/").removeprefix("./").removeprefix("deep/../")
    assert [embedder.describe()["model"] for embedder in objects] == [
        str(tmp_path / here / last) for here in ("one", "other")
    ]


def test_the_home_folder_too(two, vectors, make, tmp_path, monkeypatch):
    for home, folder, expected in zip(("one", "other"), two[0], vectors, strict=True):
        place(folder, tmp_path / home / "m")
        monkeypatch.setenv("HOME", str(tmp_path / home))
        np.testing.assert_array_equal(make("~/m").encode_documents(["panda"]), expected)


def test_rerankers_too(two, cache, tmp_path, monkeypatch):
    scores = []
    for here, folder in zip(("one", "other"), two[1], strict=True):
        place(folder, tmp_path / here / "m")
        monkeypatch.chdir(tmp_path / here)
        scores.append(BgeReranker("m", cache=cache, device="cpu").score(PAIRS))
        assert scores[-1] == BgeReranker(str(folder), cache=cache, device="cpu").score(PAIRS)
    assert scores[0] != scores[1]


def test_a_pickled_object_keeps_its_folder(two, vectors, tmp_path, monkeypatch):
    place(two[0][0], tmp_path / "one" / "m")
    place(two[0][1], tmp_path / "other" / "m")
    monkeypatch.chdir(tmp_path / "one")
    pickled = pickle.dumps(BgeEmbedder("m", device="cpu"))
    monkeypatch.chdir(tmp_path / "other")
    np.testing.assert_array_equal(pickle.loads(pickled).encode_documents(["panda"]), vectors[0])


def test_a_relative_cache_folder_too(hub, make, bert_embedder, tmp_path, monkeypatch):
    hub("acme/tiny", bert_embedder)
    monkeypatch.chdir(tmp_path)
    embedder = make("acme/tiny", cache_folder="hub", local_files_only=True)
    monkeypatch.chdir("/")
    assert embedder.encode_documents(["a"]).shape == (1, 32)
    assert embedder.cache_folder == "hub"


def test_a_name_that_was_no_folder_is_no_folder_later(two, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    embedder = make("acme/m", local_files_only=True)
    place(two[0][0], tmp_path / "acme" / "m")
    with pytest.raises(UnknownModelError, match="acme/m is not"):
        embedder.encode_documents(["a"])
    assert make("acme/m").encode_documents(["a"]).shape == (1, 32)


@pytest.mark.parametrize("where", ["the folder", "its parent", "its weights", "a module", "the weights through two"])
def test_a_link_that_leads_elsewhere_is_followed(where, two, vectors, make, tmp_path, cache, threads):
    (a, b), _ = two
    other = tiny.make_bert_embedder(tmp_path / "cls", seed=1, pooling="cls")
    own = tmp_path / "own"
    if where == "the folder":
        link, model, targets = own, own, (a, b)
    elif where == "its parent":
        link, model = own, own / "m"
        for name, folder in (("p", a), ("q", b)):
            place(folder, tmp_path / name / "m")
        targets = (tmp_path / "p", tmp_path / "q")
    elif where == "a module":
        place(a, own)
        shutil.rmtree(own / "1_Pooling")
        link, model, targets = own / "1_Pooling", own, (a / "1_Pooling", other / "1_Pooling")
    else:
        place(a, own)
        (own / "model.safetensors").unlink()
        link, model = own / "model.safetensors", own
        targets = tuple(folder / "model.safetensors" for folder in (a, b))
        if where.endswith("two"):
            link = tmp_path / "between"
            (own / "model.safetensors").symlink_to(link)
    link.symlink_to(targets[0])
    embedder = make(model)
    fingerprint = embedder.fingerprint
    np.testing.assert_array_equal(embedder.encode_documents(["panda"]), vectors[0])
    link.unlink()
    link.symlink_to(targets[1])
    expected = make(other).encode_documents(["panda"]) if where == "a module" else vectors[1]
    np.testing.assert_array_equal(embedder.encode_documents(["panda"]), expected)
    np.testing.assert_array_equal(make(model).encode_documents(["panda"]), expected)
    assert embedder.fingerprint != fingerprint
    until(lambda: len(models(cache)) == (2 if where == "a module" else 1))  # what the link led to before is freed


def test_a_model_is_unloaded_by_the_name_it_was_given_by(two, make, cache, tmp_path, monkeypatch):
    place(two[0][0], tmp_path / "one" / "m")
    monkeypatch.chdir(tmp_path / "one")
    make("m").encode_documents(["a"])
    monkeypatch.chdir("/")
    assert cache.unload("m") == 1
    assert models(cache) == []


def test_a_warm_call_looks_at_the_folder_once(two, cache, monkeypatch):
    looks = []
    look = FolderWatch.revision
    monkeypatch.setattr(FolderWatch, "revision", lambda self, parts: looks.append(parts) or look(self, parts))
    monkeypatch.setattr("bge_integrations.runtime.locate._local", None)
    embedder = BgeEmbedder(str(two[0][0]), device="cpu")
    embedder.encode_documents(["a"])  # the process-wide cache knows it
    looks.clear()
    embedder.encode_documents(["a"])
    assert len(looks) == 1


def test_a_cache_that_is_dropped_frees_what_a_link_led_to(two, tmp_path):
    link = tmp_path / "current"
    link.symlink_to(two[0][0])
    cache = ModelCache()
    BgeEmbedder(str(link), device="cpu", cache=cache).encode_documents(["a"])
    assert cache.unload(str(link)) == 1
