"""The providers' rules refuse what the providers refuse, and nothing that they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from maestro_sdk.testing import strict_schemas
from maestro_sdk.testing.strict_schemas import anthropic, bedrock, gemini, ollama, openai

TEXT = {"type": "string"}


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def strict_openai(schema: Any) -> Any:
    return openai(schema, True)


def claude_on_bedrock(schema: Any) -> Any:
    return bedrock(schema, "anthropic")


def nova(schema: Any) -> Any:
    return bedrock(schema, "nova")


CLOSED = {**of(a=TEXT), "required": ["a"], "additionalProperties": False}

REFUSED: list[tuple[Callable[[Any], Any], Any, str]] = [
    (openai, {}, "/type"),
    (openai, [], "/type"),
    (openai, {"type": "array", "items": {}}, "/type"),
    (openai, {"type": "object"}, ""),
    (openai, {**of(), "anyOf": [of()]}, "/anyOf"),
    (openai, {**of(), "oneOf": [of()]}, "/oneOf"),
    (openai, {**of(), "allOf": [of()]}, "/allOf"),
    (openai, {**of(), "enum": [{}]}, "/enum"),
    (openai, {**of(), "not": {}}, "/not"),
    (openai, of(a={"type": "array"}), "/properties/a"),
    (openai, of(a={"type": ["array", "null"]}), "/properties/a"),
    (openai, of(a={"type": "array", "items": [TEXT]}), "/properties/a/items"),
    (openai, of(a={"type": "str"}), "/properties/a/type"),
    (strict_openai, of(a=TEXT), ""),
    (strict_openai, {**of(a=TEXT), "additionalProperties": False}, "/required"),
    (strict_openai, {**CLOSED, "minProperties": 1}, "/minProperties"),
    (strict_openai, {**CLOSED, "properties": {"a": {"allOf": [TEXT]}}}, "/properties/a/allOf"),
    (strict_openai, {**CLOSED, "properties": {"a": {}}}, "/properties/a"),
    (anthropic, {}, "/type"),
    (anthropic, 7, ""),
    (anthropic, {"type": "array"}, "/type"),
    (anthropic, {"type": "object", "anyOf": [{}]}, "/anyOf"),
    (anthropic, {"type": "object", "oneOf": [{}]}, "/oneOf"),
    (anthropic, {"type": "object", "allOf": [{}]}, "/allOf"),
    (anthropic, of(**{"a b": TEXT}), "/properties/a b"),
    (anthropic, of(**{"x" * 65: TEXT}), f"/properties/{'x' * 65}"),
    (anthropic, of(a={"exclusiveMinimum": True}), "/properties/a/exclusiveMinimum"),
    (anthropic, of(a={"items": [TEXT]}), "/properties/a/items"),
    (gemini, {"type": "STRING"}, "/type"),
    (gemini, {"type": "object", "$schema": "x"}, "/$schema"),
    (gemini, of(a={"$ref": "#/x"}), "/properties/a/$ref"),
    (gemini, of(a={"type": "string", "const": "x"}), "/properties/a/const"),
    (gemini, of(a={"type": ["string", "null"]}), "/properties/a/type"),
    (gemini, of(a={"description": "any"}), "/properties/a"),
    (gemini, of(a={"type": "array"}), "/properties/a/items"),
    (gemini, of(a={"type": "string", "items": TEXT}), "/properties/a/items"),
    (gemini, of(a={"type": "string", "properties": {}}), "/properties/a/properties"),
    (gemini, of(a={"type": "string", "enum": [1]}), "/properties/a/enum"),
    (gemini, of(a={"type": "integer", "enum": ["1"]}), "/properties/a/enum"),
    (gemini, of(a={"type": "boolean", "enum": ["true"]}), "/properties/a/enum"),
    (gemini, of(a={"type": "number", "format": "date"}), "/properties/a/format"),
    (gemini, of(a={"type": "number", "exclusiveMinimum": 0}), "/properties/a/exclusiveMinimum"),
    (gemini, of(a={"type": "string", "minLength": "x"}), "/properties/a/minLength"),
    (gemini, of(a={"anyOf": [TEXT], "description": "x"}), "/properties/a"),
    (gemini, of(a={"anyOf": [True]}), "/properties/a/anyOf/0"),
    (gemini, {**of(a=TEXT), "required": ["b"]}, "/required/0"),
    (bedrock, {}, "/type"),
    (bedrock, of(a={"default": float("nan")}), "/properties/a/default"),
    (bedrock, of(a={"type": "str"}), "/properties/a/type"),
    (claude_on_bedrock, {"type": "object", "anyOf": [{}]}, "/anyOf"),
    (nova, {**of(), "additionalProperties": False}, "/additionalProperties"),
    (nova, {**of(), "$defs": {}}, "/$defs"),
    (ollama, {}, "/type"),
    (ollama, of(a=True), "/properties/a"),
    (ollama, of(a={"type": 3}), "/properties/a/type"),
    (ollama, of(a={"anyOf": [False]}), "/properties/a/anyOf/0"),
    (ollama, of(a={"description": None}), "/properties/a/description"),
    (ollama, {**of(), "required": "a"}, "/required"),
]


@pytest.mark.parametrize(("rule", "schema", "pointer"), REFUSED, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_refused(rule: Callable[[Any], Any], schema: Any, pointer: str) -> None:
    found = rule(schema)
    assert pointer in [refusal.pointer for refusal in found]
    assert all(refusal.message for refusal in found)


TAKEN: list[tuple[Callable[[Any], Any], Any]] = [
    (openai, of(a={"type": "array", "items": {}}, b={"anyOf": [TEXT, {"type": "null"}]}, c={"$ref": "#/properties/a"})),
    (strict_openai, CLOSED),
    (strict_openai, {**CLOSED, "properties": {"a": {"type": ["string", "null"], "enum": ["x", None]}}}),
    (anthropic, of(**{"a.b-c_1": {"anyOf": [TEXT]}}, d={"prefixItems": [TEXT]})),
    (gemini, None),
    (gemini, {"type": "OBJECT", "properties": {"a": {"type": "STRING", "nullable": True, "enum": ["x"]}}}),
    (gemini, of(a={"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer", "format": "int64"}}]})),
    (gemini, of(a={"type": "integer", "format": "enum", "enum": ["1", "2"]})),
    (bedrock, {**of(a=TEXT), "additionalProperties": False}),
    (claude_on_bedrock, of(a=TEXT)),
    (nova, {**of(a=TEXT), "required": ["a"]}),
    (ollama, of(a={"type": ["string", "null"]}, b={}, c={"anyOf": [TEXT]}, d={"$ref": "#/x"})),
]


@pytest.mark.parametrize(("rule", "schema"), TAKEN, ids=lambda value: getattr(value, "__name__", None))
def test_what_is_taken(rule: Callable[[Any], Any], schema: Any) -> None:
    assert rule(schema) == []


def test_gemini_s_fields_are_those_of_its_sdk() -> None:
    from google.genai import types

    fields = {field.alias or name for name, field in types.Schema.model_fields.items()}
    assert fields == strict_schemas._GEMINI_KEYWORDS
    assert {kind.value for kind in types.Type} - {"TYPE_UNSPECIFIED"} == strict_schemas._GEMINI_TYPES
