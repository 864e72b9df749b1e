"""`HuggingFaceBgeEmbeddings` beside the class it replaces, which is the reference and imports nothing of ours."""

import copy
import inspect
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from langchain_community.embeddings import HuggingFaceBgeEmbeddings as Reference
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from pydantic import SecretStr, ValidationError
from sentence_transformers import SentenceTransformer
from tiny import make_bert_embedder, make_xlmr_embedder

from bge_integrations import UnknownModelError, WrongKindError
from bge_integrations.langchain import HuggingFaceBgeEmbeddings

TEXTS = [
    "The giant panda is a bear that lives in the mountains of central China.",
    "two\nlines\n\nand a\r\nthird",
    "",
    "   ",
    "大熊猫生活在中国",
    "long " * 700,
    "The giant panda is a bear that lives in the mountains of central China.",
]
OLD_QUERY = "Represent this question for searching relevant passages: "
PROMPTS = {"query": "query: ", "passage": "passage: "}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    defaulted = make_bert_embedder(root / "defaulted", prompts=PROMPTS)
    settings = defaulted / "config_sentence_transformers.json"
    settings.write_text(json.dumps({"prompts": PROMPTS, "default_prompt_name": "passage"}), encoding="utf-8")
    bare_prompt = make_bert_embedder(root / "bare-prompt", pooling="mean", prompts=PROMPTS)
    pooling = json.loads((bare_prompt / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    (bare_prompt / "1_Pooling" / "config.json").write_text(json.dumps({**pooling, "include_prompt": False}))
    return {
        "bert-cls": make_bert_embedder(root / "bert-cls"),
        "bert-mean-raw": make_bert_embedder(root / "bert-mean-raw", pooling="mean", normalize=False),
        "bert-short": make_bert_embedder(root / "bert-short", max_length=16),
        "bert-max": make_bert_embedder(root / "bert-max", pooling="max", normalize=False),
        "xlmr-cls": make_xlmr_embedder(root / "xlmr-cls"),
        "xlmr-raw-zh": make_xlmr_embedder(root / "xlmr-raw-zh", normalize=False),
        "no-modules": make_bert_embedder(root / "no-modules", modules=False),
        "prompts": make_bert_embedder(root / "prompts", normalize=False, prompts=PROMPTS),
        "defaulted": defaulted,
        "bare-prompt": bare_prompt,
        "minilm": minilm,
    }


def _reference(folder: Path | str, **arguments: Any) -> Reference:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Reference(model_name=str(folder), **copy.deepcopy(arguments))


def _ours(folder: Path | str, **arguments: Any) -> HuggingFaceBgeEmbeddings:
    return HuggingFaceBgeEmbeddings(**{"model_name": str(folder), "query_instruction": OLD_QUERY, **arguments})


def _assert_same(folder: Path | str, tolerance: float = 1e-5, query: str = TEXTS[0], **arguments: Any) -> None:
    reference, ours = _reference(folder, **arguments), _ours(folder, **arguments)
    documents = ours.embed_documents(TEXTS)
    np.testing.assert_allclose(documents, reference.embed_documents(TEXTS), rtol=0, atol=tolerance)
    if reference.query_instruction == ours.query_instruction:
        np.testing.assert_allclose(ours.embed_query(query), reference.embed_query(query), rtol=0, atol=tolerance)
    assert json.loads(json.dumps(documents)) == documents


NAMES = [
    "bert-cls", "bert-mean-raw", "bert-short", "bert-max", "xlmr-cls", "xlmr-raw-zh", "no-modules", "prompts",
    "defaulted", "minilm",
]  # fmt: skip
ENCODE_KWARGS: list[dict[str, Any]] = [
    {},
    {"normalize_embeddings": True},
    {"normalize_embeddings": False, "batch_size": 1},
    {"truncate_dim": 8},
    {"truncate_dim": 8, "normalize_embeddings": True},
    {"prompt": "Represent this:\n"},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encode_kwargs", ENCODE_KWARGS, ids=str)
def test_vectors_are_the_old_ones(folders: dict[str, Path], name: str, encode_kwargs: dict[str, Any]) -> None:
    _assert_same(folders[name], encode_kwargs=encode_kwargs, model_kwargs={"device": "cpu"})


@pytest.mark.parametrize(
    "arguments",
    [
        {"embed_instruction": "passage: "},
        {"embed_instruction": "two\nlines: ", "query_instruction": "what\nis it: "},
        {"query_instruction": "", "embed_instruction": ""},
        {"encode_kwargs": {"prompt_name": "query"}, "embed_instruction": "then: "},
        {"encode_kwargs": {"prompt": "first: ", "prompt_name": "query"}},
        {"encode_kwargs": {"prompt": ""}},
        {
            "encode_kwargs": {
                "convert_to_tensor": True,
                "show_progress_bar": False,
                "output_value": "sentence_embedding",
            }
        },
        {"encode_kwargs": {"device": "cpu"}},
        {"encode_kwargs": {"truncate_dim": 4}, "model_kwargs": {"truncate_dim": 16}},
        {"model_kwargs": {"truncate_dim": 16, "similarity_fn_name": "dot"}},
        {"model_kwargs": {"prompts": {"passage": "other: ", "mine": "my: "}, "default_prompt_name": "mine"}},
        {"model_kwargs": {"prompts": {"mine": "my: "}}, "encode_kwargs": {"prompt_name": "passage"}},
        {"model_kwargs": {"default_prompt_name": "query"}},
        {"model_kwargs": {"torch_dtype": torch.float32, "backend": "torch", "local_files_only": True}},
        {"model_kwargs": {"trust_remote_code": False, "revision": None, "token": None, "device": None}},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["prompts", "defaulted"])
def test_arguments_mean_what_they_meant(folders: dict[str, Path], name: str, arguments: dict[str, Any]) -> None:
    _assert_same(folders[name], **arguments)


def test_prompts_may_stay_out_of_the_pooling(folders: dict[str, Path]) -> None:
    _assert_same(folders["bare-prompt"], encode_kwargs={"prompt_name": "query"}, embed_instruction="then: ")


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", torch.float16])
def test_torch_dtype_is_honoured(folders: dict[str, Path], dtype: Any) -> None:
    _assert_same(folders["bert-cls"], tolerance=3e-2, model_kwargs={"torch_dtype": dtype})
    exact = _ours(folders["bert-cls"]).embed_documents(TEXTS)
    vectors = _ours(folders["bert-cls"], model_kwargs={"torch_dtype": dtype}).embed_documents(TEXTS)
    assert not np.allclose(vectors, exact, atol=1e-6)
    for key in ("torch_dtype", "dtype"):
        for given in ({key: dtype}, {"model_kwargs": {key: dtype}}, {"dtype": dtype, "model_kwargs": {key: dtype}}):
            ours = _ours(folders["bert-cls"], model_kwargs=given)
            np.testing.assert_allclose(ours.embed_documents(TEXTS), vectors, atol=1e-6)
            assert HuggingFaceBgeEmbeddings.model_validate_json(ours.model_dump_json()).embed_query("a") == (
                pytest.approx(ours.embed_query("a"), abs=1e-6)
            )


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8", "binary", "ubinary"])
async def test_precision_is_honoured(folders: dict[str, Path], precision: str) -> None:
    arguments: dict[str, Any] = {"encode_kwargs": {"precision": precision}}
    ours, reference = _ours(folders["minilm"], **arguments), _reference(folders["minilm"], **arguments)
    documents = ours.embed_documents(TEXTS)
    # A value on the edge between two steps may fall to either side.
    np.testing.assert_allclose(
        documents, reference.embed_documents(TEXTS), atol=1 if precision.endswith("int8") else 1e-5
    )
    np.testing.assert_allclose(await ours.aembed_documents(TEXTS), documents, atol=1e-6)
    json.dumps(documents)
    assert ours.embed_documents([]) == []
    if precision.endswith("int8"):
        with pytest.raises(ValueError, match="single embedding"):
            ours.embed_query("one text has no range")
    else:
        np.testing.assert_allclose(ours.embed_query("panda"), reference.embed_query("panda"), atol=1e-5)


def test_a_bare_name_and_a_cache_folder_mean_what_they_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # the old class looks for adapters in any case
    repository = tmp_path / "models--sentence-transformers--tiny-bert"
    make_bert_embedder(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    _assert_same("tiny-bert", cache_folder=str(tmp_path), model_kwargs={"local_files_only": True})
    with pytest.raises(UnknownModelError, match="BAAI/bge-small-en-v1.5"):
        _ours("bge-small-en-v15")


def test_weights_kept_in_half_precision_still_run_in_float32(tmp_path: Path) -> None:
    folder = make_bert_embedder(tmp_path / "model")
    SentenceTransformer(str(folder), device="cpu").half().save(str(tmp_path / "half"))
    full = SentenceTransformer(str(tmp_path / "half"), device="cpu", model_kwargs={"dtype": torch.float32})
    texts = [text.replace("\n", " ") for text in TEXTS]
    expected = full.encode(texts)
    np.testing.assert_allclose(_ours(tmp_path / "half").embed_documents(TEXTS), expected, rtol=0, atol=1e-5)


async def test_async_is_sync(folders: dict[str, Path]) -> None:
    ours = _ours(folders["prompts"], embed_instruction="doc: ", encode_kwargs={"prompt_name": "query"})
    np.testing.assert_allclose(await ours.aembed_documents(TEXTS), ours.embed_documents(TEXTS), atol=1e-6)
    np.testing.assert_allclose(await ours.aembed_query("a\nb"), ours.embed_query("a b"), atol=1e-6)
    assert {type(value) for value in await ours.aembed_query("a")} == {float}


@pytest.mark.parametrize("texts", ["a bare string", ["fine", None], ["fine", 3], None])
def test_what_is_no_text_is_refused(folders: dict[str, Path], texts: Any) -> None:
    ours = _ours(folders["bert-cls"])
    with pytest.raises(TypeError):
        ours.embed_documents(texts)
    assert ours.embed_documents([]) == []
    assert len(ours.embed_query("still works")) == 32


class TestStandard(EmbeddingsIntegrationTests):
    @pytest.fixture(autouse=True)
    def _folder(self, folders: dict[str, Path]) -> None:
        self.params = {"model_name": str(folders["minilm"]), "query_instruction": "", "model_kwargs": {"device": "cpu"}}

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return HuggingFaceBgeEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return self.params


def test_keywords_are_the_old_ones() -> None:
    assert set(HuggingFaceBgeEmbeddings.model_fields) == set(Reference.model_fields) - {"client"}
    with pytest.raises(ValidationError, match="multi_process"):
        HuggingFaceBgeEmbeddings(model_name="BAAI/bge-m3", multi_process=True)  # type: ignore[call-arg]
    with pytest.raises(UnknownModelError, match="BAAI/bge-small-en-v1.5"):
        HuggingFaceBgeEmbeddings(model_name="BAAI/bge-small-en-v15")
    with pytest.raises(WrongKindError):
        HuggingFaceBgeEmbeddings(model_name="BAAI/bge-reranker-base", query_instruction="")


ZH = "为这个句子生成表示以用于检索相关文章："


@pytest.mark.parametrize(
    ("model_name", "instruction"),
    [
        ("BAAI/bge-base-en-v1.5", "Represent this sentence for searching relevant passages: "),
        ("BAAI/bge-m3", ""),
        ("BAAI/bge-large-zh-noinstruct", ""),
        ("someone/other-embedder", ""),
    ],
)
def test_the_right_default_instruction_and_one_warning(model_name: str, instruction: str) -> None:
    with pytest.warns(UserWarning, match="query_instruction") as seen:
        ours = HuggingFaceBgeEmbeddings(model_name=model_name)
    assert ours.query_instruction == instruction
    assert len(seen) == 1
    assert repr(instruction) in str(seen[0].message)
    assert (ZH if "-zh" in model_name else OLD_QUERY) in str(seen[0].message)
    assert seen[0].filename == __file__


@pytest.mark.parametrize("model_name", ["BAAI/bge-base-zh-v1.5", "BAAI/bge-small-zh"])
def test_no_warning_where_the_default_stays(model_name: str) -> None:
    assert HuggingFaceBgeEmbeddings(model_name=model_name).query_instruction == ZH


def test_the_default_model_stays() -> None:
    with pytest.warns(UserWarning, match="sentence"):
        assert HuggingFaceBgeEmbeddings().model_name == Reference.model_fields["model_name"].default


@pytest.mark.parametrize("model_name", ["BAAI/bge-base-zh-v1.5", "BAAI/bge-m3"])
@pytest.mark.parametrize("instruction", ["", "mine: ", OLD_QUERY])
def test_a_given_instruction_is_honoured_in_silence(model_name: str, instruction: str) -> None:
    ours = HuggingFaceBgeEmbeddings(model_name=model_name, query_instruction=instruction)
    assert ours.query_instruction == instruction


def test_an_instruction_set_later_is_honoured(folders: dict[str, Path]) -> None:
    ours = _ours(folders["xlmr-raw-zh"], query_instruction="")
    plain = ours.embed_query("panda")
    ours.query_instruction = "q: "
    np.testing.assert_allclose(ours.embed_query("panda"), ours.embed_documents(["q: panda"])[0], atol=1e-6)
    ours.encode_kwargs["normalize_embeddings"] = True
    np.testing.assert_allclose(np.linalg.norm(ours.embed_query("panda")), 1, atol=1e-5)
    assert abs(np.linalg.norm(plain) - 1) > 1e-3


def test_given_dicts_stay_as_they_are(folders: dict[str, Path]) -> None:
    model_kwargs = {"device": "cpu", "torch_dtype": "float32", "prompts": {"a": "b: "}, "default_prompt_name": "a"}
    encode_kwargs = {"show_progress_bar": False, "normalize_embeddings": True}
    kept = copy.deepcopy((model_kwargs, encode_kwargs))
    ours = _ours(folders["minilm"], model_kwargs=model_kwargs, encode_kwargs=encode_kwargs)
    ours.embed_documents(TEXTS)
    assert (model_kwargs, encode_kwargs) == kept
    assert (ours.model_kwargs, ours.encode_kwargs) == kept


def test_every_argument_of_sentence_transformers_is_honoured_or_refused(folders: dict[str, Path]) -> None:
    odd = object()
    for name in set(inspect.signature(SentenceTransformer.__init__).parameters) - {"self"}:
        _assert_known("model_kwargs", name, odd, folders["minilm"])
    for name in set(inspect.signature(SentenceTransformer.encode).parameters) - {"self", "kwargs"}:
        _assert_known("encode_kwargs", name, odd, folders["minilm"])


def _assert_known(which: str, name: str, value: object, folder: Path) -> None:
    """An odd value is taken, or refused in a sentence that is about this very key."""
    try:
        _ours(folder, **{which: {name: value}})
    except (ValueError, TypeError) as error:
        assert name in str(error), error
        assert "not an argument" not in str(error), error


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"model_kwargs": {"attn_implementation": "flash_attention_2"}}, "attn_implementation"),
        ({"model_kwargs": {"backend": "onnx"}}, "'torch'"),
        ({"model_kwargs": {"prompts": {"mine": "my: "}}}, "prompt_name"),
        ({"model_kwargs": {"cache_folder": "/somewhere"}}, "cache_folder="),
        ({"model_kwargs": {"torch_dtype": "auto"}}, "torch_dtype.*float16"),
        ({"model_kwargs": {"model_kwargs": {"dtype": "auto"}}}, "torch_dtype.*float16"),
        ({"model_kwargs": {"model_kwargs": {"attn_implementation": "eager"}}}, "attn_implementation"),
        ({"model_kwargs": {"model_kwargs": "float16"}}, "model_kwargs.*dict"),
        ({"model_kwargs": {"dtype": "float16", "torch_dtype": "float32"}}, "several dtypes: float16, float32"),
        ({"model_kwargs": {"processor_kwargs": {"model_max_length": 64}}}, "max_length"),
        ({"model_kwargs": {"token": "a", "use_auth_token": "b"}}, "use_auth_token"),
        ({"model_kwargs": {"devise": "cpu"}}, "devise.*not an argument"),
        ({"encode_kwargs": {"normalise_embeddings": True}}, "normalise_embeddings.*not an argument"),
        ({"encode_kwargs": {"output_value": "token_embeddings"}}, "output_value"),
        ({"encode_kwargs": {"output_value": None}}, "output_value"),
        ({"encode_kwargs": {"device": ["cpu", "cpu"]}}, "device"),
        ({"encode_kwargs": {"pool": {"input": None}}}, "pool"),
        ({"encode_kwargs": {"precision": "int4"}}, "int4"),
        ({"encode_kwargs": {"batch_size": 0}}, "batch_size"),
        ({"encode_kwargs": {"task": "query"}}, "task"),
        ({"encode_kwargs": {"processing_kwargs": {"text": {"max_length": 8}}}}, "max_length"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(
    folders: dict[str, Path], arguments: dict[str, Any], match: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        _ours(folders["minilm"], **arguments)


@pytest.mark.parametrize(
    "arguments", [{"encode_kwargs": {"prompt_name": "nope"}}, {"model_kwargs": {"default_prompt_name": "nope"}}]
)
def test_an_unknown_prompt_is_refused(folders: dict[str, Path], arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nope.*passage"):
        _ours(folders["prompts"], **arguments).embed_documents(TEXTS)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, False),
        ({"show_progress": True}, True),
        ({"encode_kwargs": {"show_progress_bar": True}}, True),
        ({"show_progress": True, "encode_kwargs": {"show_progress_bar": False}}, False),
    ],
    ids=str,
)
def test_progress(
    folders: dict[str, Path], arguments: dict[str, Any], shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = _ours(folders["bert-cls"], **arguments)
    ours.embed_documents(["load"])
    capsys.readouterr()
    ours.embed_documents(TEXTS)
    assert ("%|" in capsys.readouterr().err) is shown


@pytest.mark.parametrize("name", ["bert-short", "xlmr-cls", "minilm", "defaulted"])
def test_the_client_says_what_the_old_one_said(folders: dict[str, Path], name: str) -> None:
    ours, reference = _ours(folders[name]).client, _reference(folders[name]).client
    assert ours.max_seq_length == ours.get_max_seq_length() == reference.max_seq_length
    assert ours.get_sentence_embedding_dimension() == reference.get_embedding_dimension()
    assert ours.device == torch.device("cpu")
    assert ours.tokenizer.tokenize("a panda") == reference.tokenizer.tokenize("a panda")
    features = ours.tokenize(TEXTS)
    for key, value in reference.preprocess(TEXTS).items():
        assert not isinstance(value, torch.Tensor) or torch.equal(features[key], value)
    assert _ours(folders[name], model_kwargs={"truncate_dim": 8}).client.get_sentence_embedding_dimension() == 8


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"normalize_embeddings": True, "batch_size": 2, "show_progress_bar": False},
        {"convert_to_tensor": True},
        {"convert_to_numpy": False},
        {"truncate_dim": 8, "normalize_embeddings": True, "device": "cpu"},
        {"precision": "ubinary"},
        {"prompt_name": "query"},
        {"prompt": "mine: "},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "texts", [TEXTS, "one text", tuple(TEXTS), np.array(TEXTS)], ids=lambda texts: type(texts).__name__
)
def test_the_client_encodes_as_the_old_one(folders: dict[str, Path], arguments: dict[str, Any], texts: Any) -> None:
    ours = _ours(folders["defaulted"], encode_kwargs={"normalize_embeddings": True}, query_instruction="not here: ")
    vectors = ours.client.encode(texts, **arguments)
    expected = SentenceTransformer(str(folders["defaulted"]), device="cpu").encode(texts, **arguments)
    assert type(vectors) is type(expected)
    for mine, other in zip(vectors, expected, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_what_the_client_lacks_it_says(folders: dict[str, Path]) -> None:
    client = _ours(folders["minilm"]).client
    for call in (lambda: client.to("cpu"), lambda: setattr(client, "max_seq_length", 8)):
        with pytest.raises(AttributeError, match="max_length"):
            call()
    for wrong in ({"output_value": "token_embeddings"}, {"pool": {"input": None}}, {"normalise": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            client.encode(["a"], **wrong)
    with pytest.raises(TypeError, match=r"texts\[1\]"):
        client.encode(["a", None])


def test_copies_give_the_same_vectors(folders: dict[str, Path]) -> None:
    ours = _ours(folders["prompts"], encode_kwargs={"normalize_embeddings": True}, embed_instruction="doc: ")
    expected = ours.embed_documents(TEXTS)
    for twin in (
        pickle.loads(pickle.dumps(ours)),
        copy.deepcopy(ours),
        HuggingFaceBgeEmbeddings(**ours.model_dump()),
        HuggingFaceBgeEmbeddings.model_validate_json(ours.model_dump_json()),
    ):
        assert twin == ours
        np.testing.assert_allclose(twin.embed_documents(TEXTS), expected, atol=1e-6)
    assert len(pickle.dumps(ours)) < 10_000


@pytest.mark.parametrize("key", ["token", "use_auth_token"])
def test_a_token_is_not_shown(folders: dict[str, Path], key: str) -> None:
    others = {"prompts": {"token": "t: "}, "default_prompt_name": "token"}
    ours = _ours(folders["minilm"], model_kwargs={key: "hf_secret", **others})
    assert "hf_secret" not in f"{ours!r} {ours} {ours.model_dump()} {ours.model_dump_json()}"
    assert ours.model_kwargs == {key: "hf_secret", **others}
    assert ours.model_dump()["model_kwargs"] == others
    sent = [
        _ours(folders["minilm"], model_kwargs={key: token})._arguments()["token"]
        for token in ("hf_secret", SecretStr("hf_secret"), "**********", SecretStr("**********"), False)
    ]
    assert sent == ["hf_secret", "hf_secret", None, None, False]


def test_the_model_goes_by_any_of_its_names(folders: dict[str, Path], tmp_path: Path) -> None:
    path: Any = folders["minilm"]
    named = _ours(folders["minilm"], cache_folder=tmp_path)
    assert named == HuggingFaceBgeEmbeddings(path, query_instruction=OLD_QUERY, cache_folder=str(tmp_path))  # type: ignore[misc]
    assert named == HuggingFaceBgeEmbeddings(model=path, query_instruction=OLD_QUERY, cache_folder=str(tmp_path))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="twice"):
        HuggingFaceBgeEmbeddings(model=path, model_name=path)  # type: ignore[call-arg]
