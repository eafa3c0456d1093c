"""The tool loop with thought signatures, against a strict emulator: it refuses one that is missing or altered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, FinishReason
from maestro_adapter_vertex.provider import VertexProvider
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.gemini_content import PATH
from maestro_sdk.testing.obliging_gemini import StrictGemini

WEATHER = {"name": "get_weather", "input_schema": '{"type":"object","properties":{"city":{"type":"string"}}}'}
QUESTION = "Use get_weather in parallel for Paris and Rome."
WAYS = pytest.mark.parametrize("way", ["stream", "complete"])


@pytest.fixture
async def strict(provider_at: Any) -> AsyncIterator[tuple[StrictGemini, FaultServer, VertexProvider]]:
    model = StrictGemini()
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", PATH, model.reply)
        yield model, server, provider


async def answer(provider: VertexProvider, request: ChatRequest, way: str) -> ChatResponse:
    if way == "complete":
        return fold(await provider.complete(request))
    return fold([event async for events in provider.stream(request) for event in events])


def go_on(request: ChatRequest, first: ChatResponse, results: Sequence[str]) -> None:
    """Adds the answer and the results of its calls."""
    request.messages.add(role="ROLE_ASSISTANT").parts.extend(first.parts)
    turn = request.messages.add(role="ROLE_TOOL")
    calls = [part.tool_call for part in first.parts if part.HasField("tool_call")]
    # In another order than the calls; they have no ids on this wire.
    for call, text in reversed(list(zip(calls, results, strict=True))):
        result = turn.parts.add().tool_result
        result.call_id = call.call_id
        result.parts.add().text.text = text


@WAYS
async def test_two_turns(way: str, strict: Any, ask: Any) -> None:
    model, server, provider = strict
    request = ask(QUESTION, model="vertex/gemini-3.5-flash", tools=[WEATHER], reasoning={})
    first = await answer(provider, request, way)
    calls = [part for part in first.parts if part.HasField("tool_call")]
    assert first.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    assert len(calls) == 2
    # Of parallel calls the provider signs only the first.
    assert [bool(part.provider_state) for part in calls] == [True, False]
    assert calls[0].provider_state.decode() in model.signed
    go_on(request, first, ["sun", "rain"])
    second = await answer(provider, ChatRequest.FromString(request.SerializeToString()), way)
    assert "sun and rain" in second.parts[-1].text.text
    # The signed text at the end of an answer goes on, too.
    sent = json.loads(server.requests[-1].body)["contents"]
    assert [part.get("thoughtSignature") for part in sent[1]["parts"]] == [calls[0].provider_state.decode(), None]


@WAYS
async def test_the_emulator_is_strict(way: str, strict: Any, ask: Any) -> None:
    _, _, provider = strict
    request = ask(QUESTION, model="vertex/gemini-3.5-flash", tools=[WEATHER])
    first = await answer(provider, request, way)
    for change in (lambda state: state[:-1], lambda state: state.replace(b"+", b"-").replace(b"/", b"_") + b"="):
        altered = ChatResponse.FromString(first.SerializeToString())
        altered.parts[0].provider_state = change(altered.parts[0].provider_state)
        again = ChatRequest.FromString(request.SerializeToString())
        go_on(again, altered, ["sun", "rain"])
        with pytest.raises(InvalidRequest, match="Corrupted thought signature"):
            await answer(provider, again, way)


@WAYS
@pytest.mark.parametrize(
    ("origin", "state"),
    [
        ({}, None),
        ({"provider": "anthropic", "api": "messages", "model": "claude-sonnet-5"}, b"EqQB"),
        ({"provider": "vertex", "api": "generateContent", "model": "gemini-2.5-pro"}, b"b3RoZXI="),
    ],
    ids=["of nobody", "of another provider", "of another model"],
)
async def test_a_conversation_that_another_began(
    way: str, origin: Any, state: bytes | None, strict: Any, ask: Any
) -> None:
    _, server, provider = strict
    request = ask(QUESTION, model="vertex/gemini-3.5-flash", tools=[WEATHER])
    part = request.messages.add(role="ROLE_ASSISTANT").parts.add()
    part.tool_call.call_id, part.tool_call.name = "toolu_1", "get_weather"
    part.tool_call.arguments_json = '{"city":"Paris"}'
    if state is not None:
        part.provider_state = state
        for name, value in origin.items():
            setattr(part.origin, name, value)
    result = request.messages.add(role="ROLE_TOOL").parts.add().tool_result
    result.call_id = "toolu_1"
    result.parts.add().text.text = "sun"
    second = await answer(provider, request, way)
    assert "sun" in second.parts[0].text.text
    sent = server.requests[-1].json()["contents"][1]["parts"]
    assert [part["thoughtSignature"] for part in sent] == ["skip_thought_signature_validator"]
