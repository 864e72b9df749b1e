"""What the runtime does is told through the standard logging, and nothing is printed."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from bge_integrations import BgeReranker, ModelCache


@pytest.mark.parametrize("backend", ["auto", "sentence_transformers"])
def test_a_load_is_logged_and_prints_nothing(backend, make, own_folder, caplog, capfd):
    tensors = {name: tensor.clone() for name, tensor in load_file(own_folder / "model.safetensors").items()}
    unused = {"cls.predictions.bias": torch.zeros(3)}  # transformers would print a report on it
    save_file(tensors | unused, own_folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.INFO, "bge_integrations"):
        make(own_folder, backend=backend).encode_documents(["a"])
    (record,) = caplog.records
    assert record.name.startswith("bge_integrations.")
    message = record.getMessage()
    assert message.startswith(f"loaded {own_folder} in ")
    for part in (" s: ", " bytes on cpu as float32", "packed" if backend == "auto" else "sentence_transformers"):
        assert part in message
    assert capfd.readouterr() == ("", "")


def test_an_eviction_is_logged(make, folders, caplog):
    cache = ModelCache(300_000)
    make(folders[0], cache=cache).encode_documents(["a"])
    with caplog.at_level(logging.INFO, "bge_integrations"):
        make(folders[1], cache=cache).encode_documents(["a"])
    assert any(f"evicting {folders[0]} from cpu for {folders[1]}" in message for message in caplog.messages)


def test_settings_of_transformers_logging_stay(make, bert_embedder, bert_reranker, cache):
    transformers_logging.set_verbosity_warning()
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    make(bert_embedder).encode_documents(["a"])
    BgeReranker(str(bert_reranker), cache=cache).score([("a", "b")])
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_the_package_adds_no_handler():
    for name in ("bge_integrations", "bge_integrations.runtime", "bge_integrations.runtime.loader"):
        assert logging.getLogger(name).handlers == []
