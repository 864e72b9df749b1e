"""Our cutting and special tokens are those of the transformers tokenizer, whose state stays untouched."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
from tokenizers import processors
from transformers import AutoTokenizer

from bge_integrations.inference.tokenize import TextTokenizer

LINES = [line for line in tiny.TEXT.splitlines() if line]
TEXTS = [
    *LINES,
    "",
    " ",
    "a",
    "two\nlines  here",
    "z\u0000b",
    "[SEP] <pad> </s> [PAD] literally",
    "é\u0301 \U0001f43c",
    "w" * 300,
]
PAIRS = [*zip(TEXTS, reversed(TEXTS), strict=True)]


@pytest.fixture(params=["bert", "xlmr"])
def folder(request, bert_embedder, xlmr_embedder):
    return {"bert": bert_embedder, "xlmr": xlmr_embedder}[request.param]


@pytest.fixture
def theirs(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def ours(folder, text_tokenizer):
    return text_tokenizer(folder)


@pytest.fixture
def their_pair(theirs):
    def tokenize(query, passage, **arguments):
        batch = theirs([query], [passage], **arguments)  # alone, an empty passage would count as none
        return {name: rows[0] for name, rows in batch.items()}

    return tokenize


def same(encoding, reference):
    assert encoding.ids.tolist() == reference["input_ids"]
    if encoding.types is None:
        assert "token_type_ids" not in reference
    else:
        assert encoding.types.tolist() == reference["token_type_ids"]
    return True


def test_whole_texts(ours, theirs):
    for text, encoding in zip(TEXTS, ours.texts(TEXTS, max_length=9999), strict=True):
        assert same(encoding, theirs(text))
        assert encoding.full_length == len(encoding)


def test_whole_pairs(ours, their_pair):
    for pair, encoding in zip(PAIRS, ours.pairs(PAIRS, max_length=9999, query_max_length=9999), strict=True):
        assert same(encoding, their_pair(*pair))
        assert encoding.full_length == len(encoding)


def test_only_models_with_token_types_get_them(text_tokenizer, bert_embedder, xlmr_embedder):
    (bert,), (xlmr,) = (
        text_tokenizer(folder).pairs([("a", "b")], max_length=9, query_max_length=9)
        for folder in (bert_embedder, xlmr_embedder)
    )
    assert set(bert.types.tolist()) == {0, 1}
    assert xlmr.types is None


@pytest.mark.parametrize(
    "post_processor",
    [
        processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
        processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
        processors.TemplateProcessing(
            "[CLS]:2 $A:0 [SEP]:5 [SEP]:5", "$A:0 [SEP]:4 $B:6", [("[CLS]", 2), ("[SEP]", 3)]
        ),
        processors.TemplateProcessing("$A:0", "$A:0 $B:0", []),
    ],
    ids=["bert", "roberta", "odd", "no special tokens"],
)
def test_any_template_is_read_off_a_probe(theirs, post_processor):
    tokenizer = copy.deepcopy(theirs.backend_tokenizer)
    tokenizer.post_processor = post_processor
    ours = TextTokenizer(copy.deepcopy(tokenizer), with_types=True)
    encodings = [*ours.texts(["the panda"], max_length=99)]
    encodings += ours.pairs([("the panda", "a bear it is")], max_length=99, query_max_length=99)
    references = [tokenizer.encode("the panda"), tokenizer.encode("the panda", "a bear it is")]
    for encoding, reference in zip(encodings, references, strict=True):
        assert (encoding.ids.tolist(), encoding.types.tolist()) == (reference.ids, reference.type_ids)


def test_a_text_is_cut_at_every_length(ours, theirs):
    text = LINES[0]
    full = len(theirs(text)["input_ids"])
    for max_length in range(2, full + 3):
        (encoding,) = ours.texts([text], max_length=max_length)
        assert same(encoding, theirs(text, truncation=True, max_length=max_length))
        assert encoding.full_length == full


@pytest.mark.parametrize("max_length", [1, 2])
def test_a_limit_without_room_leaves_the_special_tokens(ours, theirs, their_pair, max_length):
    (encoding,) = ours.texts([LINES[0]], max_length=max_length)
    assert same(encoding, theirs(""))
    (pair,) = ours.pairs([("", LINES[0])], max_length=max_length, query_max_length=1)
    assert same(pair, their_pair("", ""))


def test_a_long_passage_is_cut_at_every_length(ours, their_pair):
    query, passage = LINES[3], LINES[0]
    full = len(their_pair(query, passage)["input_ids"])
    shortest = len(their_pair(query, "")["input_ids"])
    for max_length in range(shortest + 1, full + 3):
        (encoding,) = ours.pairs([(query, passage)], max_length=max_length, query_max_length=9999)
        assert same(encoding, their_pair(query, passage, truncation="only_second", max_length=max_length))
        assert encoding.full_length == full
    (encoding,) = ours.pairs([(query, passage)], max_length=shortest, query_max_length=9999)
    assert same(encoding, their_pair(query, ""))


def test_the_query_is_cut_first_and_then_only_the_passage(ours, theirs, their_pair):
    words = ["the", "and", "is", "a", "of", "in"] * 5  # one token each, so that a cut query is text again
    query, passage = " ".join(words), LINES[0]
    assert len(theirs(query, add_special_tokens=False)["input_ids"]) == len(words)
    full = len(theirs(query, passage)["input_ids"])
    for query_max_length in range(1, len(words) + 2):
        cut_query = " ".join(words[:query_max_length])
        for max_length in (40, 64, 9999):
            (encoding,) = ours.pairs([(query, passage)], max_length=max_length, query_max_length=query_max_length)
            assert same(encoding, their_pair(cut_query, passage, truncation="only_second", max_length=max_length))
            assert encoding.full_length == full


def test_pairs_that_share_a_query_equal_pairs_alone(ours):
    pairs = [(query, passage) for query in LINES[:3] for passage in LINES]
    together = ours.pairs(pairs, max_length=50, query_max_length=20)
    alone = [ours.pairs([pair], max_length=50, query_max_length=20)[0] for pair in pairs]
    assert [encoding.ids.tolist() for encoding in together] == [encoding.ids.tolist() for encoding in alone]


@pytest.mark.parametrize("prompt", ["", "Represent this sentence: ", "查询："])
def test_the_length_of_a_prompt_counts_what_stands_before_the_text(ours, theirs, prompt):
    assert ours.prompt_length(prompt) == (len(theirs(prompt)["input_ids"]) - 1 if prompt else 0)


def test_special_tokens_of_a_pair(ours, theirs):
    assert ours.pair_special_tokens == theirs.num_special_tokens_to_add(pair=True)


def test_the_tokenizers_state_never_changes(theirs):
    backend = copy.deepcopy(theirs.backend_tokenizer)
    backend.enable_truncation(7)
    backend.enable_padding(length=11)
    ours = TextTokenizer(backend, with_types=True)
    before = backend.to_str()
    for limit in (3, 12, 400):
        ours.texts(TEXTS, max_length=limit)
        ours.pairs(PAIRS, max_length=limit, query_max_length=limit // 2)
    assert backend.to_str() == before
    assert backend.truncation is backend.padding is None


def test_threads_with_different_limits_equal_serial(ours):
    jobs = [(limit, query_limit) for limit in range(8, 72) for query_limit in (3, 5)]

    def work(job):
        limit, query_limit = job
        pairs = ours.pairs(PAIRS, max_length=limit, query_max_length=query_limit)
        return [encoding.ids.tolist() for encoding in [*ours.texts(TEXTS, max_length=limit), *pairs]]

    with ThreadPoolExecutor(16) as pool:
        assert [*pool.map(work, jobs)] == [*map(work, jobs)]
