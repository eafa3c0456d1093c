"""Schemas of a request: what is sound passes as it was written, what is not is told with its place."""

import json
from typing import Any

import orjson
import pytest

from maestro_sdk.adapter import tool_schema
from maestro_sdk.adapter.tool_schema import MAX_CACHED_TEXT, parse_any_schema, parse_schema, schema_fragment
from maestro_sdk.errors import InvalidRequest

PATH = "tools[0].input_schema"


def parse(schema: Any) -> Any:
    return parse_schema(schema if isinstance(schema, str) else json.dumps(schema), PATH)


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize("text", ["", "{}", " \n", " { } "])
def test_nothing_said_is_an_object_without_fields(text: str) -> None:
    assert parse_schema(text, PATH) == {"type": "object", "properties": {}}
    assert orjson.dumps(schema_fragment(text, PATH)) == b'{"type":"object","properties":{}}'


def test_the_text_is_embedded_as_it_was_written() -> None:
    text = '{"type" : "object", "properties": {"z": {"maximum": 1.0}, "a": {"maximum": 12345678901234567890123}} }'
    assert orjson.dumps([schema_fragment(text, PATH)]).decode() == f"[{text}]"
    assert list(parse_schema(text, PATH)["properties"]) == ["z", "a"]


def test_a_root_without_type_gets_one() -> None:
    assert parse({"properties": {"x": {}}}) == {"type": "object", "properties": {"x": {}}}
    node: dict[str, Any] = {"$ref": "#/$defs/Node", "$defs": {"Node": of(next={"$ref": "#/$defs/Node"})}}
    assert parse(node) == {"type": "object", **node}
    assert orjson.loads(orjson.dumps(schema_fragment(json.dumps(node), PATH))) == {"type": "object", **node}


def test_other_roots_stay_where_they_may_stand() -> None:
    for schema in ({"type": "array", "items": {"type": "string"}}, {"anyOf": [{"type": "null"}]}, {}):
        parsed = parse_any_schema(json.dumps(schema), PATH)
        assert parsed == (schema or {})
    assert parse_any_schema('{"type": ["object", "null"]}', PATH) == {"type": ["object", "null"]}


SOUND: list[Any] = [
    of(a={"type": ["string", "null"]}, b=True, c={"enum": [1, None, "x"]}, d={"const": {"type": 3}}),
    {"$id": "https://example.com/tree", **of(back={"$ref": "#"})},
    {**of(x={"$ref": "#/components/schemas/X"}), "components": {"schemas": {"X": {"type": "string"}}}},
    of(list={"$ref": "#/$defs/a~1b~0c%20d"}) | {"$defs": {"a/b~c d": {"type": "array"}}},
    of(
        first={"type": "array", "prefixItems": [{"type": "string"}]},
        second={"$ref": "#/properties/first/prefixItems/0"},
    ),
    of(x={"minimum": -1.5, "multipleOf": 0.01, "minLength": 3.0, "uniqueItems": True, "default": None, "x-own": []}),
    {"type": "object", "patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False},
    {"type": "object", "properties": {"type": {"type": "string"}, "$ref": {"type": "string"}, "required": True}},
    {"type": "object", "dependentRequired": {"a": ["b"]}, "if": True, "then": {}, "else": {"not": {}}},
]


@pytest.mark.parametrize("schema", SOUND, ids=lambda schema: json.dumps(schema)[:60])
def test_sound_schemas_pass_unchanged(schema: Any) -> None:
    assert parse(schema) == schema


# What came in, the place of the flaw, and words of the message.
FLAWS: list[tuple[Any, str, str]] = [
    ("{", "", "is not JSON"),
    ('{"a": NaN}', "", "is not JSON"),
    ("[]", "", "is an empty list, not a JSON object"),
    ("true", "", "is a boolean, not a JSON object"),
    ("null", "", "is null"),
    ('"object"', "", "is a text"),
    ({"type": "array"}, "#/type", 'write "type": "object" at the root'),
    ({"type": ["object", "null"]}, "#/type", "arguments are always an object"),
    ({"$ref": "#/$defs/L", "$defs": {"L": {"type": "array"}}}, "#/type", "arguments are always an object"),
    (of(x={"type": "int"}), "#/properties/x/type", "write integer"),
    (of(x={"type": "STRING"}), "#/properties/x/type", "write string"),
    (of(x={"type": "Any"}), "#/properties/x/type", "no `type` at all"),
    (of(x={"type": "thing"}), "#/properties/x/type", "write one of array, boolean"),
    (of(x={"type": ["string", "nil"]}), "#/properties/x/type/1", "no type of JSON"),
    (of(x={"type": []}), "#/properties/x/type", "leave `type` out"),
    (of(x={"type": ["string", "string"]}), "#/properties/x/type/1", "twice"),
    (of(x={"type": None}), "#/properties/x/type", "is null"),
    (of(x={"type": {"type": "string"}}), "#/properties/x/type", "is an object"),
    (of(x="string"), "#/properties/x", 'write an object such as {"type": "string"}'),
    ({"type": "object", "properties": []}, "#/properties", "schemas by name"),
    ({"type": "object", "required": "x"}, "#/required", "write a list of names"),
    ({"type": "object", "required": ["x", 1]}, "#/required/1", "write the name of a field"),
    ({"type": "object", "required": ["x", "x"]}, "#/required/1", "twice"),
    (of(x={"type": "string", "required": True}), "#/properties/x/required", 'as in "required": ["name"]'),
    (of(x={"enum": "a"}), "#/properties/x/enum", "write a list"),
    (of(x={"enum": []}), "#/properties/x/enum", "at least one value"),
    (of(x={"anyOf": []}), "#/properties/x/anyOf", "at least one schema"),
    (of(x={"oneOf": {"type": "string"}}), "#/properties/x/oneOf", "is an object"),
    (of(x={"allOf": [{"type": "str"}]}), "#/properties/x/allOf/0/type", "write string"),
    (of(x={"items": "string"}), "#/properties/x/items", "not a schema"),
    (of(x={"items": [{"type": "list"}]}), "#/properties/x/items/0/type", "write array"),
    (of(x={"additionalProperties": "no"}), "#/properties/x/additionalProperties", "not a schema"),
    (of(x={"minimum": "0"}), "#/properties/x/minimum", "write a number"),
    (of(x={"minimum": True}), "#/properties/x/minimum", "write a number"),
    (of(x={"exclusiveMinimum": True}), "#/properties/x/exclusiveMinimum", "without `minimum`"),
    (of(x={"multipleOf": 0}), "#/properties/x/multipleOf", "above 0"),
    (of(x={"minLength": -1}), "#/properties/x/minLength", "whole number"),
    (of(x={"maxItems": 1.5}), "#/properties/x/maxItems", "whole number"),
    (of(x={"maxItems": 1e308}), "#/properties/x/maxItems", ""),
    (of(x={"uniqueItems": "yes"}), "#/properties/x/uniqueItems", "write true or false"),
    (of(x={"description": None}), "#/properties/x/description", "leave `description` out"),
    (of(x={"pattern": 1}), "#/properties/x/pattern", "write a text"),
    (of(x={"examples": "a"}), "#/properties/x/examples", "write a list"),
    (of(x={"$ref": 1}), "#/properties/x/$ref", "#/$defs/Name"),
    (of(x={"$ref": "#/$defs/Gone"}), "#/properties/x/$ref", "nothing stands there"),
    (of(x={"$ref": "#gone"}), "#/properties/x/$ref", "nothing stands there"),
    (of(x={"$ref": "https://example.com/x.json"}), "#/properties/x/$ref", "only references into the schema itself"),
    ({**of(x={"$ref": "#/parts/x"}), "parts": {"x": {"type": "dict"}}}, "#/parts/x/type", "write object"),
    ({**of(x={"$ref": "#/$defs/x"}), "$defs": {"x": {"$ref": "#/$defs/x"}}}, "#/properties/x/$ref", "refers back"),
    (of(**{"a/b~c": {"type": "str"}}), "#/properties/a~1b~0c/type", "write string"),
    ({"type": "object", "dependentRequired": {"a": "b"}}, "#/dependentRequired/a", "list of names"),
    ({"type": "object", "dependentRequired": ["b"]}, "#/dependentRequired", "write an object"),
]


@pytest.mark.parametrize(("schema", "pointer", "words"), FLAWS, ids=lambda value: str(value)[:60])
def test_a_flaw_is_told_with_its_place(schema: Any, pointer: str, words: str) -> None:
    if not words:
        assert parse(schema) == schema  # large, but whole
        return
    for _ in range(2):  # the second time from the cache
        with pytest.raises(InvalidRequest) as caught:
            parse(schema)
        [violation, *_] = caught.value.violations
        assert violation.field == PATH + pointer
        assert words in violation.message
        assert f"{violation.field}: {violation.message}" in caught.value.message


def test_all_flaws_are_told_at_once_but_not_without_end() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(of(a={"type": "int"}, b={"type": "str"}))
    assert [each.field for each in caught.value.violations] == [
        f"{PATH}#/properties/a/type",
        f"{PATH}#/properties/b/type",
    ]
    with pytest.raises(InvalidRequest) as caught:
        parse(of(**{f"p{number}": {"type": "str"} for number in range(1000)}))
    assert len(caught.value.violations) == 10


@pytest.mark.parametrize("depth", [101, 400, 2000])
def test_bottomless_nesting_is_refused(depth: int) -> None:
    text = '{"type":"object","properties":{"x":' * depth + "{}" + "}}" * depth
    with pytest.raises(InvalidRequest):
        parse_schema(text, PATH)


OLD: list[tuple[Any, Any]] = [
    (
        {**of(t={"$ref": "#tree"}, u={"$ref": "#/$defs/T"}), "$defs": {"T": {"$anchor": "tree", "type": "object"}}},
        {**of(t={"$ref": "#/$defs/T"}, u={"$ref": "#/$defs/T"}), "$defs": {"T": {"type": "object"}}},
    ),
    (
        {
            "$id": "https://example.com/t",
            **of(a={"$ref": "https://example.com/p"}, b={"$ref": "https://example.com/t#/properties/n"}, n={}),
            "$defs": {"P": {"$id": "https://example.com/p"}},
        },
        {
            "$id": "https://example.com/t",
            **of(a={"$ref": "#/$defs/P"}, b={"$ref": "#/properties/n"}, n={}),
            "$defs": {"P": {}},
        },
    ),
    (
        {"$schema": "http://json-schema.org/draft-07/schema#"}
        | of(x={"type": "array", "items": [{"type": "string"}, {"items": [{}]}], "additionalItems": False}),
        {"$schema": tool_schema.DRAFT_2020_12}
        | of(x={"type": "array", "prefixItems": [{"type": "string"}, {"prefixItems": [{}]}], "items": False}),
    ),
    (of(x={"items": []}), of(x={})),
    (of(x={"items": {"type": "string"}, "additionalItems": False}), of(x={"items": {"type": "string"}})),
    (
        of(x={"minimum": 0, "exclusiveMinimum": True, "maximum": 9, "exclusiveMaximum": False}),
        of(x={"exclusiveMinimum": 0, "maximum": 9}),
    ),
    (of(x={"exclusiveMaximum": True, "maximum": 9}), of(x={"exclusiveMaximum": 9})),
    (
        {"type": "object", "dependencies": {"a": ["b"], "c": {"required": ["d"]}}, "dependentRequired": {"e": ["f"]}},
        {
            "type": "object",
            "dependentRequired": {"a": ["b"], "e": ["f"]},
            "dependentSchemas": {"c": {"required": ["d"]}},
        },
    ),
]


@pytest.mark.parametrize(("old", "new"), OLD, ids=lambda value: json.dumps(value)[:60])
def test_forms_of_old_drafts_are_written_anew(old: Any, new: Any) -> None:
    assert parse(old) == new
    assert orjson.loads(orjson.dumps(schema_fragment(json.dumps(old), PATH))) == new


def test_a_schema_is_read_once() -> None:
    text = json.dumps(of(once={"type": "string"}))
    assert parse_schema(text, PATH) is parse_schema(text, "tools[7].input_schema")
    long = json.dumps(of(x={"description": "x" * MAX_CACHED_TEXT}))
    assert parse_schema(long, PATH) == parse_schema(long, PATH)
    assert parse_schema(long, PATH) is not parse_schema(long, PATH)
