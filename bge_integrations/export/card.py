"""The card of an exported folder, from the templates `embedder.md` and `reranker.md` beside this file."""

import json
from pathlib import Path
from string import Template

from bge_integrations.export.subject import QUERY, TEXTS, Subject


def card(subject: Subject, folder_name: str, full: float, quantized: float) -> str:
    """Returns README.md: where the model comes from, how near the export is, how it is used.

    Args:
        subject: What was exported.
        folder_name: The name of the folder, by which the examples call it.
        full: What `compare` says of the float32 file.
        quantized: The same of the 8-bit file.
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
    """The lines that the hub reads."""
    facts = {
        "license": subject.license,
        "base_model": None if subject.is_local else subject.name,
        "pipeline_tag": "text-ranking" if subject.is_reranker else "feature-extraction",
        "library_name": "transformers.js",
    }
    return "\n".join(f"{name}: {value}" for name, value in facts.items() if value)


def _before(query: str, document: str) -> str:
    """What is said of the instructions; backticks keep their spaces visible."""
    sides = (("query", query), ("document", document))
    return "; ".join(
        f"before every {side} goes `{text}`" if text else f"{side}s go in as they are" for side, text in sides
    )
