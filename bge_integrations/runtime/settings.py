"""Checks of a folder's settings: what is refused, and what the fast backends leave to sentence-transformers.

Every key that the library reads is honoured, handed to it or refused by name; none is dropped.
"""

from collections.abc import Mapping

from bge_integrations.architectures import architecture_of
from bge_integrations.errors import MissingExtraError, UnsupportedModelError
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.modules import POOLING_FLAGS, Module

_MODULES = {"CNN", "Dense", "Dropout", "LayerNorm", "Normalize", "Pooling", "WeightedLayerPooling", "WordWeights"}
"""Modules of the library that turn a Transformer's token vectors into one vector a text."""
_FAST_MODULES = {"Transformer", "Pooling", "Normalize"}
_NEEDED = {
    "CNN": ("out_channels", "kernel_sizes"),
    "Dense": ("in_features", "out_features"),
    "Pooling": (),
}

_TASKS = {"embedder": "feature-extraction", "reranker": "sequence-classification"}
_USUAL_TEXT = {
    "embedder": ({"method": "forward", "method_output_name": "last_hidden_state"}, "token_embeddings"),
    "reranker": ({"method": "forward", "method_output_name": "logits"}, "scores"),
}
_HONOURED = {"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"}
_WITHOUT_EFFECT = {"unpad_inputs"}
_LOADING = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_OURS_TO_CHOOSE = {"torch_dtype", "dtype", "attn_implementation", "add_pooling_layer", "trust_remote_code"}
"""Arguments for loading that `dtype`, `backend` and `trust_remote_code` decide here instead."""
_POOLING_KEYS = {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *POOLING_FLAGS}


def check_pipeline(folder: Folder, *, trust_remote_code: bool) -> None:
    """Refuse, before weights load, settings that neither this package nor sentence-transformers would honour.

    Raises:
        UnsupportedModelError: The message names the file and what it asks for.
        MissingExtraError: The files ask for another version of a package.
    """
    if not folder.modules:
        return
    _check_kind(folder)
    _check_modules(folder, trust_remote_code)
    _check_settings(folder)
    _check_requirements(folder)


def slow_reason(folder: Folder) -> str:
    """Return why the fast paths cannot run this pipeline, "" if they can."""
    if not architecture_of(folder.model_type).packs:
        return f"its architecture is {folder.model_type or 'not named'}, not BERT or XLM-RoBERTa"
    if folder.config.get("is_decoder") or folder.config.get("position_embedding_type", "absolute") != "absolute":
        return "it is a decoder or has relative positions"
    if not folder.modules:
        return ""
    if unknown := [module.type for module in folder.modules if module.type not in _FAST_MODULES]:
        return f"its pipeline holds {', '.join(unknown)}"
    if not folder.is_reranker and (folder.pooling is None or not folder.include_prompt):
        return "its pooling is not simply cls, mean or last token"
    kinds = [module.type for module in folder.modules]
    if kinds[1:] != ["Pooling", "Normalize"][: len(kinds) - 1] or not all(map(_is_plain, folder.modules)):
        return "its modules stand in another order, or work on other vectors"
    if not _is_usual_text(folder):
        return f"{folder.settings_file} sets modality_config"
    if folder.pipeline.get("keep_in_fp32_modules"):
        return "config_sentence_transformers.json keeps modules in float32"
    return ""


def _check_kind(folder: Folder) -> None:
    kind = folder.pipeline.get("model_type", "SentenceTransformer")
    if kind not in ("SentenceTransformer", "CrossEncoder"):
        raise UnsupportedModelError(
            f"{folder.root} was saved as a {kind} (config_sentence_transformers.json); only a SentenceTransformer or a "
            "CrossEncoder can be run."
        )


def _check_modules(folder: Folder, trust_remote_code: bool) -> None:
    for module in folder.modules[1:]:
        if "." in module.type and trust_remote_code:
            continue
        if folder.is_reranker or module.type not in _MODULES:
            raise UnsupportedModelError(
                f"{folder.root} holds the module {module.type} (modules.json), which cannot be run here: "
                + ("a reranker is a sequence classifier alone." if folder.is_reranker else _possible())
            )
        _check_module(folder, module, trust_remote_code)


def _possible() -> str:
    return f"possible after Transformer are {', '.join(sorted(_MODULES))}."


def _check_module(folder: Folder, module: Module, trust_remote_code: bool) -> None:
    where = f"{folder.root / module.name}: the config of {module.type}"
    missing = [key for key in _NEEDED.get(module.type, ()) if key not in module.config]
    if missing or (module.type in _NEEDED and not module.config):
        raise ValueError(f"{where} lacks {', '.join(missing) or 'all settings'}. Download or save the folder again.")
    if module.type == "Pooling":
        unknown = sorted(set(module.config) - _POOLING_KEYS)
        modes = [mode for mode in module.modes if mode not in POOLING_FLAGS.values()]
        if unknown or modes:
            raise UnsupportedModelError(
                f"{where} has {', '.join(unknown + modes)}, which sentence-transformers does not take."
            )
    activation = str(module.config.get("activation_function", "torch."))
    if module.type == "Dense" and not activation.startswith("torch.") and not trust_remote_code:
        raise UnsupportedModelError(
            f"{where} names the activation {activation}, which is code of its own. Pass trust_remote_code=True if you "
            "trust it."
        )


def _check_settings(folder: Folder) -> None:
    settings, kind = folder.settings, "reranker" if folder.is_reranker else "embedder"

    def refuse(key: str, why: str) -> None:
        raise UnsupportedModelError(f"{folder.path / folder.settings_file} sets {key}={settings[key]!r:.80}, {why}.")

    for key in settings:
        if key in _LOADING:
            if set(settings[key] or {}) - _OURS_TO_CHOOSE:
                refuse(key, "which cannot be honoured")
        elif key not in _HONOURED | _WITHOUT_EFFECT and settings[key]:
            refuse(key, "which cannot be honoured")
    length = settings.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
        refuse("max_seq_length", "which is not a number of tokens")
    if settings.get("transformer_task", _TASKS[kind]) != _TASKS[kind]:
        refuse("transformer_task", f"and this package runs {_TASKS[kind]} for {kind}s")
    modalities = settings.get("modality_config")
    if modalities is not None and (
        not isinstance(modalities, Mapping)
        or "message" in modalities
        or not isinstance(modalities.get("text"), Mapping)
        or (folder.is_reranker and not _is_usual_text(folder))
    ):
        refuse("modality_config", "and only plain texts can be sent, no chat messages")


def _is_usual_text(folder: Folder) -> bool:
    """Return whether the next module gets the transformer's last hidden state or, of a classifier, the logits."""
    settings = folder.settings
    text, output = _USUAL_TEXT["reranker" if folder.is_reranker else "embedder"]
    if settings.get("modality_config") is None:
        return True
    named = settings["modality_config"].get("text", {})
    wanted = named.get("method_output_name")
    method_output = wanted[0] if isinstance(wanted, list) and len(wanted) == 1 else wanted
    return (named.get("method"), method_output) == tuple(text.values()) and settings.get("module_output_name") == output


def _is_plain(module: Module) -> bool:
    """Return False for a Normalize module that works on something else than a text's vector, else True."""
    names = (module.config.get("module_input_name"), module.config.get("module_output_name"))
    return module.type != "Normalize" or set(names) <= {None, "sentence_embedding"}


def _check_requirements(folder: Folder) -> None:
    if requirements := folder.pipeline.get("requirements"):
        from sentence_transformers.util.environment import check_version_requirements

        try:
            check_version_requirements(requirements, source=str(folder.root))
        except ImportError as error:
            raise MissingExtraError(str(error)) from error
