"""What an exported folder gives in ONNX Runtime, beside what the package gives."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bge_integrations.export.subject import Subject


def compare(subject: Subject, folder: Path, file: str) -> float:
    """Runs one of the folder's graphs, on the folder's tokenizer, and compares it with `subject.expected`.

    Returns:
        Of an embedder, the lowest cosine of a text; of a reranker, the largest difference of a score (0 to 1).
    """
    given = _run(subject, folder, file)
    if subject.is_reranker:
        return float(np.abs(_sigmoid(given[:, 0]) - _sigmoid(subject.expected)).max())
    return float((_unit(given[:, 0]) * _unit(subject.expected)).sum(1).min())


def _run(subject: Subject, folder: Path, file: str) -> NDArray[np.float32]:
    """The graph's output for one padded batch: hidden states (n, tokens, width), or logits (n, 1)."""
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
