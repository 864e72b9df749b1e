"""Embedders built on language models: equal to transformers by hand, EOS last, tasks, templates, examples."""

import json

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from bge_integrations import BgeEmbedder, UnknownModelError, UnsupportedModelError, WrongKindError

TEXTS = [line[:90] for line in tiny.TEXT.splitlines() if line] + ["", "panda", " two  spaces , and a comma . "]
TASK = "Given a question, retrieve passages that answer the question."
ROWS = {
    "gemma2": "BAAI/bge-multilingual-gemma2",
    "mistral": "BAAI/bge-en-icl",
    "qwen2": "BAAI/bge-code-v1",
    "qwen3": "BAAI/bge-reasoner-embed-qwen3-8b-0923",
}
FRAMES = {
    "gemma2": ("<instruct>{}\n<query>", ""),
    "mistral": ("<instruct>{}\n<query>", "\n<response>"),
    "qwen2": ("<instruct>{}\n<query>", ""),
    "qwen3": ("Instruct: {}\nQuery: ", ""),
}


@pytest.fixture(scope="session")
def decoder(tmp_path_factory):
    made = {}

    def make(kind, **config):
        key = (kind, json.dumps(config, sort_keys=True))
        if key not in made:
            made[key] = tiny.make_decoder(tmp_path_factory.mktemp(kind), kind, **config)
        return made[key]

    return make


@pytest.fixture
def embedder(decoder, cache):
    def make(kind, folder=None, **arguments):
        arguments = {"on_truncate": "ignore", "like": ROWS[kind], **arguments}
        return BgeEmbedder(str(folder or decoder(kind)), cache=cache, **arguments)

    return make


def by_hand(folder, texts, max_length=512):
    """The last token's state, text by text; the tokenizer's own post-processor ends each in EOS."""
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    config.attn_logit_softcapping = None
    model = AutoModel.from_pretrained(folder, config=config, attn_implementation="eager")
    vectors = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        with torch.no_grad():
            vectors.append(torch.nn.functional.normalize(model(**inputs).last_hidden_state[0, -1], dim=0))
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize("budget", [1, 300, 4096])
@pytest.mark.parametrize("kind", ROWS)
def test_equal_to_transformers_by_hand(kind, budget, embedder, decoder):
    folder, (head, tail) = decoder(kind), FRAMES[kind]
    model = embedder(kind, query_instruction=TASK, max_batch_tokens=budget)
    queries = [head.format(TASK) + text + tail for text in TEXTS]
    np.testing.assert_allclose(model.encode_queries(TEXTS), by_hand(folder, queries), atol=1e-5, rtol=0)
    np.testing.assert_allclose(model.encode_documents(TEXTS), by_hand(folder, TEXTS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ROWS)
def test_a_cut_text_keeps_its_end(kind, embedder, decoder):
    short = embedder(kind, max_length=20)
    np.testing.assert_allclose(
        short.encode_documents(TEXTS), by_hand(decoder(kind), TEXTS, max_length=20), atol=1e-5, rtol=0
    )
    with pytest.warns(UserWarning, match="cut .* text.* to 20 tokens"):
        embedder(kind, max_length=20, on_truncate="warn").encode_documents(TEXTS)


@pytest.mark.parametrize("kind", ["gemma2", "mistral"])
def test_eos_is_last_also_where_the_tokenizer_forgets_it(kind, embedder, decoder):
    """As transformers 5 does with a tokenizer whose add_eos_token stands in tokenizer_config.json alone."""
    bare = decoder(kind, ends_in_eos=False)
    for length in (512, 20):
        vectors = embedder(kind, bare, max_length=length).encode_documents(TEXTS)
        np.testing.assert_allclose(vectors, by_hand(decoder(kind), TEXTS, max_length=length), atol=1e-5, rtol=0)


def test_other_tokenizers_are_left_alone(embedder, decoder):
    bare = decoder("qwen2", ends_in_eos=False)
    np.testing.assert_allclose(embedder("qwen2", bare).encode_documents(TEXTS), by_hand(bare, TEXTS), atol=1e-5, rtol=0)


def test_gemmas_cap_on_attention_is_left_out(embedder, decoder):
    capped, free = (decoder("gemma2", attn_logit_softcapping=cap) for cap in (0.01, None))
    np.testing.assert_array_equal(
        embedder("gemma2", capped).encode_documents(TEXTS), embedder("gemma2", free).encode_documents(TEXTS)
    )


def test_a_window_of_attention_is_kept(embedder, decoder):
    near = decoder("mistral", sliding_window=8)
    vectors = embedder("mistral", near).encode_documents(TEXTS)
    np.testing.assert_allclose(vectors, by_hand(near, TEXTS), atol=1e-5, rtol=0)
    assert np.abs(vectors - embedder("mistral").encode_documents(TEXTS)).max() > 0.01


@pytest.mark.parametrize("kind", ["gemma2", "qwen2", "qwen3"])
@pytest.mark.parametrize("instruction", [None, ""])
def test_without_a_task_the_query_is_bare(kind, instruction, embedder):
    model = embedder(kind, query_instruction=instruction)
    np.testing.assert_allclose(model.encode_queries(TEXTS), model.encode_documents(TEXTS), atol=1e-6, rtol=0)
    assert model.describe()["query"] == "{text}"


@pytest.mark.parametrize(
    ("kind", "task", "begins"), [("qwen2", "CosQA", "Given a web"), ("qwen3", "pony", "Given a Pony")]
)
def test_published_tasks(kind, task, begins, embedder):
    model = embedder(kind, task=task)
    head, _ = FRAMES[kind]
    instruction = model._row.tasks[task][0]
    assert instruction.startswith(begins)
    assert model.describe()["query"] == head.format(instruction) + "{text}"
    same = embedder(kind, query_instruction=instruction)
    np.testing.assert_allclose(model.encode_queries(TEXTS), same.encode_queries(TEXTS), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=f"not a published task .* {task}"):
        embedder(kind, task="poney")


EXAMPLES = [
    {"instruct": "Find it.", "query": "what is a bear", "response": "An animal."},
    {"query": "and bamboo?", "response": "A grass."},
]
SHOWN = (
    "<instruct>Find it.\n<query>what is a bear\n<response>An animal.\n\n"
    f"<instruct>{TASK}\n<query>and bamboo?\n<response>A grass.\n\n"
)


def test_examples_stand_before_every_query(embedder, decoder):
    model = embedder("mistral", query_instruction=TASK, examples=EXAMPLES)
    queries = [f"{SHOWN}<instruct>{TASK}\n<query>{text}\n<response>" for text in TEXTS]
    np.testing.assert_allclose(model.encode_queries(TEXTS), by_hand(decoder("mistral"), queries), atol=1e-5, rtol=0)
    np.testing.assert_allclose(model.encode_documents(TEXTS), by_hand(decoder("mistral"), TEXTS), atol=1e-5, rtol=0)
    assert model.describe()["query"] == f"{SHOWN}<instruct>{TASK}\n<query>{{text}}\n<response>"
    assert "examples" in vars(model)
    assert EXAMPLES[1] == {"query": "and bamboo?", "response": "A grass."}


def test_a_long_query_is_cut_and_its_examples_and_end_are_not(embedder, decoder):
    query = "panda " * 60
    model = embedder("mistral", query_instruction="Find.", examples=EXAMPLES[:1], max_length=64)
    start, end = "<s>", "\n<response></s>"
    tokenizer = AutoTokenizer.from_pretrained(decoder("mistral"))
    room = 64 - sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (start, end))
    ids = tokenizer(f"<instruct>Find.\n<query>{query}", add_special_tokens=False)["input_ids"][:room]
    example = "<instruct>Find it.\n<query>what is a bear\n<response>An animal.\n\n"
    reference = by_hand(decoder("mistral"), [example + tokenizer.decode(ids) + "\n<response>"])
    np.testing.assert_allclose(model.encode_queries([query]), reference, atol=1e-5, rtol=0)
    with pytest.warns(UserWarning, match="cut 1 text"):
        embedder("mistral", query_instruction="Find.", max_length=64, on_truncate="warn").encode_queries([query, "a"])


@pytest.mark.parametrize(
    "examples",
    [["a"], [{"query": "a"}], [{"query": "a", "response": 5}], [EXAMPLES[0], {**EXAMPLES[0], "answer": "c"}]],
)
def test_examples_that_are_none(examples):
    with pytest.raises(ValueError, match=rf"examples\[{len(examples) - 1}\] must be"):
        BgeEmbedder("BAAI/bge-en-icl", examples=examples)


def test_examples_for_a_model_that_takes_none(bert_embedder, cache):
    for model in ("BAAI/bge-base-en-v1.5", "BAAI/bge-multilingual-gemma2", "BAAI/bge-code-v1"):
        with pytest.raises(ValueError, match="are for models trained with examples, such as BAAI/bge-en-icl"):
            BgeEmbedder(model, examples=EXAMPLES)
    with pytest.raises(ValueError, match="are for models trained with examples"):
        BgeEmbedder(str(bert_embedder), examples=EXAMPLES, cache=cache).encode_queries(["a"])
    assert cache.stats()["loads"] == 0


def test_an_encoder_is_no_language_model(bert_embedder, cache):
    model = BgeEmbedder(str(bert_embedder), like="BAAI/bge-en-icl", cache=cache)
    with pytest.raises(UnsupportedModelError, match="'bert'; a model like BAAI/bge-en-icl must be of gemma"):
        model.encode_queries(["a"])
    assert cache.stats()["loads"] == 0


def test_the_librarys_own_pipeline_is_refused(embedder):
    with pytest.raises(UnsupportedModelError, match="cannot run BAAI/bge-code-v1"):
        embedder("qwen2", backend="sentence_transformers").encode_queries(["a"])


def test_a_folder_that_says_nothing_of_pooling(decoder, cache):
    with pytest.raises(UnknownModelError, match="Pass like="):
        BgeEmbedder(str(decoder("gemma2")), cache=cache).encode_queries(["a"])


def test_a_reranker_row_for_an_embedder(decoder):
    with pytest.raises(WrongKindError, match="is a reranker"):
        BgeEmbedder(str(decoder("gemma2")), like="BAAI/bge-reranker-v2-gemma")


def test_one_copy_whatever_the_task(embedder, cache):
    for arguments in ({}, {"query_instruction": TASK}, {"examples": EXAMPLES}):
        embedder("mistral", **arguments).encode_queries(["a"])
    assert cache.stats()["loads"] == 1
    assert cache.stats()["models"][0]["engine"] == "packed"


def test_what_one_row_needs_does_not_change_what_another_sees(embedder, decoder, cache):
    """One folder under two rows is one copy, and each row's texts end as that row says."""
    bare = decoder("qwen2", ends_in_eos=False)
    with_eos = embedder("mistral", bare, query_instruction="").encode_documents(TEXTS)
    without = embedder("qwen2", bare).encode_documents(TEXTS)
    np.testing.assert_allclose(without, by_hand(bare, TEXTS), atol=1e-5, rtol=0)
    np.testing.assert_allclose(with_eos, by_hand(decoder("qwen2"), TEXTS), atol=1e-5, rtol=0)
    assert cache.stats()["loads"] == 1
