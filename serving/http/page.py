"""The OpenAPI document as a page, with no script and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code { font-family: ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1.5rem; }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884; }
p.summary { margin: 0 0 .5rem; }
"""


def render(document: Mapping[str, Any]) -> str:
    """The page of an OpenAPI document that :mod:`fgclip_rt.serving.http.openapi` made."""
    title = f"{document['info']['title']} {document['info']['version']}"
    parts = "".join(_parts(document))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>{parts}</html>"
    )


def _parts(document: Mapping[str, Any]) -> Iterator[str]:
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f'<p class="summary">{escape(operation["summary"])}</p>'
            content = operation.get("requestBody", {}).get("content", {})
            for media in content.values():
                yield _table(schemas[_name(media["schema"])], schemas)


def _table(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' (required)' if name in required else ''}</td>"
        f"<td>{escape(_kind(field, schemas))}</td>"
        f"<td><code>{escape(str(field['default'])) if 'default' in field else ''}</code></td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    about = escape(schema.get("description", ""))
    return f"<p>{about}</p><table><tr><th>field</th><th>type</th><th>default</th></tr>{rows}</table>"


def _kind(field: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """The type of a field in words."""
    if "anyOf" in field:
        return " or ".join(_kind(each, schemas) for each in field["anyOf"])
    if "$ref" in field:
        return "{" + ", ".join(schemas[_name(field)].get("properties", {})) + "}"
    if "enum" in field:
        return " | ".join(map(repr, field["enum"]))
    if field.get("type") == "array":
        return f"list of ({_kind(field.get('items', {}), schemas)})"
    return str(field.get("type", "anything"))


def _name(reference: Mapping[str, Any]) -> str:
    return str(reference["$ref"]).rsplit("/", 1)[-1]
