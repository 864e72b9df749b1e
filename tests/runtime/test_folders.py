"""Folders that change, vanish or lie in the hub's cache; what is there works without a network."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import pytest_socket
import tiny
from holding import REVISION, held_forward, models, until
from huggingface_hub import constants

from bge_integrations import BgeEmbedder, UnknownModelError


def retrain(folder, source):
    """Writes another model's weights over a folder's own, in place."""
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(0)
        file.write((source / "model.safetensors").read_bytes())


def test_retraining_in_place_is_seen(make, own_folder, folders, cache):
    embedder = make(own_folder)
    before = embedder.encode_documents(["a"])
    fingerprint = embedder.fingerprint
    retrain(own_folder, folders[1])
    after = embedder.encode_documents(["a"])
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_array_equal(after, make(folders[1]).encode_documents(["a"]))
    assert embedder.fingerprint != fingerprint
    assert cache.stats()["loads"] == 3


def test_what_the_folder_held_before_is_freed(make, own_folder, folders, cache, threads):
    embedder = make(own_folder)
    for source in folders * 2:
        retrain(own_folder, source)
        embedder.encode_documents(["a"])
    make(folders[0]).encode_documents(["a"])
    until(lambda: sorted(models(cache)) == sorted([str(own_folder), str(folders[0])]))


def test_calls_in_flight_keep_the_weights_they_began_with(make, own_folder, folders, cache, threads):
    embedder = make(own_folder)
    before = embedder.encode_documents(["a"])
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(own_folder) not in maps.read_text()  # else this test ends Python with SIGBUS
    with held_forward(cache, own_folder) as begun:
        running = threads.submit(embedder.encode_documents, ["a"])
        assert begun.wait(30)
        (own_folder / "model.safetensors").write_bytes(b"")
    np.testing.assert_array_equal(running.result(30), before)


def test_other_files_count_too(make, own_folder):
    embedder = make(own_folder, on_truncate="ignore")
    assert embedder.describe()["max_length"] == 512
    (own_folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": false}')
    assert embedder.describe()["max_length"] == 16


def test_a_vanished_folder_keeps_serving(make, own_folder, cache):
    embedder = make(own_folder)
    before = embedder.encode_documents(["a"])
    shutil.rmtree(own_folder)
    np.testing.assert_array_equal(embedder.encode_documents(["a"]), before)
    assert cache.unload(str(own_folder)) == 1
    with pytest.raises((UnknownModelError, ValueError), match=str(own_folder)):
        embedder.encode_documents(["a"])


@pytest.mark.parametrize("repository", ["acme/tiny", "BAAI/bge-small-en-v1.5"])
def test_a_path_in_the_hubs_cache_is_the_repository(repository, hub, make, bert_embedder, cache, tmp_path):
    snapshot = hub(repository, bert_embedder)
    by_path = make(snapshot).encode_documents(["a"])
    by_id = make(repository, cache_folder=tmp_path / "hub", local_files_only=True)
    np.testing.assert_array_equal(by_id.encode_documents(["a"]), by_path)
    pinned = make(repository, cache_folder=tmp_path / "hub", local_files_only=True, revision=REVISION)
    np.testing.assert_array_equal(pinned.encode_documents(["a"]), by_path)
    (entry,) = cache.stats()["models"]
    assert (entry["model"], entry["revision"], cache.stats()["loads"]) == (repository, REVISION, 1)
    assert by_id.describe()["revision"] == REVISION


def test_the_same_id_and_revision_in_two_cache_folders_is_one_model(hub, make, bert_embedder, cache, tmp_path):
    hub("acme/tiny", bert_embedder)
    shutil.copytree(tmp_path / "hub", tmp_path / "hub2")
    for name in ("hub", "hub2"):
        make("acme/tiny", cache_folder=tmp_path / name, local_files_only=True).encode_documents(["a"])
    assert cache.stats()["loads"] == 1


def test_sentence_transformers_home_is_looked_in(hub, make, bert_embedder, tmp_path, monkeypatch):
    hub("acme/by-environment", bert_embedder)
    monkeypatch.setenv("SENTENCE_TRANSFORMERS_HOME", str(tmp_path / "hub"))
    assert make("acme/by-environment", local_files_only=True).encode_documents(["a"]).shape == (1, 32)


def test_an_absent_model_is_named_with_the_folder_looked_in(make, tmp_path, cache):
    for name in ("acme/absent", "BAAI/bge-small-en-v1.5"):
        with pytest.raises(UnknownModelError) as error:
            make(name, cache_folder=tmp_path, local_files_only=True).encode_documents(["a"])
        assert name in str(error.value)
        assert str(tmp_path) in str(error.value)
    assert cache.stats()["loads"] == 0


def test_without_a_folder_the_hubs_own_is_named(make):
    with pytest.raises(UnknownModelError, match=constants.HF_HUB_CACHE):
        make("acme/absent", local_files_only=True).encode_documents(["a"])


def test_an_absent_revision_is_not_another_one(make, hub, bert_embedder, tmp_path):
    hub("acme/tiny", bert_embedder)
    with pytest.raises(UnknownModelError, match="acme/tiny"):
        make("acme/tiny", cache_folder=tmp_path / "hub", local_files_only=True, revision="v2").encode_documents(["a"])


@pytest.mark.filterwarnings("ignore:A test tried to use socket.socket")
def test_sockets_are_blocked_and_a_local_folder_loads(tmp_path, make):
    with pytest.raises(pytest_socket.SocketBlockedError):
        socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    folder = tiny.make_xlmr_embedder(tmp_path / "new")
    assert make(folder).encode_documents(["a"]).shape == (1, 32)
    assert make(folder, backend="sentence_transformers").encode_queries(["a"]).shape == (1, 32)


@pytest.mark.parametrize("missing", ["/no/such/folder", "./no/such/folder", "no/such/folder", "~/no-such-folder"])
def test_a_missing_folder_is_named(missing, make):
    with pytest.raises(UnknownModelError, match="no.such.folder"):
        make(missing).encode_documents(["a"])


def test_a_folder_that_appears_later_is_found(make, tmp_path, bert_embedder):
    embedder = make(tmp_path / "later")
    with pytest.raises(UnknownModelError):
        embedder.encode_documents(["a"])
    shutil.copytree(bert_embedder, tmp_path / "later")
    assert embedder.encode_documents(["a"]).shape == (1, 32)


def describe(folder, **arguments):
    return BgeEmbedder(str(folder), device="cpu", **arguments).describe()


def test_describe_says_how_the_row_was_found(hub, bert_embedder, tmp_path, cache):
    snapshot = hub("BAAI/bge-small-en-v1.5", bert_embedder)
    here = {"cache_folder": tmp_path / "hub", "local_files_only": True, "cache": cache}
    bare = tiny.make_bert_embedder(tmp_path / "bare", modules=False)
    named = tiny.make_bert_embedder(tmp_path / "named")
    found = {
        "id": describe("BAAI/bge-small-en-v1.5", **here),
        "alias": describe("Xenova/bge-small-en-v1.5", **here),
        "path": describe(snapshot, cache=cache),
        "like": describe(bare, like="BAAI/bge-small-zh-v1.5", cache=cache),
        "files": describe(named, cache=cache),
    }
    assert {name: entry["found"] for name, entry in found.items()} == {
        "id": "by its id BAAI/bge-small-en-v1.5",
        "alias": "Xenova/bge-small-en-v1.5 stands for BAAI/bge-small-en-v1.5",
        "path": f"{snapshot} stands for BAAI/bge-small-en-v1.5",
        "like": 'like="BAAI/bge-small-zh-v1.5"',
        "files": "by its own files",
    }
    english = "Represent this sentence for searching relevant passages: {text}"
    assert [found[name]["query"] for name in ("id", "alias", "path")] == [english] * 3
    assert found["like"]["query"] == "为这个句子生成表示以用于检索相关文章：{text}"
    assert (found["files"]["row"], found["files"]["query"]) == (None, "{text}")
    assert (found["like"]["pooling"], found["like"]["dim"], found["like"]["normalize"]) == ("cls", 32, True)
    assert cache.stats()["loads"] == 0


SHAPES = {"hidden_size": 512, "num_hidden_layers": 4, "vocab_size": 21128, "num_attention_heads": 8}


@pytest.mark.parametrize(
    ("parent", "changed", "agrees"),
    [
        ("BAAI/bge-small-zh-v1.5", {}, True),
        ("BAAI/bge-small-zh-v1.5", {"vocab_size": 21130}, False),
        ("BAAI/bge-small-zh-v1.5", {"hidden_size": 384}, False),
        ("BAAI/bge-small-zh-v1.5", {"num_hidden_layers": 3}, False),
        ("bge-small-zh-v1.5", {}, False),  # no exact id
        ("BAAI/bge-reranker-base", {}, False),  # another kind and architecture
        ("/home/someone/bge-small-zh-v1.5", {}, False),
    ],
)
def test_a_name_in_config_json_counts_if_the_shapes_agree(parent, changed, agrees, tmp_path, cache):
    folder = tiny.make_bert_embedder(tmp_path, modules=False)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | SHAPES | changed | {"_name_or_path": parent}))
    if agrees:
        entry = describe(folder, cache=cache)
        assert (entry["row"], entry["query"]) == (parent, "为这个句子生成表示以用于检索相关文章：{text}")
        assert entry["found"] == f"config.json names {parent}, and the shapes agree"
    else:
        with pytest.raises(UnknownModelError, match="like="):
            describe(folder, cache=cache)
