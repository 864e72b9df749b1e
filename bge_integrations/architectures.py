"""A table of the model architectures that this package knows: one row each, by the `model_type` of config.json.

An architecture without a row runs through sentence-transformers.
"""

from dataclasses import dataclass
from typing import Literal

Family = Literal["llm", "layerwise", "lightweight"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """An architecture of transformers, or one of BAAI's that is built from the layers of one.

    Attributes:
        model_type: Its name in config.json.
        family: For a decoder, the family of BAAI's models built on it; None for an encoder.
        packs: Whether it is an encoder that runs here without padding, and on OpenVINO.
        starts_after_padding: Whether position ids begin at pad_token_id + 1, as in RoBERTa, instead of 0.
        counts_padding: Whether positions are counted from the row's beginning, padding on the left included.
        pooler: Whether a classifier reads the first token's state through the encoder's own pooler.
        tokenizer_class: The class that Transformers.js knows the tokenizer by; "" where it can't be exported.
    """

    model_type: str
    family: Family | None = None
    packs: bool = False
    starts_after_padding: bool = False
    counts_padding: bool = False
    pooler: bool = False
    tokenizer_class: str = ""

    @property
    def layerwise(self) -> bool:
        """Whether it can give scores after any of its layers; it then runs in code of this package."""
        return self.family in ("layerwise", "lightweight")


_ROWS = (
    Architecture(model_type="bert", packs=True, counts_padding=True, pooler=True, tokenizer_class="BertTokenizer"),
    Architecture(
        model_type="xlm-roberta", packs=True, starts_after_padding=True, tokenizer_class="XLMRobertaTokenizer"
    ),
    Architecture(model_type="camembert", starts_after_padding=True),
    Architecture(model_type="data2vec-text", starts_after_padding=True),
    Architecture(model_type="ibert", starts_after_padding=True),
    Architecture(model_type="longformer", starts_after_padding=True),
    Architecture(model_type="luke", starts_after_padding=True),
    Architecture(model_type="mpnet", starts_after_padding=True),
    Architecture(model_type="roberta", starts_after_padding=True),
    Architecture(model_type="roberta-prelayernorm", starts_after_padding=True),
    Architecture(model_type="xlm-roberta-xl", starts_after_padding=True),
    Architecture(model_type="albert", counts_padding=True),
    Architecture(model_type="distilbert", counts_padding=True),
    Architecture(model_type="electra", counts_padding=True),
    Architecture(model_type="ernie", counts_padding=True),
    Architecture(model_type="mobilebert", counts_padding=True),
    Architecture(model_type="gemma", family="llm"),
    Architecture(model_type="gemma2", family="llm"),
    Architecture(model_type="llama", family="llm"),
    Architecture(model_type="mistral", family="llm"),
    Architecture(model_type="qwen2", family="llm"),
    Architecture(model_type="qwen3", family="llm"),
    Architecture(model_type="minicpm", family="layerwise"),
    Architecture(model_type="cost_wise_gemma", family="lightweight"),
)
_BY_TYPE = {row.model_type: row for row in _ROWS}


def architecture_of(model_type: str) -> Architecture:
    """Return the architecture of that name; for an unknown one, a row with defaults for everything but the name."""
    return _BY_TYPE.get(model_type) or Architecture(model_type=model_type)


def decoders_of(family: str) -> list[str]:
    """Return the `model_type` of each decoder that a family of BAAI's models is built on; [] for encoders' families."""
    return [row.model_type for row in _ROWS if row.family == family]
