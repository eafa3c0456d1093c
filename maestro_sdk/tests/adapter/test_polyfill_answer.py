"""Structured output: the schema that the server holds the model to, and the answer read while it is written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatRequest, JsonSchemaFormat, ResponseFormat, Tool
from maestro_sdk.adapter.polyfill.plan import Means, Plan
from maestro_sdk.adapter.polyfill.tools_answer import AnswerParser, AnswerPiece, CallBegin, CallEnd, CallMore
from maestro_sdk.adapter.polyfill.tools_parser import Broken, Text
from maestro_sdk.adapter.polyfill.tools_schema import answer_schema
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.types import user

LETTERS = st.text(max_size=20) | st.sampled_from(['"', "\\", "\\u0041", "\n", "\U0001f600\U0001f600", "\x00", "é/"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | LETTERS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(LETTERS, inner, max_size=2),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(LETTERS, VALUES, max_size=2)
LAYOUT = st.sampled_from([{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])


def read(chunks: list[str], *, json_reply: bool = False) -> list[AnswerPiece]:
    parser = AnswerParser(json_reply=json_reply)
    return [*(piece for chunk in chunks for piece in parser.feed(chunk)), *parser.end()]


def text_of(pieces: list[AnswerPiece]) -> str:
    assert all(isinstance(piece, Text) for piece in pieces), pieces
    return "".join(piece.raw for piece in pieces if isinstance(piece, Text))


def calls_of(pieces: list[AnswerPiece]) -> list[tuple[str, str]]:
    """Name and arguments of each call, as its fragments give them."""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        match piece:
            case CallBegin(name):
                calls.append((name, ""))
            case CallMore(fragment):
                calls[-1] = (calls[-1][0], calls[-1][1] + fragment)
            case CallEnd(name, arguments):
                assert calls[-1] == (name, arguments)
            case other:
                raise AssertionError(other)
    return calls


@given(LETTERS, LAYOUT)
def test_a_reply_is_the_same_however_it_is_cut(reply: str, layout: dict[str, Any]) -> None:
    text = json.dumps({"reply": reply}, **layout)
    assert text_of(read([text])) == reply
    assert text_of(read(list(text))) == reply
    for cut in range(len(text) + 1):
        assert text_of(read([text[:cut], text[cut:]])) == reply


@settings(max_examples=40)
@given(st.lists(st.tuples(LETTERS.filter(bool), ARGUMENTS), min_size=1, max_size=2), LAYOUT, st.booleans())
def test_calls_are_the_same_however_they_are_cut(
    calls: list[tuple[str, Any]], layout: dict[str, Any], late: bool
) -> None:
    """`late`: the arguments stand before the name."""
    written = [
        {"arguments": arguments, "name": name} if late else {"name": name, "arguments": arguments}
        for name, arguments in calls
    ]
    text = json.dumps({"calls": written}, **layout)
    whole = calls_of(read([text]))
    assert [(name, json.loads(arguments)) for name, arguments in whole] == calls
    assert all(arguments in text for _, arguments in whole)
    for chunks in (list(text), *([text[:cut], text[cut:]] for cut in range(len(text)))):
        assert calls_of(read(chunks)) == whole


@given(VALUES, LAYOUT)
def test_a_reply_of_json_is_passed_on_as_it_was_written(value: Any, layout: dict[str, Any]) -> None:
    text = json.dumps({"reply": value}, **layout)
    for chunks in ([text], list(text)):
        said = text_of(read(chunks, json_reply=True))
        assert json.loads(said) == value
        assert said in text


@given(st.text('{}[]":,\\ureplycasnmgt01 \n', max_size=40), st.data())
def test_any_text_is_read(text: str, data: st.DataObject) -> None:
    start = data.draw(st.sampled_from(["", '{"reply":', '{"reply":"', '{"calls":[{"name":"x","arguments":{']))
    whole, cut = read([start + text]), read(list(start + text))
    assert [piece for piece in whole if isinstance(piece, Broken)] == [p for p in cut if isinstance(p, Broken)]
    said = "".join(piece.raw for piece in whole if isinstance(piece, Text))
    assert said == "".join(piece.raw for piece in cut if isinstance(piece, Text))
    # Nothing follows what is broken.
    assert not any(isinstance(piece, Broken) for piece in whole[:-1])


def test_a_reply_grows_letter_by_letter() -> None:
    parser = AnswerParser()
    parser.feed('{"reply": "')
    assert [text_of(parser.feed(letter)) for letter in 'H\\n\\u00e9\\ud83d\\ude00"'] == [
        *("H", "", "\n", "", "", "", "", "", "é", "", "", "", "", "", "", "", "", "", "", "", "😀", ""),
    ]


def test_arguments_are_given_out_as_they_come() -> None:
    parser = AnswerParser()
    assert parser.feed('{"calls":[{"name":"find"') == [CallBegin("find")]
    assert parser.feed(',"arguments":{"a') == [CallMore('{"a')]
    assert parser.feed('":1.50}') == [CallMore('":1.50}')]
    assert parser.feed("}") == [CallEnd("find", '{"a":1.50}')]
    assert [*parser.feed("]}\n"), *parser.end()] == []


def test_half_of_a_surrogate_pair_is_replaced() -> None:
    assert text_of(read(['{"reply":"a\\ud83d b\\ude00c\\ud83d"}'])) == "a\ufffd b\ufffdc\ufffd"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Sure! I will.", "not a JSON object"),
        ("", "ends before"),
        ('{"reply": "abc', "ends before"),
        ("{}", "neither"),
        ('{"calls": []}', "neither"),
        ('{"reply": 7}', "not a string"),
        ('{"calls": {}}', "not a list"),
        ('{"calls": [1]}', "where a call should"),
        ('{"calls": [{}]}', 'no "name"'),
        ('{"calls": [{"name": ""}]}', "empty"),
        ('{"calls": [{"name": "x", "arguments": []}]}', "not one JSON object"),
        ('{"reply": "a"} and more', "behind the JSON object"),
        ('{"reply" "a"}', "colon"),
        ("{reply: 1}", "name of a member"),
    ],
)
def test_a_broken_answer_says_what_is_wrong(text: str, error: str) -> None:
    for chunks in ([text], list(text)):
        last = read(chunks)[-1]
        assert isinstance(last, Broken)
        assert error in last.error


def asked(*schemas: str, form: str = "") -> ChatRequest:
    tools = [Tool(name=f"t{number}", input_schema=schema) for number, schema in enumerate(schemas)]
    request = ChatRequest(messages=[user("Go.")], tools=tools)
    if form:
        request.response_format.CopyFrom(ResponseFormat(json_schema=JsonSchemaFormat(schema=form)))
    return request


def schema_of(request: ChatRequest, **plan: Any) -> Any:
    names = tuple(tool.name for tool in request.tools)
    made = replace(Plan(tools=Means.STRUCTURED, offered=names), **plan)
    schema = json.loads(answer_schema(request, made))
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def meets(schema: Any, value: Any) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


CITY = '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}'


def call(name: str, /, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def test_the_schema_takes_a_reply_or_calls_with_the_arguments_of_their_tool() -> None:
    schema = schema_of(asked(CITY, ""))
    assert meets(schema, {"reply": "Hello."})
    assert meets(schema, {"calls": [call("t0", city="Rome"), call("t1")]})
    for wrong in (
        {},
        {"reply": 1},
        {"calls": []},
        {"reply": "a", "calls": [call("t1")]},
        {"calls": [call("t0")]},
        {"calls": [call("t1", city="Rome")]},
        {"calls": [call("t2")]},
    ):
        assert not meets(schema, wrong), wrong


def test_the_schema_keeps_the_rule_for_calls() -> None:
    two = {"calls": [call("t1"), call("t1")]}
    assert not meets(schema_of(asked(CITY, ""), must=True), {"reply": "Hello."})
    assert meets(schema_of(asked(CITY, ""), must=True), two)
    assert not meets(schema_of(asked(CITY, ""), single=True), two)
    only = schema_of(asked(CITY, ""), offered=("t1",))
    assert meets(only, two)
    assert not meets(only, {"calls": [call("t0", city="Rome")]})


def test_a_reply_has_the_form_that_was_asked_for() -> None:
    schema = schema_of(asked("", form=CITY), form=Means.STRUCTURED)
    assert meets(schema, {"reply": {"city": "Rome"}})
    assert meets(schema, {"calls": [call("t0")]})
    assert not meets(schema, {"reply": "Rome"})


TREE = """{"type":"object","$defs":{"Node":{"type":"object","properties":{"kids":{"type":"array",
"items":{"$ref":"#/$defs/Node"}},"value":{"$ref":"#/$defs/Value"}},"required":["value"]},"Value":{"type":"integer"}},
"properties":{"root":{"$ref":"#/$defs/Node"}},"required":["root"]}"""
SELF = '{"type":"object","properties":{"next":{"$ref":"#"},"name":{"type":"string"}},"required":["name"]}'
OLD = """{"$schema":"http://json-schema.org/draft-07/schema#","definitions":{"Value":{"type":"string"}},"type":"object",
"properties":{"a":{"$ref":"#/definitions/Value"},"b":{"$ref":"#/properties/a"},"$ref":{"const":{"$ref":"#/x"}}}}"""


def test_references_of_each_tool_lead_to_definitions_of_their_own() -> None:
    schema = schema_of(asked(TREE, SELF, OLD))
    references = [found.split('"')[0] for found in json.dumps(schema).split('"$ref": "')[1:]]
    assert {found.rpartition("/")[0] for found in references} == {"#/$defs", "#"}  # "#/x" is data
    tree = {"value": 1, "kids": [{"value": 2, "kids": []}]}
    assert meets(schema, {"calls": [call("t0", root=tree)]})
    assert not meets(schema, {"calls": [call("t0", root={"value": 1, "kids": [{"value": "2"}]})]})
    assert meets(schema, {"calls": [call("t1", name="a", next={"name": "b", "next": {"name": "c"}})]})
    assert not meets(schema, {"calls": [call("t1", name="a", next={"name": "b", "next": {}})]})
    assert meets(schema, {"calls": [call("t2", a="x", b="y", **{"$ref": {"$ref": "#/x"}})]})
    assert not meets(schema, {"calls": [call("t2", b=1)]})


def test_definitions_of_like_names_stay_apart() -> None:
    names = ("a.b", "a_b")
    schema = schema_of(
        asked(
            json.dumps(
                {
                    "$defs": {name: {"const": name} for name in names},
                    "type": "object",
                    "properties": {name: {"$ref": f"#/$defs/{name}"} for name in names},
                }
            )
        )
    )
    assert meets(schema, {"calls": [call("t0", **{name: name for name in names})]})
    for name, other in (names, names[::-1]):
        assert not meets(schema, {"calls": [call("t0", **{name: other})]})


@pytest.mark.parametrize("schema", ['{"type":"obj"}', "[]", "{", '{"$ref":"#/$defs/None"}', '{"$ref":"https://a.b/c"}'])
def test_a_schema_that_is_none_is_told_with_its_path(schema: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        schema_of(asked("", schema))
    assert [violation.field for violation in refused.value.violations] == ["tools[1].input_schema"]
