"""From a hub comes what a model needs and nothing else, decided for each module by itself."""

import json
import os
import shutil
import subprocess
import sys

import loopback_hub
import pytest
import tiny
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

pytestmark = [pytest.mark.enable_socket, pytest.mark.slow]

SCRIPT = """
import json, sys
from bge_integrations import BgeEmbedder
embedder = BgeEmbedder("acme/model", device="cpu", **json.loads(sys.argv[1]))
vectors = embedder.encode_documents(["panda"]).tolist() if sys.argv[2] == "encode" else embedder.describe()["dim"]
root = embedder._resolved().folder.root
print(json.dumps([vectors, sorted(str(f.relative_to(root)) for f in root.rglob("*") if f.is_file())]))
"""


@pytest.fixture
def fetch(tmp_path):
    """Describes a model of the hub, or encodes with it, in a process of its own.

    Gives its width or its vectors, and the files that it then has.
    """

    def fetch(folder, base=None, *, encode=False, **arguments):
        repositories = {"acme/model": folder, **({"acme/base": base} if base else {})}
        with loopback_hub.serve(repositories) as endpoint:
            places = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "cache")}
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, json.dumps(arguments), "encode" if encode else "describe"],
                env={**os.environ, **places, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        vectors, files = json.loads(done.stdout.splitlines()[-1])
        return vectors, set(files)

    return fetch


def as_bin(folder):
    """Turns a folder's safetensors into the older format."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def test_each_modules_weights_come_in_the_format_it_has(tmp_path, fetch):
    base = tiny.make_bert_embedder(tmp_path / "base", modules=False)
    made = SentenceTransformer(modules=[Transformer(str(base)), Pooling(32), Dense(32, 8)], device="cpu")
    folder = tmp_path / "saved"
    made.save_pretrained(str(folder))
    as_bin(folder / "2_Dense")
    torch.save({}, folder / "pytorch_model.bin")  # the root's safetensors are enough
    for name in ("modeling_mine.py", "onnx/model.onnx", "pytorch_model.bin.index.json.bak"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    vectors, files = fetch(folder, encode=True)
    torch.testing.assert_close(torch.tensor(vectors), torch.tensor(made.encode(["panda"])), rtol=0, atol=1e-5)
    assert {"model.safetensors", "2_Dense/pytorch_model.bin", "2_Dense/config.json"} <= files
    assert not files & {"pytorch_model.bin", "modeling_mine.py", "onnx/model.onnx"}


def test_shards_older_settings_and_every_tokenizer_file(tmp_path, fetch):
    folder = tiny.make_bert_embedder(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    places = {name: names[n % 2] for n, name in enumerate(tensors)}
    for shard in names:
        torch.save({name: tensors[name] for name, place in places.items() if place == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    (folder / "sentence_bert_config.json").rename(folder / "sentence_roberta_config.json")
    extra = {"spiece.model", "qwen.tiktoken", "merges.txt", "added_tokens.json", "special_tokens_map.json"}
    for name in extra:
        (folder / name).write_text("{}")
    width, files = fetch(folder)
    assert width == 32
    assert {*names, *extra, "sentence_roberta_config.json", "vocab.txt"} <= files


@pytest.mark.parametrize("trusted", [False, True])
def test_code_comes_only_when_it_is_trusted(trusted, tmp_path, fetch):
    folder = tiny.make_bert_embedder(tmp_path / "model")
    (folder / "modeling_mine.py").write_text("")
    _, files = fetch(folder, trust_remote_code=trusted)
    assert ("modeling_mine.py" in files) == trusted


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_comes_with_its_base(suffix, tmp_path, fetch):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    base = tiny.make_bert_embedder(tmp_path / "base")
    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(target_modules=["query"]))
    folder = tmp_path / "adapter"
    model.save_pretrained(folder, safe_serialization=suffix == "safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "acme/base"}))
    width, files = fetch(folder, base)
    assert width == 32
    assert "modules.json" in files  # the base's, whose pipeline it takes
    snapshots = [str(file) for file in (tmp_path / "cache").rglob(f"adapter_model.{suffix}")]
    assert len(snapshots) == 1


def test_a_folder_for_openvino_comes_whole(tmp_path, fetch):
    folder = shutil.copytree(tiny.make_bert_embedder(tmp_path / "model"), tmp_path / "int8")
    (folder / "model.safetensors").unlink()
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (folder / name).write_text("x")
    _, files = fetch(folder)
    assert {"openvino_model.xml", "openvino_model.bin"} <= files
