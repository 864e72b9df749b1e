"""A folder's tokenizer, with the settings that its files give it."""

import copy
from typing import Any

from bge_integrations.architectures import architecture_of
from bge_integrations.errors import UnsupportedModelError
from bge_integrations.inference.tokenize import TextTokenizer
from bge_integrations.runtime.configuration import configuration
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.request import Resolved
from bge_integrations.runtime.weights import refuse_missing_vocabulary, refuse_pointers, tokenizer_files


def load_tokenizer(resolved: Resolved) -> Any:
    """Load transformers' tokenizer of a folder, which says what its special tokens are.

    Raises:
        MissingWeightsError: The folder has no vocabulary, or a Git LFS pointer in its stead.
        UnsupportedModelError: The tokenizer has no fast version, or settings with which texts would depend on others.
    """
    from tokenizers.normalizers import Lowercase, Sequence
    from transformers import AutoTokenizer, PreTrainedConfig

    folder = resolved.folder
    refuse_missing_vocabulary(folder)
    refuse_pointers(tokenizer_files(folder))
    # transformers finds a tokenizer's class by the architecture, and it does not know the layerwise ones.
    config = PreTrainedConfig() if architecture_of(folder.model_type).layerwise else configuration(resolved)
    tokenizer = AutoTokenizer.from_pretrained(
        folder.tokenizer_path, config=config, trust_remote_code=resolved.trust_remote_code
    )
    if not tokenizer.is_fast:
        raise UnsupportedModelError(f"{resolved.key.model} has only a slow tokenizer; a tokenizer.json is needed.")
    _check_tokenizer(tokenizer, resolved)
    if folder.settings.get("do_lower_case"):
        normalizer = tokenizer.backend_tokenizer.normalizer
        tokenizer.backend_tokenizer.normalizer = Sequence([Lowercase(), *([normalizer] if normalizer else [])])
    return tokenizer


def text_tokenizer(tokenizer: Any, folder: Folder) -> TextTokenizer:
    """Make, from a tokenizer of transformers, the object that turns texts into token ids."""
    bos = tokenizer.bos_token_id
    if bos == tokenizer.pad_token_id and not architecture_of(folder.model_type).layerwise:  # as in FlagEmbedding
        bos = None
    own = copy.deepcopy(tokenizer.backend_tokenizer)
    own.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
    return TextTokenizer(
        own,
        with_types="token_type_ids" in tokenizer.model_input_names and folder.config.get("type_vocab_size", 2) > 1,
        bos=bos,
        eos=tokenizer.eos_token_id,
        keeps_end=tokenizer.truncation_side == "left",
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
