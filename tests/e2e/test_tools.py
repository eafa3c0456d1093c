"""Tools through the whole mesh, on both wires: one call, several at once, and the way back with the results."""

import json
from typing import Any

import pytest

from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.callers import Arrived, Caller, question
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.wire import ToolCall, Wire

WIRES = [
    pytest.param(openai_chat.WIRE, "openai/gpt-6.1-terra", id="openai"),
    pytest.param(anthropic_messages.WIRE, "anthropic/claude-sonnet-5-5", id="anthropic"),
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
}
TOOLS = [
    {"name": "get_weather", "description": "Weather of a city", "input_schema": SCHEMA},
    {"name": "get_time", "input_schema": {"type": "object", "properties": {}}},
]
PARIS = ToolCall("call_1", "get_weather", {"city": "Paris", "days": 3})
ROME = ToolCall("call_2", "get_weather", {"city": "Rome"})
NOW = ToolCall("call_3", "get_time", {})


def expected(*calls: ToolCall) -> list[dict[str, Any]]:
    return [{"call_id": call.call_id, "name": call.name, "arguments": json.loads(call.text)} for call in calls]


def reassembled(events: list[Arrived]) -> list[dict[str, Any]]:
    """The calls of a stream, by part index."""
    calls: dict[int, dict[str, Any]] = {}
    for event in events:
        if event.name == "tool_call":
            delta = event.json()
            call = calls.setdefault(delta["index"], {"call_id": "", "name": "", "arguments": ""})
            call["call_id"] += delta.get("call_id", "")
            call["name"] += delta.get("name", "")
            call["arguments"] += delta["arguments_json"]
    return [{**call, "arguments": json.loads(call["arguments"] or "{}")} for _, call in sorted(calls.items())]


@pytest.mark.parametrize(("wire", "model"), WIRES)
@pytest.mark.parametrize("calls", [(PARIS,), (PARIS, ROME, NOW)], ids=["one", "parallel"])
async def test_unary(alpha: Caller, provider: FaultServer, wire: Wire, model: str, calls: tuple[ToolCall, ...]):
    provider.on("POST", wire.path, wire.tools(*calls, text="Let me look."))
    answer = (await alpha.chat(question("Weather?", model=model, tools=TOOLS))).json()
    assert answer["tool_calls"] == expected(*calls)
    assert (answer["text"], answer["finish_reason"]) == ("Let me look.", "tool_calls")
    sent = provider.requests[0].json()["tools"]
    told = sent[0]["function"]["parameters"] if wire is openai_chat.WIRE else sent[0]["input_schema"]
    assert told["properties"]["days"] == {"type": "integer", "minimum": 1}
    assert [tool.get("name") or tool["function"]["name"] for tool in sent] == ["get_weather", "get_time"]


@pytest.mark.parametrize(("wire", "model"), WIRES)
@pytest.mark.parametrize("interleaved", [False, True], ids=["in-turn", "interleaved"])
@pytest.mark.parametrize("fragment", [0, 1, 9], ids=["whole", "by-character", "by-nine"])
async def test_streamed(alpha: Caller, provider: FaultServer, wire: Wire, model: str, interleaved: bool, fragment: int):
    provider.on("POST", wire.path, wire.tools(PARIS, ROME, NOW, interleaved=interleaved, fragment=fragment))
    events = await alpha.collect(question("Weather?", model=model, tools=TOOLS))
    assert reassembled(events) == expected(PARIS, ROME, NOW)
    assert events[-2].json()["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(("wire", "model"), WIRES)
async def test_results_go_back(alpha: Caller, provider: FaultServer, wire: Wire, model: str):
    provider.on("POST", wire.path, wire.tools(PARIS, ROME))
    provider.on("POST", wire.path, wire.text("Sunny and rainy."))
    asked = question("Weather?", model=model, tools=TOOLS)
    first = (await alpha.chat(asked)).json()
    results = [
        {"type": "tool_result", "call_id": "call_1", "content": "sunny"},
        {"type": "tool_result", "call_id": "call_2", "content": "rainy", "is_error": True},
    ]
    body = {
        **asked,
        "messages": [
            *asked["messages"],
            {"role": "assistant", "parts": first["parts"]},
            {"role": "tool", "content": results},
        ],
    }
    answer = await alpha.chat(body)
    assert answer.status == 200, answer.body
    assert (answer.json()["text"], answer.json()["finish_reason"]) == ("Sunny and rainy.", "stop")
    messages = provider.requests[1].json()["messages"]
    if wire is openai_chat.WIRE:
        assert [call["id"] for call in messages[1]["tool_calls"]] == ["call_1", "call_2"]
        assert [(message["role"], message["tool_call_id"]) for message in messages[2:]] == [
            ("tool", "call_1"),
            ("tool", "call_2"),
        ]
    else:
        assert [block["id"] for block in messages[1]["content"]] == ["call_1", "call_2"]
        blocks = messages[2]["content"]
        assert [(block["tool_use_id"], block.get("is_error", False)) for block in blocks] == [
            ("call_1", False),
            ("call_2", True),
        ]


@pytest.mark.parametrize(("wire", "model"), WIRES)
async def test_a_forced_tool_is_forced_on_the_wire(alpha: Caller, provider: FaultServer, wire: Wire, model: str):
    provider.on("POST", wire.path, wire.tools(NOW))
    # The newest models can't be forced; what becomes of the wish then is the adapter's own test.
    model = "anthropic/claude-sonnet-4-6" if wire is anthropic_messages.WIRE else model
    choice = {"name": "get_time"}
    answer = await alpha.chat(question("Time?", model=model, tools=TOOLS, tool_choice=choice))
    assert answer.json()["tool_calls"] == expected(NOW)
    sent = provider.requests[0].json()["tool_choice"]
    assert (sent.get("name") or sent["function"]["name"]) == "get_time"


async def test_the_offline_model_calls_a_tool_and_ends_after_its_result(alpha: Caller):
    asked = question("Use get_weather for Paris, please.", model="local/offline", tools=TOOLS)
    first = (await alpha.chat(asked)).json()
    assert first["finish_reason"] == "tool_calls"
    [call] = first["tool_calls"]
    assert call["name"] == "get_weather"
    assert isinstance(call["arguments"]["city"], str)
    result = {"type": "tool_result", "call_id": call["call_id"], "content": "sunny"}
    body = {
        **asked,
        "messages": [
            *asked["messages"],
            {"role": "assistant", "parts": first["parts"]},
            {"role": "tool", "content": [result]},
        ],
    }
    second = (await alpha.chat(body)).json()
    assert (second["finish_reason"], second["tool_calls"]) == ("stop", [])
