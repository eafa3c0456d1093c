"""Schemas of tools in the provider's dialect: what is said in another way, and what is told as lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_adapter_vertex.schema import check_form, to_parameters
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.testing.obliging_gemini import check_schema

ANY = {"anyOf": [{"type": "STRING"}, {"type": "NUMBER"}, {"type": "BOOLEAN"}, {"type": "OBJECT"}]}


def rewrite(schema: Any) -> tuple[Any, list[str]]:
    parameters = to_parameters(json.dumps(schema), "tools[0].input_schema")
    return parameters.schema, [loss.pointer for loss in parameters.losses]


def rewrite_field(schema: Any, **beside: Any) -> tuple[Any, list[str]]:
    """One property's schema, and the pointers of the losses from there on."""
    made, losses = rewrite({"type": "object", "properties": {"x": schema}, **beside})
    check_schema(made, "parameters")
    return made["properties"]["x"], [pointer.removeprefix("/properties/x") for pointer in losses]


@pytest.mark.parametrize(
    ("schema", "expected", "losses"),
    [
        ({"type": "string"}, {"type": "STRING"}, []),
        (
            {"type": ["string", "null"], "description": "d", "maxLength": 3},
            {"type": "STRING", "description": "d", "nullable": True, "maxLength": 3},
            [],
        ),
        (
            {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "X"},
            {"type": "INTEGER", "title": "X", "nullable": True},
            [],
        ),
        (
            {"type": ["string", "integer", "null"], "minLength": 1, "minimum": 2},
            {
                "anyOf": [
                    {"type": "STRING", "nullable": True, "minLength": 1},
                    {"type": "INTEGER", "nullable": True, "minimum": 2},
                ]
            },
            [],
        ),
        # What stands beside anyOf goes into each alternative: the provider takes it alone.
        (
            {"description": "d", "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            {
                "anyOf": [
                    {"type": "STRING", "description": "d"},
                    {"type": "ARRAY", "description": "d", "items": {"type": "STRING"}},
                ]
            },
            [],
        ),
        (
            {"oneOf": [{"const": "a"}, {"const": "b"}]},
            {"anyOf": [{"type": "STRING", "enum": ["a"]}, {"type": "STRING", "enum": ["b"]}]},
            [],
        ),
        (
            {"oneOf": [{"type": "string", "pattern": "a"}, {"type": "string", "maxLength": 2}]},
            {"anyOf": [{"type": "STRING", "pattern": "a"}, {"type": "STRING", "maxLength": 2}]},
            ["/oneOf"],
        ),
        (
            {"allOf": [{"type": "number", "minimum": 1}, {"minimum": 3, "maximum": 5}]},
            {"type": "NUMBER", "minimum": 3, "maximum": 5},
            [],
        ),
        (
            {"allOf": [{"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"type": "integer"}]},
            {"type": "INTEGER"},
            [],
        ),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, {"type": "STRING"}, [""]),
        ({"const": "a"}, {"type": "STRING", "enum": ["a"]}, []),
        ({"const": 3}, {"type": "INTEGER", "minimum": 3, "maximum": 3}, []),
        ({"const": None}, {"type": "NULL"}, []),
        ({"const": True}, {"type": "BOOLEAN", "description": "(one of: true)"}, ["/const"]),
        ({"enum": ["a", None]}, {"type": "STRING", "nullable": True, "enum": ["a"]}, []),
        ({"type": "string", "enum": ["", "a"]}, {"type": "STRING"}, ["/enum"]),
        (
            {"type": "integer", "enum": [1, 5], "description": "d"},
            {"type": "INTEGER", "description": "d (one of: 1, 5)", "minimum": 1, "maximum": 5},
            ["/enum"],
        ),
        ({"enum": [True, False]}, {"type": "BOOLEAN"}, []),
        ({"enum": ["a", 1]}, None, ["/enum", ""]),
        (
            {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9.5},
            {"type": "INTEGER", "minimum": 1, "maximum": 9},
            [],
        ),
        ({"type": "integer", "minimum": 5, "exclusiveMinimum": 2}, {"type": "INTEGER", "minimum": 5}, []),
        ({"type": "number", "exclusiveMinimum": 0}, {"type": "NUMBER", "minimum": 0}, ["/exclusiveMinimum"]),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, {"type": "INTEGER", "minimum": 1}, []),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": False}, {"type": "INTEGER", "minimum": 0}, []),
        ({"type": "string", "format": "date-time"}, {"type": "STRING", "format": "date-time"}, []),
        (
            {"type": "string", "format": "uri", "description": "A link."},
            {"type": "STRING", "description": "A link. (format: uri)"},
            ["/format"],
        ),
        ({"type": "number", "multipleOf": 0.5}, {"type": "NUMBER"}, ["/multipleOf"]),
        (
            {"type": "array", "uniqueItems": True, "items": {"type": "string"}},
            {"type": "ARRAY", "items": {"type": "STRING"}},
            ["/uniqueItems"],
        ),
        ({"type": "array"}, {"type": "ARRAY", "items": {"type": "STRING"}}, [""]),
        ({"type": "array", "items": True}, {"type": "ARRAY", "items": {"type": "STRING"}}, [""]),
        (
            {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
            {"type": "ARRAY", "items": {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}},
            ["/prefixItems"],
        ),
        (
            {"type": "array", "items": [{"type": "string"}]},
            {"type": "ARRAY", "items": {"type": "STRING"}},
            ["/prefixItems"],
        ),
        ({"type": "object"}, {"type": "OBJECT"}, []),
        (
            {"type": "object", "additionalProperties": {"type": "integer"}},
            {"type": "OBJECT", "additionalProperties": {"type": "INTEGER"}},
            [],
        ),
        ({"type": "object", "patternProperties": {"^a": {}}}, {"type": "OBJECT"}, ["/patternProperties"]),
        (
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a", "b"]},
            {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}, "required": ["a"]},
            ["/required"],
        ),
        ({"properties": {"a": {"type": "string"}}}, {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}}, []),
        ({"type": "string", "not": {"const": "a"}}, {"type": "STRING"}, ["/not"]),
        ({"type": "object", "if": {}, "then": {}, "else": {}}, {"type": "OBJECT"}, ["/if", "/then", "/else"]),
        ({}, ANY, [""]),
        (True, ANY, [""]),
        ({"description": "d"}, {"anyOf": [{**kind, "description": "d"} for kind in ANY["anyOf"]]}, [""]),
        (False, ANY, ["", ""]),
        (
            {"$comment": "c", "type": "string", "examples": ["a"], "x-order": 1, "readOnly": True},
            {"type": "STRING"},
            [],
        ),
    ],
)
def test_rewriting(schema: Any, expected: Any, losses: list[str]) -> None:
    made, lost = rewrite_field(schema)
    if expected is not None:
        assert made == expected
    assert lost == losses


def test_references_are_written_out() -> None:
    defs = {
        "City": {"type": "object", "properties": {"name": {"$ref": "#/$defs/Name"}}, "required": ["name"]},
        "Name": {"type": "string", "description": "Of a city."},
    }
    made, losses = rewrite_field({"$ref": "#/$defs/City", "description": "Where."}, **{"$defs": defs})
    name = {"type": "STRING", "description": "Of a city."}
    assert made == {"type": "OBJECT", "description": "Where.", "properties": {"name": name}, "required": ["name"]}
    assert not losses
    assert rewrite({"$ref": "#/definitions/A", "definitions": {"A": {"properties": {"a": {"type": "string"}}}}}) == (
        {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}},
        [],
    )


def test_recursion_ends_with_a_remark() -> None:
    node = {"type": "object", "properties": {"value": {"type": "string"}, "next": {"$ref": "#/$defs/Node"}}}
    made, losses = rewrite_field({"$ref": "#/$defs/Node"}, **{"$defs": {"Node": node}})
    assert made["properties"]["next"] == {"type": "OBJECT"}
    assert losses == ["/$defs/Node/properties/next/$ref"]
    itself, losses = rewrite({"type": "object", "properties": {"a": {"type": "string"}, "more": {"$ref": "#"}}})
    assert itself["properties"]["more"] == {"type": "OBJECT"}
    assert losses == ["/properties/more/$ref"]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {}, "additionalProperties": False, "$schema": "https://json-schema.org/x"},
    ],
)
def test_tools_without_arguments_have_no_parameters(schema: Any) -> None:
    assert rewrite(schema) == (None, [])


def test_free_arguments_stay_free() -> None:
    assert rewrite({"type": "object", "additionalProperties": True}) == (
        {"type": "OBJECT", "additionalProperties": True},
        [],
    )


def test_alternatives_of_all_arguments_are_joined() -> None:
    made, losses = rewrite(
        {
            "oneOf": [
                {"properties": {"id": {"type": "integer"}, "kind": {"const": "a"}}, "required": ["id", "kind"]},
                {"properties": {"name": {"type": "string"}, "kind": {"const": "b"}}, "required": ["kind", "name"]},
            ]
        }
    )
    kinds = {"anyOf": [{"type": "STRING", "enum": ["a"]}, {"type": "STRING", "enum": ["b"]}]}
    assert made["properties"] == {"id": {"type": "INTEGER"}, "kind": kinds, "name": {"type": "STRING"}}
    assert made["required"] == ["kind"]
    assert "/anyOf" in losses


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        ("{", ""),
        ("[]", ""),
        ('{"type":"string"}', "#/type"),
        ('{"type":"objekt"}', "#/type"),
        ('{"type":3}', "#/type"),
        ('{"properties":[]}', "#/properties"),
        ('{"properties":{"a":3}}', "#/properties/a"),
        ('{"properties":{"a":{"type":"text"}}}', "#/properties/a/type"),
        ('{"properties":{"a~/b":{"items":{"enum":[]}}}}', "#/properties/a~0~1b/items/enum"),
        ('{"properties":{"a":{"anyOf":{}}}}', "#/properties/a/anyOf"),
        ('{"properties":{"a":{"minLength":-1}}}', "#/properties/a/minLength"),
        ('{"properties":{"a":{"minimum":"1"}}}', "#/properties/a/minimum"),
        ('{"properties":{"a":{"description":1}}}', "#/properties/a/description"),
        ('{"required":"a"}', "#/required"),
        ('{"properties":{"a":{"$ref":"#/$defs/B"}}}', "#/properties/a/$ref"),
        ('{"properties":{"a":{"$ref":"https://x/y.json"}}}', "#/properties/a/$ref"),
        ('{"anyOf":[{"type":"string"},{"type":"object"}]}', "#/anyOf/0"),
    ],
)
def test_what_is_no_schema_is_refused_at_its_place(text: str, pointer: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_parameters(text, "tools[3].input_schema")
    assert caught.value.violations[0].field == f"tools[3].input_schema{pointer}"


def test_a_schema_that_grows_without_end_is_refused() -> None:
    defs: dict[str, Any] = {
        f"d{n}": {"properties": {k: {"$ref": f"#/$defs/d{n + 1}"} for k in "abcd"}} for n in range(12)
    }
    defs["d12"] = {"type": "string"}
    with pytest.raises(InvalidRequest, match="too large"):
        rewrite({"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": defs})


def test_the_form_of_an_answer_is_told_where_it_is_not_kept() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "x"}, "pattern": {"type": "string"}},
        "allOf": [{}],
        "$defs": {"B": {"not": {}}},
        "additionalProperties": False,
    }
    losses = check_form(json.dumps(schema), "response_format.json_schema.schema")
    assert [loss.pointer for loss in losses] == ["/properties/a/pattern", "/allOf", "/$defs/B/not"]


_leaf = st.sampled_from(
    [
        {"type": "string"},
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": ["number", "null"]},
        {"enum": ["a", "b"]},
        {"enum": [1, 2, None]},
        {"const": False},
        {"$ref": "#/$defs/node"},
        {"$ref": "#"},
        {"type": "string", "format": "uuid"},
        {"type": "array"},
        {},
        True,
    ]
)


def _grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.fixed_dictionaries({"anyOf": several}, optional={"description": st.just("d"), "type": st.just("object")}),
        st.fixed_dictionaries({"oneOf": several}, optional={"default": st.just(1)}),
        st.fixed_dictionaries({"allOf": several}),
        st.fixed_dictionaries({"type": st.just("array"), "items": inner}),
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3)},
            optional={"required": st.just(["a"]), "additionalProperties": inner},
        ),
    )


@given(fields=st.dictionaries(st.sampled_from("xyz"), st.recursive(_leaf, _grow, max_leaves=6), min_size=1, max_size=3))
def test_whatever_comes_out_the_provider_takes(fields: dict[str, Any]) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "value": {"type": "string"}}}
    made, _ = rewrite({"type": "object", "properties": fields, "$defs": {"node": node}})
    check_schema(made, "parameters")
