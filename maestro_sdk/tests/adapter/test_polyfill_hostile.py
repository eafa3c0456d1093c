"""Schemas and answers of strangers who want the process to stand still: each is dealt with in about a second."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_sdk.adapter.polyfill.json_schema import strip_fences, violation_of
from maestro_sdk.adapter.polyfill.patterns import ways
from maestro_sdk.adapter.polyfill.tools_parser import Broken, Call, Parser, Piece, Text
from maestro_sdk.errors import InvalidRequest

PATIENCE = 5.0
"""Seconds. Without bounds each of these takes minutes to years."""


@pytest.fixture(autouse=True)
def watch() -> Iterator[None]:
    begun = time.process_time()
    yield
    assert time.process_time() - begun < PATIENCE


@pytest.mark.parametrize(
    "pattern",
    [
        "^" + "a?" * 30 + "a" * 30 + "$",
        "a*" * 12 + "b",
        "^" + "a{0,40}" * 9 + "b",
        "a+a+a+a+a+$",
        "(a|a)(a|a)" * 20 + "b",
    ],
)
def test_a_pattern_that_would_take_years_is_not_checked(pattern: str) -> None:
    assert violation_of(json.dumps("a" * 30), json.dumps({"type": "string", "pattern": pattern}), "schema") is None
    assert violation_of("7", json.dumps({"type": "string", "pattern": pattern}), "schema") is not None


def test_patterns_of_real_schemas_are_checked() -> None:
    for pattern, right, wrong in (
        (r"^[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}$", "somebody.with.a.name@mail.example.org", "nobody"),
        (r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}$", "0123abcd-0000-ffff", "0123abcd"),
        (r"^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?Z)?$", "2026-01-02T03:04Z", "tomorrow"),
    ):
        schema = json.dumps({"type": "array", "items": {"pattern": pattern}})
        assert violation_of(json.dumps([right] * 200), schema, "schema") is None
        flaw = violation_of(json.dumps([right, wrong]), schema, "schema")
        assert flaw is not None
        assert (flaw.path, "does not match" in flaw.message) == ("$[1]", True)


def test_the_ways_through_a_pattern_are_bounded_from_above() -> None:
    assert ways(r"^a\*[*+]b$", 9) == 1
    assert ways("^a*b+$", 9) == 100
    assert ways("^a{2,4}b{3}c{5,}$", 9) == 15
    assert ways("a?b|c", 9) == 40


def test_names_by_a_pattern_that_would_take_years_are_not_checked() -> None:
    schema = {"patternProperties": {"a*" * 12 + "b": {"type": "integer"}}, "additionalProperties": False}
    assert violation_of(json.dumps({"a" * 60: "x"}), json.dumps(schema), "schema") is None


@pytest.mark.parametrize("keyword", ["allOf", "anyOf", "oneOf"])
def test_definitions_that_double_at_every_step_end_as_a_wrong_schema(keyword: str) -> None:
    """A kilobyte of schema, 2**40 steps."""
    definitions: dict[str, Any] = {
        f"d{level}": {keyword: [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(40)
    }
    definitions["d40"] = {"type": "string"}
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": definitions, "$ref": "#/$defs/d0"}
    with pytest.raises(InvalidRequest, match="too many steps") as caught:
        violation_of("1", json.dumps(schema), "response_format.json_schema.schema")
    assert caught.value.violations[0].field == "response_format.json_schema.schema"


def test_unevaluated_properties_do_not_follow_definitions_that_double() -> None:
    definitions: dict[str, Any] = {
        f"d{level}": {"allOf": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(40)
    }
    definitions["d40"] = {"properties": {"a": {"type": "integer"}}}
    schema = {"$defs": definitions, "unevaluatedProperties": False, "$ref": "#/$defs/d0"}
    with pytest.raises(InvalidRequest, match="too many steps"):
        violation_of('{"a": "x"}', json.dumps(schema), "schema")


def test_a_long_list_of_unique_objects_is_checked_at_once() -> None:
    schema = json.dumps({"uniqueItems": True})
    rows: list[Any] = [{"a": number, "b": [number]} for number in range(5000)]
    assert violation_of(json.dumps(rows), schema, "schema") is None
    assert violation_of(json.dumps([*rows, {"b": [7], "a": 7.0}]), schema, "schema") is not None
    assert violation_of("[1, true, 0, false, [1], [true], {}, []]", schema, "schema") is None
    assert violation_of('[{"a": 1}, {"a": 1.0}]', schema, "schema") is not None


def test_a_long_answer_is_checked_whole() -> None:
    row = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    schema = json.dumps({"$defs": {"row": row}, "type": "array", "items": {"$ref": "#/$defs/row"}})
    flaw = violation_of(json.dumps([{"a": "x"}] * 10_000 + [{"a": 7}]), schema, "schema")
    assert flaw is not None
    assert flaw.path == "$[10000].a"


def test_a_code_block_that_is_never_closed_is_looked_at_once() -> None:
    text = "Here: ```json\n" + " " * 300_000 + "x"
    assert strip_fences(text) == text
    assert strip_fences('Here:\n```json\n{"a": 1}\r\n  ```\nDone.') == '{"a": 1}'


def read(*pieces: str) -> list[Piece]:
    parser = Parser()
    return [found for piece in pieces for found in parser.feed(piece)] + parser.end()


@pytest.mark.parametrize("before", ["x <tool_call>", "<tool_call>", '<tool_call>{"name": "a"}'])
def test_space_without_end_is_not_read_again_and_again(before: str) -> None:
    space = ["   \n"] * 50_000
    found = read(before, *space)
    assert "".join(piece.raw for piece in found) == before + "".join(space)


@given(st.integers(0, 2100), st.integers(0, 2100))
def test_space_means_the_same_however_it_arrives(before: int, behind: int) -> None:
    text = f'x <tool_call>{" " * before}{{"name": "a"}}{" " * behind}</tool_call>'
    kinds = [type(piece) for piece in read(text) if isinstance(piece, Call | Broken)]
    assert kinds == [type(piece) for piece in read(*text) if isinstance(piece, Call | Broken)]
    assert kinds == ([] if before > 2048 else [Call] if behind <= 2048 else [Broken])


def test_a_megabyte_without_a_marker_is_text() -> None:
    pieces = ["<tool_cal <<tool_ca "] * 50_000
    found = read(*pieces)
    assert {type(piece) for piece in found} == {Text}
    assert "".join(piece.raw for piece in found) == "".join(pieces)
