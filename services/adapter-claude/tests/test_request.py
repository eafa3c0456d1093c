"""Requests of the contract on Anthropic's wire: golden conversations, and tables for what depends on the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_claude.models import ClaudeModel
from maestro_sdk.errors import InvalidRequest, MaestroError, UnsupportedParameter
from maestro_sdk.testing.golden import check, plain

REQUESTS = sorted(Path(__file__).with_name("golden").glob("requests/*.request.json"))
TOOL = {"name": "weather", "input_schema": '{"type":"object"}'}
OTHER = {"name": "clock", "input_schema": '{"type":"object"}'}


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.name.removesuffix(".request.json"))
def test_golden_request(path: Path, translate: Any) -> None:
    request = ParseDict(json.loads(path.read_text(encoding="utf-8")), ChatRequest())
    before = request.SerializeToString(deterministic=True)
    outgoing = translate(request)
    got = {"body": plain(outgoing.body), "warnings": plain(outgoing.warnings)}
    if outgoing.betas:
        got["betas"] = list(outgoing.betas)
    check(path.with_name(path.name.replace(".request.", ".wire.")), got)
    assert request.SerializeToString(deterministic=True) == before, "the request was changed"


def test_json_text_is_sent_byte_for_byte(ask: Any, translate: Any) -> None:
    schema = '{"type": "object", "z": 1.0, "a": 12345678901234567890123, "b": [ ]}'
    arguments = '{ "big": 98765432109876543210987, "float": 1.0 }'
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]},
        {
            "role": "ROLE_ASSISTANT",
            "parts": [{"tool_call": {"call_id": "c", "name": "t", "arguments_json": arguments}}],
        },
    ]
    body = orjson.dumps(
        translate(ask(messages=messages, tools=[{"name": "t", "input_schema": schema}], reasoning={})).body
    ).decode()
    assert schema in body
    assert arguments in body


def test_unset_is_not_sent(ask: Any, translate: Any) -> None:
    assert set(translate(ask()).body) == {"model", "max_tokens", "messages"}


@pytest.mark.parametrize(
    ("choice", "wire", "tools"),
    [
        (None, None, ["weather", "clock"]),
        ({}, {"type": "auto"}, ["weather", "clock"]),
        ({"mode": "TOOL_CHOICE_MODE_AUTO"}, {"type": "auto"}, ["weather", "clock"]),
        ({"mode": "TOOL_CHOICE_MODE_NONE", "parallel": False}, {"type": "none"}, ["weather", "clock"]),
        ({"mode": "TOOL_CHOICE_MODE_REQUIRED"}, {"type": "any"}, ["weather", "clock"]),
        (
            {"mode": "TOOL_CHOICE_MODE_NAMED", "names": ["clock"]},
            {"type": "tool", "name": "clock"},
            ["weather", "clock"],
        ),
        ({"names": ["clock"]}, {"type": "auto"}, ["clock"]),
        ({"mode": "TOOL_CHOICE_MODE_REQUIRED", "names": ["clock"]}, {"type": "any"}, ["clock"]),
        ({"parallel": False}, {"type": "auto", "disable_parallel_tool_use": True}, ["weather", "clock"]),
        (
            {"mode": "TOOL_CHOICE_MODE_REQUIRED", "parallel": True},
            {"type": "any", "disable_parallel_tool_use": False},
            ["weather", "clock"],
        ),
    ],
)
def test_tool_choice(ask: Any, translate: Any, choice: Any, wire: Any, tools: list[str]) -> None:
    fields = {} if choice is None else {"tool_choice": choice}
    outgoing = translate(ask(tools=[TOOL, OTHER], **fields))
    assert outgoing.body.get("tool_choice") == wire
    assert [tool["name"] for tool in outgoing.body["tools"]] == tools
    assert not outgoing.warnings


_OFF = {"effort": "REASONING_EFFORT_OFF"}
_LOW = {"effort": "REASONING_EFFORT_LOW"}
_HIGH = {"effort": "REASONING_EFFORT_HIGH"}
_MAX = {"effort": "REASONING_EFFORT_MAX"}


@pytest.mark.parametrize(
    ("model", "fields", "thinking", "effort", "max_tokens", "warned"),
    [
        ("claude-sonnet-5", {}, None, None, 16384, []),
        ("claude-sonnet-5", {"reasoning": _OFF}, {"type": "disabled"}, None, 16384, []),
        ("claude-sonnet-5", {"reasoning": _HIGH}, {"type": "adaptive"}, "high", 16384, []),
        ("claude-sonnet-5", {"reasoning": {}}, {"type": "adaptive"}, None, 16384, []),
        (
            "claude-sonnet-5",
            {"reasoning": {"effort": "REASONING_EFFORT_MINIMAL"}},
            {"type": "adaptive"},
            "low",
            16384,
            [],
        ),
        ("claude-sonnet-5", {"reasoning": _MAX}, {"type": "adaptive"}, "max", 16384, []),
        (
            "claude-sonnet-5",
            {"reasoning": {**_LOW, "budget_tokens": 5000}},
            {"type": "adaptive"},
            "low",
            16384,
            ["reasoning.budget_tokens"],
        ),
        ("claude-sonnet-5-5", {"reasoning": _OFF}, {"type": "between_tools"}, None, 16384, []),
        ("claude-opus-5-5", {"reasoning": _OFF}, None, "low", 16384, ["reasoning.effort"]),
        ("claude-fable-5", {"reasoning": _OFF}, None, "low", 16384, ["reasoning.effort"]),
        # Both kinds: a budget asks for a budget, an effort for adaptive thinking.
        (
            "claude-opus-4-6",
            {"reasoning": {"budget_tokens": 5000}},
            {"type": "enabled", "budget_tokens": 5000},
            None,
            21384,
            [],
        ),
        ("claude-opus-4-6", {"reasoning": _MAX}, {"type": "adaptive"}, "max", 16384, []),
        # Budgets only: an effort stands for a number of tokens, and the answer keeps its room.
        ("claude-haiku-4-5", {"reasoning": _OFF}, {"type": "disabled"}, None, 16384, []),
        ("claude-haiku-4-5", {"reasoning": {}}, None, None, 16384, []),
        ("claude-haiku-4-5", {"reasoning": _LOW}, {"type": "enabled", "budget_tokens": 2048}, None, 18432, []),
        ("claude-opus-4-5", {"reasoning": _MAX}, {"type": "enabled", "budget_tokens": 32000 - 7808}, "high", 48384, []),
        (
            "claude-haiku-4-5",
            {"reasoning": _HIGH, "max_tokens": 4000},
            {"type": "enabled", "budget_tokens": 2000},
            None,
            4000,
            [],
        ),
        ("claude-haiku-4-5", {"reasoning": _HIGH, "max_tokens": 500}, None, None, 500, ["reasoning.effort"]),
        (
            "claude-haiku-4-5",
            {"reasoning": {"budget_tokens": 10}},
            {"type": "enabled", "budget_tokens": 1024},
            None,
            17408,
            ["reasoning.budget_tokens"],
        ),
        (
            "claude-haiku-4-5",
            {"reasoning": {"budget_tokens": 60000}},
            {"type": "enabled", "budget_tokens": 60000},
            None,
            64000,
            [],
        ),
        # A budget and a forced call exclude one another.
        (
            "claude-haiku-4-5",
            {"reasoning": _LOW, "tools": [TOOL], "tool_choice": {"mode": "TOOL_CHOICE_MODE_REQUIRED"}},
            None,
            None,
            16384,
            ["reasoning"],
        ),
    ],
)
def test_reasoning(
    ask: Any, translate: Any, model: str, fields: Any, thinking: Any, effort: Any, max_tokens: int, warned: list[str]
) -> None:
    outgoing = translate(ask(model=f"anthropic/{model}", **fields))
    assert outgoing.body.get("thinking") == thinking
    assert outgoing.body.get("output_config", {}).get("effort") == effort
    assert outgoing.body["max_tokens"] == max_tokens
    assert [warning.field for warning in outgoing.warnings] == warned


def test_budget_gives_way_in_a_turn_begun_without_thinking(ask: Any, translate: Any) -> None:
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]},
        {"role": "ROLE_ASSISTANT", "parts": [{"tool_call": {"call_id": "c", "name": "weather"}}]},
        {"role": "ROLE_TOOL", "parts": [{"tool_result": {"call_id": "c"}}]},
    ]
    outgoing = translate(
        ask(model="anthropic/claude-haiku-4-5", messages=messages, tools=[TOOL], reasoning={"budget_tokens": 2000})
    )
    assert "thinking" not in outgoing.body
    assert [warning.field for warning in outgoing.warnings] == ["reasoning"]


def test_forced_call_where_the_model_refuses_it(ask: Any, translate: Any) -> None:
    request = ask(
        model="anthropic/claude-opus-5-5",
        tools=[TOOL],
        tool_choice={"mode": "TOOL_CHOICE_MODE_REQUIRED", "parallel": False},
    )
    outgoing = translate(request)
    assert outgoing.body["tool_choice"] == {"type": "auto", "disable_parallel_tool_use": True}
    assert [warning.field for warning in outgoing.warnings] == ["tool_choice.mode"]


def test_strict_names_everything_that_would_be_dropped(ask: Any, translate: Any) -> None:
    request = ask(temperature=0.0, seed="1", response_format={"json": {}}, strict=True)
    with pytest.raises(UnsupportedParameter) as caught:
        translate(request)
    assert [violation.field for violation in caught.value.violations] == ["response_format.json", "temperature", "seed"]
    request.strict = False
    assert {warning.code for warning in translate(request).warnings} == {"unsupported_parameter"}


def _turns(*parts: Any, role: str = "ROLE_USER") -> list[Any]:
    first = {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]}
    return [
        first,
        {"role": "ROLE_ASSISTANT", "parts": [{"text": {"text": "ho"}}]},
        {"role": role, "parts": list(parts)},
    ]


@pytest.mark.parametrize(
    ("fields", "error", "path"),
    [
        (
            {"messages": _turns({"audio": {"url": "https://x/a.wav"}})},
            UnsupportedParameter,
            "messages[2].parts[0].audio",
        ),
        (
            {
                "messages": _turns(
                    {"tool_result": {"call_id": "c", "parts": [{"audio": {"url": "x"}}]}}, role="ROLE_TOOL"
                )
            },
            UnsupportedParameter,
            "messages[2].parts[0].tool_result.parts[0].audio",
        ),
        (
            {"messages": _turns({"image": {"data": "AA==", "mime_type": "image/tiff"}})},
            UnsupportedParameter,
            "messages[2].parts[0].image.mime_type",
        ),
        ({"messages": _turns({"image": {"url": "gs://b/x"}})}, UnsupportedParameter, "messages[2].parts[0].image.url"),
        (
            {"messages": _turns({"document": {"data": "AA==", "mime_type": "application/zip"}})},
            UnsupportedParameter,
            "messages[2].parts[0].document.mime_type",
        ),
        (
            {"messages": _turns({"document": {"data": "/w==", "mime_type": "text/plain"}})},
            InvalidRequest,
            "messages[2].parts[0].document.data",
        ),
        (
            {"messages": _turns({"image": {"url": "https://x"}}, role="ROLE_ASSISTANT")},
            UnsupportedParameter,
            "messages[2].parts[0].image",
        ),
        (
            {"messages": _turns({"tool_call": {"call_id": "c", "name": "t"}})},
            UnsupportedParameter,
            "messages[2].parts[0].tool_call",
        ),
        (
            {
                "messages": _turns(
                    {"tool_call": {"call_id": "c", "name": "t", "arguments_json": "[1]"}}, role="ROLE_ASSISTANT"
                )
            },
            InvalidRequest,
            "messages[2].parts[0].tool_call.arguments_json",
        ),
        ({"messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": " \n"}}]}]}, InvalidRequest, "messages"),
        ({"tools": [{"name": "t", "input_schema": "[]"}]}, InvalidRequest, "tools[0].input_schema"),
        ({"tools": [{"name": "t", "input_schema": '{"type":"array"}'}]}, InvalidRequest, "tools[0].input_schema#/type"),
        (
            {
                "messages": [
                    {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]},
                    {"role": "ROLE_ASSISTANT", "parts": [{"opaque": {"json": "{}"}}]},
                ]
            },
            InvalidRequest,
            "messages[1].parts[0].origin",
        ),
        ({"tools": [TOOL], "tool_choice": {"names": ["nope"]}}, InvalidRequest, "tool_choice.names[0]"),
        ({"tool_choice": {"mode": "TOOL_CHOICE_MODE_REQUIRED"}}, InvalidRequest, "tool_choice.mode"),
        ({"tools": [TOOL], "tool_choice": {"mode": "TOOL_CHOICE_MODE_NAMED"}}, InvalidRequest, "tool_choice.names"),
        ({"cache": {"points": [{"message": 3}]}}, InvalidRequest, "cache.points[0].message"),
        (
            {"response_format": {"json_schema": {"schema": "nonsense"}}},
            InvalidRequest,
            "response_format.json_schema.schema",
        ),
        ({"provider_options": {"anthropic": {"stream": True}}}, InvalidRequest, "provider_options.anthropic.stream"),
        ({"provider_options": {"anthropic": {"model": "x"}}}, InvalidRequest, "provider_options.anthropic.model"),
        ({"provider_options": {"anthropic": {"x": [float("nan")]}}}, InvalidRequest, "provider_options.anthropic.x[0]"),
    ],
)
def test_what_can_not_be_sent_names_its_place(
    ask: Any, translate: Any, fields: Any, error: type[MaestroError], path: str
) -> None:
    with pytest.raises(error) as caught:
        translate(ask(**fields))
    assert type(caught.value) is error
    assert [violation.field for violation in caught.value.violations] == [path]


def test_huge_numbers_of_options_stay_floats(ask: Any, translate: Any) -> None:
    options = {"anthropic": {"whole": 2.0**53, "huge": 1e300, "below": -1e300}}
    sent = orjson.loads(orjson.dumps(translate(ask(provider_options=options)).body))
    assert (sent["whole"], sent["huge"], sent["below"]) == (2**53, 1e300, -1e300)


def test_budget_has_to_be_below_max_tokens(ask: Any, translate: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        translate(ask(model="anthropic/claude-haiku-4-5", max_tokens=2000, reasoning={"budget_tokens": 2000}))
    assert caught.value.violations[0].field == "reasoning.budget_tokens"


def test_state_of_another_provider_is_dropped_with_its_part(ask: Any, translate: Any) -> None:
    thought = {"reasoning": {"text": "hm"}, "origin": {"provider": "google"}, "provider_state": "AAEC"}
    messages = [*_turns(thought, role="ROLE_ASSISTANT"), {"role": "ROLE_USER", "parts": [{"text": {"text": "go on"}}]}]
    sent = translate(ask(messages=messages)).body["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert sent[1]["content"] == [{"type": "text", "text": "ho"}]


def test_every_model_translates(ask: Any, translate: Any, catalogue: dict[str, ClaudeModel]) -> None:
    for name in catalogue:
        body = translate(ask(model=name, reasoning=_HIGH, tools=[TOOL])).body
        assert body["model"] == name.removeprefix("anthropic/")
        assert body["max_tokens"] > body.get("thinking", {}).get("budget_tokens", 0)
