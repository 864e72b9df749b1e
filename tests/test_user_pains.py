"""What users of other packages complain of most: a test a row of that list, under the row's number.

The rows about stores, frameworks and files are in `test_user_pains_stores.py`.
"""

import asyncio
import copy
import gc
import json
import multiprocessing
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import exp
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import tiny
import torch
from holding import held_forward, until
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

from bge_integrations import (
    BgeEmbedder,
    BgeM3Embedder,
    BgeReranker,
    InputTooLongError,
    MissingWeightsError,
    UnknownModelError,
    WrongKindError,
    get_spec,
)
from bge_integrations.langchain import BgeCrossEncoder, BgeEmbeddings, BgeRerank, HuggingFaceBgeEmbeddings
from bge_integrations.llama_index import BgeEmbedding
from bge_integrations.llama_index import BgeRerank as LlamaIndexRerank

ROOT = Path(__file__).parents[1]
ROWS = 36
LINES = [line for line in tiny.TEXT.splitlines() if line]
QUERY = "where does the panda live?"
INSTRUCTION = "Represent this sentence for searching relevant passages: "
GEMMA = "BAAI/bge-reranker-v2-gemma"


def numbers_of_tests() -> set[int]:
    found = (
        re.findall(r"def test_(\d\d)_", file.read_text()) for file in Path(__file__).parent.glob("test_user_pains*.py")
    )
    return {int(number) for numbers in found for number in numbers}


def rows_that_limits_name(readme: str) -> set[int]:
    """The rows that README's limits name as "pain 7", for which there need be no test."""
    limits = readme.partition("\n## Limits\n")[2].partition("\n## ")[0]
    return {int(number) for number in re.findall(r"\bpain (\d+)\b", limits)}


def test_every_row_has_a_test_or_is_among_the_limits() -> None:
    named = rows_that_limits_name((ROOT / "README.md").read_text(encoding="utf-8"))
    assert numbers_of_tests() | named == set(range(1, ROWS + 1))


def test_rows_among_the_limits_are_seen() -> None:
    assert rows_that_limits_name("pain 1\n\n## Limits\n\n- That, pain 7.\n\n## More\n\npain 9") == {7}


@contextmanager
def forwards(kind: type) -> Iterator[list[Any]]:
    """The outputs of every forward of modules of one class."""
    seen: list[Any] = []

    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if type(module) is kind:
            seen.append(output)

    handle = torch.nn.modules.module.register_module_forward_hook(note)
    yield seen
    handle.remove()


def close(actual: Any, expected: Any, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def test_01_one_copy_for_all_objects(bert_embedder, bert_reranker, cache):
    embedder, reranker = str(bert_embedder), str(bert_reranker)
    objects: list[Callable[[], object]] = [
        lambda: BgeEmbeddings(model=embedder, cache=cache).embed_query("a"),
        lambda: BgeEmbedding(model_name=embedder, cache=cache).get_text_embedding("a"),
        lambda: BgeEmbedder(embedder, query_instruction="q: ", max_batch_tokens=32, cache=cache).encode_queries(["a"]),
        lambda: BgeRerank(model=reranker, top_n=1, cache=cache).compress_documents([Document("b")], "a"),
        lambda: LlamaIndexRerank(model=reranker, cache=cache).postprocess_nodes(
            [NodeWithScore(node=TextNode(text="b"))], query_str="a"
        ),
    ]
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda make: make(), objects * 4))
    stats = cache.stats()
    assert stats["loads"] == 2
    for entry, folder in zip(
        sorted(stats["models"], key=lambda m: m["model"]), sorted([embedder, reranker]), strict=True
    ):
        assert entry["bytes"] < 1.1 * (Path(folder) / "model.safetensors").stat().st_size


def test_02_nothing_of_a_forward_is_kept(bert_embedder, cache):
    embedder, draw = BgeEmbedder(str(bert_embedder), on_truncate="ignore", cache=cache), random.Random(0)

    def tensors_after(calls: int) -> int:
        for _ in range(calls):
            vectors = embedder.encode_documents(
                [" ".join(draw.choices(LINES, k=draw.randint(1, 9)))] * draw.randint(1, 9)
            )
            assert type(vectors) is np.ndarray
        gc.collect()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    before = tensors_after(10)
    assert tensors_after(100) <= before


def test_03_memory_follows_tokens_and_out_of_memory_halves_the_batch(bert_embedder, cache):
    texts = [" ".join(LINES[: 1 + n % 4]) for n in range(24)] + ["panda"] * 40
    embedder = BgeEmbedder(str(bert_embedder), max_batch_tokens=400, on_truncate="ignore", cache=cache)
    alone = np.concatenate([embedder.encode_documents([text]) for text in texts])
    sizes = []

    def little_memory(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if type(module).__name__ == "BertEmbeddings":
            sizes.append(output.shape[0] * output.shape[1])
            if sizes[-1] > 200:
                raise torch.OutOfMemoryError("tried to allocate 128.00 GiB")

    handle = torch.nn.modules.module.register_module_forward_hook(little_memory)
    try:
        close(embedder.encode_documents(texts), alone, 1e-5)
        with pytest.raises(InputTooLongError, match=r"Text 1 has \d+ tokens, and a forward over it alone"):
            embedder.encode_documents(["short", " ".join(LINES[:8])])
    finally:
        handle.remove()
    assert max(sizes) <= 400
    assert len([size for size in sizes if size <= 200]) > 5


def test_04_the_deprecated_class_has_a_drop_in(bert_embedder):
    from langchain_community.embeddings import HuggingFaceBgeEmbeddings as Deprecated

    arguments = {
        "model_name": str(bert_embedder),
        "model_kwargs": {"device": "cpu"},
        "encode_kwargs": {"normalize_embeddings": True, "batch_size": 8},
        "query_instruction": INSTRUCTION,
        "embed_instruction": "passage: ",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its deprecation, of which LangChain tells once a process
        before = Deprecated(**copy.deepcopy(arguments))
    now = HuggingFaceBgeEmbeddings(**arguments)
    close(now.embed_documents(LINES), before.embed_documents(LINES), 1e-5)
    close(now.embed_query("two\nlines"), before.embed_query("two\nlines"), 1e-5)


def test_05_instructions_are_right_and_can_be_switched_off(bert_embedder, cache):
    assert get_spec("BAAI/bge-base-en-v1.5").query_instruction == INSTRUCTION
    assert get_spec("BAAI/bge-m3").query_instruction == get_spec("BAAI/bge-base-en-v1.5").document_instruction == ""
    assert get_spec("BAAI/bge-base-zh-v1.5").query_instruction.startswith("为这个句子")
    arguments = {"model": str(bert_embedder), "like": "BAAI/bge-small-en-v1.5", "cache": cache}
    local = BgeEmbeddings(**arguments)
    assert local.embedder.describe()["query"] == INSTRUCTION + "{text}"
    close(local.embed_query(QUERY), local.embed_documents([INSTRUCTION + QUERY])[0])
    for instruction in ("", "Find: "):
        other = BgeEmbeddings(query_instruction=instruction, **arguments)
        close(other.embed_query(QUERY), local.embed_documents([instruction + QUERY])[0])


def test_06_scores_are_sigmoids_applied_once(bert_reranker, cache):
    tokenizer = AutoTokenizer.from_pretrained(bert_reranker)
    model = AutoModelForSequenceClassification.from_pretrained(bert_reranker)
    with torch.no_grad():
        expected = [model(**tokenizer(QUERY, line, return_tensors="pt")).logits.item() for line in LINES]
    results = BgeReranker(str(bert_reranker), cache=cache).rerank(QUERY, LINES)
    for result in results:
        assert result.logit == pytest.approx(expected[result.index], abs=1e-4)
        assert result.score == pytest.approx(1 / (1 + exp(-result.logit)))
        assert 0 < result.score < 1
    assert [result.index for result in results] == np.argsort(-np.array(expected)).tolist()
    for rerank in (BgeRerank, LlamaIndexRerank):
        with pytest.raises(ValueError, match="outside"):
            rerank(model=str(bert_reranker), score_threshold=-2.0)
        assert rerank(model=str(bert_reranker), score_threshold=-2.0, normalize=False).score_threshold == -2


def test_07_scores_follow_documents_and_inputs_stay(bert_reranker, cache):
    documents = [Document(line, metadata={"n": n}) for n, line in enumerate(LINES)]
    nodes = [NodeWithScore(node=TextNode(text=line), score=0.5) for line in LINES]
    given = copy.deepcopy((documents, nodes))
    model = BgeReranker(str(bert_reranker), cache=cache)
    ours = BgeRerank(model=str(bert_reranker), top_n=None, cache=cache)
    theirs = LlamaIndexRerank(model=str(bert_reranker), top_n=None, cache=cache)
    for query in (QUERY, "what is bread made of?"):
        scores = dict(zip(LINES, model.score([(query, line) for line in LINES]), strict=True))
        for seed in range(3):
            mixed = random.Random(seed).sample(documents, len(documents))
            for document in ours.compress_documents(mixed, query):
                assert document.metadata["relevance_score"] == pytest.approx(scores[document.page_content], abs=1e-5)
        for found in theirs.postprocess_nodes(nodes, query_str=query):
            assert found.score == pytest.approx(scores[found.node.get_content()], abs=1e-5)
            assert found.node.metadata["retrieval_score"] == 0.5
    assert (documents, nodes) == given


def test_08_threads_do_not_see_one_anothers_settings(xlmr_embedder, cache):
    embedders = [
        BgeEmbedder(str(xlmr_embedder), max_length=length, document_instruction=text, on_truncate="ignore", cache=cache)
        for length, text in ((6, ""), (20, "passage: "), (512, ""), (64, "Represent this: "))
    ]
    expected = [embedder.encode_documents(LINES) for embedder in embedders]
    start = threading.Barrier(32)

    def work(seed: int) -> float:
        draw, worst = random.Random(seed), 0.0
        start.wait()
        for _ in range(50):
            which, row = draw.randrange(4), draw.randrange(len(LINES))
            worst = max(worst, np.abs(embedders[which].encode_documents([LINES[row]])[0] - expected[which][row]).max())
        return worst

    with ThreadPoolExecutor(32) as pool:
        assert max(pool.map(work, range(32))) < 1e-6
    assert cache.stats()["loads"] == 1


def test_12_no_dependency_on_flagembedding(bert_embedder):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    assert not [name for name in needed if name.lower().startswith("flag")]
    code = """
import sys
sys.modules["FlagEmbedding"] = None
import bge_integrations
heavy = {"torch", "transformers", "langchain_core", "llama_index"}
assert not heavy & sys.modules.keys()
assert bge_integrations.BgeEmbedder(sys.argv[1]).encode_queries(["a"]).shape == (1, 32)
"""
    subprocess.run([sys.executable, "-c", code, str(bert_embedder)], check=True, timeout=100)


def test_14_truncation_is_told_and_can_be_avoided(xlmr_reranker, bert_embedder, cache):
    hay = "the river and the road " * 5
    pairs = [(QUERY, hay + "panda"), (QUERY, hay + "bread"), ("bread?", hay + "panda"), (QUERY, "short")]
    short, long = (BgeReranker(str(xlmr_reranker), max_length=length, cache=cache) for length in (32, 128))
    with pytest.warns(UserWarning, match=r"cut 3 pair\(s\) to 32 tokens \(index 0, 1, 2; the longest has \d+\)"):
        panda, bread, other_query, _ = short.score(pairs)
    assert panda == pytest.approx(bread, abs=1e-6) != pytest.approx(other_query, abs=1e-6)
    panda, bread, *_ = long.score(pairs)
    assert panda != pytest.approx(bread, abs=1e-6)
    assert cache.stats()["models"][0]["truncations"] == 3
    with pytest.raises(InputTooLongError, match=r"text 1 has \d+ tokens; the limit is 8"):
        BgeEmbedder(str(bert_embedder), max_length=8, on_truncate="raise", cache=cache).encode_documents(["a", hay])
    BgeEmbedder(str(bert_embedder), max_length=8, on_truncate="ignore", cache=cache).encode_documents([hay])
    assert get_spec("BAAI/bge-reranker-v2-m3").max_length == get_spec("BAAI/bge-reranker-base").max_length == 512


def test_15_objects_travel_as_configuration(bert_embedder, bert_reranker, cache):
    objects = [
        BgeEmbeddings(model=str(bert_embedder), cache=cache),
        BgeEmbedding(model_name=str(bert_embedder), cache=cache),
        BgeRerank(model=str(bert_reranker), cache=cache),
        LlamaIndexRerank(model=str(bert_reranker), cache=cache),
    ]
    objects[0].embed_query("a")
    for thing in objects:
        for dumps in (pickle.dumps, cloudpickle.dumps):
            assert len(dumps(thing)) < 10_000
            assert pickle.loads(dumps(thing)).model_dump() == thing.model_dump()
        assert copy.deepcopy(thing).model_dump() == thing.model_dump()
    assert pickle.loads(pickle.dumps(objects[0])).embed_query("a") == copy.deepcopy(objects[0]).embed_query("a")
    assert cache.stats()["loads"] == 1
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        close(pool.map(objects[0].embed_query, ["a"])[0], objects[0].embed_query("a"))


@pytest.mark.slow
def test_16_a_forked_child_encodes(bert_embedder):
    code = """
import os, sys
from bge_integrations import BgeEmbedder

def forked():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if embedder.encode_queries(["a"]).shape == (1, 32) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

embedder = BgeEmbedder(sys.argv[1], device="cpu")
assert "torch" not in sys.modules
before = forked()
embedder.encode_queries(["a"])
sys.exit(before or forked())
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(bert_embedder)], check=True, timeout=100)


async def test_17_async_calls_leave_the_event_loop_free(bert_embedder, bert_reranker, cache):
    embeddings = BgeEmbeddings(model=str(bert_embedder), cache=cache)
    embedding = BgeEmbedding(model_name=str(bert_embedder), cache=cache)
    rerank = BgeRerank(model=str(bert_reranker), cache=cache)
    postprocessor = LlamaIndexRerank(model=str(bert_reranker), cache=cache)
    nodes = [NodeWithScore(node=TextNode(text="b"))]
    vector = embeddings.embed_query("a")  # in a running loop
    score = rerank.compress_documents([Document("b")], "a")[0].metadata["relevance_score"]

    async def compressed() -> float:
        return (await rerank.acompress_documents([Document("b")], "a"))[0].metadata["relevance_score"]

    async def postprocessed() -> float | None:
        return (await postprocessor.apostprocess_nodes(nodes, query_str="a"))[0].score

    for folder, expected, call in (
        (bert_embedder, vector, lambda: embeddings.aembed_query("a")),
        (bert_embedder, vector, lambda: embedding.aget_query_embedding("a")),
        (bert_reranker, score, compressed),
        (bert_reranker, score, postprocessed),
    ):
        with held_forward(cache, folder) as begun:
            task, cancelled = asyncio.create_task(call()), asyncio.create_task(call())
            assert await asyncio.to_thread(begun.wait, 30)
            cancelled.cancel()
            assert not task.done()
        close(await task, expected)
        with pytest.raises(asyncio.CancelledError):
            await cancelled


async def test_18_concurrent_small_requests_share_batches(bert_embedder, cache):
    embeddings = BgeEmbeddings(model=str(bert_embedder), cache=cache)
    embedding = BgeEmbedding(model_name=str(bert_embedder), cache=cache)
    expected = [embeddings.embed_query(f"query {n}") for n in range(64)]
    before = cache.stats()["models"][0]["batches"]
    with held_forward(cache, bert_embedder):
        calls = [embeddings.aembed_query(f"query {n}") for n in range(32)]
        calls += [embedding.aget_query_embedding(f"query {n}") for n in range(32, 64)]
        tasks = [asyncio.create_task(call) for call in calls]
        await asyncio.to_thread(until, lambda: cache.stats()["models"][0]["queue_depth"] == 64)
    close(await asyncio.gather(*tasks), expected)
    assert cache.stats()["models"][0]["batches"] - before <= 3


def test_21_a_call_is_its_forwards(bert_embedder, cache, monkeypatch):
    embedder = BgeEmbedder(str(bert_embedder), cache=cache)
    embedder.encode_queries(["a"])
    monkeypatch.delattr(torch.nn.Module, "to")
    monkeypatch.delattr(torch.nn.Module, "train")
    with forwards(BertModel) as seen:
        embedder.encode_queries([QUERY])
        assert len(seen) == 1
        embedder.encode_documents(LINES[:10])
    stats = cache.stats()["models"][0]
    assert len(seen) + 1 == stats["batches"]
    assert len(seen) <= 2 + stats["tokens"] // 512


def test_22_several_devices_need_no_processes(bert_embedder, cache):
    one, two = (
        BgeEmbedder(str(bert_embedder), device=d, on_truncate="raise", cache=cache) for d in ("cpu", ["cpu"] * 2)
    )
    close(two.encode_documents(LINES * 4), one.encode_documents(LINES * 4))
    assert sorted(model["device"] for model in cache.stats()["models"]) == ["cpu", "cpu:1"]
    with pytest.raises(InputTooLongError, match="text 30 has"):
        two.encode_documents(["a"] * 30 + ["a " * 600] + ["a"] * 30)
    close(two.encode_queries(LINES), one.encode_queries(LINES))
    assert multiprocessing.active_children() == []


def test_23_return_types_are_what_they_say(bert_embedder, bert_reranker, cache):
    embeddings = BgeEmbeddings(model=str(bert_embedder), cache=cache)
    reranker = BgeReranker(str(bert_reranker), cache=cache)
    rerank, encoder = (kind(model=str(bert_reranker), cache=cache) for kind in (BgeRerank, BgeCrossEncoder))
    assert (embeddings.embed_documents([]), reranker.score([]), rerank.compress_documents([], "a")) == ([], [], [])
    assert LlamaIndexRerank(model=str(bert_reranker), cache=cache).postprocess_nodes([], query_str="a") == []
    assert cache.stats()["loads"] == 0
    for count in (1, 2):
        pairs, texts = [("a", "b")] * count, ["b"] * count
        found = rerank.compress_documents([Document(text, id=str(n)) for n, text in enumerate(texts)], "a")
        lists = [
            reranker.score(pairs),
            encoder.score(pairs),
            [document.metadata["relevance_score"] for document in found],
        ]
        lists += [*embeddings.embed_documents(texts), [result.score for result in reranker.rerank("a", texts)]]
        assert {type(number) for numbers in lists for number in numbers} == {float}
        assert [len(numbers) for numbers in lists[:3]] == [count] * 3
        json.dumps(lists)


def test_26_a_wrong_kind_of_model_is_refused(bert_embedder, bert_reranker, cache, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(WrongKindError, match="is an embedder. Use BgeEmbedder"):
        BgeReranker(str(bert_embedder), cache=cache).score([("a", "b")])
    with pytest.raises(WrongKindError, match="is a reranker. Use BgeReranker"):
        BgeEmbedder(str(bert_reranker), cache=cache).encode_queries(["a"])
    headless = shutil.copytree(bert_reranker, tmp_path / "headless")
    weights = load_file(headless / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MissingWeightsError, match="classifier.weight"):
        BgeReranker(str(headless), cache=cache).score([("a", "b")])
    with pytest.raises(UnknownModelError, match="BAAI/bge-large-zh-v1.5"):
        BgeEmbedder("BBAI/bge-large-zh-v1.5")
    assert cache.stats()["loads"] == 0


def test_27_llm_rerankers_run_or_are_refused(tmp_path, cache):
    folder = str(tiny.make_decoder(tmp_path, "gemma", with_head=True, ends_in_eos=False))
    arguments = {"like": GEMMA, "normalize": False, "cache": cache}
    usual, asked = (BgeReranker(folder, prompt=prompt, **arguments) for prompt in (None, "Is B about A? Yes or No."))
    pairs = [("panda", "A bear."), ("panda", "Bread.")]
    assert np.isfinite(usual.score(pairs)).all()
    assert usual.score(pairs) != asked.score(pairs)
    assert usual.describe()["prompt"] == get_spec(GEMMA).prompt
    with pytest.raises(ValueError, match="cutoff_layers="):
        BgeReranker(folder, cutoff_layers=[1], **arguments)
    with pytest.raises(WrongKindError, match=GEMMA):
        BgeReranker(folder, cache=cache).score(pairs)


def test_28_models_are_unloaded_while_others_use_them(bert_embedder, cache):
    embedder, done = BgeEmbedder(str(bert_embedder), cache=cache), threading.Event()
    expected = embedder.encode_documents(LINES)

    def encode() -> int:
        count = 0
        while not done.is_set():
            close(embedder.encode_documents(LINES), expected)
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(encode) for _ in range(8)]
        for n in range(1, 4):
            assert cache.unload(str(bert_embedder)) == 1
            until(lambda: cache.stats()["loads"] > n)  # noqa: B023
        done.set()
    assert all(call.result() for call in calls)
    assert (cache.clear(), cache.stats()["models"]) == (1, [])


def test_35_empty_and_missing_texts(bert_embedder, cache):
    embeddings = BgeEmbeddings(model=str(bert_embedder), cache=cache)
    for bad in ([None], [5], ["a", b"b"]):
        with pytest.raises(TypeError, match=f"{len(bad) - 1}"):
            embeddings.embed_documents(bad)
    assert embeddings.embed_documents([]) == []
    assert cache.stats()["loads"] == 0
    vectors = np.array(embeddings.embed_documents(["", "  \n", "panda"]))
    assert vectors.shape == (3, 32)
    assert np.isfinite(vectors).all()
    m3 = BgeM3Embedder("BAAI/bge-m3")
    assert len(m3.encode_documents([])) == 0
