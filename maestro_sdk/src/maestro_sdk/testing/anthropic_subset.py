"""The subset of JSON Schema that Anthropic enforces: for `output_config.format`, and for tools that are `strict`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"),
)
_ALWAYS = frozenset(
    ("$defs", "definitions", "$ref", "anyOf", "allOf", "enum", "const", "type", "description", "title", "default")
)
_BY_TYPE: Mapping[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "minItems"}),
    "string": frozenset({"format"}),
}
_SCALARS = (str, int, float, bool, type(None))


def find_unsupported(schema: Any) -> Iterator[tuple[str, str]]:
    """What the provider refuses in the schema: JSON pointers and the provider's explanations."""
    yield from _find(schema, "", ())
    for cycle in _cycles(schema):
        yield cycle, "Recursive schemas are not supported"


def _find(schema: Any, at: str, above: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if not isinstance(schema, dict):
        yield at or "/", "Boolean schemas are not supported"
        return
    fields = cast("dict[str, Any]", schema)
    kind: Any = fields.get("type")
    if isinstance(kind, list):
        yield f"{at}/type", "Lists of types are not supported; use anyOf"
        return
    if not {"type", "$ref", "anyOf", "allOf", "enum", "const"} & set(fields):
        yield at or "/", "Schema must have a 'type', 'anyOf', 'allOf', 'enum', 'const' or '$ref'"
    allowed = _ALWAYS | _BY_TYPE.get(str(kind), frozenset())
    if extra := sorted(set(fields) - allowed):
        yield f"{at}/{extra[0]}", f"For '{kind}' type, properties {', '.join(extra)} are not supported"
    if kind == "object" and fields.get("additionalProperties") is not False:
        yield at or "/", "For 'object' type, 'additionalProperties' must be explicitly set to false"
    if fields.get("format", "date") not in _FORMATS:
        yield f"{at}/format", f"For 'string' type, format '{fields['format']}' is not supported"
    if fields.get("minItems", 0) not in {0, 1}:
        yield f"{at}/minItems", "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
    if any(not isinstance(value, _SCALARS) for value in [*fields.get("enum", ()), fields.get("const")]):
        yield f"{at}/enum", "Values of enum have to be strings, numbers, booleans or null"
    if not str(fields.get("$ref", "#")).startswith("#"):
        yield f"{at}/$ref", "External $ref is not supported"
    for name in ("properties", "$defs", "definitions"):
        for key, inner in fields.get(name, {}).items():
            yield from _find(inner, f"{at}/{name}/{key}", above)
    for name in ("anyOf", "allOf"):
        for number, inner in enumerate(fields.get(name, ())):
            yield from _find(inner, f"{at}/{name}/{number}", above)
    if "items" in fields:
        yield from _find(fields["items"], f"{at}/items", above)


def _cycles(schema: Any) -> Iterator[str]:
    """References that lead back to where they stand."""
    if not isinstance(schema, dict):
        return
    root = cast("dict[str, Any]", schema)
    places: dict[str, Any] = {"#": root}
    for name in ("$defs", "definitions"):
        places |= {f"#/{name}/{key}": inner for key, inner in root.get(name, {}).items()}
    leads = {
        place: {found for found in _references(inner, top=place == "#") if found in places}
        for place, inner in places.items()
    }
    for place in places:
        reached: set[str] = set()
        ahead = set(leads[place])
        while ahead:
            step = ahead.pop()
            if step not in reached:
                reached.add(step)
                ahead |= leads[step]
        if place in reached:
            yield place.removeprefix("#") or "/"


def _references(schema: Any, *, top: bool = False) -> Iterator[str]:
    if isinstance(schema, list):
        for inner in cast("list[Any]", schema):
            yield from _references(inner)
    elif isinstance(schema, dict):
        for name, inner in cast("dict[str, Any]", schema).items():
            if name == "$ref" and isinstance(inner, str):
                yield inner
            elif not (top and name in {"$defs", "definitions"}):
                yield from _references(inner)
