"""A tool loop of two turns with signed reasoning, against a server that refuses what is not byte for byte its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.testing import bedrock_converse as wire
from maestro_sdk.testing.bedrock_converse import delta, event
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, Send, SendJson, Step
from maestro_sdk.testing.wire import Answer

TOOL = {"name": "weather", "input_schema": '{"type":"object","properties":{"city":{"type":"string"}}}'}
SIGNED = {"reasoningText": {"text": "They want the weather.", "signature": "EqQBCgIYAhIk+/=sig"}}
EMPTY = {"reasoningText": {"text": "", "signature": "of-hidden/thinking=="}}
REDACTED = {"redactedContent": "cmVkYWN0ZWQtZGF0YQ=="}
CALLS = [("tooluse_1", {"city": "Paris"}), ("tooluse_2", {"city": "Rome"})]
TURN: list[Any] = [
    *({"reasoningContent": block} for block in (SIGNED, EMPTY, REDACTED)),
    *({"toolUse": {"toolUseId": call, "name": "weather", "input": given}} for call, given in CALLS),
]


def strict(seen: Seen) -> Sequence[Step]:
    """The first turn as it is; the second only for the very same blocks in the very same order."""
    messages = seen.json()["messages"]
    if len(messages) == 1:
        return first_turn(seen)
    if messages[1]["content"] != TURN:
        text = "messages.1.content: thinking blocks cannot be modified. These blocks must remain as they were."
        return (Headers(400, {"x-amzn-errortype": "ValidationException"}), SendJson({"message": text}))
    results = [block["toolResult"]["toolUseId"] for block in messages[2]["content"]]
    assert results == ["tooluse_1", "tooluse_2"]
    return wire.text("It is sunny.")(seen)


def first_turn(seen: Seen) -> Sequence[Step]:
    if not wire.WIRE.streams(seen):
        message = {"role": "assistant", "content": TURN}
        return (SendJson({"output": {"message": message}, "stopReason": "tool_use", "usage": _USAGE}),)
    steps: list[Step] = [*wire.WIRE.opening(Answer(), seen)]
    pieces: list[list[Any]] = [
        [{"text": "They want"}, {"text": " the weather."}, {"signature": "EqQBCgIYAhIk+/=sig"}],
        [{"signature": "of-hidden/"}, {"signature": "thinking=="}],
        [REDACTED],
    ]
    for number, deltas in enumerate(pieces):
        steps += [delta(number, {"reasoningContent": piece}) for piece in deltas]
        steps.append(Send(event("contentBlockStop", {"contentBlockIndex": number})))
    for number, (call, given) in enumerate(CALLS, 3):
        start = {"toolUse": {"toolUseId": call, "name": "weather"}}
        steps.append(Send(event("contentBlockStart", {"contentBlockIndex": number, "start": start})))
        steps.append(delta(number, {"toolUse": {"input": json.dumps(given)}}))
        steps.append(Send(event("contentBlockStop", {"contentBlockIndex": number})))
    steps.append(Send(event("messageStop", {"stopReason": "tool_use"})))
    steps.append(Send(event("metadata", {"usage": _USAGE, "metrics": {"latencyMs": 1}})))
    return steps


_USAGE = {"inputTokens": 20, "outputTokens": 40, "totalTokens": 60}


async def answer(provider: Any, request: ChatRequest, way: str) -> ChatResponse:
    if way == "complete":
        return fold(await provider.complete(request))
    return fold([made async for events in provider.stream(request) for made in events])


def follow(request: ChatRequest, first: ChatResponse) -> ChatRequest:
    """The conversation with the results of its calls."""
    going_on = ChatRequest()
    going_on.CopyFrom(request)
    going_on.messages.add(role="ROLE_ASSISTANT").parts.extend(first.parts)
    results = going_on.messages.add(role="ROLE_TOOL")
    for part in first.parts:
        if part.HasField("tool_call"):
            result = results.parts.add().tool_result
            result.call_id = part.tool_call.call_id
            result.parts.add().text.text = "sunny"
    return going_on


@pytest.mark.parametrize("way", ["stream", "complete"])
async def test_two_turns(way: str, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, strict)
        request = ask("Weather?", tools=[TOOL], reasoning={"effort": "REASONING_EFFORT_LOW"})
        first = await answer(provider, request, way)
        assert [part.WhichOneof("kind") for part in first.parts] == ["reasoning"] * 3 + ["tool_call"] * 2
        assert first.parts[2].reasoning.redacted
        # What a caller keeps of the answer is its bytes.
        kept = ChatResponse.FromString(first.SerializeToString())
        second = await answer(provider, follow(request, kept), way)
        assert server.requests[1].json()["additionalModelRequestFields"]["thinking"]["type"] == "enabled"
    assert second.parts[0].text.text == "It is sunny."


@pytest.mark.parametrize("harm", ["altered", "missing", "order"])
async def test_the_server_is_strict(harm: str, ask: Any, provider_at: Any) -> None:
    """Else the test above would prove nothing."""
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, strict)
        request = ask("Weather?", tools=[TOOL])
        first = await answer(provider, request, "stream")
        match harm:
            case "altered":
                first.parts[0].provider_state += b"x"
            case "missing":
                del first.parts[1]
            case _:
                parts = [first.parts[1], first.parts[0], *first.parts[2:]]
                del first.parts[:]
                first.parts.extend(parts)
        with pytest.raises(InvalidRequest, match="cannot be modified"):
            await answer(provider, follow(request, first), "stream")


async def test_handed_to_another_model_only_the_state_is_left_out(ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, strict)
        request = ask("Weather?", tools=[TOOL])
        going_on = follow(request, await answer(provider, request, "stream"))
        going_on.model = "bedrock/us.amazon.nova-pro-v1:0"
        server.reset()
        server.on("POST", wire.PATH, wire.text("It is sunny."))
        await answer(provider, going_on, "stream")
        messages = server.requests[0].json()["messages"]
    assert messages[1]["content"] == TURN[3:]
    assert len(messages[2]["content"]) == 2
