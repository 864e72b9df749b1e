"""The catalogue holds the published facts and refuses mistyped names."""

import copy
import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bge_integrations.catalog import check_name, get_spec, list_models
from bge_integrations.errors import UnknownModelError
from bge_integrations.types import Pooling

EN = "Represent this sentence for searching relevant passages: "
ZH = "为这个句子生成表示以用于检索相关文章\N{FULLWIDTH COLON}"

# id, languages, dim, layers, vocabulary, parameters, query instruction
BERT = [
    ("BAAI/bge-small-en", "en", 384, 12, 30522, 33_360_000, EN),
    ("BAAI/bge-base-en", "en", 768, 12, 30522, 109_482_240, EN),
    ("BAAI/bge-large-en", "en", 1024, 24, 30522, 335_141_888, EN),
    ("BAAI/bge-small-zh", "zh", 512, 4, 21128, 23_953_920, ZH),
    ("BAAI/bge-base-zh", "zh", 768, 12, 21128, 102_267_648, ZH),
    ("BAAI/bge-large-zh", "zh", 1024, 24, 21128, 325_522_432, ZH),
    ("BAAI/bge-large-zh-noinstruct", "zh", 1024, 24, 21128, 325_522_432, ""),
    ("BAAI/bge-small-en-v1.5", "en", 384, 12, 30522, 33_360_000, EN),
    ("BAAI/bge-base-en-v1.5", "en", 768, 12, 30522, 109_482_240, EN),
    ("BAAI/bge-large-en-v1.5", "en", 1024, 24, 30522, 335_141_888, EN),
    ("BAAI/bge-small-zh-v1.5", "zh", 512, 4, 21128, 23_953_920, ZH),
    ("BAAI/bge-base-zh-v1.5", "zh", 768, 12, 21128, 102_267_648, ZH),
    ("BAAI/bge-large-zh-v1.5", "zh", 1024, 24, 21128, 325_522_432, ZH),
    (
        "BAAI/llm-embedder",
        "en",
        768,
        12,
        30522,
        109_482_240,
        "Represent this query for retrieving relevant documents: ",
    ),
]
M3 = ["BAAI/bge-m3", "BAAI/bge-m3-unsupervised", "BAAI/bge-m3-retromae"]
# id, hidden size, layers, parameters, most tokens, licence
CROSS_ENCODERS = [
    ("BAAI/bge-reranker-base", 768, 12, 278_044_417, 512, "mit"),
    ("BAAI/bge-reranker-large", 1024, 24, 559_891_457, 512, "mit"),
    ("BAAI/bge-reranker-v2-m3", 1024, 24, 567_755_777, 8192, "apache-2.0"),
]
# id, model type, dim, layers, parameters, max_length, query template, licence
LLM_EMBEDDERS = [
    ("BAAI/bge-multilingual-gemma2", "gemma2", 3584, 42, 9_241_713_152, 8192,
     "<instruct>{instruction}\n<query>{query}", "gemma"),
    ("BAAI/bge-en-icl", "mistral", 4096, 32, 7_110_672_384, 32768,
     "<instruct>{instruction}\n<query>{query}\n<response>", "apache-2.0"),
    ("BAAI/bge-code-v1", "qwen2", 1536, 28, 1_543_714_304, 32768,
     "<instruct>{instruction}\n<query>{query}", "apache-2.0"),
    ("BAAI/bge-reasoner-embed-qwen3-8b-0923", "qwen3", 4096, 36, 7_568_405_504, 32768,
     "Instruct: {instruction}\nQuery: {query}", "not verified"),
]  # fmt: skip
LLM_RERANKERS = [
    ("BAAI/bge-reranker-v2-gemma", "llm", "gemma", 2048, 18, 2_506_172_416, 8192, "Given a query A and a passage B,"),
    (
        "BAAI/bge-reranker-v2-minicpm-layerwise", "layerwise", "minicpm", 2304, 40, 2_720_000_000, 2048,
        "Given a query A and a passage B,",
    ),
    (
        "BAAI/bge-reranker-v2.5-gemma2-lightweight", "lightweight", "cost_wise_gemma", 3584, 42, 9_240_000_000, 8192,
        "Predict whether passage B contains an answer to query A.",
    ),
]  # fmt: skip
UNSUPPORTED_RERANKERS = [
    "BAAI/Matroyshka-ReRanker-passage",
    "BAAI/Matroyshka-ReRanker-document",
    "BAAI/Matroyshka-ReRanker-beir",
    "BGE-Reasoner-Reranker",
]
IMAGE_TEXT = [
    "BAAI/BGE-VL-base",
    "BAAI/BGE-VL-large",
    "BAAI/BGE-VL-MLLM-S1",
    "BAAI/BGE-VL-MLLM-S2",
    "BAAI/BGE-VL-v1.5-zs",
    "BAAI/BGE-VL-v1.5-mmeb",
    "BAAI/bge-visualized",
]
ALIASES = {
    "BAAI/baai-general-embedding-large-en-instruction": "BAAI/bge-large-en",
    "BAAI/baai-general-embedding-large-zh-instruction": "BAAI/bge-large-zh",
    "BAAI/baai-general-embedding-large-zh": "BAAI/bge-large-zh-noinstruct",
    "Supabase/bge-small-en": "BAAI/bge-small-en",
    "Xenova/bge-small-en": "BAAI/bge-small-en",
    "Xenova/bge-base-en": "BAAI/bge-base-en",
    "Xenova/bge-large-en": "BAAI/bge-large-en",
    "Xenova/bge-small-en-v1.5": "BAAI/bge-small-en-v1.5",
    "Xenova/bge-base-en-v1.5": "BAAI/bge-base-en-v1.5",
    "Xenova/bge-large-en-v1.5": "BAAI/bge-large-en-v1.5",
    "Xenova/bge-small-zh-v1.5": "BAAI/bge-small-zh-v1.5",
    "Xenova/bge-base-zh-v1.5": "BAAI/bge-base-zh-v1.5",
    "Xenova/bge-large-zh-v1.5": "BAAI/bge-large-zh-v1.5",
    "Xenova/bge-large-zh": "BAAI/bge-large-zh",
    "Xenova/bge-m3": "BAAI/bge-m3",
    "Xenova/bge-reranker-base": "BAAI/bge-reranker-base",
    "Xenova/bge-reranker-large": "BAAI/bge-reranker-large",
    "BAAI/bge-vl-base": "BAAI/BGE-VL-base",
    "nebula2025/CodeR-full": "BAAI/bge-code-v1",
    "tiendung/gemma2reranking": "BAAI/bge-reranker-v2.5-gemma2-lightweight",
    "BGE-Reasoner-Embed-Qwen3-8B-0923": "BAAI/bge-reasoner-embed-qwen3-8b-0923",
    "BGE-Reasoner-Reranker (8B/14B/32B)": "BGE-Reasoner-Reranker",
}


@pytest.mark.parametrize(("name", "languages", "dim", "layers", "vocabulary", "params", "instruction"), BERT)
def test_bert_rows(name, languages, dim, layers, vocabulary, params, instruction):
    row = get_spec(name)
    assert (row.id, row.kind, row.model_type, row.languages) == (name, "embedder", "bert", languages)
    assert (row.dim, row.hidden_size, row.layers, row.vocab_size, row.params) == (dim, dim, layers, vocabulary, params)
    assert (row.max_length, row.max_positions, row.pooling, row.normalize) == (512, 512, Pooling.CLS, True)
    assert row.query_instruction == instruction
    assert row.license == "mit"
    assert row.unsupported is None


@pytest.mark.parametrize("name", M3)
def test_m3_rows(name):
    row = get_spec(name)
    assert (row.kind, row.model_type, row.dim, row.layers) == ("embedder", "xlm-roberta", 1024, 24)
    assert (row.vocab_size, row.params, row.license) == (250002, 567_754_752, "mit")
    assert (row.max_length, row.max_positions, row.pooling, row.normalize) == (8192, 8192, Pooling.CLS, True)
    assert (row.query_instruction, row.document_instruction, row.unsupported) == ("", "", None)


@pytest.mark.parametrize(("name", "hidden", "layers", "params", "positions", "licence"), CROSS_ENCODERS)
def test_cross_encoder_rows(name, hidden, layers, params, positions, licence):
    row = get_spec(name)
    assert (row.kind, row.model_type, row.hidden_size, row.layers) == ("reranker", "xlm-roberta", hidden, layers)
    assert (row.vocab_size, row.params, row.license) == (250002, params, licence)
    assert (row.max_length, row.max_positions) == (512, positions)
    assert (row.pooling, row.dim, row.query_instruction, row.unsupported) == (None, None, "", None)


@pytest.mark.parametrize(
    ("name", "model_type", "dim", "layers", "params", "length", "template", "licence"), LLM_EMBEDDERS
)
def test_llm_embedder_rows(name, model_type, dim, layers, params, length, template, licence):
    row = get_spec(name)
    assert (row.kind, row.model_type, row.dim, row.layers, row.params) == ("embedder", model_type, dim, layers, params)
    assert (row.max_length, row.pooling, row.normalize, row.license) == (length, Pooling.LAST_TOKEN, True, licence)
    assert (row.query_instruction, row.query_template) == ("", template)
    assert row.few_shot == (name == "BAAI/bge-en-icl")
    assert row.ends_in_eos == (model_type in ("gemma2", "mistral"))
    assert row.unsupported is None


@pytest.mark.parametrize(
    ("name", "family", "model_type", "hidden", "layers", "params", "positions", "prompt"), LLM_RERANKERS
)
def test_llm_reranker_rows(name, family, model_type, hidden, layers, params, positions, prompt):
    row = get_spec(name)
    assert (row.kind, row.family, row.model_type) == ("reranker", family, model_type)
    assert (row.hidden_size, row.layers, row.params) == (hidden, layers, params)
    assert (row.max_length, row.max_positions) == (512, positions)
    assert (row.query_instruction, row.document_instruction) == ("A: ", "B: ")
    assert row.prompt.startswith(prompt)
    assert row.start_layer == (None if family == "llm" else 8)
    assert row.unsupported is None


@pytest.mark.parametrize("name", [*UNSUPPORTED_RERANKERS, *IMAGE_TEXT])
def test_other_models_are_listed_with_one_sentence_why_they_cannot_run(name):
    row = get_spec(name)
    assert row.kind == ("reranker" if name in UNSUPPORTED_RERANKERS else "embedder")
    assert row.pooling is None
    assert row.unsupported
    assert row.unsupported.endswith(".")
    assert row.unsupported.count(". ") == 0


def test_nothing_else_is_listed():
    expected = [row[0] for row in (*BERT, *LLM_EMBEDDERS, *CROSS_ENCODERS, *LLM_RERANKERS)]
    expected += [*M3, *UNSUPPORTED_RERANKERS, *IMAGE_TEXT]
    expected += ["bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en"]  # tests/test_pair.py
    assert sorted(row.id for row in list_models()) == sorted(expected)


def test_chinese_instructions_end_in_the_full_width_colon():
    chinese = [row for row in list_models() if row.languages == "zh" and row.id != "BAAI/bge-large-zh-noinstruct"]
    assert len(chinese) == 6
    assert all(ord(row.query_instruction[-1]) == 0xFF1A for row in chinese)


def test_llm_embedder_has_six_pairs_and_uses_qa():
    row = get_spec("BAAI/llm-embedder")
    assert list(row.tasks) == ["qa", "icl", "chat", "lrlm", "tool", "convsearch"]
    assert row.tasks["qa"] == (row.query_instruction, row.document_instruction)
    assert row.document_instruction == "Represent this document for retrieval: "
    assert row.tasks["convsearch"][1] == "Encode this passage for retrieval: "


@pytest.mark.parametrize(("name", "tasks"), [("BAAI/bge-code-v1", 11), ("BAAI/bge-reasoner-embed-qwen3-8b-0923", 12)])
def test_published_tasks_have_no_document_side(name, tasks):
    row = get_spec(name)
    assert len(row.tasks) == tasks
    assert all(query.startswith("Given a") and query.endswith(".") for query, _ in row.tasks.values())
    assert {document for _, document in row.tasks.values()} == {""}


def test_names_are_unique():
    names = [name for row in list_models() for name in (row.id, *row.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases(alias, name):
    assert get_spec(alias) is get_spec(name)
    check_name(alias)


def test_rows_cannot_be_changed():
    row = get_spec("BAAI/llm-embedder")
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.license = "other"
    with pytest.raises(TypeError, match="cannot be changed"):
        row.tasks["qa"] = ("", "")
    with pytest.raises(TypeError, match="cannot be changed"):
        row.tasks.update(new=("", ""))
    assert len(row.tasks) == 6


@pytest.mark.parametrize("row", list_models(), ids=lambda row: row.id)
def test_rows_pickle_copy_hash_and_turn_into_json(row):
    assert pickle.loads(pickle.dumps(row)) == row == copy.deepcopy(row)
    assert hash(copy.copy(row)) == hash(row)
    assert json.loads(json.dumps(dataclasses.asdict(row)))["id"] == row.id


def test_list_models_by_kind():
    embedders, rerankers = list_models("embedder"), list_models(kind="reranker")
    assert {row.kind for row in embedders} == {"embedder"}
    assert {row.kind for row in rerankers} == {"reranker"}
    assert set(embedders) | set(rerankers) == set(list_models())
    with pytest.raises(ValueError, match=r"kind='rerankers' is not possible.*reranker"):
        list_models("rerankers")


@pytest.mark.parametrize("end", ["", "/"])
@pytest.mark.parametrize("start", ["/home/me/.cache/huggingface/hub/", "hub/", ""])
def test_a_folder_of_the_hub_cache_gives_the_row(start, end):
    path = f"{start}models--BAAI--bge-base-en-v1.5/snapshots/a5beb1e3e68b9ab74eb54cfd186867f64f240e1a{end}"
    assert get_spec(path) is get_spec("BAAI/bge-base-en-v1.5")
    check_name(path)


def test_a_windows_folder_of_the_hub_cache_gives_the_row():
    assert get_spec(r"C:\hub\models--BAAI--bge-m3\snapshots\abc").id == "BAAI/bge-m3"


def test_another_folder_of_the_hub_cache_takes_its_parents_row():
    path = "/hub/models--me--bge-m3-mine/snapshots/abc"
    assert get_spec(path, like="BAAI/bge-m3").id == "BAAI/bge-m3"
    with pytest.raises(UnknownModelError):
        get_spec(path)


def test_a_part_of_a_name_decides_nothing():
    for name in ("me/bge-small-zh-v1.5-finetuned", "/models/BAAI/bge-small-zh", "bge-m3", "baai/bge-m3"):
        with pytest.raises(UnknownModelError):
            get_spec(name)


def test_like_gives_a_fine_tune_its_parents_row():
    assert get_spec("me/my-model", like="BAAI/bge-small-zh").query_instruction == ZH
    assert get_spec("me/my-model", like="Xenova/bge-m3").id == "BAAI/bge-m3"


def test_like_does_not_override_a_catalogued_name():
    assert get_spec("BAAI/bge-m3", like="BAAI/bge-small-zh").id == "BAAI/bge-m3"


def test_an_unknown_like_is_refused_by_name():
    with pytest.raises(UnknownModelError, match=r'^like="BAAI/bge-m4" is not in the catalogue.*"BAAI/bge-m3"'):
        get_spec("me/my-model", like="BAAI/bge-m4")


def test_an_unknown_name_says_what_is_near_and_what_to_do():
    with pytest.raises(UnknownModelError, match=r'like="\.\.\.".*list_models\(\)') as caught:
        get_spec("BAAI/bge-small-en-v15")
    assert '"BAAI/bge-small-en-v15"' in str(caught.value)
    assert 'Nearest: "BAAI/bge-small-en-v1.5"' in str(caught.value)
    assert isinstance(caught.value, LookupError)


def test_nothing_is_called_near_when_nothing_is():
    with pytest.raises(UnknownModelError, match=r"^(?!.*Nearest)"):
        get_spec("qqqqqq/zzzzzzzzz")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("BAAI/bge-small-en-v15", "BAAI/bge-small-en-v1.5"),
        ("BAAI/bge-reranker-v2m3", "BAAI/bge-reranker-v2-m3"),
        ("BAAI/bge-large", "BAAI/bge-large-en"),
        ("baai/bge-m3", "BAAI/bge-m3"),
        ("BAAI/bge-m3/", "BAAI/bge-m3"),
        ("BBAI/bge-m3", "BAAI/bge-m3"),
        ("BAII/bge-reranker-large", "BAAI/bge-reranker-large"),
        (" BAAI/bge-m3", "BAAI/bge-m3"),
        ("bge-m3", "BAAI/bge-m3"),
        ("bge-base-en-v1-5", "BAAI/bge-base-en-v1.5"),
        ("BAAI/LLARA-passage", "Matroyshka"),
    ],
)
def test_check_name_refuses_near_misses(name, nearest):
    with pytest.raises(UnknownModelError, match=nearest):
        check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "BAAI/bge-m3",
        "michaelfeil/bge-small-en-v1.5",
        "me/bge-base-en-v1.5-finetuned",
        "sentence-transformers/all-MiniLM-L6-v2",
        "all-MiniLM-L6-v2",
        "./bge-m3",
        "/models/BAAI/bge-m3-mine",
        "models/BAAI/bge-m3",
    ],
)
def test_check_name_lets_others_pass(name):
    check_name(name)


@pytest.mark.parametrize("name", ["bge-m3", "BAAI/bge-m3-mine", "BBAI/bge-m3"])
def test_check_name_lets_an_existing_folder_pass(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check_name(name)


@pytest.mark.parametrize("name", ["", "  "])
def test_check_name_refuses_an_empty_name(name):
    with pytest.raises(ValueError, match="empty"):
        check_name(name)


IDS = [row.id for row in list_models() if row.id.startswith("BAAI/")]
NAMES = {name for row in list_models() for name in (row.id, *row.aliases)}


@given(name=st.sampled_from(IDS), data=st.data())
def test_one_wrong_character_under_baai_is_refused_with_the_right_name(name, data):
    position = data.draw(st.integers(len("BAAI/"), len(name) - 1))
    typed = name[:position] + data.draw(st.sampled_from("xq_")) + name[position + 1 :]
    with pytest.raises(UnknownModelError) as caught:
        check_name(typed)
    assert f'"{name}"' in str(caught.value)


@given(name=st.sampled_from(IDS), position=st.integers(0, 3))
def test_a_dropped_letter_of_the_organisation_is_refused_with_the_right_name(name, position):
    with pytest.raises(UnknownModelError) as caught:
        check_name(name[:position] + name[position + 1 :])
    assert f'"{name}"' in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "\0", "\ud800"])
def test_a_name_that_no_file_can_have_passes(name):
    check_name(name)


@given(name=st.text(min_size=1).filter(str.strip))
def test_any_text_passes_or_is_refused_by_name(name):
    try:
        check_name(name)
    except UnknownModelError as error:
        message = str(error)
    else:
        return
    assert f'"{name}"' in message
    assert name not in NAMES
