"""Every provider through the whole mesh: text, tools there and back, refusals that keep their identity, cuts."""

import json
from typing import Any

import pytest

from maestro_sdk.testing import anthropic_messages, bedrock_converse, gemini_content, ollama_chat, openai_chat
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.wire import PIECES, ToolCall, Wire

WIRES = [
    pytest.param(openai_chat.WIRE, "openai/gpt-6.1-terra", id="openai"),
    pytest.param(anthropic_messages.WIRE, "anthropic/claude-sonnet-5-5", id="anthropic"),
    pytest.param(gemini_content.WIRE, "vertex/gemini-2.5-flash", id="gemini"),
    pytest.param(bedrock_converse.WIRE, "bedrock/amazon.nova-pro-v1:0", id="bedrock"),
    pytest.param(ollama_chat.WIRE, "local/llama", id="ollama"),
]
TOOL = {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
PARIS = ToolCall("call_1", "get_weather", {"city": "Paris"})
ROME = ToolCall("call_2", "get_weather", {"city": "Rome"})


@pytest.mark.parametrize(("wire", "model"), WIRES)
async def test_text_whole_and_streamed(alpha: Caller, provider: FaultServer, wire: Wire, model: str):
    provider.on("POST", wire.path, wire.text())
    whole = (await alpha.chat(question("hello", model=model))).json()
    assert f"{whole['provider']}/{whole['model']}" == model
    assert (whole["text"], whole["finish_reason"]) == ("".join(PIECES), "stop")
    assert (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]) == (12, 5)
    events = await alpha.collect(question("hello", model=model))
    assert "".join(event.json()["text"] for event in events if event.name == "text") == whole["text"]
    assert events[-2].json()["finish_reason"] == "stop"
    assert events[-2].json()["usage"] == whole["usage"]


@pytest.mark.parametrize(("wire", "model"), WIRES)
async def test_tools_there_and_back(alpha: Caller, provider: FaultServer, wire: Wire, model: str):
    provider.on("POST", wire.path, wire.tools(PARIS, ROME))
    provider.on("POST", wire.path, wire.text("Sunny and rainy."))
    asked = question("Weather?", model=model, tools=[TOOL])
    first = (await alpha.chat(asked)).json()
    assert first["finish_reason"] == "tool_calls"
    assert [(call["name"], call["arguments"]) for call in first["tool_calls"]] == [
        ("get_weather", {"city": "Paris"}),
        ("get_weather", {"city": "Rome"}),
    ]
    ids = [call["call_id"] for call in first["tool_calls"]]
    assert len(set(ids)) == 2
    results = [
        {"type": "tool_result", "call_id": call_id, "content": said}
        for call_id, said in zip(ids, ("sunny", "rainy"), strict=True)
    ]
    turns: list[Any] = [
        *asked["messages"],
        {"role": "assistant", "parts": first["parts"]},
        {"role": "tool", "content": results},
    ]
    second = (await alpha.chat({**asked, "messages": turns})).json()
    assert (second["text"], second["finish_reason"]) == ("Sunny and rainy.", "stop")
    sent = json.dumps(provider.requests[1].json())
    assert sent.index("Paris") < sent.index("Rome") < sent.index("sunny") < sent.index("rainy")


# Models of their own: what is refused for want of a key, or until a moment, is not asked again for a while.
LIMITED = (
    "openai/gpt-5.1",
    "anthropic/claude-opus-4-6",
    "vertex/gemini-2.5-pro",
    "bedrock/amazon.nova-lite-v1:0",
    "local/llama-limited",
)
LOCKED = (
    "openai/gpt-5.2",
    "anthropic/claude-opus-4-7",
    "vertex/gemini-2.5-flash-lite",
    "bedrock/amazon.nova-micro-v1:0",
    "local/llama-locked",
)
REFUSALS = [
    pytest.param(wire.values[0], model, *case, id=f"{wire.id}-{case[0]}")
    for number, wire in enumerate(WIRES)
    for model, case in (
        (LIMITED[number], (429, {"retry-after": "7"}, (429, "RATE_LIMITED", "7"))),
        # Not 401: that would hold back all models of the account, for all tests that follow.
        (LOCKED[number], (403, {}, (502, "PROVIDER_AUTH", None))),
        (wire.values[1], (500, {}, (503, "UPSTREAM_ERROR", None))),
    )
]


@pytest.mark.parametrize(("wire", "model", "status", "headers", "expected"), REFUSALS)
async def test_a_refusal_keeps_its_identity(
    alpha: Caller, provider: FaultServer, wire: Wire, model: Any, status: int, headers: dict[str, str], expected: Any
):
    provider.on("POST", wire.path, wire.error(status, headers=headers))
    answer = await alpha.chat(question("hello", model=model))
    error = answer.json()["error"]
    assert (answer.status, error["reason"], answer.headers.get("retry-after")) == expected
    assert error["metadata"]["provider"] == model.partition("/")[0]
    assert error["metadata"]["upstream_status"] == str(status)


@pytest.mark.parametrize(("wire", "model"), WIRES)
@pytest.mark.parametrize("fault", ["cut_after", "silent_end", "in_band_error", "malformed_json"])
async def test_what_breaks_after_content_is_an_error_and_no_end(
    alpha: Caller, provider: FaultServer, wire: Wire, model: str, fault: str
):
    provider.on("POST", wire.path, getattr(wire, fault)(2))
    events = await alpha.collect(question("hello", model=model))
    names = [event.name for event in events]
    assert names.count("text") == 2
    assert names[-1] == "error"
    assert "finish" not in names
    assert len(provider.requests) == 1
