"""The page `/docs`: an OpenAPI document as HTML, with an example of each request for curl."""

import json
import re
from html import escape
from typing import Any

_SAMPLES: dict[str, object] = {
    "model": "MODEL",
    "query": "What do pandas eat?",
    "input": ["Pandas eat bamboo."],
    "inputs": ["Pandas eat bamboo."],
    "texts": ["Pandas eat bamboo.", "Bread needs flour."],
    "documents": ["Pandas eat bamboo.", "Bread needs flour."],
}
"""What the examples send; a field of another name is left out."""


def docs_page(document: dict[str, Any], address: str, style: str) -> str:
    """Write an OpenAPI document as a page.

    Args:
        document: The document.
        address: The server's address, for the examples.
        style: The page's style sheet (CSS).
    """
    named = document.get("components", {}).get("schemas", {})
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, facts in methods.items():
            (group,) = facts.get("tags", ["other"])[:1]
            groups.setdefault(group, []).append(_operation(method.upper(), path, facts, named, address))
    sections = "\n".join(f"<section><h2>{escape(tag)}</h2>{''.join(parts)}</section>" for tag, parts in groups.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>bge serve: the API</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header><h1>The API of bge serve</h1>
<nav><a href="./">what it serves</a> <a href="openapi.json">OpenAPI</a></nav></header>
<main>
<p>MODEL stands for one of the server's models. Where the server wants a key, add
<code>-H 'Authorization: Bearer KEY'</code>.</p>
{sections}
</main>
</body>
</html>
"""


def _operation(method: str, path: str, facts: dict[str, Any], named: dict[str, Any], address: str) -> str:
    body = facts.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    schema = _resolved(body, named) if body else {}
    example = f"curl {address}{path}"
    if body:
        sent = json.dumps(_example(schema), ensure_ascii=False)
        example += f" \\\n  -H 'Content-Type: application/json' \\\n  -d '{sent}'"
    return (
        f'<article><h3><code>{method} {escape(path)}</code> <span class="summary">{_prose(facts.get("summary", ""))}'
        f"</span></h3><p>{_prose(facts.get('description', ''))}</p>{_fields(schema, named)}"
        f"<pre>{escape(example)}</pre></article>"
    )


def _fields(schema: dict[str, Any], named: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td>{_code(name)}</td><td>{escape(_type(field, named))}</td>"
        f"<td>{'required' if name in required else _code(json.dumps(field.get('default')))}</td>"
        f"<td>{_prose(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    head = "<tr><th>Field</th><th>Type</th><th>Default</th><th>Meaning</th></tr>"
    return f'<div class="wide"><table>{head}{rows}</table></div>' if rows else ""


def _example(schema: dict[str, Any]) -> dict[str, object]:
    """Return a body with the required fields, and with the texts, which one of several fields may bring."""
    required = set(schema.get("required", []))
    texts = [name for name in ("input", "texts", "inputs", "documents") if name in schema.get("properties", {})]
    if texts and required.isdisjoint(texts):
        required.add(texts[0])
    return {name: sample for name, sample in _SAMPLES.items() if name in required}


def _type(schema: dict[str, Any], named: dict[str, Any]) -> str:
    """Return a field's type in words."""
    schema = _resolved(schema, named)
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one, named) for one in schema["anyOf"]))
    if schema.get("type") == "array":
        inner = _type(schema.get("items", {}), named)
        return f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if "properties" in schema:
        inner = ", ".join(f"{name}: {_type(field, named)}" for name, field in schema["properties"].items())
        return f"{{{inner}}}"
    return str(schema.get("type", "any"))


def _resolved(schema: dict[str, Any], named: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = named[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def _prose(text: str) -> str:
    """Return text as HTML, with what stands between backquotes as code."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
