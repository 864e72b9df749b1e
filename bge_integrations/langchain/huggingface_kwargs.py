"""The meaning of the old class's `model_kwargs` and `encode_kwargs` for this package's embedder."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from bge_integrations._fields import torch_name, unmasked

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]

_MODEL_KEYS = {
    "backend", "default_prompt_name", "device", "dtype", "local_files_only", "model_kwargs", "prompts", "revision",
    "similarity_fn_name", "token", "torch_dtype", "truncate_dim", "trust_remote_code", "use_auth_token",
}  # fmt: skip
_REFUSED_MODEL_KEYS = {
    "attn_implementation": "The attention is chosen by the device and dtype; leave the key out.",
    "cache_folder": "Pass cache_folder= itself.",
    "config_kwargs": "The model runs as its config.json says; change that file.",
    "export": "The backend is chosen by the model and the machine; leave the key out.",
    "file_name": "The backend is chosen by the model and the machine; leave the key out.",
    "model_card_data": "No model card is written; leave the key out.",
    "model_name_or_path": "Pass model_name= itself.",
    "modules": "Save the modules to a folder with SentenceTransformer(modules=...).save() and pass it as model_name=.",
    "processor_kwargs": "The tokenizer runs as its files say; for another limit use BgeEmbeddings(max_length=...).",
    "provider": "The backend is chosen by the model and the machine; leave the key out.",
    "tokenizer_kwargs": "The tokenizer runs as its files say; for another limit use BgeEmbeddings(max_length=...).",
}
_DTYPE_KEYS = ("dtype", "torch_dtype")
_TOKEN_KEYS = ("token", "use_auth_token")
_ENCODE_KEYS = {
    "batch_size", "chunk_size", "convert_to_numpy", "convert_to_tensor", "device", "normalize_embeddings",
    "output_value", "precision", "prompt", "prompt_name", "show_progress_bar", "truncate_dim",
}  # fmt: skip
_REFUSED_ENCODE_KEYS = {
    "inputs": "Pass the texts to embed_documents or embed_query.",
    "pool": "Texts of all callers share one queue on one device, without processes; leave the key out.",
    "processing_kwargs": "For another limit use BgeEmbeddings(max_length=...).",
    "sentences": "Pass the texts to embed_documents or embed_query.",
    "task": "Pipelines that treat tasks differently are not supported; leave the key out.",
}


@dataclass(frozen=True, slots=True)
class Finish:
    """The steps that are applied to the pipeline's vectors, in this order.

    Attributes:
        truncate_dim: Keep only this many leading dimensions; None keeps all.
        normalize: Scale vectors to length 1.
        precision: The type that the numbers are converted to.
    """

    truncate_dim: int | None
    normalize: bool
    precision: Precision

    def applied(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        """Return the vectors (n, dim) as sentence-transformers' `encode` returns them.

        Raises:
            ValueError: The `precision` is "int8" or "uint8", which needs more than one vector.
        """
        vectors = vectors[:, : self.truncate_dim]
        if self.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        if self.precision == "float32" or not len(vectors):
            return vectors
        from sentence_transformers.util import quantize_embeddings

        quantized: Any = quantize_embeddings(vectors, self.precision)
        return np.asarray(quantized)


def embedder_arguments(model_kwargs: Mapping[str, Any], encode_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `FolderEmbedder` that the two dicts ask for.

    `similarity_fn_name`, `batch_size` and `chunk_size` are accepted without effect, as they change no vector.

    Raises:
        ValueError: A key or value is not supported; the message says what to do.
        TypeError: The device is a list, or the prompts are no dict.
    """
    _refuse("model_kwargs", model_kwargs, _MODEL_KEYS, _REFUSED_MODEL_KEYS)
    _refuse("encode_kwargs", encode_kwargs, _ENCODE_KEYS, _REFUSED_ENCODE_KEYS)
    _check_encode_values(encode_kwargs)
    device = encode_kwargs.get("device")
    return {
        "backend": _backend(model_kwargs.get("backend")),
        "device": model_kwargs.get("device") if device is None else device,
        "dtype": _dtype(model_kwargs),
        "revision": model_kwargs.get("revision"),
        "token": _token(model_kwargs),
        "local_files_only": model_kwargs.get("local_files_only", False),
        "trust_remote_code": model_kwargs.get("trust_remote_code", False),
        **_prompt(model_kwargs, encode_kwargs),
    }


def shown(model_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return `model_kwargs` as a dump shows them: without the token, and with names for torch's own objects."""
    kept = {key: value for key, value in model_kwargs.items() if key not in _TOKEN_KEYS or isinstance(value, bool)}
    return {key: _named(value) for key, value in kept.items()}


def finish(model_kwargs: Mapping[str, Any], encode_kwargs: Mapping[str, Any]) -> Finish:
    """Return the steps that the two dicts ask for."""
    truncate_dim = encode_kwargs.get("truncate_dim")
    return Finish(
        model_kwargs.get("truncate_dim") if truncate_dim is None else truncate_dim,
        bool(encode_kwargs.get("normalize_embeddings")),
        encode_kwargs.get("precision") or "float32",
    )


def _named(value: object) -> object:
    return {key: torch_name(inner) for key, inner in value.items()} if isinstance(value, Mapping) else torch_name(value)


def _refuse(which: str, given: Mapping[str, Any], possible: Set[str], refused: Mapping[str, str]) -> None:
    """Refuse unknown keys, and keys that are not supported unless their value is empty."""
    for key, value in given.items():
        if key in refused and value:
            raise ValueError(f"{which}[{key!r}] is not supported. {refused[key]}")
        if key not in possible and key not in refused:
            raise ValueError(f"{which}[{key!r}] is not an argument. Possible are {', '.join(sorted(possible))}.")


def _check_encode_values(encode_kwargs: Mapping[str, Any]) -> None:
    batch_size = encode_kwargs.get("batch_size", 1)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"encode_kwargs['batch_size'] is {batch_size!r}. It must be a whole number over 0.")
    output = encode_kwargs.get("output_value", "sentence_embedding")
    if output != "sentence_embedding":
        raise ValueError(
            f"encode_kwargs['output_value'] is {output!r}. Only 'sentence_embedding' gives one vector per text."
        )
    precision = encode_kwargs.get("precision")
    if precision is not None and precision not in get_args(Precision):
        raise ValueError(f"encode_kwargs['precision'] is {precision!r}. Use one of {', '.join(get_args(Precision))}.")
    if isinstance(encode_kwargs.get("device"), list):
        raise TypeError("encode_kwargs['device'] is a list. Give one device; texts of all callers share its queue.")


def _backend(backend: str | None) -> str:
    if backend == "onnx":
        raise ValueError("model_kwargs['backend'] 'onnx' is not supported. Use 'torch', or leave the key out.")
    return "auto" if backend in (None, "torch") else backend


def _dtype(model_kwargs: Mapping[str, Any]) -> object:
    """Return the dtype, from `model_kwargs` or from the `model_kwargs` inside it; "float32" if neither has one."""
    inner = model_kwargs.get("model_kwargs") or {}
    if not isinstance(inner, Mapping):
        raise TypeError(f"model_kwargs['model_kwargs'] is {type(inner).__name__}. It must be a dict.")
    if lost := [key for key, value in inner.items() if key not in _DTYPE_KEYS and value is not None]:
        raise ValueError(
            f"model_kwargs['model_kwargs'][{lost[0]!r}] is not supported. Only torch_dtype is; leave the key out."
        )
    given = {str(torch_name(kwargs[key])) for kwargs in (model_kwargs, inner) for key in _DTYPE_KEYS if kwargs.get(key)}
    if len(given) > 1:
        raise ValueError(f"model_kwargs give several dtypes: {', '.join(sorted(given))}. Give one torch_dtype.")
    if "auto" in given:
        raise ValueError("torch_dtype 'auto' is not supported. Name a dtype: 'float32', 'float16', 'bfloat16'.")
    return given.pop() if given else "float32"


def _token(model_kwargs: Mapping[str, Any]) -> object:
    token, old = (unmasked(model_kwargs.get(key)) for key in _TOKEN_KEYS)
    if token is not None and old is not None:
        raise ValueError("model_kwargs['use_auth_token'] is the old name of 'token'. Give only 'token'.")
    token = old if token is None else token
    return token.get_secret_value() if isinstance(token, SecretStr) else token


def _prompt(model_kwargs: Mapping[str, Any], encode_kwargs: Mapping[str, Any]) -> dict[str, str]:
    """Return the prompt's text or, if only the model's folder has that, its name; {} for the folder's default."""
    if encode_kwargs.get("prompt") is not None:
        return {"prompt": encode_kwargs["prompt"]}
    prompts = model_kwargs.get("prompts") or {}
    if not isinstance(prompts, Mapping):
        raise TypeError(f"model_kwargs['prompts'] is {type(prompts).__name__}. It must be a dict of names and texts.")
    name = encode_kwargs.get("prompt_name")
    if name is None:
        name = model_kwargs.get("default_prompt_name")
    if name in prompts:
        return {"prompt": prompts[name]}
    if name is not None:
        return {"prompt_name": name}
    if prompts:
        raise ValueError(
            "model_kwargs['prompts'] has no effect alone. Choose one with encode_kwargs['prompt_name'] or "
            "model_kwargs['default_prompt_name'], or leave the key out."
        )
    return {}
