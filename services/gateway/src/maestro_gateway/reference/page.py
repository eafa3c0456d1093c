"""An OpenAPI document as one page of HTML without scripts. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, cast

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733;background:#fff}
h2{margin-top:2.5rem;border-bottom:1px solid #d5dde5}summary{cursor:pointer;padding:.25rem 0}
code{font-family:ui-monospace,monospace;font-size:.92em}.verb{display:inline-block;width:4.5rem;font-weight:700}
.get{color:#0b6b3a}.post{color:#0a4f9e}.put,.patch{color:#8a5a00}.delete{color:#a3182b}
table{border-collapse:collapse;width:100%;margin:.4rem 0 1rem}td,th{border:1px solid #d5dde5;padding:.25rem .5rem;
text-align:left;vertical-align:top}details>div{margin:.2rem 0 1rem 1rem}.muted{color:#5b6b7b}nav a{margin-right:1rem}
@media(prefers-color-scheme:dark){body{color:#dbe4ec;background:#12181e}h2,td,th{border-color:#33414e}
.get{color:#5fd39a}.post{color:#7db8ff}.put,.patch{color:#e6b450}.delete{color:#ff8b98}a{color:#7db8ff}.muted{color:#93a4b3}}
"""
_CODE = re.compile(r"`([^`]+)`")
_VERBS = ("get", "post", "put", "patch", "delete")
_DEEPEST = 3
"""Schemas within schemas that a type tells by name; deeper ones are only named."""

Document = Mapping[str, Any]


def render(document: Document) -> str:
    """The page."""
    return "\n".join(_page(document))


def _page(document: Document) -> Iterator[str]:
    info = document["info"]
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<title>{escape(info['title'])} API</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{escape(info['title'])} <span class=muted>API {escape(info['version'])}</span></h1>"
    yield f"<p>{_text(info['description'])}</p>"
    yield '<p>This page as a document: <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>'
    tags = [tag["name"] for tag in document["tags"]]
    links = "".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in tags)
    yield f"<nav>{links}<a href=#schemas>Schemas</a></nav>"
    yield "<h2>Keys</h2><ul>"
    for scheme in document["components"]["securitySchemes"].values():
        name = "authorization: Bearer KEY" if scheme["type"] == "http" else f"{scheme['name']}: KEY"
        yield f"<li><code>{escape(name)}</code> {_text(scheme.get('description', ''))}</li>"
    yield "</ul>"
    for tag in tags:
        yield f'<h2 id="{escape(tag)}">{escape(tag)}</h2>'
        for path, verbs in document["paths"].items():
            for verb in _VERBS:
                if verb in verbs and tag in verbs[verb]["tags"]:
                    yield from _operation(path, verb, verbs[verb], document)
    yield "<h2 id=schemas>Schemas</h2>"
    for name, schema in document["components"]["schemas"].items():
        yield f'<details id="schema-{escape(name)}"><summary><code>{escape(name)}</code></summary><div>'
        yield from _schema(schema)
        yield "</div></details>"
    yield "</body></html>"


def _operation(path: str, verb: str, operation: Mapping[str, Any], document: Document) -> Iterator[str]:
    open_to_all = operation.get("security") == []
    yield f'<details id="{escape(operation["operationId"])}"><summary><span class="verb {verb}">{verb.upper()}</span>'
    yield f"<code>{escape(path)}</code> <span class=muted>{_text(operation['summary'])}</span></summary><div>"
    yield f"<p>{_text(operation['description'])}{' No key is needed.' if open_to_all else ''}</p>"
    if parameters := operation.get("parameters"):
        yield "<table><tr><th>Parameter<th>In<th>Type<th></tr>"
        for each in parameters:
            must = " (required)" if each.get("required") else ""
            yield f"<tr><td><code>{escape(each['name'])}</code>{must}<td>{each['in']}<td>{_type(each['schema'])}"
            yield f"<td>{_text(each.get('description', ''))}</tr>"
        yield "</table>"
    if body := operation.get("requestBody"):
        yield f"<p>Body: {_contents(body['content'])}</p>"
    yield "<table><tr><th>Status<th><th>Body</tr>"
    for status, answer in operation["responses"].items():
        found = _resolved(answer, document)
        yield f"<tr><td>{escape(status)}<td>{_text(found['description'])}<td>{_contents(found.get('content', {}))}</tr>"
    yield "</table></div></details>"


def _resolved(answer: Mapping[str, Any], document: Document) -> Mapping[str, Any]:
    if "$ref" not in answer:
        return answer
    return document["components"]["responses"][answer["$ref"].rpartition("/")[2]]


def _contents(content: Mapping[str, Any]) -> str:
    return "<br>".join(f"<code>{escape(kind)}</code> {_type(each['schema'])}" for kind, each in content.items())


def _schema(schema: Mapping[str, Any]) -> Iterator[str]:
    if text := schema.get("description"):
        yield f"<p>{_text(text)}</p>"
    if not (properties := schema.get("properties")):
        yield f"<p>{_type(schema)}</p>"
        return
    required = set(cast("Iterable[str]", schema.get("required", ())))
    yield "<table><tr><th>Field<th>Type<th></tr>"
    for name, each in properties.items():
        must = " (required)" if name in required else ""
        yield f"<tr><td><code>{escape(name)}</code>{must}<td>{_type(each)}<td>{_text(each.get('description', ''))}</tr>"
    yield "</table>"


def _type(schema: Mapping[str, Any], depth: int = 0) -> str:
    """A type in a few words."""
    if reference := schema.get("$ref"):
        name = escape(reference.rpartition("/")[2])
        return f'<a href="#schema-{name}">{name}</a>'
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    if values := schema.get("enum"):
        return " | ".join(f"<code>{escape(str(value))}</code>" for value in values)
    for choice in ("anyOf", "oneOf"):
        if choice in schema and depth < _DEEPEST:
            return " or ".join(dict.fromkeys(_type(each, depth + 1) for each in schema[choice]))
    kind: Any = schema.get("type", "anything")
    if kind == "array" and depth < _DEEPEST:
        return f"list of {_type(schema.get('items', {}), depth + 1)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict) and depth < _DEEPEST:
        return f"object of {_type(schema['additionalProperties'], depth + 1)}"
    words = " or ".join(cast("list[str]", kind)) if isinstance(kind, list) else str(kind)
    limits = [
        f"{word} {schema[name]}" for name, word in _LIMITS.items() if name in schema and abs(schema[name]) < 2**31 - 1
    ]
    return escape(", ".join((words, *([schema["format"]] if "format" in schema else []), *limits)))


_LIMITS = {
    "minimum": "at least",
    "maximum": "at most",
    "minLength": "letters from",
    "maxLength": "letters up to",
    "minItems": "entries from",
    "maxItems": "entries up to",
}


def _text(text: str) -> str:
    """Words of the contract: escaped, with names as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text, quote=False))
