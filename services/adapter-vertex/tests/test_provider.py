"""The one call: real HTTP against a server that answers by script, with each way in which a provider can fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, FinishReason
from maestro_adapter_vertex.provider import VertexProvider
from maestro_adapter_vertex.settings import VertexSettings
from maestro_sdk.adapter.provider import Completer, Embedder, Provider, TokenCounter
from maestro_sdk.errors import (
    ContentPolicy,
    InvalidRequest,
    MaestroError,
    NotFound,
    Overloaded,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    StreamBroken,
    Timeout,
    UnsupportedParameter,
    UpstreamError,
)
from maestro_sdk.service.settings import load
from maestro_sdk.testing import gemini_content as wire
from maestro_sdk.testing.asking import CLOSE, Leave, Way, cancel_call, cancel_stream, close_stream, completed, streamed
from maestro_sdk.testing.faults import Cut, FaultServer, Send, SendJson, Sse, Stall, Wait
from maestro_sdk.testing.wire import Answer, Tokens, ToolCall

MODEL = "/v1/projects/p1/locations/global/publishers/google/models/gemini-2.5-flash"

BOTH = pytest.mark.parametrize("way", [streamed, completed])


@BOTH
async def test_the_call(way: Way, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url + "/") as provider:
        server.on("POST", wire.PATH, wire.text())
        answer = await way(provider, ask("hi", max_tokens=7, provider_options={"vertex": {"labels": {"a": "b"}}}))
        seen = server.requests[0]
    assert answer.parts[0].text.text == "Hello from the other side."
    assert (answer.provider, answer.model, answer.response_id) == ("vertex", "gemini-2.5-flash", "resp-1")
    assert seen.headers["authorization"] == "Bearer ya29.test-token"
    assert seen.headers["content-type"] == "application/json"
    assert "x-goog-user-project" not in seen.headers
    method = ("streamGenerateContent", "alt=sse") if way is streamed else ("generateContent", "")
    assert (seen.path, seen.query) == (f"{MODEL}:{method[0]}", method[1])
    assert seen.json() == {
        "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
        "generationConfig": {"maxOutputTokens": 7},
        "labels": {"a": "b"},
    }


@pytest.mark.parametrize("fragment", [0, 3])
async def test_both_ways_give_the_same_answer(fragment: int, ask: Any, provider_at: Any) -> None:
    script = Answer(
        pieces=("I ", "look."),
        thoughts=("Let me", " think."),
        signature="c2ln+/8=",
        calls=(
            ToolCall("", "weather", '{"city":"Paris","days":[1,2.5,null,true,{"a b":""}]}'),
            ToolCall("t2", "clock"),
        ),
        fragment=fragment,
        tokens=Tokens(input=1400, output=60, cache_read=1000, reasoning=20),
    )
    config = {"toolConfig": {"functionCallingConfig": {"streamFunctionCallArguments": True}}}
    request = ask(provider_options={"vertex": config})
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.answer(script))
        one, other = await streamed(provider, request), await completed(provider, request)
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert [part.WhichOneof("kind") for part in one.parts] == ["reasoning", "text", "tool_call", "tool_call"]
    assert [part.tool_call.call_id for part in one.parts[2:]] == ["call_resp-1_1", "t2"]
    assert one.parts[2].tool_call.arguments_json == script.calls[0].arguments
    assert (one.parts[2].provider_state, one.parts[2].origin.model) == (b"c2ln+/8=", "gemini-2.5-flash")
    assert one.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    assert (one.usage.input_tokens, one.usage.cache_read_tokens, one.usage.reasoning_tokens) == (1400, 1000, 20)


async def test_a_connection_is_used_again(ask: Any, provider_at: Any) -> None:
    def reply(seen: Any) -> Any:
        # The end of the body comes later than the end of the answer.
        return (*wire.text()(seen), Wait(0.01))

    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, reply)
        for way in (streamed, completed, streamed):
            await way(provider, ask())
        assert not any(seen.closed.is_set() for seen in server.requests)
        assert len(server.requests) == 3


@pytest.mark.parametrize("after", [Stall(), Cut(), Cut(reset=True)])
async def test_after_the_finish_reason_nothing_has_to_come(after: Any, ask: Any, provider_at: Any) -> None:
    def reply(seen: Any) -> Any:
        return (*wire.text()(seen), Wait(0.01), after)

    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, reply)
        begun = time.monotonic()
        answer = await streamed(provider, ask())
        assert time.monotonic() - begun < 2
    assert answer.parts[0].text.text == "Hello from the other side."
    assert answer.usage.output_tokens == 5


async def test_usage_after_the_finish_reason_is_counted(ask: Any, provider_at: Any) -> None:
    late = {"candidates": [], "usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 99}}

    def reply(seen: Any) -> Any:
        return (*wire.text()(seen), Wait(0.005), Sse(None, late))

    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, reply)
        answer = await streamed(provider, ask())
    assert answer.usage.output_tokens == 99


async def test_deltas_arrive_as_they_are_sent(ask: Any, provider_at: Any) -> None:
    go_on = asyncio.Event()
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.hold_after(2, go_on))
        text = ""
        async for events in provider.stream(ask()):
            text += "".join(event.text.text for event in events)
            if text == "Hello from":
                # Had the adapter waited for more, this would never be set.
                go_on.set()
    assert text == "Hello from the other side."


@BOTH
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (wire.silent_end(), StreamBroken),
        (wire.silent_end(0), StreamBroken),
        (wire.malformed_json(1), StreamBroken),
        (wire.cut_before_content(), StreamBroken),
        (wire.cut_after(2), StreamBroken),
        (wire.cut_before_headers(), UpstreamError),
        (wire.in_band_error(2, "UNAVAILABLE"), Overloaded),
        (wire.in_band_error(0, "RESOURCE_EXHAUSTED"), RateLimited),
        (wire.in_band_error(0), UpstreamError),
        (lambda _: (SendJson([wire.problem(503, "busy")]),), Overloaded),
        (wire.stall_after(2), Timeout),
        (wire.stall_after(0), Timeout),
        (wire.error(503), Overloaded),
        (wire.error(504), Timeout),
        (wire.error(401), ProviderAuth),
        (wire.error(403), ProviderAuth),
        (wire.exhausted("3s", "RequestsPerMinutePerProject"), RateLimited),
        (wire.exhausted("3s", "RequestsPerDayPerProject"), ProviderQuota),
        (lambda _: (SendJson({"promptFeedback": {"blockReason": "SAFETY"}}),), ContentPolicy),
    ],
)
async def test_faults(way: Way, script: Any, expected: type[MaestroError], ask: Any, provider_at: Any) -> None:
    def reply(seen: Any) -> Any:
        steps = script(seen)
        blocked = steps and isinstance(steps[0], SendJson) and "promptFeedback" in steps[0].value
        return (Sse(None, steps[0].value),) if blocked and wire.WIRE.streams(seen) else steps

    async with FaultServer() as server, provider_at(server.url, read_timeout="200ms") as provider:
        server.on("POST", wire.PATH, reply)
        with pytest.raises(MaestroError) as caught:
            await way(provider, ask())
        assert len(server.requests) == 1, "retries are the dispatcher's"
    assert type(caught.value) is expected
    assert caught.value.metadata["provider"] == "vertex"
    assert caught.value.metadata["model"] == "vertex/gemini-2.5-flash"


async def test_events_before_a_fault_are_delivered(ask: Any, provider_at: Any) -> None:
    got: list[ChatEvent] = []
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.in_band_error(2, "UNAVAILABLE"))
        with pytest.raises(Overloaded):
            async for events in provider.stream(ask()):
                got.extend(events)
    assert "".join(event.text.text for event in got) == "Hello from"
    assert not any(event.HasField("finish") for event in got)


@BOTH
async def test_retry_after_reaches_the_caller(way: Way, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.exhausted("3.5s"))
        server.on("POST", wire.PATH, wire.rate_limited(2))
        for seconds in (3.5, 2.0):
            with pytest.raises(RateLimited) as caught:
                await way(provider, ask())
            assert caught.value.retry_after == seconds
    assert caught.value.metadata["upstream_code"] == "RESOURCE_EXHAUSTED"


@BOTH
async def test_nobody_listens(way: Way, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server:
        url = server.url
    async with provider_at(url) as provider:
        with pytest.raises(UpstreamError, match="can't be reached"):
            await way(provider, ask())


@pytest.mark.parametrize("pieces", [0, 2], ids=["before the first token", "within the answer"])
@pytest.mark.parametrize("leave", [close_stream, cancel_stream])
async def test_leaving_a_stream_closes_the_socket(pieces: int, leave: Leave, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.stall_after(pieces))
        assert await leave(server, provider, ask(), "Hello from" if pieces else "") < CLOSE


@pytest.mark.parametrize("script", [wire.stall_after(0), wire.slow_first_token(30)], ids=["within", "before"])
async def test_cancelling_a_unary_call_closes_the_socket(script: Any, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, script)
        assert await cancel_call(server, provider.complete(ask())) < CLOSE


async def test_strict_fails_before_the_provider_is_asked(ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        for way in (streamed, completed):
            with pytest.raises(UnsupportedParameter):
                await way(provider, ask(cache={"points": [{"system": True}]}, strict=True))
        assert server.requests == []


@BOTH
async def test_warnings_follow_the_start(way: Way, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.text())
        answer = await way(provider, ask(cache={"ttl": "CACHE_TTL_5M"}))
    assert [(warning.code, warning.field) for warning in answer.warnings] == [("unsupported_parameter", "cache.ttl")]


async def test_counting_tokens(ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", "*:countTokens", SendJson({"totalTokens": 31, "totalBillableCharacters": 96}))
        request = ask(system="s", tools=[{"name": "t"}], tool_choice={}, max_tokens=3)
        assert await provider.count_tokens(request) == 31
        seen = server.requests[0]
        server.reset()
        server.on("POST", "*:countTokens", Send(b"<html>"))
        with pytest.raises(StreamBroken):
            await provider.count_tokens(request)
    assert seen.path == f"{MODEL}:countTokens"
    # The method takes no rule for calling tools.
    assert set(seen.json()) == {"contents", "systemInstruction", "tools", "generationConfig"}


async def test_unknown_model(ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        for way in (streamed, completed):
            with pytest.raises(NotFound, match=r"gemini-3\.5-flash"):
                await way(provider, ask(model="vertex/gemini-nope"))


async def test_without_a_project_it_says_what_to_do(ask: Any) -> None:
    provider = VertexProvider(VertexSettings())
    assert "set GOOGLE_CLOUD_PROJECT" in await provider.check()
    for way in (streamed, completed):
        with pytest.raises(ProviderAuth, match="set GOOGLE_CLOUD_PROJECT"):
            await way(provider, ask())
    assert await provider.models()
    await provider.close()


async def test_wrong_requests_are_told_even_without_a_project(ask: Any) -> None:
    provider = VertexProvider(VertexSettings())
    with pytest.raises(InvalidRequest):
        await provider.complete(ask(tools=[{"name": "t", "input_schema": "[]"}]))
    await provider.close()


async def test_it_is_what_the_mesh_expects(tmp_path: Any) -> None:
    file = tmp_path / "maestro.yaml"
    file.write_text(
        "version: 1\n"
        "adapters:\n"
        "  vertex:\n"
        "    module: maestro_adapter_vertex\n"
        "    address: 127.0.0.1:50063\n"
        "    settings: {project: p, location: global, credentials: {env: GOOGLE_APPLICATION_CREDENTIALS}}\n"
    )
    config = load(file, {})
    provider: Provider = VertexProvider.from_config(config, config.adapters["vertex"])
    assert isinstance(provider, Completer)
    assert isinstance(provider, TokenCounter)
    assert isinstance(provider, Embedder)
    assert list(provider.providers) == ["vertex"]
    assert {model.provider for model in await provider.models()} == {"vertex"}
    await provider.close()


def test_starting_does_not_load_the_sdk_of_the_provider() -> None:
    code = "import sys, maestro_adapter_vertex.__main__; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'maestro_adapter_vertex.provider'" in loaded
    for heavy in ("'google.genai'", "'google.auth'", "'httpx2'", "'requests'"):
        assert heavy not in loaded
