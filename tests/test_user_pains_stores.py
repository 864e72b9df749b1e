"""What users of other packages complain of most, of stores, frameworks and files; see `test_user_pains.py`."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest
import tiny
import torch
from chromadb import EphemeralClient
from holding import until
from langchain_chroma import Chroma
from langchain_classic.embeddings import CacheBackedEmbeddings
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_community.docstore.in_memory import InMemoryDocstore
from langchain_community.vectorstores import FAISS
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.stores import InMemoryByteStore
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from pytest_socket import SocketBlockedError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers import XLMRobertaModel

from bge_integrations import (
    BgeEmbedder,
    BgeM3Embedder,
    BgeReranker,
    FingerprintMismatchError,
    MissingWeightsError,
    ModelCache,
    NonFiniteError,
    SparseIndex,
    UnknownModelError,
)
from bge_integrations.evaluation import LabelledSet, evaluate
from bge_integrations.langchain import (
    BgeCrossEncoder,
    BgeEmbeddings,
    BgeRerank,
    HuggingFaceBgeEmbeddings,
    HybridRetriever,
    RerankingRetriever,
)
from bge_integrations.llama_index import BgeEmbedding
from bge_integrations.llama_index import BgeRerank as LlamaIndexRerank
from bge_integrations.llama_index import RerankingRetriever as LlamaIndexRetriever
from bge_integrations.populate import populate

LINES = [line for line in tiny.TEXT.splitlines() if line]
QUERY = "where does the panda live?"
PAIR = "bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"
M3 = "BAAI/bge-m3"


class Watched(InMemoryVectorStore):
    """A store that does something before it takes documents, such as refusing them."""

    before: Callable[[list[Document]], object] = staticmethod(lambda documents: None)

    def add_documents(self, documents: list[Document], ids: list[str] | None = None, **kwargs: Any) -> list[str]:
        self.before(documents)
        return super().add_documents(documents, ids=ids, **kwargs)


@pytest.fixture
def embeddings(bert_embedder, cache):
    return BgeEmbeddings(model=str(bert_embedder), cache=cache)


@pytest.fixture
def store(embeddings):
    return Watched(embeddings)


def documents_of(count: int) -> list[Document]:
    return [Document(f"Text number {n} is about pandas.", metadata={"source": f"{n % 3}.md"}) for n in range(count)]


def close(actual: Any, expected: Any, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def test_09_a_store_that_takes_few_at_a_time(store):
    refused, taken = [], []

    def at_most_166(documents: list[Document]) -> None:
        (refused if len(documents) > 166 else taken).append(len(documents))
        if len(documents) > 166:
            raise ValueError("Batch size exceeds maximum batch size 166")

    store.before = at_most_166
    report = populate(store, documents_of(500), batch_size=500)
    assert (report.added, report.texts, len(store.store)) == (500, 500, 500)
    assert refused
    assert sum(taken) == 500


def test_10_an_interrupted_run_goes_on_and_loses_nothing(store):
    documents = documents_of(100)

    def full_disk(given: list[Document]) -> None:
        if len(store.store) >= 40:
            raise OSError("No space left on device")

    store.before = full_disk
    with pytest.raises(OSError, match="No space left"):
        populate(store, documents, batch_size=20)
    held, store.before = len(store.store), lambda documents: None
    assert 0 < held < 100
    bad = Document("  ", metadata={"source": "bad.md"})
    report = populate(store, [bad, *documents], batch_size=20, on_error="collect")
    assert (report.skipped, report.added, report.texts) == (held, 100 - held, 100 - held)
    assert [(failure.position, failure.source) for failure in report.failed] == [(0, "bad.md")]
    assert sorted(row["text"] for row in store.store.values()) == sorted(
        document.page_content for document in documents
    )


def test_11_a_second_run_computes_nothing(store, embeddings, cache):
    documents = documents_of(30)
    first = populate(store, documents + documents[:5])
    assert (first.added, first.skipped, first.texts, len(store.store)) == (30, 5, 30, 30)
    before = cache.stats()["models"][0]["tokens"]
    second = populate(store, reversed(documents))
    assert (second.skipped, second.texts, cache.stats()["models"][0]["tokens"]) == (30, 0, before)
    elsewhere = InMemoryVectorStore(embeddings)
    populate(elsewhere, documents)
    assert elsewhere.store.keys() == store.store.keys()
    third = populate(store, documents[3:], batch_size=4, cleanup="source")
    assert (third.deleted, third.texts, len(store.store)) == (3, 0, 27)


def test_13_one_forward_of_bge_m3_gives_all_to_the_frameworks(m3, bert_reranker, cache):
    arguments = {"like": M3, "cache": cache}
    embedder = BgeM3Embedder(str(m3), **arguments)
    memory = InMemoryVectorStore(BgeEmbeddings(model=str(m3), **arguments))
    hybrid = HybridRetriever(vector_store=memory, sparse_index=SparseIndex(), embedder=embedder, k=5)
    embedder.encode_queries(["the load itself runs the model"])
    forwards = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: forwards.append(1) if type(module) is XLMRobertaModel else None
    )
    try:
        hybrid.add_documents([Document("Giant pandas eat bamboo."), Document("Bread needs flour.")])
        assert len(forwards) == 1
    finally:
        handle.remove()
    reranked = RerankingRetriever(retriever=hybrid, reranker=BgeRerank(model=str(bert_reranker), cache=cache))
    assert len(reranked.invoke("bamboo")) == 2
    result = embedder.encode_queries(["<s> panda </s>"])
    special = {Tokenizer.from_file(str(m3 / "tokenizer.json")).token_to_id(token) for token in ("<s>", "</s>", "<pad>")}
    assert not special & set(result.sparse[0].indices.tolist())
    assert (result.dense.shape, len(result.sparse[0]) > 0, result.colbert[0].shape[1]) == ((1, 32), True, 32)
    assert sorted(model["model"] for model in cache.stats()["models"]) == sorted([str(m3), str(bert_reranker)])


def test_19_retrieve_then_rerank_is_one_object(cache):
    embedder, reranker = PAIR
    texts = ["Paris is the capital of France.", "Giant pandas eat bamboo.", "Bread needs flour and water.", "The moon."]
    memory = InMemoryVectorStore(BgeEmbeddings(model=embedder, cache=cache))
    memory.add_documents([Document(text) for text in [*texts, texts[1]]])
    rerank = BgeRerank(model=reranker, cache=cache)
    found = RerankingRetriever(vector_store=memory, reranker=rerank, fetch_k=5, top_n=1).invoke("what do pandas eat?")
    assert [document.page_content for document in found] == texts[1:2]
    index = VectorStoreIndex(
        [TextNode(text=text) for text in texts], embed_model=BgeEmbedding(model_name=embedder, cache=cache)
    )
    nodes = LlamaIndexRerank(model=reranker, top_n=1, cache=cache)
    assert LlamaIndexRetriever(index=index, reranker=nodes).retrieve("what do pandas eat?")[0].text == texts[1]
    with pytest.raises(ValueError, match="fetch_k=2 is less than top_n=3"):
        RerankingRetriever(vector_store=memory, reranker=rerank, fetch_k=2, top_n=3)
    with pytest.raises(ValueError, match="fetch_k=2"):
        LlamaIndexRetriever(index=index, reranker=LlamaIndexRerank(model=reranker, top_n=3, cache=cache), fetch_k=2)
    data = LabelledSet("food", dict(enumerate_ids(texts)), {"q": "what do pandas eat?"}, {"q": {"1": 1}})
    result = evaluate(data, BgeEmbedder(embedder, cache=cache), BgeReranker(reranker, cache=cache))
    assert result.retrieved.mean("nDCG@10") == result.reranked.mean("nDCG@10") == 1


def enumerate_ids(texts: list[str]) -> list[tuple[str, str]]:
    return [(str(number), text) for number, text in enumerate(texts)]


def test_20_the_model_computes_while_the_store_writes(store, embeddings, cache, bert_embedder):
    def tokens() -> int:
        return cache.stats()["models"][0]["tokens"]

    embeddings.embed_documents([document.page_content for document in documents_of(8)])
    a_batch = tokens()

    def wait_for_the_next_batch(documents: list[Document]) -> None:
        if not store.store:
            until(lambda: tokens() > a_batch + 1.5 * a_batch)

    store.before = wait_for_the_next_batch
    report = populate(store, documents_of(32), batch_size=8)
    assert (report.added, report.overlapped, report.tokens) == (32, True, tokens() - a_batch)
    assert report.seconds > 0
    before = cache.stats()["models"][0]["batches"]
    BgeEmbedding(model_name=str(bert_embedder), cache=cache).get_text_embedding_batch(["panda"] * 100)
    assert cache.stats()["models"][0]["batches"] == before + 1


def test_24_offline_asks_nobody(bert_embedder, bert_reranker, tmp_path, cache):
    with pytest.warns(UserWarning, match="tried to use socket"), pytest.raises(SocketBlockedError):
        socket.socket(socket.AF_INET)
    for backend in ("torch", "sentence_transformers"):
        assert BgeEmbedder(str(bert_embedder), backend=backend, cache=cache).encode_queries(["a"]).shape == (1, 32)
    assert BgeReranker(str(bert_reranker), cache=cache).score([("a", "b")])
    with pytest.raises(UnknownModelError, match=f"acme/none is not, or not completely, in {tmp_path}"):
        BgeEmbedder("acme/none", cache_folder=str(tmp_path), local_files_only=True, cache=cache).encode_queries(["a"])
    folder = shutil.copytree(bert_embedder, tmp_path / "copy")
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match=str(folder)):
        BgeEmbedder(str(folder), cache=cache).encode_queries(["a"])


def test_25_every_library_gives_the_same_vector(bert_embedder, xlmr_embedder, cache):
    texts = ["The giant panda\nis a bear.\r\n\nIt eats  bamboo. ", *LINES[:5]]
    for folder in map(str, (bert_embedder, xlmr_embedder)):
        expected = SentenceTransformer(folder, device="cpu").encode(texts)
        close(BgeEmbeddings(model=folder, cache=cache).embed_documents(texts), expected, 1e-5)
        embedding = BgeEmbedding(model_name=folder, cache=cache)
        close(embedding.get_text_embedding_batch(texts), expected, 1e-5)
        close([embedding.get_text_embedding(text) for text in texts], expected, 1e-5)


def test_29_another_model_is_kept_out_of_a_collection(embeddings, bert_reranker, tmp_path, cache):
    other = BgeEmbeddings(model=str(tiny.make_bert_embedder(tmp_path, seed=1)), cache=cache)
    client = EphemeralClient()
    client.create_collection("pains-29", embedding_function=None)
    stores = [Chroma("pains-29", embedding_function=given, client=client) for given in (embeddings, other)]
    populate(stores[0], documents_of(5))
    with pytest.raises(FingerprintMismatchError) as error:
        populate(stores[1], documents_of(6))
    assert embeddings.embedder.fingerprint in str(error.value)
    assert other.embedder.fingerprint in str(error.value)
    rerank = BgeRerank(model=str(bert_reranker), cache=cache)
    with pytest.raises(FingerprintMismatchError):
        RerankingRetriever(vector_store=stores[1], reranker=rerank).invoke(QUERY)
    assert len(RerankingRetriever(vector_store=stores[0], reranker=rerank).invoke(QUERY)) == 3
    assert populate(stores[1], documents_of(6), force=True).added == 1
    client.delete_collection("pains-29")


def test_30_langchain_core_is_enough(store, bert_reranker, cache):
    code = """
import sys
sys.modules |= dict.fromkeys(["langchain", "langchain_classic", "langchain_community", "langchain_text_splitters"])
from bge_integrations.langchain import BgeEmbeddings, BgeRerank, HybridRetriever, RerankingRetriever
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
    store.add_documents([Document(line) for line in LINES])
    encoder = BgeCrossEncoder(model=str(bert_reranker), cache=cache)
    assert isinstance(encoder, BaseCrossEncoder)
    rerank = BgeRerank(model=str(bert_reranker), cache=cache)
    expected = [document.page_content for document in rerank.compress_documents([Document(x) for x in LINES], QUERY)]
    for compressor in (rerank, CrossEncoderReranker(model=encoder, top_n=3)):
        inner = store.as_retriever(search_kwargs={"k": len(LINES)})
        found = ContextualCompressionRetriever(base_retriever=inner, base_compressor=compressor).invoke(QUERY)
        assert [document.page_content for document in found] == expected


def test_31_thresholds_on_the_rerankers_score_mean_the_same_in_every_store(cache):
    embeddings = BgeEmbeddings(model=PAIR[0], cache=cache)
    texts = ["Giant pandas eat bamboo.", "Paris is the capital of France.", "The violin was tuned."]
    close(np.linalg.norm(embeddings.embed_documents(texts), axis=1), 1, 1e-5)
    client = EphemeralClient()
    stores = [
        InMemoryVectorStore(embeddings),
        FAISS(embeddings, faiss.IndexFlatL2(384), InMemoryDocstore(), {}),
        Chroma("pains-31", embedding_function=embeddings, client=client),
    ]
    rerank = BgeRerank(model=PAIR[1], score_threshold=0.5, top_n=None, cache=cache)
    scores = []
    for store in stores:
        populate(store, [Document(text) for text in texts])
        (best,) = RerankingRetriever(vector_store=store, reranker=rerank).invoke("what do pandas eat?")
        assert best.page_content == texts[0]
        scores.append(best.metadata["relevance_score"])
    close(scores, [scores[0]] * 3, 1e-5)
    assert 0.5 <= scores[0] <= 1
    client.delete_collection("pains-31")


def test_32_progress_is_of_the_whole_and_nothing_is_printed(store, embeddings, capfd):
    steps = []
    populate(store, documents_of(50), batch_size=8, progress=steps.append)
    done = [step.documents for step in steps]
    assert done == sorted(done)
    assert (len(done), done[-1], steps[-1].texts) == (7, 50, 50)
    assert {step.total for step in steps} == {50}
    embeddings.embed_documents(LINES * 20)
    assert capfd.readouterr() == ("", "")


def test_33_precision_fits_the_device_and_nan_is_never_stored(bert_embedder, tmp_path, cache):
    facts = BgeEmbedder(str(bert_embedder), cache=cache).describe()
    assert facts["dtype"] == ("float16" if str(facts["device"]).startswith("cuda") else "float32")
    folder = shutil.copytree(bert_embedder, tmp_path / "nan")
    tokenizer, weights = Tokenizer.from_file(str(folder / "tokenizer.json")), load_file(folder / "model.safetensors")
    bad = set(tokenizer.encode("moon").ids) - set(tokenizer.encode("bread panda").ids)
    weights["embeddings.word_embeddings.weight"][list(bad)] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    embeddings = BgeEmbeddings(model=str(folder), cache=cache)
    with pytest.raises(NonFiniteError, match="text 1"):
        embeddings.embed_documents(["bread", "moon", "panda"])
    memory = InMemoryVectorStore(embeddings)
    documents = [Document(text) for text in ("bread", "moon", "panda")]
    report = populate(memory, documents, on_error="collect")
    assert (report.added, [failure.position for failure in report.failed]) == (2, [1])
    assert np.isfinite([row["vector"] for row in memory.store.values()]).all()


def test_34_openvino_binary_and_shorter_vectors(bert_embedder, cache, monkeypatch):
    folder = str(bert_embedder)
    plain = BgeEmbedder(folder, cache=cache).encode_documents(LINES)
    close(BgeEmbedder(folder, backend="openvino", cache=cache).encode_documents(LINES), plain, 1e-5)
    monkeypatch.delattr("openvino.Model")  # done once, and kept on disk
    close(BgeEmbedder(folder, backend="openvino", cache=ModelCache()).encode_documents(LINES), plain, 1e-5)
    shorter = BgeEmbedder(folder, truncate_dim=8, cache=cache).encode_documents(LINES)
    close(shorter, plain[:, :8] / np.linalg.norm(plain[:, :8], axis=1, keepdims=True), 1e-5)
    with pytest.raises(ValueError, match="was not trained for shorter vectors"):
        BgeEmbedder("BAAI/bge-base-en-v1.5", truncate_dim=256)
    binary = HuggingFaceBgeEmbeddings(model_name=folder, query_instruction="", encode_kwargs={"precision": "ubinary"})
    assert binary.embed_documents(LINES) == np.packbits(plain > 0, axis=1).tolist()


def test_36_caches_have_a_key_for_everything_that_decides_a_vector(bert_embedder, xlmr_embedder, cache):
    settings: list[dict[str, Any]] = [{}, {"document_instruction": "d: "}, {"normalize": False}, {"truncate_dim": 8}]
    several = [BgeEmbeddings(model=str(bert_embedder), cache=cache, **setting) for setting in settings]
    several.append(BgeEmbeddings(model=str(xlmr_embedder), cache=cache))
    kept = InMemoryByteStore()
    for _ in range(2):
        for embeddings in several:
            cached = CacheBackedEmbeddings.from_bytes_store(
                embeddings, kept, namespace=embeddings.embedder.fingerprint, key_encoder="sha256"
            )
            close(cached.embed_documents(LINES[:3]), embeddings.embed_documents(LINES[:3]), 1e-5)
    assert len(list(kept.yield_keys())) == 3 * len(several)
    same = BgeEmbedder(str(bert_embedder), query_instruction="q: ", max_batch_tokens=64, cache=cache)
    assert same.fingerprint == several[0].embedder.fingerprint
