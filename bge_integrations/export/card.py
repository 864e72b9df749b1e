"""The card of an exported folder, and the comparison of its graphs with the package that the card reports."""

import json
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.export.subject import QUERY, TEXTS, Subject


def compare(subject: Subject, folder: Path, file: str) -> float:
    """Run one of the folder's graphs, with the folder's tokenizer, and compare it with `subject.expected`.

    Returns:
        For an embedder, the lowest cosine of a text; for a reranker, the largest difference of a score (0 to 1).
    """
    given = _run(subject, folder, file)
    if subject.is_reranker:
        return float(np.abs(_sigmoid(given[:, 0]) - _sigmoid(subject.expected)).max())
    return float((_unit(given[:, 0]) * _unit(subject.expected)).sum(1).min())


def _run(subject: Subject, folder: Path, file: str) -> NDArray[np.float32]:
    """Return the graph's output for one padded batch: hidden states (n, tokens, width), or logits (n, 1)."""
    import onnxruntime  # type: ignore[import-untyped]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(subject.max_length)
    tokenizer.enable_padding(pad_id=subject.pad_token_id)
    encodings = tokenizer.encode_batch(subject.sent)
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    inputs = {
        wanted.name: np.array([getattr(encoding, columns[wanted.name]) for encoding in encodings], dtype=np.int64)
        for wanted in session.get_inputs()
    }
    output: NDArray[np.float32] = session.run([subject.output], inputs)[0]
    return output


def _unit(vectors: NDArray[np.float32]) -> NDArray[Any]:
    unit: NDArray[Any] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-logits))


def card(subject: Subject, folder_name: str, full: float, quantized: float) -> str:
    """Return the text of README.md: where the model comes from, how near its output is, how to use it.

    Args:
        subject: The exported model.
        folder_name: The name of the folder, as the examples write it.
        full: The result of `compare` for the float32 file.
        quantized: The result of `compare` for the 8-bit file.
    """
    values: dict[str, object] = {
        "front": _front(subject),
        "name": subject.name,
        "license": subject.license or "not stated; the original's holds",
        "full": f"{full:.5f}",
        "quantized": f"{quantized:.5f}",
        "texts": len(TEXTS),
        "folder": json.dumps(folder_name),
        "max_length": subject.max_length,
        "pad_id": subject.pad_token_id,
        "query": json.dumps(QUERY),
        "document": json.dumps(TEXTS[1]),
    }
    if not subject.is_reranker:
        before_query, before_document = subject.instructions
        scaled = bool(subject.facts["normalize"])
        values |= {
            "before": _before(before_query, before_document),
            "scaled": ", scaled to length 1" if scaled else "",
            "normalize": json.dumps(scaled),
            "length": "np.linalg.norm(vectors, axis=1, keepdims=True)" if scaled else "1",
            "query": json.dumps(before_query + QUERY, ensure_ascii=False),
            "document": json.dumps(before_document + TEXTS[1], ensure_ascii=False),
        }
    template = Path(__file__).with_name("reranker.md" if subject.is_reranker else "embedder.md")
    return Template(template.read_text(encoding="utf-8")).substitute(values)


def _front(subject: Subject) -> str:
    """Return the lines of metadata that the hub reads."""
    facts = {
        "license": subject.license,
        "base_model": None if subject.is_local else subject.name,
        "pipeline_tag": "text-ranking" if subject.is_reranker else "feature-extraction",
        "library_name": "transformers.js",
    }
    return "\n".join(f"{name}: {value}" for name, value in facts.items() if value)


def _before(query: str, document: str) -> str:
    """Return the card's sentence on the instructions; backticks keep their spaces visible."""
    sides = (("query", query), ("document", document))
    return "; ".join(
        f"before every {side} goes `{text}`" if text else f"{side}s go in as they are" for side, text in sides
    )
