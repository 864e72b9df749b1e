"""The model to export: it is found as the rest of the package finds models, and refused if it can't be exported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.architectures import architecture_of
from bge_integrations.catalog import check_name, get_spec, list_models
from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.errors import UnknownModelError, UnsupportedModelError
from bge_integrations.rerank.reranker import BgeReranker
from bge_integrations.runtime.cache import ModelCache
from bge_integrations.runtime.folder import Folder, read_folder
from bge_integrations.runtime.locate import locate
from bge_integrations.runtime.request import Kind, Located, ModelSource
from bge_integrations.runtime.resolve import check_kind
from bge_integrations.types import Pooling

_POSSIBLE = (
    "What can be exported: embedders of BERT or XLM-RoBERTa shape that pool by CLS (bge v1 and v1.5, the dense vectors "
    "of bge-m3, this package's own) and cross-encoder rerankers of those shapes (bge-reranker-base, -large, -v2-m3)."
)

QUERY = "what do pandas eat?"
TEXTS = (
    "bamboo",
    "Giant pandas eat bamboo.",
    "Paris is the capital and the largest city of France; about two million people live there.",
    "How do I sort a list of dictionaries by the value of a key?",
    "def area(radius: float) -> float:\n    return math.pi * radius**2",
    "The 2023 report says (p. 14) that sales rose by 3.7 % to $1,204,000, and costs fell.",
    "Die Straßenbahn fährt alle zehn Minuten vom Bahnhof über die große Brücke zum Marktplatz.",
    "大熊猫生活在中国中部的山区，每天吃竹子。",
    (
        "Bread needs flour, water, salt and yeast. Let the dough rest until it has doubled, shape it, let it rest "
        "again, and bake it in a very hot oven until the crust is golden and the loaf sounds hollow when it is tapped."
    ),
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen inside the green leaves of plants. "
    * 6,
)
"""Every export is compared on these texts: one word to some hundred tokens, prose, code, numbers, other scripts."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One model to export.

    Attributes:
        name: The model's id; of a local folder, its name alone.
        is_local: Whether it is a local folder.
        license: Its licence; None where it is not known.
        folder: Its files.
        facts: The settings that `describe()` returns for it.
        expected: The package's own output: vectors (texts, dim) of `TEXTS`, or logits (texts,) of `QUERY` with each.
    """

    name: str
    is_local: bool
    license: str | None
    folder: Folder
    facts: Mapping[str, object]
    expected: NDArray[np.float32]

    @property
    def is_reranker(self) -> bool:
        """Whether the model scores pairs."""
        return self.folder.is_reranker

    @property
    def kind(self) -> Kind:
        """The kind of the model: "embedder" or "reranker"."""
        return "reranker" if self.is_reranker else "embedder"

    @property
    def output(self) -> str:
        """The name of the graph's output."""
        return "logits" if self.is_reranker else "last_hidden_state"

    @property
    def max_length(self) -> int:
        """The number of tokens at which the package cuts a text, or a pair."""
        return int(str(self.facts["max_length"]))

    @property
    def pad_token_id(self) -> int:
        """The id of the token that pads short texts of a batch."""
        return int(self.folder.config.get("pad_token_id") or 0)

    @property
    def instructions(self) -> tuple[str, str]:
        """The text before every query and the text before every document of an embedder."""
        query, document = (str(self.facts[side]).removesuffix("{text}") for side in ("query", "document"))
        return query, document

    @property
    def sent(self) -> list[str] | list[tuple[str, str]]:
        """The texts or pairs, instructions included, for which the model gave `expected`."""
        if self.is_reranker:
            return [(QUERY, text) for text in TEXTS]
        return [self.instructions[1] + text for text in TEXTS]


def find_subject(source: ModelSource) -> Subject:
    """Find the model and compute the output that its export is compared with, on the CPU in float32.

    Args:
        source: The model that the caller named; its `kind` is not read.

    Raises:
        UnknownModelError, MissingWeightsError: `BgeEmbedder` or `BgeReranker` would refuse the model too.
        UnsupportedModelError: The model cannot be exported; the message says which can.
    """
    check_name(source.model)
    try:
        row = get_spec(source.model, source.like)
    except UnknownModelError:
        if source.like is not None:
            raise
    else:  # refused before gigabytes are downloaded
        check_kind(row, row.kind)
        _check_shape(row.id, row.model_type)
    located = locate(source)
    folder = read_folder(located.path, located.base)
    if folder.adapter:
        raise UnsupportedModelError(f"{source.model} is an adapter. Merge it into its base and save that first.")
    _check_shape(source.model, folder.model_type)
    facts, expected = _score(source) if folder.is_reranker else _embed(source)
    is_local = located.model == str(located.path)
    name = located.path.name if is_local else located.model
    return Subject(name, is_local, _license(located), folder, facts, expected)


def _check_shape(model: str, model_type: str) -> None:
    if not architecture_of(model_type).tokenizer_class:
        raise UnsupportedModelError(f"{model} is of the architecture {model_type or 'unknown'}. {_POSSIBLE}")


def _embed(source: ModelSource) -> tuple[Mapping[str, object], NDArray[np.float32]]:
    embedder = BgeEmbedder(source.model, on_truncate="ignore", **_placed(source))
    facts = embedder.describe()
    if facts["pooling"] != Pooling.CLS or facts["backend"] == "sentence_transformers":
        raise UnsupportedModelError(f"{source.model} does not simply pool by CLS. {_POSSIBLE}")
    return facts, embedder.encode_documents(TEXTS)


def _score(source: ModelSource) -> tuple[Mapping[str, object], NDArray[np.float32]]:
    reranker = BgeReranker(source.model, normalize=False, on_truncate="ignore", **_placed(source))
    logits = reranker.score([(QUERY, text) for text in TEXTS])
    return reranker.describe(), np.array(logits, dtype=np.float32)


def _placed(source: ModelSource) -> dict[str, Any]:
    own = ModelCache()  # it frees the weights after the comparison
    return {**source.of_files(), "device": "cpu", "dtype": "float32", "cache": own}


def _license(located: Located) -> str | None:
    from huggingface_hub import metadata_load

    readme = located.path / "README.md"
    said = (metadata_load(readme) or {}).get("license") if readme.is_file() else None
    if said is None and (row := next((row for row in list_models() if row.id == located.model), None)):
        said = row.license
    return said if isinstance(said, str) and said != "not verified" else None
