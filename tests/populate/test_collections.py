"""populate into bare Chroma collections: the function that embeds is the one that Chroma itself takes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.api.types import Documents, EmbeddingFunction, Schema, VectorIndexConfig
from chromadb.utils.embedding_functions import known_embedding_functions, register_embedding_function
from langchain_chroma import Chroma
from langchain_core.documents import Document
from llama_index.core.schema import TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore

from bge_integrations import BgeEmbedder, FingerprintMismatchError
from bge_integrations.chroma import BgeEmbeddingFunction
from bge_integrations.populate import populate
from bge_integrations.stores.fingerprint import read_fingerprint

DOCUMENTS = [Document(f"Text number {n} is about pandas.") for n in range(3)]

pytestmark = pytest.mark.filterwarnings("ignore:legacy embedding function config:DeprecationWarning")


@register_embedding_function
class Letters(EmbeddingFunction[Documents]):
    """Somebody else's function: numbers of letters in a text."""

    def __init__(self, letters: str = "ab") -> None:
        self.letters = letters

    def __call__(self, input: Documents) -> Any:  # noqa: A002 - Chroma's name
        return [np.array([text.count(letter) + 1 for letter in self.letters], np.float32) for text in input]

    @staticmethod
    def name() -> str:
        return "letters"

    def get_config(self) -> dict[str, Any]:
        return {"letters": self.letters}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "Letters":
        return Letters(config["letters"])


def with_schema(client: chromadb.ClientAPI, function: Any) -> Any:
    schema = Schema().create_index(VectorIndexConfig(embedding_function=function))
    return client.create_collection("notes", schema=schema)


WAYS: dict[str, Callable[[chromadb.ClientAPI, Any], Any]] = {
    "as made": lambda client, function: client.create_collection("notes", embedding_function=function),
    "with a schema": with_schema,
    "with a configuration": lambda client, function: client.create_collection(
        "notes", configuration={"embedding_function": function}
    ),
}
AGAIN: dict[str, Callable[[chromadb.ClientAPI, Any], Any]] = {
    "as it is": lambda client, made: made,
    "get": lambda client, made: client.get_collection("notes"),
    "get or create": lambda client, made: client.get_or_create_collection("notes"),
    "get with None": lambda client, made: client.get_collection("notes", embedding_function=None),
}


@pytest.fixture
def client(tmp_path: Path) -> chromadb.ClientAPI:
    return chromadb.PersistentClient(str(tmp_path / "store"))


@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_the_function_is_chromas_choice(
    kind: str, way: str, again: str, client: chromadb.ClientAPI, bert_embedder: Path
) -> None:
    function: Any = BgeEmbeddingFunction(str(bert_embedder)) if kind == "ours" else Letters("aeiou")
    collection = AGAIN[again](client, WAYS[way](client, function))
    assert populate(collection, DOCUMENTS).added == 3
    kept = collection.get(include=["documents", "embeddings"])
    np.testing.assert_allclose(kept["embeddings"], collection._embed(kept["documents"]), atol=1e-6)
    np.testing.assert_allclose(kept["embeddings"], function(kept["documents"]), atol=1e-6)
    assert read_fingerprint(collection) == (function.embedder.fingerprint if kind == "ours" else None)
    given = BgeEmbedder(str(bert_embedder)) if kind == "ours" else Letters("aeiou")
    assert populate(collection, DOCUMENTS, embedder=given).skipped == 3
    other = BgeEmbedder(str(bert_embedder), max_length=64) if kind == "ours" else Letters("xyzab")
    with pytest.raises(ValueError, match="is not the store's own"):
        populate(collection, DOCUMENTS, embedder=other)


def test_over_a_reopened_collection(client: chromadb.ClientAPI, bert_embedder: Path, xlmr_embedder: Path) -> None:
    client.create_collection("notes", embedding_function=BgeEmbeddingFunction(str(bert_embedder)))
    own = BgeEmbedder(str(bert_embedder)).fingerprint
    assert populate(Chroma("notes", client=client), DOCUMENTS).added == 3
    assert read_fingerprint(client.get_collection("notes")) == own
    store = ChromaVectorStore(client.get_collection("notes"))
    assert populate(store, [TextNode(text="a node")], embedder=BgeEmbedder(str(bert_embedder))).added == 1
    with pytest.raises(FingerprintMismatchError, match=own):
        populate(store, [TextNode(text="a node")], embedder=BgeEmbedder(str(xlmr_embedder)))


def test_reopened_in_a_process_that_imports_populate_alone(tmp_path: Path, bert_embedder: Path) -> None:
    own = BgeEmbeddingFunction(str(bert_embedder))
    chromadb.PersistentClient(str(tmp_path)).create_collection("notes", embedding_function=own)
    script = (
        "import sys, chromadb\nfrom langchain_core.documents import Document\n"
        "from bge_integrations.populate import populate\n"
        "notes = chromadb.PersistentClient(sys.argv[1]).get_collection('notes')\n"
        "populate(notes, [Document('a panda')], show_progress=False)\n"
        "print(notes.get(include=['embeddings'])['embeddings'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), own(["a panda"]), atol=1e-5)


@pytest.mark.parametrize("again", AGAIN)
def test_a_collection_without_a_function_takes_the_callers(
    again: str, client: chromadb.ClientAPI, bert_embedder: Path
) -> None:
    collection = AGAIN[again](client, client.create_collection("notes", embedding_function=None))
    with pytest.raises(ValueError, match="Give them"):
        populate(collection, DOCUMENTS)
    given = BgeEmbedder(str(bert_embedder))
    assert populate(collection, DOCUMENTS, embedder=given).added == 3
    assert read_fingerprint(collection) == given.fingerprint


@pytest.mark.filterwarnings("ignore:Could not reconstruct embedding function:UserWarning")
def test_a_function_that_cannot_be_built(
    client: chromadb.ClientAPI, bert_embedder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.create_collection("notes", embedding_function=BgeEmbeddingFunction(str(bert_embedder)))
    monkeypatch.delitem(known_embedding_functions, "bge_integrations")
    collection = client.get_collection("notes")
    with pytest.raises(ValueError, match="not found.*Import the module that registers it"):
        populate(collection, DOCUMENTS)
    assert populate(collection, DOCUMENTS, embedder=BgeEmbedder(str(bert_embedder))).added == 3
