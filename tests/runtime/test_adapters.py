"""Adapters, as peft and sentence-transformers save them, give what peft by hand gives, or are refused by name."""

import json
import os
import shutil

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from bge_integrations import (
    BgeEmbedder,
    BgeReranker,
    MissingExtraError,
    MissingWeightsError,
    UnknownModelError,
    UnsupportedModelError,
)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's

TEXTS = ["panda", "What does the giant panda eat?", "Bread needs flour and water."]
PAIRS = [("panda", "It eats bamboo."), ("What is Paris?", "The capital of France.")]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def disturb(model, seed=0):
    """Makes an adapter's weights, which begin at no change, random."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)


def adapt(folder, base, *, auto=AutoModel, seed=0, **config):
    """Saves a LoRA adapter of `base` as peft does."""
    settings = LoraConfig(**({"target_modules": ["query", "dense"], "r": 4, "lora_alpha": 8} | config))
    model = get_peft_model(auto.from_pretrained(base), settings)
    disturb(model, seed)
    model.save_pretrained(folder)
    return folder


def by_hand(folder, base, auto=AutoModel):
    return PeftModel.from_pretrained(auto.from_pretrained(base), folder).eval()


def first_tokens(model, base):
    inputs = AutoTokenizer.from_pretrained(base)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return torch.nn.functional.normalize(model(**inputs).last_hidden_state[:, 0]).numpy()


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.fixture
def base(tmp_path):
    return tiny.make_bert_embedder(tmp_path / "base", max_length=64, prompts={"query": "find: "})


@pytest.mark.parametrize("kind", [tiny.make_bert_embedder, tiny.make_xlmr_embedder])
def test_an_adapter_alone_takes_everything_else_from_its_base(kind, tmp_path, make):
    base = kind(tmp_path / "other", max_length=64, prompts={"query": "find: "})
    embedder = make(adapt(tmp_path / "adapter", base))
    close(embedder.encode_documents(TEXTS), first_tokens(by_hand(tmp_path / "adapter", base), base))
    assert np.abs(embedder.encode_documents(TEXTS) - make(base).encode_documents(TEXTS)).max() > 0.1
    described = embedder.describe()
    assert (described["query"], described["max_length"], described["dim"]) == ("find: {text}", 64, 32)


@pytest.mark.parametrize("backend", ["torch", "sentence_transformers"])
@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_an_adapter_as_sentence_transformers_saves_it(inner, backend, base, tmp_path, make):
    folder = shutil.copytree(base, tmp_path / "saved")
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    if inner:
        (folder / inner).mkdir()
        for file in (*folder.glob("tokenizer*"), folder / "sentence_bert_config.json"):
            file.rename(folder / inner / file.name)
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = inner
        (folder / "modules.json").write_text(json.dumps(modules))
    adapt(folder / inner, base)
    embedder = make(folder, backend=backend)
    close(embedder.encode_documents(TEXTS), first_tokens(by_hand(folder / inner, base), base))
    assert embedder.describe()["max_length"] == 64


def test_an_adapter_beside_full_weights_is_one_of_its_base(base, tmp_path, make, folders):
    folder = shutil.copytree(folders[1], tmp_path / "beside")  # whose weights do not count
    adapt(folder, base)
    for backend in ("torch", "sentence_transformers"):
        close(
            make(folder, backend=backend).encode_documents(TEXTS),
            first_tokens(by_hand(folder, base), base),
        )


def test_a_base_that_lies_beside_the_adapter(base, tmp_path, make, monkeypatch):
    folder = adapt(tmp_path / "adapter", base)
    expected = make(folder).encode_documents(TEXTS)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "../base"}))
    monkeypatch.chdir("/")
    close(make(folder).encode_documents(TEXTS), expected)


def test_a_base_of_the_hub(hub, tmp_path, make, base):
    hub("acme/base", base)
    folder = adapt(tmp_path / "adapter", base)
    expected = make(folder).encode_documents(TEXTS)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "acme/base"}))
    embedder = make(folder, cache_folder=tmp_path / "hub", local_files_only=True)
    close(embedder.encode_documents(TEXTS), expected)
    (folder / CONFIG).write_text(json.dumps(config | {"base_model_name_or_path": "acme/base", "revision": "v2"}))
    with pytest.raises(UnknownModelError, match="adapter_config.json is an adapter of acme/base"):
        embedder.encode_documents(TEXTS)


def test_two_adapters_of_one_base_are_two_models(base, tmp_path, make):
    one, two = (make(adapt(tmp_path / f"a{seed}", base, seed=seed)) for seed in (1, 2))
    assert np.abs(one.encode_documents(TEXTS) - two.encode_documents(TEXTS)).max() > 0.1
    assert len({one.fingerprint, two.fingerprint, make(base).fingerprint}) == 3
    moved = shutil.copytree(tmp_path / "a1", tmp_path / "moved")
    assert make(moved).fingerprint == one.fingerprint
    config = json.loads((moved / CONFIG).read_text())
    (moved / CONFIG).write_text(json.dumps(config | {"lora_alpha": 16}))
    assert make(moved).fingerprint != one.fingerprint


def test_a_change_of_the_base_is_seen(base, tmp_path, make, folders):
    embedder = make(adapt(tmp_path / "adapter", base))
    before, fingerprint = embedder.encode_documents(TEXTS), embedder.fingerprint
    (base / "model.safetensors").write_bytes((folders[1] / "model.safetensors").read_bytes())
    os.utime(base / "model.safetensors", ns=(1, 1))
    after = embedder.encode_documents(TEXTS)
    assert np.abs(after - before).max() > 0.1
    close(after, first_tokens(by_hand(tmp_path / "adapter", base), base))
    assert embedder.fingerprint != fingerprint


@pytest.mark.parametrize("whole_head", [False, True])
def test_a_rerankers_adapter(whole_head, tmp_path, cache):
    auto = AutoModelForSequenceClassification
    base = tiny.make_bert_reranker(tmp_path / "base")
    settings = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]} if whole_head else {}
    folder = adapt(tmp_path / "adapter", base, auto=auto, target_modules=["query"], **settings)
    reranker = BgeReranker(str(folder), normalize=False, cache=cache, device="cpu")
    inputs = AutoTokenizer.from_pretrained(base)(PAIRS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        close(reranker.score(PAIRS), by_hand(folder, base, auto)(**inputs).logits[:, 0].numpy())


def test_a_classifier_that_only_the_adapter_has(tmp_path, cache):
    base = tiny.make_bert_embedder(tmp_path / "base", modules=False)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    brought = ["classifier", "pooler"]
    model = get_peft_model(
        classifier, LoraConfig(target_modules=["query"], modules_to_save=brought, task_type="SEQ_CLS")
    )
    disturb(model)
    model.save_pretrained(tmp_path / "adapter")
    inputs = AutoTokenizer.from_pretrained(base)(PAIRS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model.eval()(**inputs).logits[:, 0].numpy()
    close(BgeReranker(str(tmp_path / "adapter"), normalize=False, cache=cache, device="cpu").score(PAIRS), expected)


def test_a_decoders_adapter(tmp_path, make):
    base = tiny.make_decoder(tmp_path / "base", "qwen2")
    folder = adapt(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj"])
    embedder = make(folder, like="BAAI/bge-code-v1", query_instruction="")
    model, tokenizer = by_hand(folder, base), AutoTokenizer.from_pretrained(base)
    with torch.inference_mode():
        expected = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1] for text in TEXTS]
    close(embedder.encode_documents(TEXTS), torch.nn.functional.normalize(torch.stack(expected)).numpy())


def test_without_peft_the_adapter_is_named(base, tmp_path, make, monkeypatch):
    folder = adapt(tmp_path / "adapter", base)
    monkeypatch.setattr("bge_integrations.runtime.adapter.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"adapter_config.json.*bge_integrations\[peft\]"):
        make(folder).describe()


def test_an_adapter_that_changes_no_weights_is_refused(base, tmp_path, make):
    settings = PromptTuningConfig(num_virtual_tokens=4, task_type="FEATURE_EXTRACTION")
    get_peft_model(AutoModel.from_pretrained(base), settings).save_pretrained(tmp_path / "prompt")
    with pytest.raises(UnsupportedModelError, match="PROMPT_TUNING"):
        make(tmp_path / "prompt").encode_documents(["a"])


@pytest.mark.parametrize("change", ["r", "base", "no base", "weights", "itself", "pointer"])
def test_an_adapter_that_fits_nothing_is_refused_by_name(change, base, tmp_path, make):
    folder = adapt(tmp_path / "adapter", base)
    config = json.loads((folder / CONFIG).read_text())
    changed = {
        "r": {"r": 8},
        "base": {"base_model_name_or_path": "/no/such/base"},
        "no base": {"base_model_name_or_path": None},
        "itself": {"base_model_name_or_path": str(folder)},
    }.get(change, {})
    (folder / CONFIG).write_text(json.dumps(config | changed))
    if change == "weights":
        (folder / WEIGHTS).unlink()
    if change == "pointer":
        (folder / CONFIG).write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises((ValueError, LookupError), match="adapter"):
        make(folder).encode_documents(["a"])


def test_tensors_without_a_place_are_refused(base, tmp_path, make):
    folder = adapt(tmp_path / "adapter", base)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"target_modules": ["query"]}))
    with pytest.raises(MissingWeightsError, match="tensors have no place"):
        BgeEmbedder(str(folder), device="cpu", cache=make(folder).cache).encode_documents(["a"])
