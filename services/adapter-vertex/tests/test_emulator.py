"""A third party's emulator of the provider: what it understands of our requests, and we of its answers.

Where it differs from the provider (aimock 1.43): it ends an answer with calls by FUNCTION_CALL, where the provider says
STOP; it gives no thought signatures, no usage but zeros and no response id; and it has neither `:countTokens` nor
`:predict`. So it proves the exchange and the errors; the strict emulator of this repository proves the rest.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from maestro.llm.v1.chat_pb2 import ChatResponse, FinishReason
from maestro_adapter_vertex.provider import VertexProvider
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import MaestroError, Overloaded, ProviderAuth, RateLimited, UpstreamError
from maestro_sdk.testing.servers import Aimock

WEATHER = {"name": "weather", "input_schema": '{"type":"object","properties":{"city":{"type":"string"}}}'}


# One emulator for all tests: starting it takes longer than they do.
pytestmark = pytest.mark.asyncio(loop_scope="module")


def fixture(message: str, **response: Any) -> dict[str, Any]:
    return {"match": {"userMessage": message}, "response": response}


def failure(message: str, status: int, word: str) -> dict[str, Any]:
    return fixture(message, error={"message": "no", "type": word}, status=status)


FIXTURES = [
    {"match": {"userMessage": "one tool", "hasToolResult": True}, "response": {"content": "It is sunny."}},
    fixture("hello", content="Hello from the emulator, at some length."),
    fixture("one tool", toolCalls=[{"name": "weather", "arguments": '{"city":"Paris"}'}]),
    fixture(
        "two tools",
        toolCalls=[
            {"name": "weather", "arguments": '{"city":"Paris"}'},
            {"name": "weather", "arguments": '{"city":"Rome"}'},
        ],
    ),
    fixture("think", content="42", reasoning="Six times seven."),
    failure("limit", 429, "RESOURCE_EXHAUSTED"),
    failure("busy", 503, "UNAVAILABLE"),
    failure("broken", 500, "INTERNAL"),
    failure("key", 401, "UNAUTHENTICATED"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def emulator() -> AsyncIterator[str]:
    async with Aimock(FIXTURES, chunk=5) as mock:
        yield mock.url


async def answer(provider: VertexProvider, request: Any, way: str) -> ChatResponse:
    if way == "complete":
        return fold(await provider.complete(request))
    return fold([event async for events in provider.stream(request) for event in events])


WAYS = pytest.mark.parametrize("way", ["stream", "complete"])


@WAYS
async def test_text(way: str, emulator: str, ask: Any, provider_at: Any) -> None:
    async with provider_at(emulator) as provider:
        got = await answer(provider, ask("hello"), way)
    assert got.parts[0].text.text == "Hello from the emulator, at some length."
    assert got.finish_reason == FinishReason.FINISH_REASON_STOP


@WAYS
async def test_tools(way: str, emulator: str, ask: Any, provider_at: Any) -> None:
    async with provider_at(emulator) as provider:
        first = await answer(provider, ask("one tool", tools=[WEATHER]), way)
        call = first.parts[0].tool_call
        assert (first.finish_reason, first.raw_reason) == (FinishReason.FINISH_REASON_TOOL_CALLS, "FUNCTION_CALL")
        assert (call.name, json.loads(call.arguments_json)) == ("weather", {"city": "Paris"})
        follow = ask("one tool", tools=[WEATHER])
        follow.messages.add(role="ROLE_ASSISTANT").parts.extend(first.parts)
        result = follow.messages.add(role="ROLE_TOOL").parts.add().tool_result
        result.call_id = call.call_id
        result.parts.add().text.text = "sunny"
        second = await answer(provider, follow, way)
    assert second.parts[0].text.text == "It is sunny."


@WAYS
async def test_parallel_tools(way: str, emulator: str, ask: Any, provider_at: Any) -> None:
    async with provider_at(emulator) as provider:
        got = await answer(provider, ask("two tools", tools=[WEATHER]), way)
    calls = [part.tool_call for part in got.parts]
    assert [json.loads(call.arguments_json)["city"] for call in calls] == ["Paris", "Rome"]
    assert len({call.call_id for call in calls}) == 2
    assert len({part.index for part in got.parts}) == 2


@WAYS
async def test_thinking(way: str, emulator: str, ask: Any, provider_at: Any) -> None:
    async with provider_at(emulator) as provider:
        got = await answer(provider, ask("think", reasoning={"effort": "REASONING_EFFORT_HIGH"}), way)
    assert [part.WhichOneof("kind") for part in got.parts] == ["reasoning", "text"]
    assert got.parts[0].reasoning.text == "Six times seven."
    assert got.parts[1].text.text == "42"


@WAYS
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("limit", RateLimited), ("busy", Overloaded), ("broken", UpstreamError), ("key", ProviderAuth)],
)
async def test_errors(
    way: str, prompt: str, expected: type[MaestroError], emulator: str, ask: Any, provider_at: Any
) -> None:
    async with provider_at(emulator) as provider:
        with pytest.raises(expected) as caught:
            await answer(provider, ask(prompt), way)
    assert type(caught.value) is expected
    if expected is RateLimited:
        assert caught.value.retry_after == 1.0
