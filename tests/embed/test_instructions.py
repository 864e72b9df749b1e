"""What goes before a query, and that nothing goes before a document unless asked."""

import numpy as np
import pytest
import tiny

from bge_integrations import BgeEmbedder, get_spec

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章："
TEXTS = ["What does a panda eat?", "大熊猫吃什么？", ""]

INSTRUCTIONS = {
    "BAAI/bge-small-en": EN,
    "BAAI/bge-base-en-v1.5": EN,
    "BAAI/bge-large-zh": ZH,
    "BAAI/bge-small-zh-v1.5": ZH,
    "BAAI/bge-large-zh-noinstruct": "",
}


@pytest.fixture
def embedder(bert_embedder, cache):
    def make(like="BAAI/bge-base-en-v1.5", **arguments):
        return BgeEmbedder(str(bert_embedder), like=like, cache=cache, **arguments)

    return make


@pytest.fixture
def bare(embedder):
    """Vectors of texts with nothing before them."""
    return embedder(query_instruction="").encode_documents


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)


def prefixed(prefix):
    return [prefix + text for text in TEXTS]


@pytest.mark.parametrize(("like", "instruction"), INSTRUCTIONS.items())
def test_a_query_is_the_document_with_the_instruction_before_it(like, instruction, embedder, bare):
    model = embedder(like)
    close(model.encode_queries(TEXTS), model.encode_documents(prefixed(instruction)))
    close(model.encode_documents(TEXTS), bare(TEXTS))
    assert model.describe()["query"] == instruction + "{text}"
    assert model.describe()["document"] == "{text}"


def test_m3_has_no_instruction(xlmr_embedder, cache):
    m3 = BgeEmbedder(str(xlmr_embedder), like="BAAI/bge-m3", cache=cache)
    close(m3.encode_queries(TEXTS), m3.encode_documents(TEXTS))


def test_the_chinese_colon_is_the_full_width_one(embedder):
    right = embedder("BAAI/bge-base-zh-v1.5")
    assert right.describe()["query"] == ZH + "{text}"
    ascii_colon = right.encode_documents(prefixed(ZH[:-1] + ":"))
    assert np.abs(right.encode_queries(TEXTS) - ascii_colon).max() > 1e-3


@pytest.mark.parametrize("instruction", ["", "query: ", "问：", "{text}"])
def test_the_callers_instruction_wins(instruction, embedder, bare):
    model = embedder(query_instruction=instruction)
    close(model.encode_queries(TEXTS), bare(prefixed(instruction)))
    close(model.encode_documents(TEXTS), bare(TEXTS))


def test_the_callers_document_instruction(embedder, bare):
    model = embedder(document_instruction="passage: ")
    close(model.encode_documents(TEXTS), bare(prefixed("passage: ")))
    close(model.encode_queries(TEXTS), bare(prefixed(EN)))


def test_an_empty_document_instruction_switches_the_catalogues_off(embedder, bare):
    published = get_spec("BAAI/llm-embedder").document_instruction
    on, off = embedder("BAAI/llm-embedder"), embedder("BAAI/llm-embedder", document_instruction="")
    assert (on.describe()["document"], off.describe()["document"]) == (published + "{text}", "{text}")
    close(on.encode_documents(TEXTS), bare(prefixed(published)))
    close(off.encode_documents(TEXTS), bare(TEXTS))
    task = embedder("BAAI/llm-embedder", task="tool", document_instruction="")
    assert task.describe()["document"] == "{text}"
    assert len({model.fingerprint for model in (on, off, embedder("BAAI/llm-embedder", task="tool"))}) == 3
    assert off.fingerprint == task.fingerprint == embedder().fingerprint


def test_an_empty_document_instruction_switches_the_folders_own_prompt_off(tmp_path, cache):
    folder = tiny.make_bert_embedder(tmp_path, prompts={"document": "text: "})
    described = [BgeEmbedder(str(folder), document_instruction=given, cache=cache).describe() for given in (None, "")]
    assert [entry["document"] for entry in described] == ["text: {text}", "{text}"]


@pytest.mark.parametrize("task", ["qa", "icl", "chat", "lrlm", "tool", "convsearch"])
def test_tasks_of_llm_embedder(task, embedder, bare):
    query, document = get_spec("BAAI/llm-embedder").tasks[task]
    assert query != document
    model = embedder("BAAI/llm-embedder", task=task)
    close(model.encode_queries(TEXTS), bare(prefixed(query)))
    close(model.encode_documents(TEXTS), bare(prefixed(document)))


def test_tasks_are_those_published(embedder):
    with pytest.raises(ValueError, match=r'task="sport" .* qa, icl, chat, lrlm, tool, convsearch'):
        embedder("BAAI/llm-embedder", task="sport")
    with pytest.raises(ValueError, match=r'task="qa" .* none'):
        embedder(task="qa")


def test_an_instruction_goes_before_that_of_the_task(embedder, bare):
    model = embedder("BAAI/llm-embedder", task="chat", query_instruction="mine: ")
    close(model.encode_queries(TEXTS), bare(prefixed("mine: ")))


@pytest.mark.parametrize("name", ["document", "passage", "corpus"])
def test_prompts_of_a_model_outside_the_catalogue(name, tmp_path, cache):
    folder = str(tiny.make_bert_embedder(tmp_path, prompts={"query": "find: ", name: "text: "}))
    model = BgeEmbedder(folder, cache=cache)
    bare = BgeEmbedder(str(tiny.make_bert_embedder(tmp_path / "bare")), cache=cache).encode_documents
    close(model.encode_queries(TEXTS), bare(prefixed("find: ")))
    close(model.encode_documents(TEXTS), bare(prefixed("text: ")))
    close(BgeEmbedder(folder, query_instruction="", cache=cache).encode_queries(TEXTS), bare(TEXTS))
    close(BgeEmbedder(folder, query_instruction="q: ", cache=cache).encode_queries(TEXTS), bare(prefixed("q: ")))


def test_a_model_outside_the_catalogue_without_prompts_gets_bare_text(bert_embedder, cache):
    model = BgeEmbedder(str(bert_embedder), cache=cache)
    close(model.encode_queries(TEXTS), model.encode_documents(TEXTS))
