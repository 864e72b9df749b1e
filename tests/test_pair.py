"""The pair that ships with the package: its files, its conventions, and that it means something, all without a hub."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import bge_integrations
from bge_integrations import (
    BgeEmbedder,
    BgeReranker,
    ModelCache,
    UnknownModelError,
    WrongKindError,
    get_spec,
    list_models,
)

EMBEDDER, RERANKER = "bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"
FOLDERS = {
    name: Path(bge_integrations.__file__).parent / "models" / name.split("/")[1] for name in (EMBEDDER, RERANKER)
}
INSTRUCTION = "Represent this sentence for searching relevant passages: "
PASSAGES = [
    "Photosynthesis lets plants turn sunlight, water and carbon dioxide into sugar and oxygen.",
    "The heart pumps blood through the arteries and the veins of the body.",
    "A mortgage is a loan secured by a house; missing payments can lead to foreclosure.",
    "Penguins are birds that cannot fly but swim very well in cold oceans.",
    "The Great Wall of China was built over centuries to keep out invaders from the north.",
    "To bake bread, mix flour, water, salt and yeast, let the dough rise, and put it into a hot oven.",
    "Git keeps the history of a project; a branch is a movable pointer to a commit.",
    "An earthquake happens when two blocks of the earth slip past one another along a fault.",
    "Vaccines train the immune system to recognise a virus before it causes disease.",
    "Inflation is a general rise of prices, so that money buys less than before.",
    "A telescope gathers light from distant stars and galaxies with a large mirror.",
    "Shakespeare wrote Hamlet, the tragedy of a Danish prince who avenges his father.",
]
QUESTIONS = {
    "how do plants make food from light": 0,
    "what organ moves blood around the body": 1,
    "what happens if I stop paying the loan on my home": 2,
    "which birds are unable to fly": 3,
    "why did the Chinese build a long wall": 4,
    "recipe for making a loaf": 5,
    "what is a branch in version control": 6,
    "what causes the ground to shake": 7,
    "how does immunization protect against infection": 8,
    "why does money lose value": 9,
    "instrument to look at stars": 10,
    "who is the author of Hamlet": 11,
}


def test_it_is_small():
    files = [file for folder in FOLDERS.values() for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 40_000_000
    assert {file.suffix for file in files} == {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("name", FOLDERS)
def test_its_row_tells_what_its_files_hold(name):
    row, folder = get_spec(name), FOLDERS[name]
    config = json.loads((folder / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"]) == (row.hidden_size, row.layers)
    assert (config["vocab_size"], config["max_position_embeddings"]) == (row.vocab_size, row.max_positions)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(key) for key in weights.keys()]  # noqa: SIM118  not a dict
    assert sum(tensor.numel() for tensor in tensors) == row.params
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(tensor.isfinite().all() for tensor in tensors)
    card = (folder / "README.md").read_text()
    assert "not one of BAAI's" in card
    assert row.license == "apache-2.0"
    assert "license: apache-2.0" in card


def test_it_is_listed_first():
    assert [row.id for row in list_models()][:2] == [EMBEDDER, RERANKER]


def test_the_embedder_equals_its_references(cache):
    texts = [*PASSAGES, "word " * 600, ""]
    embedder = BgeEmbedder(EMBEDDER, on_truncate="ignore", cache=cache)
    library = SentenceTransformer(str(FOLDERS[EMBEDDER]), device="cpu")
    tokenizer, model = AutoTokenizer.from_pretrained(FOLDERS[EMBEDDER]), AutoModel.from_pretrained(FOLDERS[EMBEDDER])
    assert model.dtype == torch.float32

    def by_hand(batch: list[str]) -> np.ndarray:
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            return torch.nn.functional.normalize(model(**inputs).last_hidden_state[:, 0]).numpy()

    documents = embedder.encode_documents(texts)
    np.testing.assert_allclose(documents, by_hand(texts), atol=1e-5)
    np.testing.assert_allclose(documents, library.encode_document(texts), atol=1e-5)
    queries = embedder.encode_queries(list(QUESTIONS))
    np.testing.assert_allclose(queries, by_hand([INSTRUCTION + question for question in QUESTIONS]), atol=1e-5)
    np.testing.assert_allclose(queries, library.encode_query(list(QUESTIONS)), atol=1e-5)
    assert documents.shape == (len(texts), 384)


def test_the_reranker_equals_its_references(cache):
    pairs = [(question, passage) for question in list(QUESTIONS)[:4] for passage in [*PASSAGES, "word " * 600]]
    reranker = BgeReranker(RERANKER, on_truncate="ignore", normalize=False, cache=cache)
    folder = FOLDERS[RERANKER]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = tokenizer(pairs, padding=True, truncation="only_second", max_length=512, return_tensors="pt")
    with torch.inference_mode():
        by_hand = model(**inputs).logits[:, 0].numpy()
    library = CrossEncoder(str(folder), device="cpu")
    np.testing.assert_allclose(reranker.score(pairs), by_hand, atol=1e-5)
    np.testing.assert_allclose(library.predict(pairs, activation_fn=torch.nn.Identity()), by_hand, atol=1e-5)


def test_id_and_folder_are_one_copy(cache):
    by_id, by_folder = BgeEmbedder(EMBEDDER, cache=cache), BgeEmbedder(str(FOLDERS[EMBEDDER]), cache=cache)
    np.testing.assert_array_equal(by_id.encode_queries(["one"]), by_folder.encode_queries(["one"]))
    assert by_id.fingerprint == by_folder.fingerprint
    assert [model["model"] for model in cache.stats()["models"]] == [EMBEDDER]
    assert cache.unload(str(FOLDERS[EMBEDDER])) == 1
    assert cache.stats()["models"] == []


def test_names_near_it_are_refused():
    for name in ("bge-integrations/mini-embeder-en", "mini-embedder-en", "bge-integrations/other"):
        with pytest.raises(UnknownModelError, match="catalogue"):
            BgeEmbedder(name)
    with pytest.raises(WrongKindError, match="BgeReranker"):
        BgeEmbedder(RERANKER)


def test_it_finds_what_is_asked_for(cache: ModelCache):
    embedder, reranker = BgeEmbedder(EMBEDDER, cache=cache), BgeReranker(RERANKER, cache=cache)
    found = np.argmax(embedder.encode_queries(list(QUESTIONS)) @ embedder.encode_documents(PASSAGES).T, axis=1)
    assert np.mean(found == list(QUESTIONS.values())) >= 0.9
    best = [reranker.rerank(question, PASSAGES, top_n=1)[0].index for question in QUESTIONS]
    assert np.mean(np.equal(best, list(QUESTIONS.values()))) >= 0.9


def test_the_reranker_separates_relevant_from_irrelevant(cache: ModelCache):
    reranker = BgeReranker(RERANKER, normalize=False, cache=cache)
    scores = np.reshape(
        reranker.score([(question, passage) for question in QUESTIONS for passage in PASSAGES]), (12, 12)
    )
    relevant, others = np.diag(scores), scores[~np.eye(12, dtype=bool)].reshape(12, 11)
    assert np.mean(relevant[:, None] > others) > 0.95
    assert np.mean(relevant) > np.mean(others) + 1
