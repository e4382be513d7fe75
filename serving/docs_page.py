"""/docs: the service's OpenAPI description as a page without scripts, so that nothing is loaded from other hosts."""

from __future__ import annotations

import json
from html import escape
from typing import Any


def docs_page(openapi: dict[str, Any]) -> str:
    """HTML: every route with its body, its parameters and its answer."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>sidrec: the service</title><h1>sidrec: the service</h1>"
        "<p>Bodies and answers are JSON. The same as OpenAPI: <a href=openapi.json>openapi.json</a></p>"
    ]
    for path, methods in openapi["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(route.get('description', ''))}</p>")
            for parameter in route.get("parameters", []):
                parts.append(f"<p><code>{escape(parameter['name'])}</code> {_code(parameter['schema'])}</p>")
            body = route.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            answer = route["responses"]["200"].get("content", {}).get("application/json", {}).get("schema")
            parts += [
                f"<p>{name}: {_link(schema)}</p>" for name, schema in (("Body", body), ("Answer", answer)) if schema
            ]
    for name, schema in openapi.get("components", {}).get("schemas", {}).items():
        if not name.endswith("ValidationError"):
            parts.append(f'<h3 id="{escape(name)}">{escape(name)}</h3>{_code(schema)}')
    return "\n".join(parts)


def _link(schema: dict[str, Any]) -> str:
    name = schema.get("$ref", "").rpartition("/")[2]
    return f'<a href="#{escape(name)}">{escape(name)}</a>' if name else _code(schema)


def _code(schema: dict[str, Any]) -> str:
    return f"<pre>{escape(json.dumps(schema, indent=2, ensure_ascii=False))}</pre>"
