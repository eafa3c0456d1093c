"""What an adapter proves against a third party's emulator of its provider: tests to inherit from, and their script.

    class TestEmulator(Emulated):
        ...

The module of the tests gives the fixtures `emulator` (a URL), `ask` (makes a request) and `provider_at` (opens the
adapter's provider at a URL).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatResponse, FinishReason
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import MaestroError, Overloaded, ProviderAuth, RateLimited, UpstreamError

HELLO = "Hello from the emulator, at some length."
"""What it answers to "hello"."""
WEATHER = {"name": "weather", "input_schema": '{"type":"object","properties":{"city":{"type":"string"}}}'}
REFUSALS: Mapping[str, type[MaestroError]] = {
    "limit": RateLimited,
    "busy": Overloaded,
    "broken": UpstreamError,
    "key": ProviderAuth,
}
"""The prompts that are refused, and what that means."""
_WAYS = pytest.mark.parametrize("way", ["stream", "complete"])


def script(refusals: Mapping[str, tuple[int, str]], *, call_ids: str = "") -> list[dict[str, Any]]:
    """Fixtures of aimock. `refusals`: status and the provider's own word for each of `REFUSALS`.

    `call_ids` is the start of the calls' identifiers; empty where the provider gives none.
    """

    def call(name: str, city: str) -> dict[str, Any]:
        named = {"id": call_ids + name} if call_ids else {}
        return {**named, "name": "weather", "arguments": json.dumps({"city": city}, separators=(",", ":"))}

    def answer(message: str, **response: Any) -> dict[str, Any]:
        return {"match": {"userMessage": message}, "response": response}

    with_result = {"toolCallId": f"{call_ids}paris"} if call_ids else {"userMessage": "one tool", "hasToolResult": True}
    return [
        {"match": with_result, "response": {"content": "It is sunny."}},
        answer("hello", content=HELLO),
        answer("one tool", toolCalls=[call("paris", "Paris")]),
        answer("two tools", toolCalls=[call("a", "Paris"), call("b", "Rome")]),
        answer("think", content="42", reasoning="Six times seven."),
        *(
            answer(message, error={"message": "no", "type": word}, status=status)
            for message, (status, word) in refusals.items()
        ),
    ]


async def _answer(provider: Any, request: Any, way: str) -> ChatResponse:
    if way == "complete":
        return fold(await provider.complete(request))
    return fold([event async for events in provider.stream(request) for event in events])


class Emulated:
    """Text, calls, reasoning and refusals, each as a stream and as one answer."""

    calls_end: str | None = None
    """The provider's own word for an answer that ends with calls; None where it is not looked at."""

    @_WAYS
    async def test_text(self, way: str, emulator: str, ask: Any, provider_at: Any) -> None:
        async with provider_at(emulator) as provider:
            got = await _answer(provider, ask("hello"), way)
        assert got.parts[0].text.text == HELLO
        assert got.finish_reason == FinishReason.FINISH_REASON_STOP

    @_WAYS
    async def test_tools(self, way: str, emulator: str, ask: Any, provider_at: Any) -> None:
        async with provider_at(emulator) as provider:
            first = await _answer(provider, ask("one tool", tools=[WEATHER]), way)
            call = first.parts[0].tool_call
            assert first.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
            assert self.calls_end in {None, first.raw_reason}
            assert (call.name, json.loads(call.arguments_json)) == ("weather", {"city": "Paris"})
            follow = ask("one tool", tools=[WEATHER])
            follow.messages.add(role="ROLE_ASSISTANT").parts.extend(first.parts)
            result = follow.messages.add(role="ROLE_TOOL").parts.add().tool_result
            result.call_id = call.call_id
            result.parts.add().text.text = "sunny"
            second = await _answer(provider, follow, way)
        assert second.parts[0].text.text == "It is sunny."

    @_WAYS
    async def test_parallel_tools(self, way: str, emulator: str, ask: Any, provider_at: Any) -> None:
        async with provider_at(emulator) as provider:
            got = await _answer(provider, ask("two tools", tools=[WEATHER]), way)
        calls = [part.tool_call for part in got.parts]
        assert [json.loads(call.arguments_json)["city"] for call in calls] == ["Paris", "Rome"]
        assert len({call.call_id for call in calls}) == 2
        assert len({part.index for part in got.parts}) == 2

    @_WAYS
    async def test_thinking(self, way: str, emulator: str, ask: Any, provider_at: Any) -> None:
        async with provider_at(emulator) as provider:
            got = await _answer(provider, ask("think", reasoning={"effort": "REASONING_EFFORT_HIGH"}), way)
        assert [part.WhichOneof("kind") for part in got.parts] == ["reasoning", "text"]
        assert got.parts[0].reasoning.text == "Six times seven."
        assert got.parts[1].text.text == "42"

    @_WAYS
    @pytest.mark.parametrize("prompt", REFUSALS)
    async def test_errors(self, way: str, prompt: str, emulator: str, ask: Any, provider_at: Any) -> None:
        expected = REFUSALS[prompt]
        async with provider_at(emulator) as provider:
            with pytest.raises(expected) as caught:
                await _answer(provider, ask(prompt), way)
        assert type(caught.value) is expected
        if expected is RateLimited:
            assert caught.value.retry_after == 1.0
