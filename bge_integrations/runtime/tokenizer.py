"""A folder's tokenizer, with the settings that its files give it."""

from typing import Any

from bge_integrations.architectures import architecture_of
from bge_integrations.errors import UnsupportedModelError
from bge_integrations.inference.tokenize import TextTokenizer
from bge_integrations.runtime.configuration import configuration, quiet_transformers
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.plain_tokenizer import LoadedTokenizer, plain_tokenizer
from bge_integrations.runtime.request import Resolved
from bge_integrations.runtime.weights import refuse_missing_vocabulary, refuse_pointers, tokenizer_files


def load_tokenizer(resolved: Resolved) -> LoadedTokenizer:
    """Load a folder's tokenizer: from tokenizer.json itself where that is enough, else through transformers.

    Raises:
        MissingWeightsError: The folder has no vocabulary, or a Git LFS pointer in its stead.
        UnsupportedModelError: The tokenizer has no fast version, or settings with which texts would depend on others.
    """
    folder = resolved.folder
    refuse_missing_vocabulary(folder)
    refuse_pointers(tokenizer_files(folder))
    loaded = plain_tokenizer(folder) or _by_transformers(resolved)
    if folder.settings.get("do_lower_case"):
        from tokenizers.normalizers import Lowercase, Sequence

        normalizer = loaded.fast.normalizer
        loaded.fast.normalizer = Sequence([Lowercase(), *([normalizer] if normalizer else [])])
    return loaded


def text_tokenizer(loaded: LoadedTokenizer, folder: Folder) -> TextTokenizer:
    """Make the object that turns texts into token ids; the tokenizer is then its own."""
    bos = loaded.special.get("bos_token")
    padding = loaded.special.get("pad_token")
    if bos == padding and not architecture_of(folder.model_type).layerwise:  # as in FlagEmbedding
        bos = None
    loaded.fast.encode_special_tokens = loaded.splits_special
    return TextTokenizer(
        loaded.fast,
        with_types=loaded.takes_types and folder.config.get("type_vocab_size", 2) > 1,
        bos=bos,
        eos=loaded.special.get("eos_token"),
        keeps_end=loaded.keeps_end,
    )


@quiet_transformers()
def _by_transformers(resolved: Resolved) -> LoadedTokenizer:
    from transformers import AutoTokenizer, PreTrainedConfig

    folder = resolved.folder
    # transformers finds a tokenizer's class by the architecture, and it does not know the layerwise ones.
    config = PreTrainedConfig() if architecture_of(folder.model_type).layerwise else configuration(resolved)
    tokenizer = AutoTokenizer.from_pretrained(
        folder.tokenizer_path, config=config, trust_remote_code=resolved.trust_remote_code
    )
    if not tokenizer.is_fast:
        raise UnsupportedModelError(f"{resolved.key.model} has only a slow tokenizer; a tokenizer.json is needed.")
    _check_tokenizer(tokenizer, resolved)
    names = ("pad_token", "unk_token", "cls_token", "bos_token", "eos_token")
    return LoadedTokenizer(
        tokenizer.backend_tokenizer,
        {name: token for name in names if (token := getattr(tokenizer, f"{name}_id")) is not None},
        takes_types="token_type_ids" in tokenizer.model_input_names,
        keeps_end=tokenizer.truncation_side == "left",
        splits_special=bool(getattr(tokenizer, "split_special_tokens", False)),
    )


def _check_tokenizer(tokenizer: Any, resolved: Resolved) -> None:
    """Refuse settings with which a text's numbers would depend on the texts beside it."""
    model, file = resolved.key.model, resolved.folder.tokenizer_path / "tokenizer_config.json"
    if tokenizer.padding_side == "left" and architecture_of(resolved.folder.model_type).counts_padding:
        raise UnsupportedModelError(
            f'{file} sets padding_side="left". {model} counts positions from the padding on, so a text\'s vector would '
            'depend on the texts beside it. Set it to "right".'
        )
    if "attention_mask" not in tokenizer.model_input_names:
        raise UnsupportedModelError(
            f"{file} leaves attention_mask out of model_input_names: {model} would read the padding. Add it."
        )
