"""The models that every other test stands on are what they claim to be."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

SENTENCES = [line for line in tiny.TEXT.splitlines() if line]
MAKERS = [tiny.make_bert_embedder, tiny.make_xlmr_embedder, tiny.make_bert_reranker, tiny.make_xlmr_reranker]
each_embedder = pytest.mark.parametrize("make", MAKERS[:2], ids=["bert", "xlmr"])
each_reranker = pytest.mark.parametrize("make", MAKERS[2:], ids=["bert", "xlmr"])
each_maker = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


@each_embedder
def test_sentence_transformers_loads_an_embedder(make, tmp_path):
    folder = make(tmp_path, pooling="mean", max_length=40, prompts={"query": "Q: "})
    model = SentenceTransformer(str(folder), device="cpu")
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert (model[1].pooling_mode, model.max_seq_length, model.prompts["query"]) == ("mean", 40, "Q: ")
    vectors = model.encode(SENTENCES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@each_embedder
def test_different_texts_have_clearly_different_vectors(make, tmp_path):
    vectors = SentenceTransformer(str(make(tmp_path)), device="cpu").encode(SENTENCES)
    similarity = vectors @ vectors.T - np.eye(len(vectors))
    assert similarity.max() < 0.97


@each_reranker
def test_sentence_transformers_loads_a_reranker(make, tmp_path):
    model = CrossEncoder(str(make(tmp_path)), device="cpu")
    logits = model.predict([(SENTENCES[0], other) for other in SENTENCES], activation_fn=torch.nn.Identity())
    assert logits.shape == (len(SENTENCES),)
    assert logits.std() > 0.1


@each_maker
def test_transformers_tokenizes_as_the_file_says(make, tmp_path):
    folder = make(tmp_path)
    ours, theirs = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    assert ours.get_vocab_size() == len(theirs)
    for text in [*SENTENCES, "", "Ein  unbekanntes\nWort: zß€"]:
        assert ours.encode(text).ids == theirs(text)["input_ids"]
        assert ours.encode(text, "B").ids == theirs(text, "B")["input_ids"]
        assert theirs.decode(ours.encode(text).ids[1:-1]) is not None


@each_maker
def test_a_text_of_its_own_language_has_no_unknown_token(make, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make(tmp_path))
    ids = tokenizer([*SENTENCES, "The quick brown fox: 42% (x_1) {y}!"])["input_ids"]
    assert not any(tokenizer.unk_token_id in text for text in ids)


def test_special_ids_are_those_of_the_real_models(tmp_path):
    bert = AutoTokenizer.from_pretrained(tiny.make_bert_embedder(tmp_path / "bert"))
    xlmr = AutoTokenizer.from_pretrained(tiny.make_xlmr_embedder(tmp_path / "xlmr"))
    assert bert.pad_token_id == 0
    assert (xlmr.bos_token_id, xlmr.pad_token_id, xlmr.eos_token_id, xlmr.unk_token_id) == (0, 1, 2, 3)
    assert xlmr.mask_token_id == len(xlmr) - 1
    pair = xlmr("a", "b")["input_ids"]
    assert (pair[0], pair[-1], pair.count(2)) == (0, 2, 3)


@each_maker
def test_the_global_random_state_stays(make, tmp_path):
    before = torch.random.get_rng_state()
    make(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


@each_maker
def test_folders_are_small(make, tmp_path):
    assert sum(path.stat().st_size for path in make(tmp_path).rglob("*") if path.is_file()) < 1_000_000


def test_seeds_decide_the_weights(tmp_path):
    folders = [tiny.make_bert_embedder(tmp_path / str(run), seed=seed) for run, seed in enumerate([0, 0, 1])]
    first, same, other = (digest(folder / "model.safetensors") for folder in folders)
    assert first == same != other


def test_another_process_makes_the_same_files(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(tiny.__file__).parent)!r}); import tiny; from pathlib import Path\n"
    )
    code += "tiny.make_xlmr_embedder(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "theirs")], check=True)
    tiny.make_xlmr_embedder(tmp_path / "ours")
    for name in ("tokenizer.json", "model.safetensors", "config.json"):
        assert digest(tmp_path / "ours" / name) == digest(tmp_path / "theirs" / name)


def test_a_plain_folder_has_no_modules(tmp_path):
    folder = tiny.make_bert_embedder(tmp_path, modules=False, max_position_embeddings=64)
    assert not (folder / "modules.json").exists()
    assert '"max_position_embeddings": 64' in (folder / "config.json").read_text()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
