"""Whole tool loops against a server that refuses what the provider refuses: changed thoughts above all."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, FinishReason
from maestro.llm.v1.message_pb2 import Message, Part, Role
from maestro_adapter_claude.conversation import find_places
from maestro_adapter_claude.provider import ClaudeProvider
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.testing.anthropic_strict import Block, StrictMessages, call, redacted, text, thinking
from maestro_sdk.testing.faults import FaultServer

WEATHER = {"name": "weather", "input_schema": '{"type":"object","properties":{"city":{"type":"string"}}}'}
PARIS, ROME = call("toolu_1", "weather", {"city": "Paris"}), call("toolu_2", "weather", {"city": "Rome"})
SUNNY = [text("It is sunny.")]
ADAPTIVE = ("anthropic/claude-sonnet-5", {"effort": "REASONING_EFFORT_HIGH"})
BUDGET = ("anthropic/claude-haiku-4-5", {"budget_tokens": 2000})

TURNS: dict[str, Sequence[Block]] = {
    "signed": [thinking("Let me see.", "c2lnbmVk+/="), PARIS],
    "redacted": [redacted("b3BhcXVl/+=="), PARIS],
    "empty text": [thinking("", "ZW1wdHk="), PARIS],
    "both": [thinking("First.", "b25l"), redacted("dHdv"), text("I look."), PARIS],
    "parallel": [thinking("Two of them.", "cGFy"), PARIS, ROME],
    "twice": [thinking("One.", "b25l"), thinking("", "dHdv"), PARIS],
}

WAYS = pytest.mark.parametrize("way", ["stream", "complete"])
MODES = pytest.mark.parametrize("mode", [ADAPTIVE, BUDGET], ids=["adaptive", "budget"])


async def ask_it(provider: ClaudeProvider, request: ChatRequest, way: str) -> ChatResponse:
    if way == "complete":
        return fold(await provider.complete(request))
    return fold([event async for events in provider.stream(request) for event in events])


def go_on(request: ChatRequest, answer: ChatResponse) -> ChatRequest:
    """The next turn as a caller makes it: the answer's parts as they came, then the results, one message each."""
    follow = ChatRequest()
    follow.CopyFrom(request)
    follow.messages.append(Message(role=Role.ROLE_ASSISTANT, parts=answer.parts))
    for part in answer.parts:
        if part.WhichOneof("kind") == "tool_call":
            result = Part()
            result.tool_result.call_id = part.tool_call.call_id
            result.tool_result.parts.add().text.text = f"sunny in {json.loads(part.tool_call.arguments_json)['city']}"
            follow.messages.append(Message(role=Role.ROLE_TOOL, parts=[result]))
    return follow


@WAYS
@MODES
@pytest.mark.parametrize("turn", list(TURNS))
async def test_a_loop(turn: str, mode: Any, way: str, ask: Any, provider_at: Any) -> None:
    model, reasoning = mode
    strict = StrictMessages(
        TURNS[turn], [thinking("And now?", "dGhpcmQ="), call("toolu_3", "weather", {"city": "Oslo"})], SUNNY
    )
    async with FaultServer() as server, provider_at(server.url) as provider:
        strict.install(server)
        request = ask("Weather?", model=model, tools=[WEATHER], reasoning=reasoning)
        first = await ask_it(provider, request, way)
        assert first.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
        follow = go_on(request, first)
        second = await ask_it(provider, follow, way)
        third = await ask_it(provider, go_on(follow, second), way)
    assert third.parts[0].text.text == "It is sunny."
    assert strict.refused == []
    sent = strict.accepted[2]["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user", "assistant", "user"]
    assert sent[1]["content"] == [dict(block) for block in TURNS[turn]]


def _flip_signature(parts: list[Part]) -> None:
    changed = next(part for part in parts if part.HasField("provider_state"))
    changed.provider_state = changed.provider_state[:-1] + b"X"


def _change_thought(parts: list[Part]) -> None:
    next(part for part in parts if part.WhichOneof("kind") == "reasoning").reasoning.text += " Really."


def _forget(parts: list[Part]) -> None:
    del parts[0]


def _unsign(parts: list[Part]) -> None:
    parts[0].ClearField("provider_state")


def _exchange(parts: list[Part]) -> None:
    parts[0], parts[1] = parts[1], parts[0]


ALTERATIONS: list[tuple[str, Callable[[list[Part]], None]]] = [
    ("signed", _flip_signature),
    ("signed", _change_thought),
    ("signed", _forget),
    ("signed", _unsign),
    ("redacted", _flip_signature),
    ("redacted", _forget),
    ("empty text", _flip_signature),
    ("empty text", _change_thought),
    ("empty text", _forget),
    ("both", _forget),
    ("twice", _exchange),
    ("parallel", _flip_signature),
    ("parallel", _forget),
]


@pytest.mark.parametrize(("turn", "alter"), ALTERATIONS, ids=[f"{turn}{way.__name__}" for turn, way in ALTERATIONS])
async def test_what_was_altered_is_refused(turn: str, alter: Any, ask: Any, provider_at: Any) -> None:
    """The server is as strict as it says: had the adapter lost anything, the loops above would be red."""
    model, reasoning = ADAPTIVE
    strict = StrictMessages(TURNS[turn], SUNNY)
    async with FaultServer() as server, provider_at(server.url) as provider:
        strict.install(server)
        request = ask("Weather?", model=model, tools=[WEATHER], reasoning=reasoning)
        first = await ask_it(provider, request, "complete")
        parts = [copy.deepcopy(part) for part in first.parts]
        alter(parts)
        altered = ChatResponse(parts=parts)
        with pytest.raises(InvalidRequest, match="messages"):
            await ask_it(provider, go_on(request, altered), "complete")
    assert len(strict.refused) == 1


@MODES
@pytest.mark.parametrize(
    "origin",
    [
        {"provider": "vertex", "api": "generateContent", "model": "gemini-3"},
        {"provider": "openai", "api": "chat", "model": "gpt-6"},
        {"provider": "bedrock", "api": "converse", "model": "claude-sonnet-5"},
        {"provider": "anthropic", "api": "messages", "model": "claude-opus-4-8"},
    ],
    ids=lambda origin: origin["provider"],
)
async def test_a_conversation_taken_over(origin: Any, mode: Any, ask: Any, provider_at: Any) -> None:
    """Another provider's state goes, with the part that is nothing without it; words, calls and results stay."""
    model, reasoning = mode
    theirs = {"origin": origin, "provider_state": "c3RhdGU="}
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "Weather?"}}]},
        {
            "role": "ROLE_ASSISTANT",
            "parts": [
                {"reasoning": {"text": "Their thought."}, **theirs},
                {"reasoning": {"redacted": True}, **theirs},
                {"opaque": {"json": '{"type":"web_search_call"}'}, "origin": origin},
                {"text": {"text": "I look."}, **theirs},
                {
                    "tool_call": {"call_id": "call:1|x", "name": "weather", "arguments_json": '{"city":"Paris"}'},
                    **theirs,
                },
                {"tool_call": {"call_id": "call:2", "name": "weather", "arguments_json": ""}},
            ],
        },
        {
            "role": "ROLE_TOOL",
            "parts": [{"tool_result": {"call_id": "call:1|x", "parts": [{"text": {"text": "sun"}}]}}],
        },
        {"role": "ROLE_TOOL", "parts": [{"tool_result": {"call_id": "call:2"}}]},
    ]
    strict = StrictMessages(SUNNY)
    async with FaultServer() as server, provider_at(server.url) as provider:
        strict.install(server)
        request = ask(model=model, messages=messages, tools=[WEATHER], reasoning=reasoning)
        answer = await ask_it(provider, request, "complete")
    assert answer.parts[0].text.text == "It is sunny."
    sent = strict.accepted[0]["messages"][1]["content"]
    assert [block["type"] for block in sent] == ["text", "tool_use", "tool_use"]
    assert [block.get("input") for block in sent[1:]] == [{"city": "Paris"}, {}]
    assert "c3RhdGU" not in json.dumps(strict.accepted)


async def test_words_before_results(ask: Any, provider_at: Any) -> None:
    """The contract lets a caller say something first; the wire wants the results at once after the calls."""
    first, second = ({"tool_result": {"call_id": name, "parts": [{"text": {"text": name}}]}} for name in ("c1", "c2"))
    calls = [{"tool_call": {"call_id": name, "name": "weather"}} for name in ("c1", "c2")]
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "Weather?"}}]},
        {"role": "ROLE_ASSISTANT", "parts": calls},
        {"role": "ROLE_TOOL", "parts": [first]},
        {"role": "ROLE_USER", "parts": [{"text": {"text": "By the way"}}, {"text": {"text": "hurry"}}]},
        {"role": "ROLE_USER", "parts": [{"text": {"text": "now"}}, second]},
    ]
    strict = StrictMessages(SUNNY)
    async with FaultServer() as server, provider_at(server.url) as provider:
        strict.install(server)
        request = ask(messages=messages, tools=[WEATHER])
        await ask_it(provider, request, "complete")
    content = strict.accepted[0]["messages"][2]["content"]
    assert [block.get("tool_use_id") or block["text"] for block in content] == [
        "c1",
        "c2",
        "By the way",
        "hurry",
        "now",
    ]
    assert find_places(request, "claude-sonnet-5")[2] == [(2, 0), (4, 1), (3, 0), (3, 1), (4, 0)]


@WAYS
async def test_a_paused_turn_goes_on(way: str, ask: Any, provider_at: Any) -> None:
    """The provider's own tools may pause; the caller sends back what came, and nothing behind it."""
    use = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "Paris"}}

    class Pausing(StrictMessages):
        def answer(self, body: Any) -> dict[str, Any]:
            message = super().answer(body)
            return {**message, "stop_reason": "pause_turn"} if len(self.accepted) == 1 else message

    strict = Pausing([thinking("Search.", "cGF1c2U="), use], [text("Found.")])
    async with FaultServer() as server, provider_at(server.url) as provider:
        strict.install(server)
        request = ask("Search!", reasoning=ADAPTIVE[1])
        paused = await ask_it(provider, request, way)
        assert paused.finish_reason == FinishReason.FINISH_REASON_PAUSED
        request.messages.append(Message(role=Role.ROLE_ASSISTANT, parts=paused.parts))
        found = await ask_it(provider, request, way)
    assert (found.finish_reason, found.parts[0].text.text) == (FinishReason.FINISH_REASON_STOP, "Found.")
    assert strict.accepted[1]["messages"][1]["content"] == [thinking("Search.", "cGF1c2U="), use]


@pytest.mark.parametrize(
    "fields",
    [
        {"system": "Be brief.", "stop": ["END"], "max_tokens": 9},
        {"tools": [{"name": "a.b"}, WEATHER], "tool_choice": {"mode": "TOOL_CHOICE_MODE_NAMED", "names": ["a.b"]}},
        {"cache": {"points": [{"tools": True}, {"system": True}, {"message": 0}]}, "tools": [WEATHER], "system": "s"},
        {"cache": {"ttl": "CACHE_TTL_1H"}},
        {"response_format": {"json_schema": {"schema": '{"properties":{"n":{"type":"integer","minimum":1}}}'}}},
        {"response_format": {"json": {}}},
        {"temperature": 0.1, "top_p": 0.5, "seed": "1", "logprobs": {"top": 3}},
    ],
)
async def test_what_is_sent_is_taken(fields: Any, ask: Any, provider_at: Any) -> None:
    strict = StrictMessages(SUNNY)
    async with FaultServer() as server, provider_at(server.url) as provider:
        strict.install(server)
        await ask_it(provider, ask(**fields), "complete")
    assert (len(strict.accepted), strict.refused) == (1, [])


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"temperature": 1}, "temperature: Extra inputs"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "first message must use the user role"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "roles must alternate"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "non-whitespace"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "prefill"),
        ({"messages": [{"role": "user", "content": [dict(PARIS)]}]}, "can only be in `assistant`"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"name": "a.b", "input_schema": {"type": "object"}}]}, r"tools\.0\.custom\.name"),
        ({"tools": [{"name": "a", "input_schema": {"type": "string"}}]}, "should be 'object'"),
        ({"tools": [{"name": "a", "input_schema": {"type": "object"}}] * 2}, "unique"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "not found"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "1024"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5000}}, "max_tokens` must be greater"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            "additionalProperties",
        ),
        (
            {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}] * 5},
            "maximum of 4 blocks",
        ),
    ],
)
def test_the_server_is_strict(change: dict[str, Any], why: str) -> None:
    good: dict[str, Any] = {"model": "m", "max_tokens": 2000, "messages": [{"role": "user", "content": "hi"}]}
    StrictMessages().check(good)
    with pytest.raises(Exception, match=why):
        StrictMessages().check({**good, **change})
