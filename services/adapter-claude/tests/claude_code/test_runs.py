"""Claude Code itself, the real command line, against servers on loopback. Needs the extra `claude-code`, 380 MB."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, FinishReason
from maestro.llm.v1.message_pb2 import Message, Part, Role
from maestro_adapter_claude import models
from maestro_adapter_claude.claude_code.provider import ClaudeCodeProvider
from maestro_adapter_claude.settings import ClaudeSettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import MaestroError, Overloaded, ProviderAuth, RateLimited, StreamBroken, Timeout, UpstreamError
from maestro_sdk.testing import anthropic_messages as wire
from maestro_sdk.testing.anthropic_strict import Block, StrictMessages, call, redacted, text, thinking
from maestro_sdk.testing.faults import FaultServer, Seen, Step

pytest.importorskip("claude_agent_sdk", reason="the extra `claude-code` is not installed: make conformance-claude-code")

MODEL = "claude-code/claude-sonnet-5"
WEATHER = {
    "name": "weather.now",
    "description": "Tells the weather.",
    "input_schema": '{"type":"object","properties":{"city":{"type":"string","minLength":1}},"required":["city"]}',
}
CALLED = "mcp__maestro__weather_now"
PARIS, ROME = call("toolu_1", CALLED, {"city": "Paris"}), call("toolu_2", CALLED, {"city": "Rome"})
SUNNY = [text("It is sunny.")]

_ITS_OWN = ("context_management", "betas", "metadata", "diagnostics")


class StrictBehind(StrictMessages):
    """Strict about the conversation; what Claude Code adds of its own is looked through."""

    def install(self, server: FaultServer) -> None:
        server.on("POST", wire.PATH, self.reply)

    def reply(self, seen: Seen) -> Sequence[Step]:
        body = seen.json()
        seen.body = json.dumps(conversation(body)).encode()
        return super().reply(seen)


def conversation(body: Any) -> Any:
    """A request of Claude Code without its reminders."""
    turns = [message for message in body["messages"] if message["role"] != "system"]
    own = {name: value for name, value in body.items() if name not in _ITS_OWN}
    system = [block["text"] for block in body.get("system", ())]
    return {**own, "messages": turns, "system": system[-1] if system else ""}


@pytest.fixture
def code(tmp_path: Path) -> Callable[..., Any]:
    """Opens Claude Code whose API is at a base URL, as an async context manager."""
    key = tmp_path / "key"
    key.write_text("sk-ant-test-key")

    @asynccontextmanager
    async def opened(url: str, **settings: Any) -> AsyncGenerator[ClaudeCodeProvider]:
        fields = {"api_key": {"file": str(key)}, "base_url": url, "claude_code": {"models": ["claude-sonnet-5"]}}
        found = ClaudeSettings.model_validate({**fields, **settings})
        provider = ClaudeCodeProvider(found, models.load())
        assert await provider.check() == ""
        try:
            yield provider
        finally:
            await provider.close()

    return opened


async def answer(provider: ClaudeCodeProvider, request: ChatRequest) -> ChatResponse:
    return fold([event async for events in provider.stream(request) for event in events])


def go_on(request: ChatRequest, answered: ChatResponse) -> ChatRequest:
    follow = ChatRequest()
    follow.CopyFrom(request)
    follow.messages.append(Message(role=Role.ROLE_ASSISTANT, parts=answered.parts))
    for part in answered.parts:
        if part.WhichOneof("kind") == "tool_call":
            result = Part()
            result.tool_result.call_id = part.tool_call.call_id
            result.tool_result.is_error = "Rome" in part.tool_call.arguments_json
            result.tool_result.parts.add().text.text = f"result of {part.tool_call.call_id}"
            follow.messages.append(Message(role=Role.ROLE_TOOL, parts=[result]))
    return follow


def runs_of(folder: Path) -> list[Path]:
    return list(folder.glob("maestro-claude-code-*"))


async def test_an_answer(ask: Any, code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_SECRET", "s3cret")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with FaultServer() as server, code(server.url) as provider:
        server.on("POST", wire.PATH, wire.text())
        got = await answer(provider, ask("Hello @/etc/hostname", model=MODEL, system="Be brief.", max_tokens=77))
        assert len(server.requests) == 1
        seen = server.requests[0]
    assert got.parts[0].text.text == "Hello from the other side."
    assert (got.provider, got.model, got.response_id) == ("claude-code", "claude-sonnet-5", "msg_1")
    assert got.finish_reason == FinishReason.FINISH_REASON_STOP
    assert got.usage.input_tokens == 12
    assert (seen.headers["x-api-key"], seen.json()["max_tokens"]) == ("sk-ant-test-key", 77)
    said = conversation(seen.json())
    assert said["system"] == "Be brief."
    assert said["messages"] == [{"role": "user", "content": [{"type": "text", "text": "Hello @/etc/hostname"}]}] or (
        said["messages"] == [{"role": "user", "content": "Hello @/etc/hostname"}]
    )
    assert "tools" not in said or said["tools"] == []
    assert runs_of(tmp_path) == []


TURNS: dict[str, Sequence[Block]] = {
    "signed": [thinking("Let me see.", "c2lnbmVk+/="), text("I look."), PARIS],
    "redacted": [redacted("b3BhcXVl/+=="), PARIS],
    "empty text": [thinking("", "ZW1wdHk="), PARIS],
    "parallel": [thinking("Two of them.", "cGFy"), PARIS, ROME],
}


@pytest.mark.parametrize("turn", list(TURNS))
async def test_a_tool_loop(turn: str, ask: Any, code: Any) -> None:
    """Calls come out, results go in, thoughts stay as they were; Claude Code runs nothing itself."""
    strict = StrictBehind(TURNS[turn], [call("toolu_9", CALLED, {"city": "Oslo"})], SUNNY)
    async with FaultServer() as server, code(server.url) as provider:
        strict.install(server)
        request = ask("Weather?", model=MODEL, tools=[WEATHER], reasoning={"effort": "REASONING_EFFORT_LOW"})
        first = await answer(provider, request)
        assert first.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
        calls = [part.tool_call for part in first.parts if part.HasField("tool_call")]
        assert {found.name for found in calls} == {"weather.now"}
        second = await answer(provider, follow := go_on(request, first))
        third = await answer(provider, go_on(follow, second))
    assert strict.refused == []
    assert third.parts[0].text.text == "It is sunny."
    assert strict.accepted[0]["output_config"]["effort"] == "low"
    assert strict.accepted[0]["tools"][0]["input_schema"] == json.loads(WEATHER["input_schema"])
    turns = strict.accepted[2]["messages"]
    assert turns[1]["content"] == [dict(block) for block in TURNS[turn]]
    told = {
        block["tool_use_id"]: (block["content"], block.get("is_error", False))
        for message in turns
        for block in message["content"]
        if block["type"] == "tool_result"
    }
    for found in calls:
        content, failed = told[found.call_id]
        assert f"result of {found.call_id}" in json.dumps(content)
        assert bool(failed) is ("Rome" in found.arguments_json)


async def test_a_longer_conversation(ask: Any, code: Any) -> None:
    strict = StrictBehind(SUNNY)
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "One"}}]},
        {"role": "ROLE_ASSISTANT", "parts": [{"text": {"text": "Two"}}]},
        {"role": "ROLE_USER", "parts": [{"text": {"text": "/clear Three"}}]},
    ]
    async with FaultServer() as server, code(server.url) as provider:
        strict.install(server)
        await answer(provider, ask(model=MODEL, messages=messages))
    turns = strict.accepted[0]["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert [word in json.dumps(turn) for word, turn in zip(("One", "Two", "/clear Three"), turns, strict=True)] == [
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (wire.rate_limited(3), RateLimited),
        (wire.error(401), ProviderAuth),
        (wire.error(529), Overloaded),
        (wire.error(500), UpstreamError),
        (wire.in_band_error(2, "overloaded_error"), MaestroError),
        (wire.silent_end(), MaestroError),
        (wire.cut_after(2), MaestroError),
    ],
)
async def test_faults(script: Any, expected: type[MaestroError], ask: Any, code: Any) -> None:
    async with FaultServer() as server, code(server.url) as provider:
        server.on("POST", wire.PATH, script)
        with pytest.raises(expected) as caught:
            await asyncio.wait_for(answer(provider, ask(model=MODEL)), 30)
        assert len(server.requests) == 1, "retries are the dispatcher's"
    assert caught.value.metadata["provider"] == "claude-code"
    assert caught.value.metadata["model"] == MODEL
    assert type(caught.value) is expected or caught.value.retryable


async def test_silence_is_a_timeout(ask: Any, code: Any) -> None:
    async with FaultServer() as server, code(server.url, read_timeout="3s") as provider:
        server.on("POST", wire.PATH, wire.stall_after(2))
        with pytest.raises((Timeout, StreamBroken)):
            await answer(provider, ask(model=MODEL))


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_leaving_kills_the_run(
    how: str, ask: Any, code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    async with FaultServer() as server, code(server.url) as provider:
        server.on("POST", wire.PATH, wire.stall_after(2))
        reached = asyncio.Event()

        async def read() -> None:
            async for events in provider.stream(ask(model=MODEL)):
                if any(event.HasField("text") for event in events):
                    reached.set()

        if how == "cancel":
            task = asyncio.create_task(read())
            await asyncio.wait_for(reached.wait(), 20)
            number = int(next(iter(runs_of(tmp_path))).joinpath("pid").read_text())
            begun = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            stream = cast("AsyncGenerator[Sequence[ChatEvent]]", provider.stream(ask(model=MODEL)))
            await anext(stream)
            number = int(next(iter(runs_of(tmp_path))).joinpath("pid").read_text())
            begun = time.monotonic()
            await stream.aclose()
        seen = await server.request()
        await asyncio.wait_for(seen.closed.wait(), 2)
        assert time.monotonic() - begun < 2
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)
    assert runs_of(tmp_path) == []
