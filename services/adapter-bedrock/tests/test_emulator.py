"""A third party's emulator of the provider: what it understands of our requests, and we of its answers.

The emulator is patched: it announces text and reasoning with `contentBlockStart {"start": {}}`, which Bedrock never
does and AWS's own SDK refuses to read. Its errors have no `x-amzn-errortype`, so only their status counts.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from maestro.llm.v1.chat_pb2 import ChatResponse, FinishReason
from maestro_adapter_bedrock.provider import BedrockProvider
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import MaestroError, Overloaded, ProviderAuth, RateLimited, UpstreamError
from maestro_sdk.testing.servers import Aimock, find_aimock

WEATHER = {"name": "weather", "input_schema": '{"type":"object","properties":{"city":{"type":"string"}}}'}
WRONG = "return events;"
RIGHT = 'return events.filter((e) => !(e.eventType === "contentBlockStart" && !e.payload.start.toolUse));'

# One emulator for all tests: starting it takes longer than they do.
pytestmark = pytest.mark.asyncio(loop_scope="module")


def fixture(message: str, **response: Any) -> dict[str, Any]:
    return {"match": {"userMessage": message}, "response": response}


def refusal(message: str, status: int) -> dict[str, Any]:
    return fixture(message, error={"message": "no", "type": "error"}, status=status)


FIXTURES = [
    {"match": {"toolCallId": "tooluse_paris"}, "response": {"content": "It is sunny."}},
    fixture("hello", content="Hello from the emulator, at some length."),
    fixture("one tool", toolCalls=[{"id": "tooluse_paris", "name": "weather", "arguments": '{"city":"Paris"}'}]),
    fixture(
        "two tools",
        toolCalls=[
            {"id": "tooluse_a", "name": "weather", "arguments": '{"city":"Paris"}'},
            {"id": "tooluse_b", "name": "weather", "arguments": '{"city":"Rome"}'},
        ],
    ),
    fixture("think", content="42", reasoning="Six times seven."),
    refusal("limit", 429),
    refusal("busy", 503),
    refusal("broken", 500),
    refusal("key", 403),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def emulator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    original, copy = find_aimock().parent, tmp_path_factory.mktemp("aimock")
    shutil.copytree(original, copy / "dist", ignore=shutil.ignore_patterns("*.map", "*.cjs", "*.cts", "*.d.ts"))
    shutil.copy(original.parent / "package.json", copy)
    wrong = copy / "dist" / "bedrock-converse.js"
    source = wrong.read_text()
    assert WRONG in source
    wrong.write_text(source.replace(WRONG, RIGHT))
    async with Aimock(FIXTURES, chunk=5, script=copy / "dist" / "cli.js") as mock:
        yield mock.url


async def answer(provider: BedrockProvider, request: Any, way: str) -> ChatResponse:
    if way == "complete":
        return fold(await provider.complete(request))
    return fold([event async for events in provider.stream(request) for event in events])


WAYS = pytest.mark.parametrize("way", ["stream", "complete"])


async def test_the_patch_makes_it_readable_for_aws(emulator: str) -> None:
    import boto3

    def read() -> str:
        client = boto3.client(
            "bedrock-runtime",
            region_name="us-east-1",
            endpoint_url=emulator,
            aws_access_key_id="k",
            aws_secret_access_key="s",
        )
        turn = {"role": "user", "content": [{"text": "hello"}]}
        events = client.converse_stream(modelId="amazon.nova-lite-v1:0", messages=[turn])["stream"]
        return "".join(found.get("contentBlockDelta", {}).get("delta", {}).get("text", "") for found in events)

    assert await asyncio.to_thread(read) == "Hello from the emulator, at some length."


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
        assert first.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
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
