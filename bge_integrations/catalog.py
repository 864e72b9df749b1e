"""The catalogue: one frozen row per BGE model, found by its exact id or alias, never by a part of its name."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, Literal, NoReturn

from bge_integrations.errors import UnknownModelError
from bge_integrations.types import Pooling


class _Tasks(dict[str, tuple[str, str]]):
    """A dict that cannot be changed; it pickles, copies and compares like a dict."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a row of the catalogue cannot be changed")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return _Tasks, (dict(self),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    r"""A row of the catalogue: the facts about one model that are known without its files.

    Attributes:
        id: The model's id on the Hugging Face hub.
        kind: "embedder" or "reranker".
        family: Name of a group of models that are used in the same way.
        model_type: `model_type` of its config.json; "" where it is not known.
        languages: The languages it is made for.
        hidden_size: Width of the hidden states, for embedders also of the vectors; None where it is not known.
        layers: Number of transformer layers; None where it is not known.
        vocab_size: Number of rows of its embedding table; None where it is not known.
        params: Number of parameters, rounded where only a rounded number is published; None where it is not known.
        max_length: Default limit of tokens in a text (embedders) or a pair (rerankers), special tokens included.
        max_positions: The most tokens, special tokens included, that the model can take.
        pooling: How token vectors become one vector; None for rerankers and image-text models.
        normalize: Whether its vectors have length one.
        query_instruction: Text put before every query; "" for none.
        document_instruction: Text put before every document; "" for none.
        prompt: For LLM-based rerankers, the text after query and passage; "" for cross-encoders.
        start_layer: For layerwise rerankers, the first layer that scores; None for others.
        outputs: The outputs of an embedder, out of "dense", "sparse" and "colbert".
        few_shot: Whether queries may come with examples.
        ends_in_eos: Whether every text ends in the end-of-sequence token, as in the model's training.
        tasks: Task name -> (query instruction, document instruction), as published.
        query_template: How instruction and query are joined; None where the query simply follows the instruction.
        license: Licence of the weights as far as it is published.
        aliases: Other names of the same model: older ids, exports, copies.
        packaged: Folder inside this package that holds its files; None for a model of the hub.
        unsupported: One sentence that says why this version cannot run it; None if it can.
    """

    id: str
    kind: Literal["embedder", "reranker"]
    family: str
    model_type: str
    languages: str
    hidden_size: int | None = None
    layers: int | None = None
    vocab_size: int | None = None
    params: int | None = None
    max_length: int
    max_positions: int | None
    pooling: Pooling | None
    normalize: bool
    query_instruction: str = ""
    document_instruction: str = ""
    prompt: str = ""
    start_layer: int | None = None
    outputs: tuple[str, ...] = ("dense",)
    few_shot: bool = False
    ends_in_eos: bool = False
    tasks: Mapping[str, tuple[str, str]] = field(default_factory=_Tasks, hash=False)
    query_template: str | None = None
    license: str
    aliases: tuple[str, ...] = ()
    packaged: str | None = None
    unsupported: str | None = None

    @property
    def dim(self) -> int | None:
        """Length of the vectors; None for rerankers and where it is not known."""
        return self.hidden_size if self.kind == "embedder" else None


_EN = "Represent this sentence for searching relevant passages: "
_ZH = "为这个句子生成表示以用于检索相关文章："  # ends in U+FF1A, another token than ":"

_YES_OR_NO = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
_NO_MATROYSHKA = "Matroyshka rerankers run on their authors' research code only (FlagEmbedding, research/)."
_NO_IMAGES = "Image-text models are not supported: this package embeds and reranks text."


def _bert(id_: str, family: str, languages: str, **facts: Any) -> ModelSpec:
    return ModelSpec(
        id=id_, kind="embedder", family=family, model_type="bert", languages=languages, max_length=512,
        max_positions=512, pooling=Pooling.CLS, normalize=True, license="mit", **facts,
    )  # fmt: skip


def _m3(id_: str, **facts: Any) -> ModelSpec:
    return ModelSpec(
        id=id_, kind="embedder", family="bge-m3", model_type="xlm-roberta", languages="multilingual", hidden_size=1024,
        layers=24, vocab_size=250002, params=567_754_752, max_length=8192, max_positions=8192, pooling=Pooling.CLS,
        normalize=True, license="mit", **facts,
    )  # fmt: skip


def _llm_embedder(id_: str, model_type: str, languages: str, *, max_length: int = 32768, **facts: Any) -> ModelSpec:
    return ModelSpec(
        id=id_, kind="embedder", family="llm", model_type=model_type, languages=languages, max_length=max_length,
        max_positions=max_length, pooling=Pooling.LAST_TOKEN, normalize=True, **facts,
    )  # fmt: skip


def _image_text(
    id_: str, model_type: str, *, max_length: int, family: str = "bge-vl", license_: str = "mit", **facts: Any
) -> ModelSpec:
    return ModelSpec(
        id=id_, kind="embedder", family=family, model_type=model_type, languages="en", max_length=max_length,
        max_positions=max_length, pooling=None, normalize=True, license=license_, unsupported=_NO_IMAGES, **facts,
    )  # fmt: skip


def _reranker(id_: str, family: str, model_type: str, languages: str, **facts: Any) -> ModelSpec:
    return ModelSpec(
        id=id_, kind="reranker", family=family, model_type=model_type, languages=languages, max_length=512,
        pooling=None, normalize=False, **facts,
    )  # fmt: skip


def _llm_reranker(id_: str, family: str, model_type: str, *, prompt: str = _YES_OR_NO, **facts: Any) -> ModelSpec:
    return _reranker(
        id_, family, model_type, "multilingual", query_instruction="A: ", document_instruction="B: ", prompt=prompt,
        **facts,
    )  # fmt: skip


def _query_tasks(instructions: dict[str, str]) -> Mapping[str, tuple[str, str]]:
    return _Tasks({name: (instruction, "") for name, instruction in instructions.items()})


# The formatter would spread the rows over 500 lines.
# fmt: off
_ROWS = (
    # The next two are this package's own models, not BAAI's: trained in BGE's conventions (training/README.md).
    ModelSpec(id="bge-integrations/mini-embedder-en", kind="embedder", family="mini", model_type="bert", languages="en",
              hidden_size=384, layers=4, vocab_size=11000, params=10_092_928, max_length=512, max_positions=512,
              pooling=Pooling.CLS, normalize=True, query_instruction=_EN, license="apache-2.0",
              packaged="models/mini-embedder-en"),
    _reranker("bge-integrations/mini-reranker-en", "mini", "bert", "en", hidden_size=384, layers=3, vocab_size=11000,
              params=8_712_577, max_positions=512, license="apache-2.0", packaged="models/mini-reranker-en"),
    _bert("BAAI/bge-small-en", "bge-v1", "en", hidden_size=384, layers=12, vocab_size=30522, params=33_360_000,
          query_instruction=_EN, aliases=("Supabase/bge-small-en", "Xenova/bge-small-en")),
    _bert("BAAI/bge-base-en", "bge-v1", "en", hidden_size=768, layers=12, vocab_size=30522, params=109_482_240,
          query_instruction=_EN, aliases=("Xenova/bge-base-en",)),
    _bert("BAAI/bge-large-en", "bge-v1", "en", hidden_size=1024, layers=24, vocab_size=30522, params=335_141_888,
          query_instruction=_EN,
          aliases=("BAAI/baai-general-embedding-large-en-instruction", "Xenova/bge-large-en")),
    _bert("BAAI/bge-small-zh", "bge-v1", "zh", hidden_size=512, layers=4, vocab_size=21128, params=23_953_920,
          query_instruction=_ZH),
    _bert("BAAI/bge-base-zh", "bge-v1", "zh", hidden_size=768, layers=12, vocab_size=21128, params=102_267_648,
          query_instruction=_ZH),
    _bert("BAAI/bge-large-zh", "bge-v1", "zh", hidden_size=1024, layers=24, vocab_size=21128, params=325_522_432,
          query_instruction=_ZH,
          aliases=("BAAI/baai-general-embedding-large-zh-instruction", "Xenova/bge-large-zh")),
    _bert("BAAI/bge-large-zh-noinstruct", "bge-v1", "zh", hidden_size=1024, layers=24, vocab_size=21128,
          params=325_522_432, aliases=("BAAI/baai-general-embedding-large-zh",)),
    _bert("BAAI/bge-small-en-v1.5", "bge-v1.5", "en", hidden_size=384, layers=12, vocab_size=30522, params=33_360_000,
          query_instruction=_EN, aliases=("Xenova/bge-small-en-v1.5",)),
    _bert("BAAI/bge-base-en-v1.5", "bge-v1.5", "en", hidden_size=768, layers=12, vocab_size=30522, params=109_482_240,
          query_instruction=_EN, aliases=("Xenova/bge-base-en-v1.5",)),
    _bert("BAAI/bge-large-en-v1.5", "bge-v1.5", "en", hidden_size=1024, layers=24, vocab_size=30522,
          params=335_141_888, query_instruction=_EN, aliases=("Xenova/bge-large-en-v1.5",)),
    _bert("BAAI/bge-small-zh-v1.5", "bge-v1.5", "zh", hidden_size=512, layers=4, vocab_size=21128, params=23_953_920,
          query_instruction=_ZH, aliases=("Xenova/bge-small-zh-v1.5",)),
    _bert("BAAI/bge-base-zh-v1.5", "bge-v1.5", "zh", hidden_size=768, layers=12, vocab_size=21128, params=102_267_648,
          query_instruction=_ZH, aliases=("Xenova/bge-base-zh-v1.5",)),
    _bert("BAAI/bge-large-zh-v1.5", "bge-v1.5", "zh", hidden_size=1024, layers=24, vocab_size=21128,
          params=325_522_432, query_instruction=_ZH, aliases=("Xenova/bge-large-zh-v1.5",)),
    _bert("BAAI/llm-embedder", "llm-embedder", "en", hidden_size=768, layers=12, vocab_size=30522, params=109_482_240,
          query_instruction="Represent this query for retrieving relevant documents: ",
          document_instruction="Represent this document for retrieval: ",
          tasks=_Tasks({
              "qa": ("Represent this query for retrieving relevant documents: ",
                     "Represent this document for retrieval: "),
              "icl": ("Convert this example into vector to look for useful examples: ",
                      "Convert this example into vector for retrieval: "),
              "chat": ("Embed this dialogue to find useful historical dialogues: ",
                       "Embed this historical dialogue for retrieval: "),
              "lrlm": ("Embed this text chunk for finding useful historical chunks: ",
                       "Embed this historical text chunk for retrieval: "),
              "tool": ("Transform this user request for fetching helpful tool descriptions: ",
                       "Transform this tool description for retrieval: "),
              "convsearch": ("Encode this query and context for searching relevant passages: ",
                             "Encode this passage for retrieval: "),
          })),
    _m3("BAAI/bge-m3", outputs=("dense", "sparse", "colbert"), aliases=("Xenova/bge-m3",)),
    _m3("BAAI/bge-m3-unsupervised"),
    _m3("BAAI/bge-m3-retromae"),
    _llm_embedder("BAAI/bge-multilingual-gemma2", "gemma2", "multilingual", hidden_size=3584, layers=42,
                  vocab_size=256002, params=9_241_713_152, max_length=8192, license="gemma",
                  ends_in_eos=True, query_template="<instruct>{instruction}\n<query>{query}"),
    _llm_embedder("BAAI/bge-en-icl", "mistral", "en", hidden_size=4096, layers=32, vocab_size=32003,
                  params=7_110_672_384, license="apache-2.0", ends_in_eos=True, few_shot=True,
                  query_template="<instruct>{instruction}\n<query>{query}\n<response>"),
    _llm_embedder("BAAI/bge-code-v1", "qwen2", "en, zh, 20 programming languages", hidden_size=1536, layers=28,
                  params=1_543_714_304, license="apache-2.0",
                  query_template="<instruct>{instruction}\n<query>{query}", aliases=("nebula2025/CodeR-full",),
                  tasks=_query_tasks({
        "Apps": "Given a code contest problem description, retrieve relevant code that can help solve the problem.",
        "CosQA": "Given a web search query, retrieve relevant code that can help answer the query.",
        "Text2SQL": "Given a question in text, retrieve SQL queries that are appropriate responses to the question.",
        "CSN": "Given a piece of code, retrieve the document string that summarizes the code.",
        "CSN-CCR": "Given a piece of code segment, retrieve the code segment that is the latter part of the code.",
        "CodeTrans-DL": "Given a piece of code, retrieve code that is semantically equivalent to the input code.",
        "CodeTrans-Contest": "Given a piece of Python code, retrieve C++ code that is semantically equivalent to the "
            "input code.",
        "StackOverFlow-QA": "Given a question that consists of a mix of text and code snippets, retrieve relevant "
            "answers that also consist of a mix of text and code snippets, and can help answer the "
            "question.",
        "CodeFeedBack-MT": "Given a multi-turn conversation history that consists of a mix of text and code snippets, "
            "retrieve relevant answers that also consist of a mix of text and code snippets, and can "
            "help answer the question.",
        "MBPP": "Given a textual explanation of code functionality, retrieve the corresponding code implementation.",
        "SWE-bench-Lite": "Given a code snippet containing a bug and a natural language description of the bug or "
            "error, retrieve code snippets that demonstrate solutions or fixes for similar bugs or "
            "errors (the desired documents)."})),
    _llm_embedder("BAAI/bge-reasoner-embed-qwen3-8b-0923", "qwen3", "en", hidden_size=4096, layers=36,
                  params=7_568_405_504, license="not verified",
                  query_template="Instruct: {instruction}\nQuery: {query}",
                  aliases=("BGE-Reasoner-Embed-Qwen3-8B-0923",), tasks=_query_tasks({
        "biology": "Given a Biology post, retrieve relevant passages that help answer the post.",
        "earth_science": "Given an Earth Science post, retrieve relevant passages that help answer the post.",
        "economics": "Given an Economics post, retrieve relevant passages that help answer the post.",
        "psychology": "Given a Psychology post, retrieve relevant passages that help answer the post.",
        "robotics": "Given a Robotics post, retrieve relevant passages that help answer the post.",
        "stackoverflow": "Given a Stack Overflow post, retrieve relevant passages that help answer the post.",
        "sustainable_living": "Given a Sustainable Living post, retrieve relevant passages that help answer the post.",
        "leetcode": "Given a Coding problem, retrieve relevant examples that help answer the problem.",
        "pony": "Given a Pony question, retrieve relevant passages that help answer the question.",
        "aops": "Given a Math problem, retrieve relevant examples that help answer the problem.",
        "theoremqa_questions": "Given a Math problem, retrieve relevant examples that help answer the problem.",
        "theoremqa_theorems": "Given a Math problem, retrieve relevant theorems that help answer the problem."})),
    _image_text("BAAI/BGE-VL-base", "clip", hidden_size=512, params=149_620_737, max_length=77,
                aliases=("BAAI/bge-vl-base",)),
    _image_text("BAAI/BGE-VL-large", "clip", hidden_size=768, params=427_616_513, max_length=77,
                aliases=("BAAI/bge-vl-large",)),
    _image_text("BAAI/BGE-VL-MLLM-S1", "llava_next", hidden_size=4096, params=7_566_264_320, max_length=32768,
                aliases=("BAAI/bge-vl-MLLM-S1",)),
    _image_text("BAAI/BGE-VL-MLLM-S2", "llava_next", hidden_size=4096, params=7_566_264_320, max_length=32768,
                aliases=("BAAI/bge-vl-MLLM-S2",)),
    _image_text("BAAI/BGE-VL-v1.5-zs", "llava_next", hidden_size=4096, params=7_566_747_648, max_length=32768,
                aliases=("BAAI/bge-vl-v1.5-zs",)),
    _image_text("BAAI/BGE-VL-v1.5-mmeb", "llava_next", hidden_size=4096, params=7_566_747_648, max_length=32768,
                aliases=("BAAI/bge-vl-v1.5-mmeb",)),
    _image_text("BAAI/bge-visualized", "", family="visualized-bge", max_length=512, license_="not verified",
                aliases=("bge-visualized-base-en-v1.5", "bge-visualized-m3")),
    _reranker("BAAI/bge-reranker-base", "cross_encoder", "xlm-roberta", "zh, en", hidden_size=768, layers=12,
              vocab_size=250002, params=278_044_417, max_positions=512, license="mit",
              aliases=("Xenova/bge-reranker-base",)),
    _reranker("BAAI/bge-reranker-large", "cross_encoder", "xlm-roberta", "zh, en", hidden_size=1024, layers=24,
              vocab_size=250002, params=559_891_457, max_positions=512, license="mit",
              aliases=("Xenova/bge-reranker-large",)),
    _reranker("BAAI/bge-reranker-v2-m3", "cross_encoder", "xlm-roberta", "multilingual", hidden_size=1024, layers=24,
              vocab_size=250002, params=567_755_777, max_positions=8192, license="apache-2.0"),
    _llm_reranker("BAAI/bge-reranker-v2-gemma", "llm", "gemma", hidden_size=2048, layers=18, vocab_size=256000,
                  params=2_506_172_416, max_positions=8192, license="not verified"),
    _llm_reranker("BAAI/bge-reranker-v2-minicpm-layerwise", "layerwise", "minicpm", hidden_size=2304, layers=40,
                  vocab_size=122753, params=2_720_000_000, max_positions=2048, license="apache-2.0", start_layer=8),
    _llm_reranker("BAAI/bge-reranker-v2.5-gemma2-lightweight", "lightweight", "cost_wise_gemma", hidden_size=3584,
                  layers=42, vocab_size=256000, params=9_240_000_000, max_positions=8192, license="gemma",
                  start_layer=8, aliases=("tiendung/gemma2reranking",),
                  prompt="Predict whether passage B contains an answer to query A."),
    _reranker("BAAI/Matroyshka-ReRanker-passage", "matroyshka", "", "en", layers=32, params=7_000_000_000,
              max_positions=None, license="not verified", unsupported=_NO_MATROYSHKA),
    _reranker("BAAI/Matroyshka-ReRanker-document", "matroyshka", "", "en", layers=32, params=7_000_000_000,
              max_positions=None, license="not verified", unsupported=_NO_MATROYSHKA),
    _reranker("BAAI/Matroyshka-ReRanker-beir", "matroyshka", "", "en", layers=32, params=7_000_000_000,
              max_positions=None, license="not verified", unsupported=_NO_MATROYSHKA),
    _reranker("BGE-Reasoner-Reranker", "reasoner", "", "en", max_positions=None, license="not verified",
              aliases=("BGE-Reasoner-Reranker (8B/14B/32B)",),
              unsupported="BGE-Reasoner-Reranker is announced, but its weights are not published."),
)
# fmt: on

_BY_NAME = {name: row for row in _ROWS for name in (row.id, *row.aliases)}
_HUB_CACHE_FOLDER = re.compile(r"(?:^|[/\\])models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\][^/\\]+[/\\]?$")


def list_models(kind: str | None = None) -> tuple[ModelSpec, ...]:
    """Return every row of the catalogue, also of models that this version cannot run (see `ModelSpec.unsupported`).

    Args:
        kind: "embedder" or "reranker"; None for both.

    Raises:
        ValueError: `kind` is something else.
    """
    if kind not in (None, "embedder", "reranker"):
        raise ValueError(f'kind={kind!r} is not possible. Take "embedder", "reranker" or None for both.')
    return tuple(row for row in _ROWS if kind in (None, row.kind))


def get_spec(name: str, like: str | None = None) -> ModelSpec:
    """Return the catalogue's row of a model.

    Args:
        name: An id or alias of the catalogue, or a folder of the Hugging Face cache
            (`.../models--ORG--NAME/snapshots/REVISION`) that holds such a model.
        like: Id or alias of the parent whose row to take when `name` is not in the catalogue, as for a fine-tune.

    Raises:
        UnknownModelError: Neither `name` nor `like` is in the catalogue; the message names the nearest ids.
    """
    row = _BY_NAME.get(name)
    if row is None and (folder := _HUB_CACHE_FOLDER.search(name)):
        row = _BY_NAME.get(f"{folder[1]}/{folder[2]}")
    if row is None and like is not None:
        row = _BY_NAME.get(like)
        if row is None:
            raise UnknownModelError(f"like={_unknown(like)}")
    if row is None:
        raise UnknownModelError(_unknown(name))
    return row


def check_name(name: str) -> None:
    """Refuse a mistyped name before anything is looked up on disk or on the network.

    An existing folder and the id of another organisation's model pass: their files decide at first use.

    Raises:
        UnknownModelError: `name` is an unknown id under `BAAI/` or `bge-integrations/`, or differs little from an id of
            the catalogue.
        ValueError: `name` is empty.
    """
    if not name.strip():
        raise ValueError("The model's name is empty. Give an id such as 'BAAI/bge-base-en-v1.5', or a folder.")
    if name in _BY_NAME or os.path.isdir(name):  # noqa: PTH112  False, not an error, for a name no file can have
        return
    organisation, _, base = name.rstrip("/").rpartition("/")
    if "/" in organisation:
        return
    if organisation.lower() in ("baai", "bge-integrations"):
        raise UnknownModelError(_unknown(name))
    if organisation:
        if _ratio(organisation, "BAAI") < 0.75:
            return
        limit = 0.85
    else:
        limit = 0.9
    if any(_ratio(base, _base(known)) >= limit for known in _BY_NAME):
        raise UnknownModelError(_unknown(name))


def _unknown(name: str) -> str:
    scores = {known: max(_ratio(name, known), _ratio(_base(name), _base(known))) for known in _BY_NAME}
    best = sorted((known for known in scores if scores[known] >= 0.6), key=lambda known: -scores[known])
    nearest = ", ".join(f'"{row_id}"' for row_id in list(dict.fromkeys(_BY_NAME[known].id for known in best))[:3])
    return (
        f'"{name}" is not in the catalogue. '
        + (f"Nearest: {nearest}. " if nearest else "")
        + 'For a fine-tune pass like="..." with the id of its parent; list_models() gives all ids.'
    )


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _ratio(left: str, right: str) -> float:
    return SequenceMatcher(None, left.lower(), right.lower()).ratio()
