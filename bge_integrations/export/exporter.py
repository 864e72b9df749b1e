"""Export to ONNX: a folder of graphs, tokenizer, config, sentence-transformers' files, and a card with measurements."""

import json
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bge_integrations.architectures import architecture_of
from bge_integrations.errors import MissingExtraError, UnsupportedModelError
from bge_integrations.export.card import card, compare
from bge_integrations.export.graph import write_graph, write_quantized
from bge_integrations.export.subject import Subject, find_subject
from bge_integrations.runtime.locate import named_folder
from bge_integrations.runtime.request import Kind, ModelSource

FULL, QUANTIZED = "onnx/model.onnx", "onnx/model_quantized.onnx"


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The files that an export wrote, and how near their outputs are to the package's own.

    Attributes:
        folder: The folder, absolute.
        kind: "embedder" or "reranker".
        sizes: File -> bytes of the graph, its weights included.
        agreement: File -> for an embedder, the lowest cosine of a text; for a reranker, the largest difference of a
            score (0 to 1).
        seconds: How long the export took.
    """

    folder: Path
    kind: Kind
    sizes: dict[str, int]
    agreement: dict[str, float]
    seconds: float


def export_onnx(
    model: str,
    folder: str | Path,
    *,
    like: str | None = None,
    revision: str | None = None,
    cache_folder: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> ExportReport:
    """Write a model as a folder that Transformers.js and ONNX Runtime take as it is.

    The folder appears once everything in it has been written, run and compared with the package's own output.

    Args:
        model: A catalogue id, a hub id, or a folder.
        folder: Where to write: a new or an empty folder.
        like: The catalogue id that a fine-tune or a bare folder descends from.
        revision: The hub's branch, tag or commit.
        cache_folder: Where downloads are kept; None is the hub's own folder.
        token: For private or gated repositories.
        local_files_only: Never ask the hub.

    Raises:
        ValueError: `folder` is not empty, or not a folder.
        MissingExtraError: The extra `onnx` is not installed.
        UnknownModelError, MissingWeightsError: `BgeEmbedder` or `BgeReranker` would refuse the model too.
        UnsupportedModelError: The model cannot be exported; the message says which can.

    Example:
        >>> export_onnx("bge-integrations/mini-embedder-en", "mini-onnx").agreement["onnx/model.onnx"] > 0.9999
        True
    """
    started = time.perf_counter()
    target = free(Path(folder))
    _require("onnx", "onnx_ir", "onnxruntime", "onnxscript")
    source = ModelSource(
        model=str(model),
        kind="embedder",
        path=named_folder(str(model)),
        revision=revision,
        like=like,
        cache_folder=cache_folder,
        token=token,
        local_files_only=local_files_only,
    )
    subject = find_subject(source)
    sizes, agreement = _write_whole(subject, target)
    return ExportReport(target, subject.kind, sizes, agreement, time.perf_counter() - started)


def free(folder: Path) -> Path:
    """Return the folder's absolute path; raise `ValueError` if it is a file or holds something."""
    folder = folder.expanduser().resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and is not an empty folder. Name a new one, or delete it first.")
    return folder


def _require(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f'Exporting needs {", ".join(missing)}. Install it: pip install "bge_integrations[onnx]"'
        )


def _write_whole(subject: Subject, target: Path) -> tuple[dict[str, int], dict[str, float]]:
    """Write the folder beside `target` and rename it at the end; return the report's sizes and agreement."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
        made = Path(work) / target.name
        agreement = _write(subject, made)
        sizes = {file: sum(part.stat().st_size for part in made.glob(f"{file}*")) for file in agreement}
        if target.exists():
            target.rmdir()
        made.rename(target)
    return sizes, agreement


def _write(subject: Subject, folder: Path) -> dict[str, float]:
    """Write the whole folder; return the result of `compare` for each of its two graphs."""
    (folder / "onnx").mkdir(parents=True)
    inputs = _write_tokenizer(subject, folder)
    config = write_graph(subject, inputs, folder / FULL)
    if (folder / f"{FULL}_data").exists():
        config["transformers.js_config"] = {"use_external_data_format": {Path(FULL).name: True}}
    _write_json(folder / "config.json", config)
    full = compare(subject, folder, FULL)
    if (full > 1e-4) if subject.is_reranker else (full < 0.9999):
        raise UnsupportedModelError(
            f"The graph of {subject.name} does not compute what the model does ({full:.5f}), so nothing was written."
        )
    write_quantized(folder / FULL, folder / QUANTIZED)
    quantized = compare(subject, folder, QUANTIZED)
    if not subject.is_reranker:
        _write_modules(subject, folder)
    (folder / "README.md").write_text(card(subject, folder.name, full, quantized), encoding="utf-8")
    return {FULL: full, QUANTIZED: quantized}


def _write_tokenizer(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write the tokenizer as the package uses it; return an example of the graph's inputs."""
    from tokenizers.normalizers import Lowercase, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(subject.folder.path)
    if subject.folder.settings.get("do_lower_case"):
        normalizer = tokenizer.backend_tokenizer.normalizer
        tokenizer.backend_tokenizer.normalizer = Sequence([Lowercase(), *([normalizer] if normalizer else [])])
    tokenizer.model_max_length = subject.max_length
    tokenizer.save_pretrained(folder)
    _write_json(folder / "special_tokens_map.json", tokenizer.special_tokens_map)
    written = folder / "tokenizer_config.json"
    config = json.loads(written.read_text(encoding="utf-8"))
    _write_json(written, config | {"tokenizer_class": architecture_of(subject.folder.model_type).tokenizer_class})
    example = tokenizer(subject.sent[1:3], padding=True, truncation=True, return_tensors="pt")
    types = subject.folder.config.get("type_vocab_size", 2) > 1
    names = ("input_ids", "attention_mask", "token_type_ids") if types else ("input_ids", "attention_mask")
    return {name: example[name] for name in names if name in example}


def _write_modules(subject: Subject, folder: Path) -> None:
    """Write the files that sentence-transformers reads: pooling, normalisation, length, instructions."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    used = kinds if subject.facts["normalize"] else kinds[:2]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(used)
    ]
    _write_json(folder / "modules.json", modules)
    for path, _ in used[1:]:
        (folder / path).mkdir()
    pooling = {"word_embedding_dimension": subject.folder.dim, "pooling_mode_cls_token": True}
    pooling |= {f"pooling_mode_{mode}": False for mode in ("mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    lower_case = bool(subject.folder.settings.get("do_lower_case"))
    settings = {"max_seq_length": subject.max_length, "do_lower_case": lower_case}
    _write_json(folder / "sentence_bert_config.json", settings)
    prompts = dict(zip(("query", "document"), subject.instructions, strict=True))
    _write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
