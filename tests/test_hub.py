"""Every row of the catalogue against the hub (`pytest --network`), and the check itself against a hub on loopback."""

import json

import loopback_hub
import pytest
import tiny
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from bge_integrations import get_spec, list_models

ON_THE_HUB = [spec for spec in list_models() if "/" in spec.id and not spec.packaged]
TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "sentencepiece.bpe.model"}
FACTS = {
    "model_type": "model_type",
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "vocab_size": "vocab_size",
}


def differences(spec, api, folder):
    """What the hub says otherwise than a row: one line each."""
    try:
        info = api.model_info(spec.id)
    except HfHubHTTPError as error:
        return [f"{spec.id} is not on the hub: {error}"]
    names = {sibling.rfilename for sibling in info.siblings}
    wrong = [f"no {file}" for file in ("config.json",) if file not in names]
    if not any(name.endswith((".safetensors", ".bin")) and "/" not in name for name in names):
        wrong.append("no weights")
    license_ = (info.card_data or {}).get("license")
    if license_ and spec.license not in ("not verified", license_):
        wrong.append(f"license: {license_}, not {spec.license}")
    if spec.unsupported or "config.json" not in names:
        return wrong
    if not names & TOKENIZERS:
        wrong.append("no tokenizer")
    return [*wrong, *wrong_facts(spec, names, lambda name: read(api, spec.id, name, folder))]


def wrong_facts(spec, names, text_of):
    config = json.loads(text_of("config.json"))
    for ours, theirs in FACTS.items():
        if getattr(spec, ours) and getattr(spec, ours) != config.get(theirs):
            yield f"{theirs}: {config.get(theirs)}, not {getattr(spec, ours)}"
    positions = config.get("max_position_embeddings", spec.max_positions)
    if spec.max_positions and positions < spec.max_positions:
        yield f"max_position_embeddings: {positions}, less than {spec.max_positions}"
    if "1_Pooling/config.json" in names and spec.pooling:
        pooling = json.loads(text_of("1_Pooling/config.json"))
        width = pooling.get("word_embedding_dimension", pooling.get("embedding_dimension"))
        if width != spec.hidden_size:
            yield f"width of the vectors: {width}, not {spec.hidden_size}"
    texts = [spec.query_instruction, spec.document_instruction, spec.prompt]
    card = text_of("README.md") if "README.md" in names else ""
    for text in texts:
        if len(text) > 3 and card and text.strip() not in card:
            yield f"its card lacks {text!r}"


def read(api, repository, name, folder):
    with open(api.hf_hub_download(repository, name, cache_dir=folder), encoding="utf-8") as file:  # noqa: PTH123
        return file.read()


@pytest.mark.network
@pytest.mark.parametrize("spec", ON_THE_HUB, ids=lambda spec: spec.id)
def test_a_row_is_what_the_hub_says(spec, tmp_path):
    assert differences(spec, HfApi(), tmp_path) == []


@pytest.fixture
def repository(tmp_path):
    """The files of bge-small-en-v1.5, but for the size of its weights."""
    spec = get_spec("BAAI/bge-small-en-v1.5")
    folder = tiny.make_bert_embedder(tmp_path / "model")
    shape = {"hidden_size": spec.hidden_size, "num_hidden_layers": spec.layers, "vocab_size": spec.vocab_size}
    change(folder / "config.json", **shape)
    change(folder / "1_Pooling" / "config.json", word_embedding_dimension=spec.hidden_size)
    (folder / "card.json").write_text(json.dumps({"license": spec.license}))
    (folder / "README.md").write_text(f"Put `{spec.query_instruction}` before a query.")
    return folder


def change(file, **keys):
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def found(repository, tmp_path, name="BAAI/bge-small-en-v1.5"):
    with loopback_hub.serve({"BAAI/bge-small-en-v1.5": repository}) as endpoint:
        return differences(get_spec(name), HfApi(endpoint=endpoint, token=False), tmp_path / "cache")


@pytest.mark.enable_socket
def test_a_right_row_passes(repository, tmp_path):
    assert found(repository, tmp_path) == []


@pytest.mark.enable_socket
def test_a_wrong_row_is_seen(repository, tmp_path):
    change(repository / "config.json", hidden_size=768, vocab_size=1)
    change(repository / "1_Pooling" / "config.json", word_embedding_dimension=768)
    change(repository / "card.json", license="gemma")
    (repository / "README.md").write_text("No instruction.")
    for file in ("model.safetensors", "tokenizer.json", "vocab.txt"):
        (repository / file).unlink()
    wrong = " | ".join(found(repository, tmp_path))
    for word in ("no weights", "license: gemma", "no tokenizer", "hidden_size: 768", "vocab_size: 1", "width", "lacks"):
        assert word in wrong


@pytest.mark.enable_socket
def test_an_absent_repository_is_seen(repository, tmp_path):
    (line,) = found(repository, tmp_path, "BAAI/bge-large-en")
    assert "BAAI/bge-large-en is not on the hub" in line
