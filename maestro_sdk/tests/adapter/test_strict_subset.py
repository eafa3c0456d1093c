"""Schemas within a subset that is enforced: what is rewritten means the same, and the rest has its reasons."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from maestro_sdk.adapter.strict_subset import OPENAI_STRICT, Strict, fit_strict
from maestro_sdk.adapter.tool_schema import parse_any_schema
from maestro_sdk.testing.strict_schemas import openai

TEXT = {"type": "string"}


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def kind(word: str, **properties: Any) -> dict[str, Any]:
    return of(kind={"const": word}, **properties)


def fit(schema: Any, **limits: Any) -> Strict:
    text = json.dumps(schema)
    return fit_strict(text, parse_any_schema(text, "schema"), replace(OPENAI_STRICT, **limits))


SAME: list[Any] = [
    of(a=TEXT),
    {**of(a=TEXT), "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "T", "description": "d"},
    of(a={"type": ["string", "null"], "enum": ["x", None]}, b={"anyOf": [TEXT, {"type": "null"}]}),
    of(a={"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}),
    {**of(a={"$ref": "#/$defs/T"}, b={"$ref": "#"}), "$defs": {"T": TEXT}},
]


@pytest.mark.parametrize("schema", SAME)
def test_what_fits_stays_as_it_is(schema: Any) -> None:
    assert fit(schema) == Strict(schema)


REWRITTEN: list[tuple[Any, Any]] = [
    ({"type": "object", "additionalProperties": False}, of()),
    (of(a={"type": "string", "minLength": 0, "$comment": "x"}), of(a=TEXT)),
    (of(a={"type": "array", "items": TEXT, "uniqueItems": False}), of(a={"type": "array", "items": TEXT})),
    (of(a={"enum": ["x", 1]}), of(a={"enum": ["x", 1], "type": ["number", "string"]})),
    (of(a={"const": True}), of(a={"const": True, "type": "boolean"})),
    (of(a={"type": "integer", "default": 3}), of(a={"type": "integer", "description": "{default: 3}"})),
    (of(a={"type": "null", "default": None}), of(a={"type": "null"})),
    (
        of(a={"type": "string", "description": "d", "examples": ["x"]}),
        of(a={"type": "string", "description": 'd {examples: ["x"]}'}),
    ),
    (of(a={"allOf": [TEXT], "description": "d"}), of(a={"type": "string", "description": "d"})),
    (of(a={"anyOf": [{"oneOf": [TEXT]}]}), of(a=TEXT)),
    (
        {**of(a={"allOf": [{"$ref": "#/$defs/T"}], "title": "x"}), "$defs": {"T": TEXT}},
        {**of(a={"anyOf": [{"$ref": "#/$defs/T"}], "title": "x"}), "$defs": {"T": TEXT}},
    ),
    (
        {**of(a={"$ref": "#/$defs/T", "description": "d"}), "$defs": {"T": TEXT}},
        {**of(a={"anyOf": [{"$ref": "#/$defs/T"}], "description": "d"}), "$defs": {"T": TEXT}},
    ),
    (
        {"$ref": "#/$defs/Tree", "$defs": {"Tree": of(next={"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]})}},
        {
            **of(next={"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]}),
            "$defs": {"Tree": of(next={"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]})},
        },
    ),
    (of(a={"oneOf": [TEXT, {"type": "integer"}]}), of(a={"anyOf": [TEXT, {"type": "integer"}]})),
    (of(a={"oneOf": [of(x=TEXT), of(y=TEXT)]}), of(a={"anyOf": [of(x=TEXT), of(y=TEXT)]})),
]


@pytest.mark.parametrize(("schema", "made"), REWRITTEN)
def test_what_is_rewritten(schema: Any, made: Any) -> None:
    assert fit(schema) == Strict(made)
    assert openai(made, strict=True) == []


def test_alternatives_that_exclude_each_other_by_a_word() -> None:
    schema = {
        **of(a={"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "title": "either"}),
        "$defs": {"A": kind("a", n=TEXT), "B": kind("b", n=TEXT)},
    }
    made = fit(schema).document
    assert made is not None
    assert [*made["properties"]["a"]] == ["anyOf", "title"]


REFUSED: list[tuple[Any, str]] = [
    ({"type": "object", "properties": {}}, "/additionalProperties"),
    ({"type": "object", "properties": {"a": TEXT}, "additionalProperties": False}, "/properties/a"),
    ({"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False}, "/required/0"),
    ({**of(a=TEXT), "additionalProperties": TEXT}, "/additionalProperties"),
    ({"type": "array", "items": TEXT}, ""),
    ({"anyOf": [of(), of(a=TEXT)]}, ""),
    (of(a={}), "/properties/a"),
    (of(a=True), "/properties/a"),
    (of(a={"type": "array"}), "/properties/a"),
    (of(a={"type": "array", "items": {}}), "/properties/a/items"),
    (of(a={"type": "string", "minLength": 1}), "/properties/a/minLength"),
    (of(a={"type": "string", "format": "uri"}), "/properties/a/format"),
    (of(a={"type": "string", "nullable": True}), "/properties/a/nullable"),
    (of(a={"type": "array", "items": TEXT, "uniqueItems": True}), "/properties/a/uniqueItems"),
    (of(a={"allOf": [TEXT, {"maxLength": 3}]}), "/properties/a/allOf"),
    (of(a={"not": TEXT}), "/properties/a/not"),
    (of(a={"oneOf": [{"type": "integer"}, {"type": "number"}]}), "/properties/a/oneOf"),
    (of(a={"oneOf": [{"const": 1}, {"const": 1.0}]}), "/properties/a/oneOf"),
    (of(a={"oneOf": [kind("a"), kind("a")]}), "/properties/a/oneOf"),
    (of(a={"oneOf": [{"type": ["object", "null"]}, {"type": ["string", "null"]}]}), "/properties/a/oneOf"),
    ({**of(a={"$ref": "#/$defs/T", "pattern": "x"}), "$defs": {"T": TEXT}}, "/properties/a/$ref"),
    ({**of(a={"$ref": "#/$defs/T"}), "$defs": {"T": {}}}, "/$defs/T"),
    (of(a={"oneOf": [TEXT, {"type": "null"}]}, b={"$ref": "#/properties/a/oneOf/0"}), ""),
]


@pytest.mark.parametrize(("schema", "pointer"), REFUSED)
def test_what_can_not_be_enforced(schema: Any, pointer: str) -> None:
    found = fit(schema)
    assert found.document is None
    assert pointer in [place for place, _ in found.reasons]
    assert all(why for _, why in found.reasons)


@pytest.mark.parametrize(
    ("schema", "limits"),
    [
        (of(a=TEXT, b=TEXT), {"properties": 1}),
        (of(a=of(b={"type": "array", "items": TEXT})), {"levels": 2}),
        (of(a={"type": "string", "enum": ["x", "y"]}), {"values": 1}),
        ({**of(abc={"type": "string", "const": "defg"}), "$defs": {"hij": TEXT}}, {"text": 9}),
    ],
)
def test_limits(schema: Any, limits: dict[str, int]) -> None:
    assert fit(schema).document == schema
    assert [place for place, _ in fit(schema, **limits).reasons] == [""]
    more = {name: value + 1 for name, value in limits.items()}
    assert fit(schema, **more).document == schema


def test_a_tool_without_arguments_takes_none() -> None:
    made = fit_strict("", {"type": "object", "properties": {}}, OPENAI_STRICT)
    assert made == Strict(of())


def test_what_was_fitted_once_is_kept() -> None:
    text = json.dumps(of(a=TEXT, kept=TEXT))
    document = parse_any_schema(text, "schema")
    assert fit_strict(text, document, OPENAI_STRICT) is fit_strict(f" {text}"[1:], document, OPENAI_STRICT)
    # The same text as another document is another schema.
    assert fit_strict(text, {"type": "object"}, OPENAI_STRICT).document is None
