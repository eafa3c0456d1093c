"""The one call: real HTTP against a server that answers by script, with each way in which a provider can fail."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro_adapter_bedrock.provider import BedrockProvider
from maestro_adapter_bedrock.settings import BedrockSettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.provider import Completer, Provider, TokenCounter
from maestro_sdk.errors import (
    CapabilityUnavailable,
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
from maestro_sdk.testing import bedrock_converse as wire
from maestro_sdk.testing.asking import CLOSE, Leave, Way, cancel_call, cancel_stream, close_stream, completed, streamed
from maestro_sdk.testing.faults import FaultServer, SendJson, Stall, Wait
from maestro_sdk.testing.wire import Answer, Tokens, ToolCall

MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
QUOTED = "/model/anthropic.claude-sonnet-4-5-20250929-v1%3A0"

BOTH = pytest.mark.parametrize("way", [streamed, completed])


@BOTH
async def test_the_call(way: Way, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url + "/") as provider:
        server.on("POST", wire.PATH, wire.text())
        guardrail = {"guardrailIdentifier": "g", "guardrailVersion": "1", "streamProcessingMode": "async"}
        options = {"bedrock": {"guardrailConfig": guardrail}}
        answer = await way(provider, ask("hi", max_tokens=7, provider_options=options))
        seen = server.requests[0]
    assert answer.parts[0].text.text == "Hello from the other side."
    assert (answer.provider, answer.model) == ("bedrock", MODEL)
    assert answer.response_id == wire.REQUEST_ID if way is streamed else answer.response_id
    # The id is encoded once on the wire, letter by letter as it was signed.
    assert seen.path == f"{QUOTED}/converse{'-stream' if way is streamed else ''}"
    assert seen.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert seen.headers["x-amz-security-token"] == "a-session-token"
    assert seen.headers["content-type"] == "application/json"
    if way is completed:
        # Only streams know it; Converse would refuse it.
        del guardrail["streamProcessingMode"]
    assert seen.json() == {
        "messages": [{"role": "user", "content": [{"text": "hi"}]}],
        "inferenceConfig": {"maxTokens": 7},
        "guardrailConfig": guardrail,
    }


async def test_both_ways_give_the_same_answer(ask: Any, provider_at: Any) -> None:
    script = Answer(
        pieces=("I look.",),
        thoughts=("Let me", " think."),
        signature="c2ln",
        calls=(ToolCall("t1", "weather", '{"city":"Paris"}'), ToolCall("t2", "clock", "{}")),
        interleaved=True,
        tokens=Tokens(input=1400, output=60, cache_read=1000, cache_write_5m=100, cache_write_1h=200),
    )
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.answer(script))
        one, other = await streamed(provider, ask()), await completed(provider, ask())
    # The provider names calls, not answers, so each has its own name.
    assert one.response_id != other.response_id
    one.response_id = other.response_id = ""
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert [part.WhichOneof("kind") for part in one.parts] == ["reasoning", "text", "tool_call", "tool_call"]
    assert one.parts[0].provider_state == b"c2ln"
    assert (one.usage.input_tokens, one.usage.cache_read_tokens, one.usage.cache_write_1h_tokens) == (1400, 1000, 200)


async def test_what_a_model_cannot_stream_comes_at_once(ask: Any, provider_at: Any) -> None:
    tool = {"name": "weather", "input_schema": '{"type":"object"}'}
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.tools(ToolCall("t1", "weather", {"city": "Rome"})))
        answer = await streamed(provider, ask(model="bedrock/us.meta.llama3-3-70b-instruct-v1:0", tools=[tool]))
        assert server.requests[0].path.endswith("/converse")
    assert answer.parts[0].tool_call.arguments_json == '{"city":"Rome"}'


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


async def test_an_answer_without_usage(ask: Any, provider_at: Any) -> None:
    """The stop reason was there, then the stream ended cleanly: a whole answer of unknown cost."""
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.text(tokens=None))
        streamed_events = [event async for events in provider.stream(ask()) for event in events]
        for events in (streamed_events, await provider.complete(ask())):
            assert fold(events).parts[0].text.text == "Hello from the other side."
            assert not events[-1].finish.HasField("usage")


@BOTH
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (wire.silent_end(), StreamBroken),
        (wire.silent_end(0), StreamBroken),
        (wire.malformed_json(1), StreamBroken),
        (wire.malformed_frame(1), StreamBroken),
        (wire.malformed_frame(0), StreamBroken),
        (wire.cut_before_content(), StreamBroken),
        (wire.cut_after(2), StreamBroken),
        (wire.cut_before_headers(), UpstreamError),
        (wire.in_band_error(2, "throttlingException"), RateLimited),
        (wire.in_band_error(0, "internalServerException"), UpstreamError),
        (wire.in_band_error(0, "serviceUnavailableException"), Overloaded),
        (wire.stall_after(2), Timeout),
        (wire.stall_after(0), Timeout),
        (wire.error(503), Overloaded),
        (wire.error(403, "ExpiredTokenException"), ProviderAuth),
    ],
)
async def test_faults(way: Way, script: Any, expected: type[MaestroError], ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url, read_timeout="200ms") as provider:
        server.on("POST", wire.PATH, script)
        with pytest.raises(MaestroError) as caught:
            await way(provider, ask())
        assert len(server.requests) == 1, "retries are the dispatcher's"
    assert type(caught.value) is expected
    assert caught.value.metadata["provider"] == "bedrock"
    assert caught.value.metadata["model"] == f"bedrock/{MODEL}"


@pytest.mark.parametrize("cleanly", [True, False])
async def test_a_stream_that_ends_inside_a_message(cleanly: bool, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.WIRE.cut_inside_frame(2, cleanly=cleanly))
        with pytest.raises(StreamBroken):
            await streamed(provider, ask())


async def test_events_before_a_fault_are_delivered(ask: Any, provider_at: Any) -> None:
    for script in (wire.in_band_error(2), wire.malformed_frame(2), wire.cut_after(2)):
        got: list[ChatEvent] = []
        async with FaultServer() as server, provider_at(server.url) as provider:
            server.on("POST", wire.PATH, script)
            with pytest.raises((UpstreamError, StreamBroken)):
                async for events in provider.stream(ask()):
                    got.extend(events)
        assert "".join(event.text.text for event in got) == "Hello from"
        assert not any(event.HasField("finish") for event in got)


@BOTH
async def test_retry_after_reaches_the_caller(way: Way, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.rate_limited(3))
        with pytest.raises(RateLimited) as caught:
            await way(provider, ask())
    assert caught.value.retry_after == 3.0
    assert caught.value.metadata["request_id"] == wire.REQUEST_ID
    assert caught.value.metadata["upstream_status"] == "429"


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
                await way(provider, ask(seed=5, strict=True))
        assert server.requests == []


@BOTH
async def test_warnings_follow_the_start(way: Way, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.text())
        answer = await way(provider, ask(seed=5))
    assert [(warning.code, warning.field) for warning in answer.warnings] == [("unsupported_parameter", "seed")]


async def test_unknown_model(ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        for way in (streamed, completed):
            with pytest.raises(NotFound, match=r"amazon\.nova-lite"):
                await way(provider, ask(model="bedrock/nope"))


async def test_a_model_that_only_the_operator_knows(ask: Any, provider_at: Any) -> None:
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"
    entries = [{"name": "mine", "model_id": arn}]
    async with FaultServer() as server, provider_at(server.url, models=entries) as provider:
        server.on("POST", wire.PATH, wire.text())
        answer = await completed(provider, ask(model="bedrock/mine"))
        path = server.requests[0].path
    assert answer.model == "mine"
    quoted = "arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Aapplication-inference-profile%2Fabc"
    assert path == f"/model/{quoted}/converse"


async def test_tokens_are_counted(ask: Any, provider_at: Any) -> None:
    """With the model's own id, also for a profile; without what has no tokens."""
    async with FaultServer() as server, provider_at(server.url) as provider:
        assert isinstance(provider, TokenCounter)
        server.on("POST", "/model/*/count-tokens", SendJson({"inputTokens": 31}))
        assert await provider.count_tokens(ask(model=f"bedrock/us.{MODEL}", system="s", max_tokens=5)) == 31
        seen = server.requests[0]
        assert seen.path == f"{QUOTED}/count-tokens"
        turn = {"role": "user", "content": [{"text": "hi"}]}
        assert seen.json() == {"input": {"converse": {"messages": [turn], "system": [{"text": "s"}]}}}
        with pytest.raises(CapabilityUnavailable):
            await provider.count_tokens(ask(model="bedrock/amazon.nova-lite-v1:0"))
        server.reset()
        server.on("POST", "/model/*/count-tokens", SendJson({}))
        with pytest.raises(StreamBroken):
            await provider.count_tokens(ask())


async def test_it_is_what_the_mesh_expects(tmp_path: Any) -> None:
    file = tmp_path / "maestro.yaml"
    file.write_text(
        "version: 1\n"
        "adapters:\n"
        "  bedrock: {module: maestro_adapter_bedrock, address: 127.0.0.1:50064, settings: {region: eu-west-1}}\n"
    )
    config = load(file, {})
    provider: Provider = BedrockProvider.from_config(config, config.adapters["bedrock"])
    assert isinstance(provider, Completer)
    assert list(provider.providers) == ["bedrock"]
    assert {model.provider for model in await provider.models()} == {"bedrock"}
    await provider.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"region": "us east"}, "not a region"),
        ({"base_url": "bedrock.local"}, "not an http"),
        ({"models": [{"name": "x", "wire": "nope"}]}, "nope"),
        ({"batch": {"role_arn": "me"}}, "role_arn"),
    ],
)
def test_settings_that_are_wrong(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BedrockSettings.model_validate(fields)


def test_starting_does_not_load_the_sdk_of_the_provider() -> None:
    code = "import sys, maestro_adapter_bedrock.__main__; print(sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'maestro_adapter_bedrock'" in loaded
    assert "'aiobotocore'" not in loaded
    assert "'botocore'" not in loaded
