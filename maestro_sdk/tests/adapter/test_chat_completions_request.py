"""From the contract to the chat-completions wire: what dialects change, what is refused and where."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import orjson
import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro_sdk.adapter.chat_completions import Dialect, Stream, to_wire
from maestro_sdk.adapter.strict_subset import OPENAI_STRICT
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter

from .chat_bodies import LOCAL, body, request

TOOLS = [{"name": "one"}, {"name": "two"}]


def test_nothing_unset_is_sent() -> None:
    assert body(request()) == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("model", "wire"), [("local/m", "m"), ("m", "m"), ("other/m", "other/m"), ("local/a/b", "a/b")]
)
def test_model_name(model: str, wire: str) -> None:
    asked = request()
    asked.model = model
    assert body(asked)["model"] == wire


def test_zero_is_a_value() -> None:
    sent = body(request(temperature=0.0, top_p=0.0, seed=0))
    assert (sent["temperature"], sent["top_p"], sent["seed"]) == (0.0, 0.0, 0)


def test_stream_options() -> None:
    assert body(request(), stream=True)["stream_options"] == {"include_usage": True}
    bare = body(request(), replace(LOCAL, stream_options={}), stream=True)
    assert bare["stream"] is True
    assert "stream_options" not in bare


def test_names_of_fields_are_the_dialects() -> None:
    dialect = replace(LOCAL, max_tokens="max_completion_tokens", system_role="developer")
    sent = body(request(max_tokens=5, system="Be brief."), dialect)
    assert sent["max_completion_tokens"] == 5
    assert sent["messages"][0] == {"role": "developer", "content": "Be brief."}
    assert body(request(max_tokens=5))["max_tokens"] == 5


@pytest.mark.parametrize(
    ("choice", "sent", "names"),
    [
        (None, None, ["one", "two"]),
        ({}, None, ["one", "two"]),
        ({"mode": 1}, "auto", ["one", "two"]),
        ({"mode": 2}, "none", ["one", "two"]),
        ({"mode": 3}, "required", ["one", "two"]),
        ({"mode": 4, "names": ["two"]}, {"type": "function", "function": {"name": "two"}}, ["one", "two"]),
        ({"names": ["two"]}, "auto", ["two"]),
        ({"mode": 3, "names": ["one"]}, "required", ["one"]),
        ({"mode": 2, "names": ["one"]}, "none", ["one", "two"]),
    ],
)
def test_tool_choice(choice: dict[str, Any] | None, sent: object, names: list[str]) -> None:
    fields: dict[str, Any] = {} if choice is None else {"tool_choice": choice}
    wire = body(request(tools=TOOLS, **fields))
    assert wire.get("tool_choice") == sent
    assert [tool["function"]["name"] for tool in wire["tools"]] == names


def test_tool_choice_of_a_server_without_one() -> None:
    dialect = replace(LOCAL, tool_choice=False)
    assert "tools" not in body(request(tools=TOOLS, tool_choice={"mode": 2}), dialect)
    assert [
        tool["function"]["name"]
        for tool in body(request(tools=TOOLS, tool_choice={"names": ["two"]}), dialect)["tools"]
    ] == ["two"]
    wire = to_wire(request(tools=TOOLS, tool_choice={"mode": 3}), dialect)
    assert [warning.field for warning in wire.warnings] == ["tool_choice.mode"]
    assert "tool_choice" not in wire.body


def test_tools_bound_to_an_effort() -> None:
    dialect = replace(LOCAL, tools_effort="none")
    assert body(request(tools=TOOLS), dialect)["reasoning_effort"] == "none"
    assert (
        body(request(tools=TOOLS, reasoning={"effort": "REASONING_EFFORT_OFF"}), dialect)["reasoning_effort"] == "none"
    )
    assert body(request(reasoning={"effort": "REASONING_EFFORT_LOW"}), dialect)["reasoning_effort"] == "low"
    wire = to_wire(request(tools=TOOLS, reasoning={"effort": "REASONING_EFFORT_LOW"}), dialect)
    assert (wire.body["reasoning_effort"], [warning.field for warning in wire.warnings]) == (
        "none",
        ["reasoning.effort"],
    )


# Everything that a bare server can't take: not sent and told, or refused under `strict`.
NOTHING = Dialect(
    provider="local",
    temperature=False,
    seed=False,
    stop_limit=0,
    logprobs=False,
    efforts={},
    strict_tools=False,
    parallel_tool_calls=False,
    json_object=False,
    json_schema=False,
)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"temperature": 0.5}, "temperature"),
        ({"top_p": 0.5}, "top_p"),
        ({"seed": 1}, "seed"),
        ({"stop": ["x"]}, "stop[0]"),
        ({"logprobs": {}}, "logprobs"),
        ({"reasoning": {"effort": "REASONING_EFFORT_HIGH"}}, "reasoning.effort"),
        ({"reasoning": {"budget_tokens": 5}}, "reasoning.budget_tokens"),
        ({"response_format": {"json": {}}}, "response_format.json"),
        ({"response_format": {"json_schema": {"schema": "{}"}}}, "response_format.json_schema"),
        ({"tools": [{"name": "f", "strict": True}]}, "tools[0].strict"),
        ({"tools": TOOLS, "tool_choice": {"parallel": False}}, "tool_choice.parallel"),
        ({"cache": {}}, "cache"),
    ],
)
def test_unsupported_parameter(fields: dict[str, Any], path: str) -> None:
    wire = to_wire(request(**fields), NOTHING)
    assert [(warning.code, warning.field) for warning in wire.warnings] == [("unsupported_parameter", path)]
    assert set(wire.body) <= {"model", "messages", "tools"}
    with pytest.raises(UnsupportedParameter) as caught:
        to_wire(request(**fields, strict=True), NOTHING)
    assert [violation.field for violation in caught.value.violations] == [path]


def test_a_model_that_never_reasons_obeys_off() -> None:
    assert "reasoning_effort" not in body(request(reasoning={"effort": "REASONING_EFFORT_OFF"}), NOTHING)


def test_stop_texts_beyond_the_limit_are_told() -> None:
    wire = to_wire(request(stop=["a", "b", "c", "d", "e"]), LOCAL)
    assert wire.body["stop"] == ["a", "b", "c", "d"]
    assert [warning.field for warning in wire.warnings] == ["stop[4]"]


@pytest.mark.parametrize(
    ("asked", "error", "path"),
    [
        (
            request({"audio": {"data": "AAAA", "mime_type": "audio/wav"}}),
            UnsupportedParameter,
            "messages[0].parts[0].audio",
        ),
        (request({"document": {"url": "https://e.x/a.pdf"}}), UnsupportedParameter, "messages[0].parts[0].document"),
        (request({"image": {"file_id": "f"}}), UnsupportedParameter, "messages[0].parts[0].image.file_id"),
        (request({"image": {"url": "gs://b/o"}}), UnsupportedParameter, "messages[0].parts[0].image.url"),
        (request({"image": {"data": "AAAA"}}), InvalidRequest, "messages[0].parts[0].image.mime_type"),
        (request({"tool_result": {"call_id": "c"}}), InvalidRequest, "messages[0].parts[0].tool_result"),
        (request({"tool_call": {"call_id": "c", "name": "f"}}), InvalidRequest, "messages[0].parts[0].tool_call"),
        (request({}), InvalidRequest, "messages[0].parts[0]"),
        (request({"opaque": {"json": "{}"}}), InvalidRequest, "messages[0].parts[0].origin"),
        (
            request({"opaque": {"json": "{"}, "origin": {"provider": "local"}}),
            InvalidRequest,
            "messages[0].parts[0].opaque.json",
        ),
        (request(role="ROLE_TOOL"), InvalidRequest, "messages[0].parts[0].text"),
        (request(role="ROLE_UNSPECIFIED"), InvalidRequest, "messages[0].role"),
        (
            request({"image": {"url": "https://e.x"}}, role="ROLE_ASSISTANT"),
            UnsupportedParameter,
            "messages[0].parts[0].image",
        ),
        (
            request({"text": {"text": "a"}}, {"tool_result": {"call_id": "c"}}, role="ROLE_ASSISTANT"),
            InvalidRequest,
            "messages[0].parts[1].tool_result",
        ),
        (
            request(
                {
                    "tool_result": {
                        "call_id": "c",
                        "parts": [{"text": {"text": "a"}}, {"image": {"url": "https://e.x"}}],
                    }
                },
                role="ROLE_TOOL",
            ),
            UnsupportedParameter,
            "messages[0].parts[0].tool_result.parts[1].image",
        ),
        (request(tools=[{"name": "f", "input_schema": "{"}]), InvalidRequest, "tools[0].input_schema"),
        (request(tools=[{"name": "f", "input_schema": "[]"}]), InvalidRequest, "tools[0].input_schema"),
        (
            request(response_format={"json_schema": {"schema": "no"}}),
            InvalidRequest,
            "response_format.json_schema.schema",
        ),
        (request(tool_choice={"mode": 3}), InvalidRequest, "tool_choice.mode"),
        (request(tools=TOOLS, tool_choice={"mode": 4}), InvalidRequest, "tool_choice.names"),
        (
            request(tools=TOOLS, tool_choice={"mode": 3, "names": ["one", "six"]}),
            InvalidRequest,
            "tool_choice.names[1]",
        ),
        (request(provider_options={"local": {"n": 2}}), InvalidRequest, "provider_options.local.n"),
        (request(provider_options={"local": {"stream": True}}), InvalidRequest, "provider_options.local.stream"),
        (request(provider_options={"local": {"model": "x"}}), InvalidRequest, "provider_options.local.model"),
        (request(provider_options={"local": {"x": [float("inf")]}}), InvalidRequest, "provider_options.local.x[0]"),
    ],
)
def test_refused_with_its_path(asked: ChatRequest, error: type[InvalidRequest], path: str) -> None:
    with pytest.raises(error) as caught:
        to_wire(asked, LOCAL)
    assert type(caught.value) is error
    assert [violation.field for violation in caught.value.violations] == [path]
    assert caught.value.message.startswith(path)


def test_tools_that_a_model_cannot_call_are_refused() -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        to_wire(request(tools=TOOLS), replace(LOCAL, tools=False))
    assert [violation.field for violation in caught.value.violations] == ["tools"]


def test_tool_names_of_a_dialect() -> None:
    call = {"tool_call": {"call_id": "c", "name": "files.read"}}
    gone = {"tool_call": {"call_id": "d", "name": "gone.tool"}}
    asked = request(
        call,
        gone,
        role="ROLE_ASSISTANT",
        tools=[{"name": "files_read"}, {"name": "files.read"}, {"name": "a" * 65}],
        tool_choice={"mode": "TOOL_CHOICE_MODE_NAMED", "names": ["files.read"]},
    )
    dialect = replace(LOCAL, tool_name_length=64)
    wire = to_wire(asked, dialect)
    offered = [tool["function"]["name"] for tool in wire.body["tools"]]
    assert offered[0] == "files_read"
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,64}", name) for name in offered)
    assert len(set(offered)) == 3
    assert wire.body["tool_choice"]["function"]["name"] == offered[1]
    called = [call["function"]["name"] for call in wire.body["messages"][0]["tool_calls"]]
    assert called == [offered[1], "gone_tool"]
    assert wire.tool_names == {offered[1]: "files.read", offered[2]: "a" * 65, "gone_tool": "gone.tool"}
    assert to_wire(asked, LOCAL).tool_names == {}


@pytest.mark.parametrize("streamed", [True, False])
def test_renamed_tools_come_back_under_their_names(streamed: bool) -> None:
    wire = to_wire(request(tools=[{"name": "files.read"}]), replace(LOCAL, tool_name_length=64))
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "files_read", "arguments": "{}"}}
    choice = {"index": 0, "delta" if streamed else "message": {"tool_calls": [call]}, "finish_reason": "tool_calls"}
    body = orjson.dumps({"id": "x", "choices": [choice]})
    stream = Stream(LOCAL, "m", tool_names=wire.tool_names)
    events = stream.feed(b"data: " + body + b"\n\ndata: [DONE]\n\n") if streamed else stream.whole(body)
    assert [event.tool_call.name for event in events if event.HasField("tool_call")] == ["files.read"]


CLOSED = '{"type":"object","properties":{"a":{"type":"string"}},"required":["a"],"additionalProperties":false}'
OPEN = '{"type":"object","properties":{"a":{"type":"string"}}}'


def test_strict_tools_outside_the_subset_are_sent_without_strict() -> None:
    dialect = replace(LOCAL, strict_subset=OPENAI_STRICT)
    tools = [
        {"name": "closed", "input_schema": CLOSED, "strict": True},
        {"name": "open", "input_schema": OPEN, "strict": True},
        {"name": "none", "strict": True},
        {"name": "lax", "input_schema": OPEN, "strict": False},
    ]
    wire = to_wire(request(tools=tools), dialect)
    closed, opened, none, lax = (tool["function"] for tool in wire.body["tools"])
    assert closed["strict"] is none["strict"] is True
    assert none["parameters"] == {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    assert "strict" not in opened
    assert opened["parameters"] == orjson.loads(OPEN)
    assert lax["strict"] is False
    [warning] = wire.warnings
    assert (warning.code, warning.field) == ("schema_rewritten", "tools[1].strict")
    assert "tools[1].input_schema#/additionalProperties: " in warning.message
    assert "tools[1].input_schema#/properties/a: " in warning.message
    with pytest.raises(UnsupportedParameter) as caught:
        to_wire(request(tools=tools, strict=True), dialect)
    assert [violation.field for violation in caught.value.violations] == ["tools[1].strict"]
    assert to_wire(request(tools=tools[1:2]), LOCAL).body["tools"][0]["function"]["strict"] is True


@pytest.mark.parametrize(("schema", "kept"), [(CLOSED, True), (OPEN, False)])
def test_a_strict_answer_outside_the_subset_is_sent_without_strict(schema: str, kept: bool) -> None:
    form = {"json_schema": {"schema": schema, "strict": True}}
    wire = to_wire(request(response_format=form), replace(LOCAL, strict_subset=OPENAI_STRICT))
    assert wire.body["response_format"]["json_schema"]["strict"] is kept
    assert wire.body["response_format"]["json_schema"]["schema"] == orjson.loads(schema)
    fields = [(warning.code, warning.field) for warning in wire.warnings]
    assert fields == ([] if kept else [("schema_rewritten", "response_format.json_schema.strict")])


def test_huge_numbers_of_options_stay_floats() -> None:
    options = {"local": {"whole": 2.0**53, "huge": 1e300, "below": -1e300}}
    sent = orjson.loads(to_wire(request(provider_options=options), LOCAL).encode())
    assert (sent["whole"], sent["huge"], sent["below"]) == (2**53, 1e300, -1e300)


def test_options_are_merged_and_whole_numbers_are_whole() -> None:
    options = {
        "local": {"top_k": 40, "min_p": 0.5, "structured_outputs": {"choice": ["a", 1]}, "seed": None},
        "other": {"y": 1},
    }
    # A merge patch: null takes out what stood there.
    encoded = to_wire(request(temperature=1, seed=7, provider_options=options), LOCAL).encode()
    assert encoded.endswith(b'"temperature":1.0,"min_p":0.5,"structured_outputs":{"choice":["a",1]},"top_k":40}')


def test_dialect_of_a_model_follows_its_features() -> None:
    bare = LOCAL.for_model(Model(name="m"))
    assert (bare.temperature, bare.seed, bare.stop_limit, bare.logprobs, bare.efforts) == (False, False, 0, False, {})
    assert (bare.tools, bare.images, bare.json_schema, bare.tool_choice) == (False, False, False, False)
    every = [FeatureSupport(feature=value, support=Support.SUPPORT_NATIVE) for value in Feature.values()]
    assert LOCAL.for_model(Model(name="m", features=every)) == LOCAL


def test_the_servers_own_name_of_a_model() -> None:
    dialect = Dialect(provider="local", wire_name="deployment-7")
    assert body(request({"text": {"text": "hi"}}), dialect)["model"] == "deployment-7"
