"""The fingerprint follows what decides document vectors, and nothing else."""

import json
import re
import shutil

import pytest
import tiny

from bge_integrations import BgeEmbedder, ModelCache
from bge_integrations.embed.embedder import FolderEmbedder


@pytest.fixture
def fingerprint(bert_embedder):
    """Of the tiny model, or of another folder, with any arguments."""

    def of(folder=bert_embedder, **arguments):
        return BgeEmbedder(str(folder), cache=ModelCache(), **arguments).fingerprint

    return of


def test_it_is_32_hexadecimal_digits_and_loads_no_weights(bert_embedder, cache):
    embedder = BgeEmbedder(str(bert_embedder), cache=cache)
    assert re.fullmatch("[0-9a-f]{32}", embedder.fingerprint)
    assert embedder.fingerprint == embedder.fingerprint
    assert cache.stats()["loads"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"device": "cpu"},
        {"dtype": "float16"},
        {"dtype": "bfloat16"},
        {"backend": "torch"},
        {"backend": "sentence_transformers"},
        {"query_instruction": "q: "},
        {"query_instruction": ""},
        {"max_batch_tokens": 7},
        {"on_truncate": "raise"},
        {"local_files_only": True},
        {"token": "secret"},
        {"normalize": True},
        {"max_length": 512},
        {"truncate_dim": 32},
        {"document_instruction": ""},
        {"like": "BAAI/bge-base-en-v1.5"},
        {"like": "BAAI/bge-base-zh-v1.5"},
    ],
    ids=str,
)
def test_settings_that_change_no_document_vector_leave_it(arguments, fingerprint):
    assert fingerprint(**arguments) == fingerprint()


def test_a_copy_elsewhere_has_the_same(bert_embedder, fingerprint, tmp_path):
    copied = shutil.copytree(bert_embedder, tmp_path / "another name", copy_function=shutil.copyfile)
    (copied / "README.md").write_text("A copy.")
    assert fingerprint(copied) == fingerprint()


def test_settings_that_change_document_vectors_change_it(fingerprint):
    prints = [
        fingerprint(**arguments)
        for arguments in (
            {},
            {"max_length": 100},
            {"max_length": 101},
            {"normalize": False},
            {"truncate_dim": 16},
            {"truncate_dim": 16, "normalize": False},
            {"document_instruction": "d: "},
            {"document_instruction": "d:"},
            {"like": "BAAI/llm-embedder"},
            {"like": "BAAI/llm-embedder", "task": "tool"},
        )
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    "facts",
    [
        {"seed": 1},
        {"layers": 1},
        {"pooling": "mean"},
        {"pooling": "lasttoken"},
        {"normalize": False},
        {"max_length": 100},
        {"prompts": {"document": "d: "}},
        {"pooling": "max"},
    ],
    ids=str,
)
def test_a_folder_that_differs_has_another(facts, fingerprint, tmp_path):
    assert fingerprint(tiny.make_bert_embedder(tmp_path, **facts)) != fingerprint()


def test_pipelines_of_the_library_are_told_apart(fingerprint, tmp_path):
    first = fingerprint(tiny.make_bert_embedder(tmp_path / "max", pooling="max"))
    mean = fingerprint(tiny.make_bert_embedder(tmp_path / "mean", pooling="mean"))
    assert first != mean


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model.safetensors", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("tokenizer.json", lambda content: content.replace(b'"lowercase":true', b'"lowercase":false')),
        (
            "sentence_bert_config.json",
            lambda content: content.replace(b'"do_lower_case": false', b'"do_lower_case": true'),
        ),
    ],
)
def test_a_changed_file_is_seen_by_the_same_object(file, change, tmp_path, cache):
    folder = tiny.make_bert_embedder(tmp_path)
    embedder = BgeEmbedder(str(folder), cache=cache)
    before = embedder.fingerprint
    content = (folder / file).read_bytes()
    assert change(content) != content
    (folder / file).write_bytes(change(content))
    assert embedder.fingerprint != before
    (folder / file).write_bytes(content)
    assert embedder.fingerprint == before


def test_prompts_for_queries_leave_it(fingerprint, tmp_path):
    folder = tiny.make_bert_embedder(tmp_path, prompts={"query": "q: "})
    assert fingerprint(folder) == fingerprint()
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps({"prompts": {"query": "other: "}}))
    assert fingerprint(folder) == fingerprint()


def test_vectors_equal_to_those_of_the_catalogues_recipe_have_its_fingerprint(bert_embedder, cache):
    ours = BgeEmbedder(str(bert_embedder), cache=cache)
    assert FolderEmbedder(str(bert_embedder), cache=cache).fingerprint == ours.fingerprint
