"""The adapter against real sockets: good answers, refusals, every way to break, and cancellation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatResponse, FinishReason
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_openai.provider import OpenAIProvider
from maestro_adapter_openai.settings import OpenAISettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import (
    ContextTooLong,
    InvalidRequest,
    MaestroError,
    NotFound,
    Overloaded,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    StreamBroken,
    Timeout,
    UpstreamError,
)
from maestro_sdk.service.settings import Secret
from maestro_sdk.testing import openai_chat as scripts
from maestro_sdk.testing.asking import CLOSE, cancel_call, close_stream
from maestro_sdk.testing.faults import FaultServer, Headers, Reply, Seen, Send, Stall, Step
from maestro_sdk.testing.servers import Aimock, free_port
from maestro_sdk.testing.wire import Answer, Tokens, ToolCall

from .asking import ask, both, call

WEATHER = {"name": "get_weather", "input_schema": '{"type":"object","properties":{"city":{"type":"string"}}}'}


def connect(base_url: str, **settings: Any) -> OpenAIProvider:
    return OpenAIProvider.from_settings(
        OpenAISettings(api_key=Secret(env="ADAPTER_TEST_KEY"), base_url=base_url, **settings)
    )


@pytest.fixture
async def provider(server: FaultServer) -> AsyncIterator[OpenAIProvider]:
    made = connect(f"{server.url}/v1", organization="org-1", project="proj-1", connect_timeout=2, read_timeout=0.5)
    yield made
    await made.close()


@both
async def test_text(server: FaultServer, provider: OpenAIProvider, mode: str) -> None:
    server.on("POST", scripts.PATH, scripts.text(tokens=Tokens(input=12, output=5, cache_read=8, reasoning=2)))
    response = fold(await call(provider, ask(), mode))
    assert response.parts[0].text.text == "Hello from the other side."
    assert response.finish_reason == FinishReason.FINISH_REASON_STOP
    assert response.usage == Usage(input_tokens=12, cache_read_tokens=8, output_tokens=5, reasoning_tokens=2)
    assert (response.provider, response.model, response.attempt) == ("openai", "gpt-4.1", 1)
    seen = server.requests[0]
    assert seen.headers["authorization"] == "Bearer sk-test"
    assert (seen.headers["openai-organization"], seen.headers["openai-project"]) == ("org-1", "proj-1")
    assert seen.json()["messages"] == [{"role": "user", "content": "hello"}]
    assert seen.json().get("stream", False) == (mode == "stream")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(),
        Answer(pieces=(), calls=(ToolCall("c1", "get_weather", {"city": "Paris"}),)),
        Answer(
            pieces=("Let me see.",),
            thoughts=("Hm", "m."),
            calls=(ToolCall("c1", "get_weather", {"city": "Paris"}), ToolCall("c2", "get_weather", {"city": "Rome"})),
            interleaved=True,
            fragment=3,
        ),
        Answer(calls=(ToolCall("c1", "f", "{}"),), fragment=0),
        Answer(stop="length", tokens=None),
        Answer(pieces=(), stop="content_filter"),
    ],
)
async def test_whole_and_stream_are_the_same(server: FaultServer, provider: OpenAIProvider, answer: Answer) -> None:
    server.on("POST", scripts.PATH, scripts.answer(answer))
    request = ask(tools=[WEATHER])
    streamed = fold(await call(provider, request, "stream"))
    whole = fold(await call(provider, request, "complete"))
    assert streamed.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    assert [part.tool_call.call_id for part in whole.parts if part.HasField("tool_call")] == [
        made.call_id for made in answer.calls
    ]


@both
@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (scripts.error(400, message="bad"), InvalidRequest),
        (scripts.error(400, "context_length_exceeded"), ContextTooLong),
        (scripts.error(401), ProviderAuth),
        (scripts.error(404), NotFound),
        (scripts.error(429, "insufficient_quota"), ProviderQuota),
        (scripts.error(500), UpstreamError),
        (scripts.error(503), Overloaded),
        (scripts.cut_before_headers(), UpstreamError),
        (scripts.cut_before_content(), StreamBroken),
        (scripts.cut_after(2), StreamBroken),
        (scripts.stall_after(2), Timeout),
        (scripts.silent_end(), StreamBroken),
        (scripts.silent_end(0), StreamBroken),
        (scripts.in_band_error(), UpstreamError),
        (scripts.in_band_error(2, "rate_limit_exceeded"), RateLimited),
        (scripts.malformed_json(), StreamBroken),
        (scripts.malformed_json(2), StreamBroken),
        (lambda _: (Stall(),), Timeout),
    ],
)
async def test_every_way_to_fail(
    server: FaultServer, provider: OpenAIProvider, reply: Reply, expected: type[MaestroError], mode: str
) -> None:
    server.on("POST", scripts.PATH, reply)
    with pytest.raises(expected) as caught:
        await call(provider, ask(), mode)
    assert type(caught.value) is expected
    assert (caught.value.metadata["provider"], caught.value.metadata["model"]) == ("openai", "gpt-4.1")


@both
async def test_retry_after(server: FaultServer, provider: OpenAIProvider, mode: str) -> None:
    server.on("POST", scripts.PATH, scripts.rate_limited(3, {"X-Request-Id": "req_9"}))
    with pytest.raises(RateLimited) as caught:
        await call(provider, ask(), mode)
    assert caught.value.retry_after == 3.0
    assert caught.value.metadata["request_id"] == "req_9"


@both
async def test_what_the_limits_leave_is_told(server: FaultServer, provider: OpenAIProvider, mode: str) -> None:
    left = {"Remaining-Requests": "59", "Limit-Requests": "60", "Reset-Requests": "1s", "Remaining-Tokens": "-1"}
    head = Headers(200, {f"X-RateLimit-{name}": value for name, value in left.items()})

    def reply(seen: Seen) -> list[Step]:
        return [head, *(step for step in scripts.text()(seen) if not isinstance(step, Headers))]

    server.on("POST", scripts.PATH, reply)
    told = fold(await call(provider, ask(), mode)).headroom
    assert (told.requests.remaining, told.requests.limit, told.requests.reset.seconds) == (59, 60, 1)
    assert not told.HasField("tokens")
    server.on("POST", scripts.PATH, scripts.text())
    assert not fold(await call(provider, ask(), mode)).HasField("headroom")


async def test_what_came_before_the_cut_is_given_out(server: FaultServer, provider: OpenAIProvider) -> None:
    reached = asyncio.Event()
    server.on("POST", scripts.PATH, scripts.hold_after(2, reached))
    got: list[str] = []
    with pytest.raises(Timeout):
        async for batch in provider.stream(ask()):
            got += [event.text.text for event in batch if event.WhichOneof("kind") == "text"]
    assert "".join(got) == "Hello from"


async def test_nobody_listens() -> None:
    provider = connect(f"http://127.0.0.1:{free_port()}/v1")
    with pytest.raises(UpstreamError, match="can't be reached"):
        await provider.complete(ask())
    await provider.close()


async def test_warnings_come_after_started(server: FaultServer, provider: OpenAIProvider) -> None:
    server.on("POST", scripts.PATH, scripts.text())
    request = ask(temperature=0.5)
    request.model = "openai/gpt-6.2-sol"
    events = await call(provider, request, "stream")
    assert [event.WhichOneof("kind") for event in events[:2]] == ["started", "warning"]
    assert events[1].warning.field == "temperature"
    assert "temperature" not in server.requests[0].json()


async def test_connections_are_used_again(server: FaultServer, provider: OpenAIProvider) -> None:
    server.on("POST", scripts.PATH, scripts.text())
    for mode in ("stream", "complete", "stream", "stream"):
        await call(provider, ask(), mode)
    assert len(server.requests) == 4
    assert not any(seen.closed.is_set() for seen in server.requests)


async def test_a_finished_stream_does_not_wait_for_its_end(server: FaultServer, provider: OpenAIProvider) -> None:
    done = b'data: {"id":"r","choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    server.on("POST", scripts.PATH, Headers(200, {"content-type": "text/event-stream"}), Send(done), Stall())
    began = time.monotonic()
    events = await call(provider, ask(), "stream")
    assert events[-1].WhichOneof("kind") == "finish"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("pieces", [0, 2])
async def test_closing_the_stream_closes_the_socket(server: FaultServer, provider: OpenAIProvider, pieces: int) -> None:
    server.on("POST", scripts.PATH, scripts.stall_after(pieces))
    assert await close_stream(server, provider, ask(), "Hello from" if pieces else "") < CLOSE


@both
async def test_cancelling_closes_the_socket(server: FaultServer, provider: OpenAIProvider, mode: str) -> None:
    server.on("POST", scripts.PATH, lambda _: (Stall(),))
    assert await cancel_call(server, call(provider, ask(), mode)) < CLOSE


# --- an emulator of the provider --------------------------------------------------------------------------------------

CALLS = [
    {"name": "get_weather", "arguments": '{"city":"Paris"}', "id": "call_1"},
    {"name": "get_weather", "arguments": '{"city":"Rome"}', "id": "call_2"},
]
FIXTURES: list[dict[str, Any]] = [
    {"match": {"toolCallId": "call_1"}, "response": {"content": "It is sunny in Paris."}},
    {"match": {"userMessage": "hello"}, "response": {"content": "Hello! I am an emulator of a model."}},
    {"match": {"userMessage": "weather here"}, "response": {"toolCalls": CALLS[:1]}},
    {"match": {"userMessage": "weather everywhere"}, "response": {"toolCalls": CALLS}},
    {"match": {"userMessage": "a person"}, "response": {"content": '{"name":"Ada"}'}},
    {
        "match": {"userMessage": "limit"},
        "response": {"error": {"message": "Slow", "type": "rate_limit_error"}, "status": 429},
    },
    {
        "match": {"userMessage": "broken"},
        "response": {"error": {"message": "Boom", "type": "server_error"}, "status": 500},
    },
    {
        "match": {"userMessage": "key"},
        "response": {"error": {"message": "No", "type": "invalid_request_error"}, "status": 401},
    },
    {
        "match": {"userMessage": "cut"},
        "response": {"content": "This is a long answer that never ends. " * 5},
        "disconnectAfterMs": 120,
        "latency": 50,
        "chunkSize": 10,
    },
]


async def test_emulator() -> None:
    """One emulator for all of this: it takes a second to start."""
    async with Aimock(FIXTURES) as emulator:
        provider = connect(emulator.openai_url)
        for mode in ("stream", "complete"):
            response = fold(await call(provider, ask("hello"), mode))
            assert response.parts[0].text.text == "Hello! I am an emulator of a model."
            assert response.finish_reason == FinishReason.FINISH_REASON_STOP
            assert response.usage.output_tokens > 0

            assert names(fold(await call(provider, ask("weather here", tools=[WEATHER]), mode))) == ['{"city":"Paris"}']
            parallel = fold(await call(provider, ask("weather everywhere", tools=[WEATHER]), mode))
            assert names(parallel) == ['{"city":"Paris"}', '{"city":"Rome"}']
            assert parallel.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS

            turn = ask("weather here", tools=[WEATHER])
            turn.messages.add(role="ROLE_ASSISTANT").parts.extend(parallel.parts[:1])
            result = turn.messages.add(role="ROLE_TOOL").parts.add().tool_result
            result.call_id = parallel.parts[0].tool_call.call_id
            result.parts.add().text.text = "sunny"
            assert fold(await call(provider, turn, mode)).parts[0].text.text == "It is sunny in Paris."

            schema = {"json_schema": {"schema": '{"type":"object"}', "strict": True}}
            person = fold(await call(provider, ask("a person", response_format=schema), mode))
            assert person.parts[0].text.text == '{"name":"Ada"}'

            for text, expected in (("limit", RateLimited), ("broken", UpstreamError), ("key", ProviderAuth)):
                with pytest.raises(expected):
                    await call(provider, ask(text), mode)
        with pytest.raises(StreamBroken):
            await call(provider, ask("cut"), "stream")
        await provider.close()


def names(response: ChatResponse) -> list[str]:
    return [part.tool_call.arguments_json for part in response.parts if part.HasField("tool_call")]
