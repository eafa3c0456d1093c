"""Schemas within what the provider takes: each loss told at its place, and nothing lost where nothing is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_adapter_claude.schema import fit_schema
from maestro_adapter_claude.tool_input import PROPERTY, fit_input
from maestro_sdk.adapter.tool_schema import parse_schema
from maestro_sdk.errors import InvalidRequest, MaestroError, UnsupportedParameter
from maestro_sdk.testing.anthropic_strict import StrictMessages, check_input_schema
from maestro_sdk.testing.anthropic_subset import find_unsupported

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
CLOSED = {**PERSON, "additionalProperties": False}


def fit(schema: Any) -> tuple[Any, list[str]]:
    fitted, losses = fit_schema(json.dumps(schema), "p")
    assert list(find_unsupported(fitted)) == []
    return json.loads(json.dumps(fitted)), [pointer for pointer, _ in losses]


def fit_tool(schema: Any) -> tuple[Any, list[str]]:
    fragment, losses = fit_input(json.dumps(schema), "p")
    fitted = orjson.loads(orjson.dumps(fragment))
    check_input_schema(fitted, "tools.0.custom.input_schema")
    return fitted, [pointer for pointer, _ in losses]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (CLOSED, CLOSED),
        (PERSON, CLOSED),
        ({"properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
        ({"items": {"type": "null"}}, {"type": "array", "items": {"type": "null"}}),
        ({"type": ["string"]}, {"type": "string"}),
        ({"type": ["string", "null"]}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        (
            {"type": ["array", "null"], "items": {"type": "string"}, "title": "T"},
            {"title": "T", "anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        ),
        ({"type": ["string", "null"], "enum": ["a", None]}, {"enum": ["a", None]}),
        ({"const": 3}, {"const": 3}),
        ({"type": "string", "enum": ["a"]}, {"type": "string", "enum": ["a"]}),
        ({"type": "string", "format": "date"}, {"type": "string", "format": "date"}),
        ({"type": "array", "items": PERSON, "minItems": 1}, {"type": "array", "items": CLOSED, "minItems": 1}),
        ({"$schema": "x", "$id": "y", "$comment": "z", "type": "null"}, {"type": "null"}),
        ({"type": "integer", "default": 3}, {"type": "integer", "description": "{default: 3}"}),
        (
            {"$ref": "#/$defs/p", "$defs": {"p": PERSON}},
            {"$defs": {"p": CLOSED}, "$ref": "#/$defs/p"},
        ),
        (
            {"allOf": [{"$ref": "#/definitions/p"}], "definitions": {"p": PERSON}, "description": "D"},
            {"definitions": {"p": CLOSED}, "description": "D", "allOf": [CLOSED]},
        ),
        (
            {"allOf": [PERSON, {"properties": {"age": {"type": "integer"}}, "required": ["age"]}]},
            {
                "allOf": [
                    {
                        "type": "object",
                        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                        "required": ["name", "age"],
                        "additionalProperties": False,
                    }
                ]
            },
        ),
    ],
)
def test_nothing_is_lost(schema: Any, expected: Any) -> None:
    assert fit(schema) == (expected, [])


@pytest.mark.parametrize(
    ("schema", "losses"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 5}, ["/minimum", "/maximum"]),
        ({"type": "string", "pattern": "^a", "maxLength": 3}, ["/pattern", "/maxLength"]),
        ({"type": "string", "format": "phone"}, ["/format"]),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, ["/minItems"]),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, ["/uniqueItems"]),
        ({**PERSON, "additionalProperties": {"type": "string"}}, ["/additionalProperties"]),
        ({**PERSON, "additionalProperties": True}, ["/additionalProperties"]),
        ({**PERSON, "patternProperties": {"^x": {"type": "string"}}}, ["/patternProperties"]),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, ["/oneOf"]),
        (
            {"type": "object", "properties": {"a/b": {"type": "number", "multipleOf": 2}}},
            ["/properties/a~1b/multipleOf"],
        ),
        ({"type": "object", "properties": {"x": {}}}, ["/properties/x"]),
        ({"type": "array", "items": True}, ["/items"]),
        ({"type": "string", "not": {"const": "a"}}, ["/not"]),
        ({"enum": [{"a": 1}]}, ["", "/enum"]),
        ({"$defs": {"n": {"type": "number", "minimum": 1}}, "$ref": "#/$defs/n"}, ["/$defs/n/minimum"]),
        ({"$defs": {"n": {"type": "number"}}, "$ref": "#/$defs/n", "minimum": 1}, ["/minimum"]),
    ],
)
def test_losses(schema: Any, losses: list[str]) -> None:
    assert fit(schema)[1] == losses


def test_what_is_not_enforced_is_told() -> None:
    made, _ = fit({"type": "integer", "description": "Age.", "minimum": 1, "maximum": 130})
    assert made == {"type": "integer", "description": "Age.\n\n{minimum: 1, maximum: 130}"}


@pytest.mark.parametrize(
    ("schema", "error", "path"),
    [
        ({"$ref": "https://example.com/x.json"}, MaestroError, "p#/$ref"),
        (
            {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}},
            UnsupportedParameter,
            "p#/$defs/n",
        ),
        ({"type": "object", "properties": {"child": {"$ref": "#"}}}, UnsupportedParameter, "p#"),
        ({"type": "object", "properties": {"x": {"type": "strin"}}}, InvalidRequest, "p#/properties/x/type"),
        ([], InvalidRequest, "p"),
    ],
)
def test_schemas_without_a_form(schema: Any, error: type[MaestroError], path: str) -> None:
    with pytest.raises(error) as caught:
        fit(schema)
    assert [found.field for found in caught.value.violations] == [path]


@pytest.mark.parametrize(
    "schema",
    [
        PERSON,
        {"type": "integer", "minimum": 1, "maximum": 10, "description": "A number"},
        {"type": "array", "items": {"type": "string", "format": "uuid"}, "minItems": 3},
        {"$ref": "#/$defs/X", "$defs": {"X": {**PERSON, "title": "X"}}},
        {"type": "object", "properties": {"a": {"oneOf": [{"type": "string"}, PERSON]}, "b": {"const": 1}}},
        {"type": "string", "pattern": "^[0-9]+$", "format": "phone"},
    ],
)
def test_the_sdk_makes_the_same(schema: Any) -> None:
    """Its own rewriting is the provider's word on what the API takes; it only tells nobody what it lost."""
    assert fit(schema)[0] == anthropic.transform_schema(schema)


SCALAR = st.sampled_from(
    [
        {"type": "string", "maxLength": 3},
        {"type": ["integer", "null"], "minimum": 0},
        {"enum": ["a", 1, None]},
        {"const": True},
        {},
        True,
        {"type": "string", "format": "date-time", "default": "x"},
    ]
)


def deeper(inner: Any) -> Any:
    named = st.dictionaries(st.sampled_from(["a", "b/c", "d.e"]), inner, max_size=3)
    objects = named.map(lambda found: {"type": "object", "properties": found, "required": list(found)})
    arrays = inner.map(lambda found: {"type": "array", "items": found, "maxItems": 3})
    choices = st.tuples(st.sampled_from(["anyOf", "oneOf", "allOf"]), st.lists(inner, min_size=1, max_size=3))
    return objects | arrays | choices.map(lambda found: {found[0]: found[1]})


@given(st.recursive(SCALAR, deeper, max_leaves=8).filter(lambda found: isinstance(found, dict)))
def test_any_schema_fits(schema: Any) -> None:
    fitted, _ = fit(schema)
    again, losses = fit_schema(json.dumps(fitted), "p")
    assert (json.loads(json.dumps(again)), losses) == (fitted, ()), "what fits stays as it is"


def test_an_input_goes_out_as_it_was_written() -> None:
    text = '{"type": "object", "z": 1.0, "properties": {"a": {"anyOf": [{"type": "string"}], "maximum": 1e3}}}'
    fragment, losses = fit_input(text, "p")
    assert (orjson.dumps(fragment), losses) == (text.encode(), ())


@pytest.mark.parametrize(
    ("schema", "properties", "required", "losses"),
    [
        (
            {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}},
            {"a": {}, "b": {}},
            None,
            ["/anyOf"],
        ),
        (
            {"oneOf": [PERSON, {**PERSON, "properties": {"name": {"type": "null"}, "b": {}}}]},
            {"name": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "b": {}},
            ["name"],
            ["/oneOf"],
        ),
        (
            {"allOf": [{"$ref": "#/$defs/p"}, {"properties": {"b": {}}, "required": ["b"]}], "$defs": {"p": PERSON}},
            {"name": {"type": "string"}, "b": {}},
            ["name", "b"],
            [],
        ),
        (
            {"allOf": [PERSON, {"if": {"required": ["name"]}, "then": {}}], "required": ["name"]},
            {"name": {"type": "string"}},
            ["name"],
            ["/allOf"],
        ),
        ({"properties": {"$filter": {}, "top": {}}}, {"top": {}}, None, ["/properties/$filter"]),
    ],
)
def test_the_root_of_an_input(schema: Any, properties: Any, required: Any, losses: list[str]) -> None:
    made, lost = fit_tool(schema)
    assert (made["properties"], made.get("required"), lost) == (properties, required, losses)


def test_a_name_that_has_to_be_given() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        fit_tool({"properties": {"$filter": {}}, "required": ["$filter"]})
    assert caught.value.violations[0].field == "p#/properties/$filter"


def test_losses_are_warnings_or_errors_under_strict(ask: Any, translate: Any) -> None:
    schema = json.dumps({"type": "integer", "minimum": 1})
    tool = {"name": "t", "strict": True, "input_schema": '{"properties":{"x":{"type":"string","minLength":1}}}'}
    request = ask(response_format={"json_schema": {"schema": schema}}, tools=[tool])
    outgoing = translate(request)
    places = [
        "tools[0].input_schema#/properties/x/minLength",
        "response_format.json_schema.schema#/minimum",
    ]
    assert [(warning.code, warning.field) for warning in outgoing.warnings] == [
        ("schema_rewritten", place) for place in places
    ]
    request.strict = True
    with pytest.raises(UnsupportedParameter) as caught:
        translate(request)
    assert [found.field for found in caught.value.violations] == places


def test_a_tool_that_is_not_strict_keeps_its_schema(ask: Any, translate: Any) -> None:
    tool = {"name": "t", "input_schema": '{"properties":{"x":{"type":"string","minLength":1}}}', "strict": False}
    assert list(translate(ask(tools=[tool])).warnings) == []


CORPUS = sorted((Path(__file__).parents[3] / "tests" / "fixtures" / "schemas").glob("*.json"))


def test_there_is_a_corpus() -> None:
    assert len(CORPUS) >= 40


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_real_tools(path: Path, ask: Any, translate: Any) -> None:
    """None is refused; each loss is told. Strict, those that contain themselves are refused here, with their place."""
    tools = json.loads(path.read_text(encoding="utf-8"))["tools"]
    for number, tool in enumerate(tools):
        text = json.dumps(tool["input_schema"])
        try:
            made, losses = fit_tool(tool["input_schema"])
        except UnsupportedParameter as error:
            # A name that the wire refuses, where it has to be given.
            names = [found.field.rpartition("/")[2] for found in error.violations]
        else:
            names = []
            given = parse_schema(text, "p")
            assert losses or made == given or {"allOf", "$ref"} & set(given)
        assert not any(PROPERTY.fullmatch(name) for name in names)
        strict = ask(tools=[{"name": f"t{number}", "input_schema": text, "strict": True}])
        try:
            outgoing = translate(strict)
        except UnsupportedParameter as error:
            refused = error.message
        else:
            refused = ""
            StrictMessages().check(orjson.loads(orjson.dumps(outgoing.body)))
        assert not refused or "recursive" in refused or names
