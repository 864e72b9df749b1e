"""Loading: the only module that turns a model's files into an engine."""

import functools
import gc
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from bge_integrations.architectures import architecture_of
from bge_integrations.errors import BgeError, MissingWeightsError, UnsupportedModelError
from bge_integrations.inference.backends.base import Backend, DeviceMemoryError
from bge_integrations.inference.engine import Engine
from bge_integrations.inference.heads import Dense, Head, Layers, Logit
from bge_integrations.process import ForkSafeLock, device_lock, give_freed_memory_back, is_of_shutdown
from bge_integrations.runtime import openvino_graph
from bge_integrations.runtime.adapter import brought, merged, whole
from bge_integrations.runtime.configuration import configuration, library_arguments, plain, quiet_transformers
from bge_integrations.runtime.device import default_batch_tokens
from bge_integrations.runtime.folder import LOCAL, Folder
from bge_integrations.runtime.plain_tokenizer import LoadedTokenizer
from bge_integrations.runtime.request import ModelKey, Resolved
from bge_integrations.runtime.resolve import openvino_failure
from bge_integrations.runtime.tokenizer import load_tokenizer, text_tokenizer
from bge_integrations.runtime.weights import Tensors, read_tensors, refuse_damaged

logger = logging.getLogger(__name__)

_one_load = ForkSafeLock()
"""transformers patches its own globals while it loads, so models load one after the other."""

_REPORTED: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
"""Arguments that make transformers report tensors that are missing or misshapen, for `_refuse_missing` to refuse."""


def single_threaded_from_now_on() -> None:
    """Limit torch to one thread in a forked child of a process with a loaded model.

    OpenMP's threads do not exist in the child, and waiting for them would never end.
    """
    set_threads = getattr(sys.modules.get("torch"), "set_num_threads", None)  # half imported it has none yet
    if set_threads:
        set_threads(1)


def load(resolved: Resolved, max_waiting: int) -> Engine:
    """Load tokenizer and weights onto the device, and return an engine with a queue of `max_waiting` calls.

    Raises:
        MissingWeightsError: The checkpoint lacks a tensor that the model needs, or holds more than tensors.
        UnsupportedModelError: The tokenizer has no fast version, or a library cannot load the model.
        ValueError: A file is damaged; the message names it.
    """
    key = resolved.key
    started = time.perf_counter()
    with _one_load, _explained(resolved.folder):
        tokenizer = load_tokenizer(resolved)
        texts = text_tokenizer(tokenizer, resolved.folder)
        if key.backend == "sentence_transformers":
            backend = _pipeline(resolved, tokenizer)
        elif key.backend == "openvino":
            pad_id = tokenizer.special.get("pad_token", 0)
            backend = openvino_graph.load_backend(resolved, texts, pad_id=pad_id, tensors=partial(_tensors, resolved))
        else:
            backend = _model(resolved, tokenizer)
        _collect_once()
    logger.info(
        "loaded %s in %.1f s: %d bytes on %s as %s, %s",
        key.model, time.perf_counter() - started, backend.nbytes, key.device, key.dtype, backend.engine,
    )  # fmt: skip
    return Engine(
        texts,
        backend,
        device=key.device,
        max_batch_tokens=default_batch_tokens(key.device),
        max_waiting=max_waiting,
    )


@functools.cache
def _collect_once() -> None:
    """Collect garbage after the first load, whose imports leave hundreds of thousands of objects to the collector.

    Otherwise it would go through them all in the middle of some later call, and hold every thread for some 250 ms.
    """
    gc.collect()
    give_freed_memory_back()


@contextmanager
def _explained(folder: Folder) -> Iterator[None]:
    """Turn any library's error into one that names the folder that could not be loaded, or its damaged file."""
    try:
        yield
    except (BgeError, MemoryError, DeviceMemoryError):
        raise
    except Exception as error:
        if is_of_shutdown(error) or type(error).__name__ == "OutOfMemoryError":  # torch may not even be imported
            raise
        refuse_damaged(folder)
        raise UnsupportedModelError(
            f"{folder.path} cannot be loaded: {type(error).__name__}: {error!s:.500}"
        ) from error


@quiet_transformers()
def _model(resolved: Resolved, tokenizer: LoadedTokenizer) -> Backend:
    if architecture_of(resolved.folder.model_type).layerwise:
        return _layerwise(resolved)
    language_model = resolved.spec is not None and resolved.spec.family == "llm"
    return _decoder(resolved) if language_model else _encoder(resolved, tokenizer)


def quantized_graph(resolved: Resolved, texts: Sequence[str]) -> Any:
    """Quantize an encoder to an int8 graph for OpenVINO, calibrated on texts; raises as `load` does."""
    with _one_load:
        tokenizer = text_tokenizer(load_tokenizer(resolved), resolved.folder)
        return openvino_graph.quantized_graph(resolved.folder, tokenizer, partial(_tensors, resolved), texts)


def _tensors(resolved: Resolved) -> Tensors:
    """Return an encoder's weights by name: as safetensors hold them, else as torch has loaded them."""
    folder = resolved.folder
    files = folder.weights()
    if not folder.adapter and all(file.suffix == ".safetensors" for file in files):
        return read_tensors(files)
    with quiet_transformers():
        module = _encoder_module(resolved, "float32", "sdpa")
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def _encoder(resolved: Resolved, tokenizer: LoadedTokenizer) -> Backend:
    from bge_integrations.inference.backends import varlen
    from bge_integrations.inference.backends.fused import Fusing
    from bge_integrations.inference.backends.graphs import ForwardGraphs
    from bge_integrations.inference.backends.m3 import M3Backend
    from bge_integrations.inference.backends.proof import PLAIN
    from bge_integrations.inference.backends.pytorch import TorchBackend, packed_hidden

    key, folder = resolved.key, resolved.folder
    padded_because = _padded_reason(resolved)
    attention = None if resolved.reason else PLAIN if padded_because else varlen.NAME
    model = _encoder_module(resolved, key.dtype, attention)
    for name, head in _heads(folder).items():
        setattr(model, f"{name}_linear", head.to(model.dtype))
    _unmapped(model.to(key.device), key)
    if not padded_because:
        packed, padded = (TorchBackend(model, packed=packed, engine="") for packed in (True, False))
        scoring = Logit() if folder.is_reranker else Dense()
        padded_because = _packing_fault(key, model.base_model.encoder.layer[-1], scoring, packed, padded)
    on_cuda = not padded_because and key.device.startswith("cuda")
    engine = f"padded: {padded_because}" if padded_because else "packed"
    failure = openvino_failure(key)
    names = ("cls_token", "eos_token", "pad_token", "unk_token")
    unused = tuple({tokenizer.special[name] for name in names if name in tokenizer.special})
    backend = partial(M3Backend, unused=unused) if folder.heads else TorchBackend
    return backend(
        model,
        packed=not padded_because,
        engine=f"{engine}; {failure}" if failure else engine,
        fusing=Fusing(model.base_model.encoder.layer) if on_cuda else None,
        graphs=ForwardGraphs(partial(packed_hidden, model), model.device) if on_cuda else None,
    )


def _packing_fault(key: ModelKey, last_layer: Any, head: Head, packed: Any, padded: Any) -> str:
    """Return why a model may not run packed, "" if it may; with a fault, transformers' own attention is left in it."""
    from bge_integrations.inference.backends.proof import packing_fault

    with device_lock(key.device):
        return packing_fault(last_layer, head, packed=packed, alone=padded)


def _encoder_module(resolved: Resolved, dtype: str, attention: str | None) -> Any:
    """Load the whole checkpoint on the CPU; without `attention` the folder chooses it, else transformers."""
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification

    folder = resolved.folder
    config = configuration(resolved)
    if folder.is_reranker and folder.adapter:
        config.num_labels = folder.labels
    if attention:
        config._attn_implementation = attention  # noqa: SLF001 - transformers has no public name for it
    auto = AutoModelForSequenceClassification if folder.is_reranker else AutoModel
    extra: dict[str, Any] = {} if folder.is_reranker else {"add_pooling_layer": False}
    model, report = auto.from_pretrained(
        folder.path,
        config=config,
        dtype=getattr(torch, dtype),
        trust_remote_code=resolved.trust_remote_code,
        **_REPORTED,
        **extra,
    )
    _refuse_missing(report, folder)
    return merged(model, folder)


def _heads(folder: Folder) -> dict[str, Any]:
    """Load bge-m3's linear layers, output -> layer; {} for a model without them."""
    import torch

    heads = {}
    for name, file in folder.heads.items():
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
            weight, bias = tensors["weight"], tensors["bias"]
        except (KeyError, EOFError, RuntimeError):
            weight = bias = None
        if weight is None or weight.shape != (len(bias), folder.dim):
            raise MissingWeightsError(
                f"{file} should hold the weight (outputs, {folder.dim}) and the bias of a linear layer. Download it "
                "again."
            )
        heads[name] = torch.nn.Linear(folder.dim, len(bias))
        heads[name].load_state_dict({"weight": weight, "bias": bias})
    return heads


def _decoder(resolved: Resolved) -> Backend:
    """Load a language model without its output layer, or with it for a reranker."""
    from transformers import AutoModel, AutoModelForCausalLM

    from bge_integrations.inference.backends.pytorch import TorchBackend

    auto = AutoModelForCausalLM if resolved.spec and resolved.spec.kind == "reranker" else AutoModel
    config = configuration(resolved)
    model = _loaded_decoder(resolved, auto, config)
    packed, padded = (TorchBackend(model, packed=packed, engine="") for packed in (True, False))
    fault = _packing_fault(resolved.key, model.base_model.layers[-1], Dense(), packed, padded)
    engine = f"padded: {fault}" if fault else _decoder_engine(resolved, config)
    return TorchBackend(model, packed=not fault, engine=engine)


def _layerwise(resolved: Resolved) -> Backend:
    from bge_integrations.inference.backends.layerwise import CostWiseGemma, LayerwiseBackend, LayerwiseMiniCPM

    model_class: Any = (
        LayerwiseMiniCPM if architecture_of(resolved.folder.model_type).family == "layerwise" else CostWiseGemma
    )
    config = model_class.make_config(plain(resolved.folder.config))
    model = _loaded_decoder(resolved, model_class, config)
    backend = LayerwiseBackend(model, engine=_decoder_engine(resolved, config))
    layers = model.model.layers
    if fault := _packing_fault(resolved.key, layers[-1], Layers((len(layers),)), backend, backend):
        raise UnsupportedModelError(f"{resolved.key.model} can only run packed, and that fails: {fault}.")
    return backend


def _loaded_decoder(resolved: Resolved, model_class: Any, config: Any) -> Any:
    import torch

    from bge_integrations.inference.backends import varlen

    # Gemma 2's cap on attention is off: transformers before 5 left it out in its default attention, with which the
    # published numbers were made, and torch's variable-length kernel has none.
    config.attn_logit_softcapping = None
    config._attn_implementation = varlen.NAME  # noqa: SLF001 - transformers has no public name for it
    key, folder = resolved.key, resolved.folder
    model, report = model_class.from_pretrained(
        folder.path, config=config, dtype=getattr(torch, key.dtype), **_REPORTED
    )
    _refuse_missing(report, folder)
    return _unmapped(merged(model, folder).to(key.device), key)


def _decoder_engine(resolved: Resolved, config: Any) -> str:
    """Describe how a packed decoder runs; without the kernel, attention is computed text by text."""
    from bge_integrations.inference.backends import varlen

    key = resolved.key
    if key.device.startswith("cpu"):
        return "packed"
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    on_cuda = key.device.startswith("cuda")
    refusal = varlen.kernel_refusal(key.device, key.dtype, head_size) if on_cuda else "the kernel needs CUDA"
    return f"packed, attention text by text: {refusal}" if refusal else "packed"


def _padded_reason(resolved: Resolved) -> str:
    """Return why the torch backend pads, "" if it runs packed."""
    from bge_integrations.inference.backends import varlen

    key, config = resolved.key, resolved.folder.config
    if resolved.reason:
        return resolved.reason
    if not key.device.startswith("cuda"):
        return "" if key.device.startswith("cpu") else f"packing is not tried on {key.device}"
    head_size = int(config["hidden_size"]) // int(config["num_attention_heads"])
    return varlen.kernel_refusal(key.device, key.dtype, head_size)


@quiet_transformers()
def _pipeline(resolved: Resolved, tokenizer: LoadedTokenizer) -> Backend:
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    from bge_integrations.inference.backends.sentence_transformers import SentenceTransformersBackend

    key, folder = resolved.key, resolved.folder
    pad_id = tokenizer.special.get("pad_token", tokenizer.special.get("eos_token"))
    given = library_arguments(folder, pad_id)
    with whole(folder) as root:
        model: Any = (CrossEncoder if folder.is_reranker else SentenceTransformer)(
            str(root),
            device=key.device,
            trust_remote_code=resolved.trust_remote_code,
            local_files_only=True,
            config_kwargs=given["config_kwargs"],
            model_kwargs=given["model_kwargs"] | {"dtype": getattr(torch, key.dtype), "ignore_mismatched_sizes": True},
        )
    # sentence-transformers initialises tensors that a checkpoint lacks at random and only logs it. It alone knows which
    # class a folder needs (for T5, the encoder's), so the model that it made is compared with the files once more.
    inner = model[0].auto_model
    _, report = type(inner).from_pretrained(folder.path, config=inner.config, dtype=inner.dtype, **_REPORTED)
    _refuse_missing(report, folder)
    if folder.adapter:
        model[0].model = merged(model[0].model, folder)
        model.to(key.device)
    engine = f"sentence_transformers: {resolved.reason}"
    return SentenceTransformersBackend(
        _unmapped(model, key), pad_id=pad_id or 0, engine=engine, names_pooling=bool(folder.modules)
    )


def _unmapped(model: Any, key: ModelKey) -> Any:
    """Copy weights out of a local folder's mapped file, for retraining in place would cut them off (SIGBUS).

    The hub's files never change, so their weights stay mapped, and processes share the memory.
    """
    if key.device.startswith("cpu") and key.revision.startswith(LOCAL):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return model


def _refuse_missing(report: dict[str, Any], folder: Folder) -> None:
    # Embedders do not use BERT's pooler, and many checkpoints leave it out; BERT's classifier needs it.
    missing = sorted(
        name
        for name in report["missing_keys"]
        if (folder.is_reranker or not name.startswith("pooler.")) and not brought(folder, name)
    )
    mismatched = sorted(str(name) for name, *_ in report["mismatched_keys"])
    if missing or mismatched:
        names = ", ".join((missing + mismatched)[:4])
        raise MissingWeightsError(
            f"The checkpoint in {folder.path} lacks {len(missing + mismatched)} tensors that the model needs, or has "
            f"them in another shape ({names}, ...). It would run on random weights, so it is refused: use a complete "
            "checkpoint."
        )
