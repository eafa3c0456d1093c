"""The one call: real HTTP against a server that answers by script, with each way in which a provider can fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro_adapter_claude.provider import ClaudeProvider
from maestro_adapter_claude.settings import ClaudeSettings
from maestro_sdk.adapter.provider import Completer, Provider
from maestro_sdk.errors import (
    MaestroError,
    NotFound,
    Overloaded,
    ProviderAuth,
    RateLimited,
    StreamBroken,
    Timeout,
    UnsupportedParameter,
    UpstreamError,
)
from maestro_sdk.service.settings import load
from maestro_sdk.testing import anthropic_messages as wire
from maestro_sdk.testing.asking import CLOSE, Leave, Way, cancel_call, cancel_stream, close_stream, completed, streamed
from maestro_sdk.testing.faults import FaultServer, Headers, Sse, Stall, Step, Wait
from maestro_sdk.testing.wire import Answer, Tokens, ToolCall

BOTH = pytest.mark.parametrize("way", [streamed, completed])


@BOTH
async def test_the_call(way: Way, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url + "/", betas=["b1"]) as provider:
        server.on("POST", wire.PATH, wire.text())
        answer = await way(
            provider, ask("hi", max_tokens=7, provider_options={"anthropic": {"betas": ["b2"], "service_tier": "auto"}})
        )
        seen = server.requests[0]
    assert answer.parts[0].text.text == "Hello from the other side."
    assert (answer.provider, answer.model, answer.response_id) == ("anthropic", "claude-sonnet-5", "msg_1")
    assert seen.headers["authorization"] == "Bearer sk-ant-test-key"
    assert "x-api-key" not in seen.headers
    assert seen.headers["anthropic-version"] == "2026-10-21"
    assert seen.headers["anthropic-beta"] == "b1,b2"
    assert seen.headers["content-type"] == "application/json"
    expected = {
        "model": "claude-sonnet-5",
        "max_tokens": 7,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "service_tier": "auto",
    }
    assert seen.json() == (expected | {"stream": True} if way is streamed else expected)


async def test_both_ways_give_the_same_answer(ask: Any, provider_at: Any) -> None:
    script = Answer(
        pieces=("I look.",),
        thoughts=("Let me", " think."),
        signature="c2ln",
        calls=(ToolCall("t1", "weather", '{"city":"Paris"}'), ToolCall("t2", "clock", "{}")),
        interleaved=True,
        tokens=Tokens(input=1400, output=60, cache_read=1000, cache_write_5m=100, cache_write_1h=200, reasoning=20),
    )
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.answer(script))
        one, other = await streamed(provider, ask()), await completed(provider, ask())
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert [part.WhichOneof("kind") for part in one.parts] == ["reasoning", "text", "tool_call", "tool_call"]
    assert one.parts[0].provider_state == b"c2ln"
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


async def test_a_server_that_holds_the_line_after_the_answer_delays_it_little(ask: Any, provider_at: Any) -> None:
    def reply(seen: Any) -> Any:
        return (*wire.text()(seen), Stall())

    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, reply)
        begun = time.monotonic()
        answer = await streamed(provider, ask())
        assert time.monotonic() - begun < 2
        await asyncio.wait_for(server.requests[0].closed.wait(), CLOSE)
    assert answer.parts[0].text.text == "Hello from the other side."


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
        (wire.in_band_error(2, "overloaded_error"), Overloaded),
        (wire.in_band_error(0, "api_error"), UpstreamError),
        (wire.stall_after(2), Timeout),
        (wire.stall_after(0), Timeout),
        (wire.error(529), Overloaded),
        (wire.error(401), ProviderAuth),
    ],
)
async def test_faults(way: Way, script: Any, expected: type[MaestroError], ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url, read_timeout="200ms") as provider:
        server.on("POST", wire.PATH, script)
        with pytest.raises(MaestroError) as caught:
            await way(provider, ask())
        assert len(server.requests) == 1, "retries are the dispatcher's"
    assert type(caught.value) is expected
    assert caught.value.metadata["provider"] == "anthropic"
    assert caught.value.metadata["model"] == "anthropic/claude-sonnet-5"


async def test_events_before_a_fault_are_delivered(ask: Any, provider_at: Any) -> None:
    got: list[ChatEvent] = []
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.in_band_error(2))
        with pytest.raises(Overloaded):
            async for events in provider.stream(ask()):
                got.extend(events)
    assert "".join(event.text.text for event in got) == "Hello from"
    assert not any(event.HasField("finish") for event in got)


@BOTH
async def test_retry_after_reaches_the_caller(way: Way, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.rate_limited(3, {"request-id": "req_9"}))
        with pytest.raises(RateLimited) as caught:
            await way(provider, ask())
    assert caught.value.retry_after == 3.0
    assert caught.value.metadata["request_id"] == "req_9"
    assert caught.value.metadata["upstream_status"] == "429"


@BOTH
async def test_what_the_limits_leave_is_told(way: Way, ask: Any, provider_at: Any) -> None:
    left = {"Requests-Remaining": "49", "Requests-Limit": "50", "Input-Tokens-Remaining": "0", "Tokens-Remaining": "9"}
    headers = Headers(200, {f"Anthropic-RateLimit-{name}": value for name, value in left.items()})
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, lambda seen: (headers, *_steps(wire.text()(seen))))
        told = (await way(provider, ask())).headroom
        server.on("POST", wire.PATH, wire.text())
        assert not (await way(provider, ask())).HasField("headroom")
    assert (told.requests.remaining, told.requests.limit, told.tokens.remaining) == (49, 50, 0)


def _steps(steps: Iterable[Step]) -> list[Step]:
    """The steps without their head."""
    return [step for step in steps if not isinstance(step, Headers)]


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
                await way(provider, ask(temperature=0.5, strict=True))
        assert server.requests == []


@BOTH
async def test_warnings_follow_the_start(way: Way, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.text())
        answer = await way(provider, ask(temperature=0.5))
        assert "temperature" not in server.requests[0].json()
    assert [(warning.code, warning.field) for warning in answer.warnings] == [("unsupported_parameter", "temperature")]


async def test_an_error_event_with_another_status_line(ask: Any, provider_at: Any) -> None:
    """Servers may name the event only inside of its data."""
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, Sse(None, error))
        with pytest.raises(Overloaded):
            await streamed(provider, ask())


async def test_unknown_model(ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        for way in (streamed, completed):
            with pytest.raises(NotFound, match="claude-sonnet-5-5"):
                await way(provider, ask(model="anthropic/claude-nope"))


async def test_without_a_key_it_says_what_to_do(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    provider = ClaudeProvider(ClaudeSettings())
    assert "set ANTHROPIC_API_KEY" in await provider.check()
    with pytest.raises(ProviderAuth, match="set ANTHROPIC_API_KEY"):
        await completed(provider, ask())
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-12345678")
    assert await provider.check() == ""
    await provider.close()


async def test_it_is_what_the_mesh_expects(tmp_path: Any) -> None:
    file = tmp_path / "maestro.yaml"
    file.write_text(
        "version: 1\n"
        "adapters:\n"
        "  claude: {module: maestro_adapter_claude, address: 127.0.0.1:50061, settings: {connect_timeout: 2s}}\n"
    )
    config = load(file, {})
    provider: Provider = ClaudeProvider.from_config(config, config.adapters["claude"])
    assert isinstance(provider, Completer)
    assert list(provider.providers) == ["anthropic"]
    assert {model.provider for model in await provider.models()} == {"anthropic"}
    await provider.close()


def test_starting_does_not_load_the_sdk_of_the_provider() -> None:
    code = "import sys, maestro_adapter_claude.__main__; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'maestro_adapter_claude'" in loaded
    assert "'anthropic'" not in loaded
    assert "'httpx2'" not in loaded
