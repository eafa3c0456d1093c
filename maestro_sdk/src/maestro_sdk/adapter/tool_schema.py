"""JSON Schemas of tools and answers: read once, checked for what makes them no schema, each flaw with its place.

    parse_schema(tool.input_schema, f"tools[{i}].input_schema")["properties"]     # to look into or to rewrite
    schema_fragment(tool.input_schema, f"tools[{i}].input_schema")                # to embed as it was written

A flaw is an `InvalidRequest` whose field is the path and a JSON pointer (`tools[0].input_schema#/properties/x/type`),
and whose message says what to write instead. Only the form is checked, not what a provider makes of it: keywords that
are unknown here stay, and mean nothing.

What comes out is a JSON Schema of draft 2020-12. Forms of older drafts that it dropped (a list under `items`,
`additionalItems`, `dependencies`, `exclusiveMinimum: true`) are written anew with the same meaning, and references by
`$anchor` or `$id` become pointers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import orjson

from maestro_sdk.adapter.schema_check import (
    MAX_DEPTH,
    NAMED_SCHEMAS,
    SCHEMA,
    SCHEMAS,
    TYPES,
    Check,
    describe,
    pointer_to,
    resolve,
    show,
)
from maestro_sdk.errors import InvalidRequest, Violation

__all__ = (
    "DRAFT_2020_12",
    "MAX_CACHED_TEXT",
    "MAX_DEPTH",
    "NAMED_SCHEMAS",
    "SCHEMA",
    "SCHEMAS",
    "TYPES",
    "parse_any_schema",
    "parse_schema",
    "pointer_to",
    "resolve",
    "schema_fragment",
)

MAX_CACHED_TEXT = 16 * 1024
"""Schemas with more characters are read anew each time, so that the cache stays in the tens of megabytes."""

DRAFT_2020_12 = "https://json-schema.org/draft/2020-12/schema"


def parse_schema(text: str, path: str) -> Mapping[str, Any]:
    """The schema of a tool's arguments, with `"type": "object"` at its root. Empty text means a tool without arguments.

    The value is shared by all who ask for the same text: whoever changes it changes everybody's. Copy first.
    Raises `InvalidRequest` with one violation per flaw, each at `path` + "#" + the JSON pointer.
    """
    return _sound(text, path, True).document


def parse_any_schema(text: str, path: str) -> Mapping[str, Any]:
    """A schema of any type, such as that of an answer, without a type where it has none; else as `parse_schema`."""
    return _sound(text, path, False).document


def schema_fragment(text: str, path: str) -> orjson.Fragment:
    """As `parse_schema`, but ready for `orjson.dumps`: the text as it was written, unless it had to be rewritten.

    Order of keys, digits of numbers and white space stay, and nothing is encoded anew.
    """
    return _sound(text, path, True).fragment


@dataclass(frozen=True, slots=True)
class _Schema:
    document: Mapping[str, Any]
    fragment: orjson.Fragment
    flaws: Sequence[tuple[str, str]]


def _sound(text: str, path: str, arguments: bool) -> _Schema:
    schema = (_read if len(text) <= MAX_CACHED_TEXT else _read.__wrapped__)(text, arguments)
    if schema.flaws:
        violations = [Violation(f"{path}#{pointer}" if pointer else path, why) for pointer, why in schema.flaws]
        raise InvalidRequest("; ".join(f"{each.field}: {each.message}" for each in violations), violations=violations)
    return schema


_BROKEN = orjson.Fragment(b"null")


@lru_cache(maxsize=512)
def _read(text: str, arguments: bool) -> _Schema:
    # An agent sends the same schemas with each of its turns.
    if not text or text.isspace():
        text = "{}"
    try:
        document: Any = orjson.loads(text)
    except ValueError as error:
        return _Schema({}, _BROKEN, [("", f"is not JSON: {error}")])
    if not isinstance(document, dict):
        why = f'is {describe(document)}, not a JSON object; a JSON Schema such as {{"type": "object"}} is wanted'
        return _Schema({}, _BROKEN, [("", why)])
    given = written = cast("dict[str, Any]", document)
    checked = Check(given)
    if not checked.flaws and (checked.old or checked.named):
        written = _modernise(given, checked)
        checked = Check(written)  # A reference into a form that was rewritten leads nowhere now.
    if not checked.flaws and arguments:
        written = _with_object_root(written, checked)
    if checked.flaws:
        return _Schema({}, _BROKEN, checked.flaws)
    return _Schema(written, orjson.Fragment(text if written is given else orjson.dumps(written)), ())


def _with_object_root(schema: dict[str, Any], checked: Check) -> dict[str, Any]:
    if not schema:
        return {"type": "object", "properties": {}}
    kind = schema.get("type")
    if kind == "object":
        return schema
    if kind is None and "$ref" in schema:
        kind = checked.type_of(schema["$ref"])
    if kind is not None and kind != "object":
        why = 'arguments are always an object: write "type": "object" at the root and put the value under a name in it'
        checked.flaws.append(("/type", f"is {show(kind)}, but {why}"))
    return {"type": "object", **schema}


def _modernise(schema: dict[str, Any], checked: Check) -> dict[str, Any]:
    """The same schema without the forms that draft 2020-12 dropped, and with pointers as references."""
    modern = _modern(schema, checked)
    if checked.old and "$schema" in modern:
        # The old draft would read the new forms as remarks.
        modern["$schema"] = DRAFT_2020_12
    return modern


def _modern(schema: Any, checked: Check) -> Any:
    if not isinstance(schema, dict):
        return schema
    given = cast("dict[str, Any]", schema)
    made: dict[str, Any] = {}
    for keyword, value in given.items():
        match keyword:
            case "items" if isinstance(value, list):
                if value:
                    made["prefixItems"] = [_modern(below, checked) for below in cast("list[Any]", value)]
                if "additionalItems" in given:
                    made["items"] = _modern(given["additionalItems"], checked)
            case "$ref" if not value.startswith("#/"):
                # Not everybody reads anchors and ids, and pointers say the same.
                made[keyword] = f"#{checked.pointer_of(value) or ''}"
            case "$anchor":
                pass
            case "$id" if schema is not checked.root:
                pass
            case "additionalItems":
                pass  # Beside a list it is the new `items`; beside anything else it never meant a thing.
            case "exclusiveMinimum" | "exclusiveMaximum" if isinstance(value, bool):
                if value:
                    made[keyword] = given[keyword.removeprefix("exclusive").lower()]
            case "minimum" if given.get("exclusiveMinimum") is True:
                pass
            case "maximum" if given.get("exclusiveMaximum") is True:
                pass
            case "dependencies":
                _modernise_dependencies(value, made, checked)
            case "dependentRequired" if keyword in made:
                made[keyword] = {**made[keyword], **value}
            case "dependentSchemas" if keyword in made:
                made[keyword] = {**made[keyword], **_each(value, checked)}
            case _ if keyword in NAMED_SCHEMAS:
                made[keyword] = _each(value, checked)
            case _ if keyword in SCHEMA or keyword == "items":
                made[keyword] = _modern(value, checked)
            case _ if keyword in SCHEMAS:
                made[keyword] = [_modern(below, checked) for below in value]
            case _:
                made[keyword] = value
    return made


def _modernise_dependencies(value: Mapping[str, Any], made: dict[str, Any], checked: Check) -> None:
    for name, below in value.items():
        if isinstance(below, list):
            made["dependentRequired"] = {**made.get("dependentRequired", {}), name: below}
        else:
            made["dependentSchemas"] = {**made.get("dependentSchemas", {}), name: _modern(below, checked)}


def _each(value: Mapping[str, Any], checked: Check) -> dict[str, Any]:
    return {name: _modern(below, checked) for name, below in value.items()}
