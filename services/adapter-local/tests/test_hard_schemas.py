"""Schemas that are hard to meet, impossible, too hard, or none: an instance, or the reason and its place."""

from __future__ import annotations

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from maestro_adapter_local.offline.instance import dump, make_instance
from maestro_adapter_local.offline.schema import BadSchema, TooHard

LIST = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
TREE = {
    "$id": "https://example.com/tree",
    "type": "object",
    "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name", "children"],
}
MUTUAL = {
    "$defs": {
        "a": {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}, "required": ["b"]},
        "b": {"oneOf": [{"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}, {"const": "end"}]},
    },
    "$ref": "#/$defs/a",
}


@pytest.mark.parametrize(
    "schema",
    [
        LIST,
        TREE,
        MUTUAL,
        True,
        {},
        {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 2}]},
        {"not": {"type": ["string", "integer", "number"]}},
        {"type": "string", "not": {"const": "offline model"}},
        {"if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["x"]}, "else": {"required": ["y"]},
         "type": "object", "properties": {"kind": {"enum": ["b", "a"]}}, "required": ["kind"]},
        {"oneOf": [{"properties": {"t": {"const": "cat"}, "lives": {"type": "integer"}}, "required": ["t", "lives"]},
                   {"properties": {"t": {"const": "dog"}, "tricks": {"type": "array"}}, "required": ["t"]}]},
        {"type": "object", "minProperties": 3, "propertyNames": {"pattern": "^[a-c]$"}},
        {"type": "object", "patternProperties": {"^x-": {"type": "integer"}}, "additionalProperties": False,
         "minProperties": 2},
        {"type": "object", "required": ["a"], "dependentRequired": {"a": ["b"]},
         "additionalProperties": {"type": "integer"}},
        {"type": "object", "required": ["a"], "dependentSchemas": {"a": {"required": ["c"]}}},
        {"type": "array", "contains": {"const": 5}, "minContains": 2, "items": {"type": "integer"}},
        {"type": "array", "uniqueItems": True, "minItems": 4, "items": {"type": "object", "required": ["id"],
         "properties": {"id": {"type": "integer"}}}},
        {"type": "array", "uniqueItems": True, "minItems": 3, "items": {"enum": [1, True, "1"]}},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "integer", "multipleOf": 0.7, "minimum": 3},
        {"type": "number", "multipleOf": 0.1, "minimum": 0.25, "maximum": 0.6},
        {"allOf": [{"multipleOf": 4}, {"multipleOf": 6}, {"minimum": 1}], "type": "integer"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"p": {"type": "integer"}},
         "type": "array", "items": [{"$ref": "#/definitions/p"}, {"type": "string"}], "additionalItems": False,
         "minItems": 2},
        {"type": "string", "minLength": 5_000},
        {"enum": ["\ud800"]},
    ],
)  # fmt: skip
def test_hard_schemas_are_met(schema: Any) -> None:
    value = json.loads(dump(make_instance(json.dumps(schema))))
    cls: Any = validator_for(schema, default=Draft202012Validator)
    assert list(cls(schema).iter_errors(value)) == []


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        (False, "#"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "#: the least number 5 is above the greatest 3"),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "#"),
        ({"type": "object", "required": ["x"], "properties": {"x": {"type": "string", "minLength": 2, "maxLength": 1}}},
         "#/properties/x: minLength 2 is above maxLength 1"),
        ({"type": "object", "required": ["x"], "additionalProperties": False},
         "#/additionalProperties: the required property 'x' is not allowed"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "#: minItems 2 is above maxItems 1"),
        ({"type": "array", "minItems": 3, "uniqueItems": True, "items": {"enum": [1, 2]}}, "#"),
        ({"type": "string", "const": 3}, "#"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "#"),
        ({"$ref": "#"}, "#: a reference leads back to itself"),
        ({"if": {"not": {"$ref": "#"}}}, "#: a reference leads back to itself"),
        ({"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}]}}}, "#/properties/a: a reference leads back"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#"),
        ({"$ref": "#/$defs/nowhere"}, "#/$ref"),
        ({"properties": {"a": {"$ref": "https://example.com/other.json"}}}, "#/properties/a/$ref"),
        ({"type": "text"}, "#/type"),
        ({"properties": {"a": {"minimum": "3"}}}, "#/properties/a/minimum"),
        ({"type": "object", "minProperties": 2, "maxProperties": 1}, "#"),
    ],
)  # fmt: skip
def test_impossible_schemas_are_refused_at_their_place(schema: Any, place: str) -> None:
    with pytest.raises(BadSchema) as caught:
        make_instance(json.dumps(schema))
    assert str(caught.value).startswith(place)


@pytest.mark.parametrize("text", ["", "{", "3", '"x"', '{"maximum": NaN}', '{"maximum": 1e999}'])
def test_what_is_no_schema_is_refused(text: str) -> None:
    with pytest.raises(BadSchema):
        make_instance(text)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "string", "pattern": "^(?=.*b)a.*$"}, "#/pattern"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": r"^(\w)\1$"}}, "required": ["a"]},
         "#/properties/a/pattern"),
        ({"type": "string", "pattern": "("}, "#/pattern"),
        ({"type": "string", "minLength": 10_000_000}, "#"),
        ({"type": "array", "minItems": 1_000_000}, "#"),
        ({"$dynamicRef": "#node"}, "#/$dynamicRef"),
    ],
)  # fmt: skip
def test_what_is_too_hard_is_told_apart(schema: Any, place: str) -> None:
    with pytest.raises(TooHard) as caught:
        make_instance(json.dumps(schema))
    assert str(caught.value).startswith(place)


def test_recursion_ends_soon() -> None:
    assert make_instance(json.dumps(TREE)) == {
        "name": "offline model", "children": [{"name": "offline model", "children": []}],
    }  # fmt: skip


def test_no_foreign_address_is_loaded() -> None:
    with pytest.raises(BadSchema, match="can't be resolved within the schema"):
        make_instance('{"$ref": "http://127.0.0.1:9/schema.json"}')


@pytest.mark.parametrize("levels", [5, 20, 23, 24, 100])
def test_deep_schemas_are_met_or_refused_but_never_end_the_process(levels: int) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    if levels > 23:
        with pytest.raises(TooHard, match="nested deeper than 48 levels"):
            make_instance(json.dumps(schema))
    else:
        assert Draft202012Validator(schema).is_valid(make_instance(json.dumps(schema)))


@pytest.mark.parametrize("length", [5, 20, 40])
def test_long_chains_are_met_or_refused(length: int) -> None:
    links: dict[str, Any] = {f"d{place}": {"allOf": [{"$ref": f"#/$defs/d{place + 1}"}]} for place in range(length)}
    links[f"d{length}"] = {"type": "object", "properties": {"n": {"$ref": "#/$defs/d0"}}, "required": ["n"]}
    text = json.dumps({"$defs": links, "$ref": "#/$defs/d0"})
    with pytest.raises((BadSchema, TooHard), match=r"levels can meet it|lead to each other"):
        make_instance(text)
