"""Ollama's own wire over real HTTP: each way in which a server can fail, embeddings, and gRPC before it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, FinishReason
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.servicer import ChatServicer
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
    from_rpc_error,
)
from maestro_sdk.testing import ollama_chat as wire
from maestro_sdk.testing.asking import CLOSE, Leave, Way, cancel_call, cancel_stream, close_stream, completed, streamed
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, SendJson, Step, Wait
from maestro_sdk.testing.servers import Aimock, serve
from maestro_sdk.testing.wire import Answer, Tokens, ToolCall

from .ollama_box import SHOWN, TAGS, ollama

BOTH = pytest.mark.parametrize("way", [streamed, completed])


def ask(text: str = "hi", model: str = "local/qwen3:8b", **fields: Any) -> ChatRequest:
    turn = {"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}
    return ParseDict({"model": model, "messages": [turn], **fields}, ChatRequest())


@BOTH
async def test_the_call(way: Way) -> None:
    async with FaultServer() as server, ollama(server.url + "/", keep_alive="5m", num_ctx=4096) as provider:
        server.on("POST", wire.PATH, wire.text(tokens=Tokens(input=12, output=5)))
        answer = await way(provider, ask(max_tokens=7))
        seen = server.requests[0]
    assert answer.parts[0].text.text == "Hello from the other side."
    assert (answer.provider, answer.model) == ("local", "qwen3:8b")
    assert answer.response_id.startswith("ollama_")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (12, 5)
    assert seen.headers["authorization"] == "Bearer sk-local"
    assert seen.json() == {
        "model": "qwen3:8b",
        "messages": [{"role": "user", "content": "hi"}],
        "truncate": False,
        "options": {"num_ctx": 4096, "num_predict": 7},
        "keep_alive": "5m",
        "stream": way is streamed,
    }


async def test_both_ways_give_the_same_answer() -> None:
    script = Answer(
        pieces=("I look.",),
        thoughts=("Let me", " think."),
        calls=(ToolCall("", "weather", '{"city":"Paris"}'), ToolCall("", "weather", '{"city":"Rome"}')),
    )
    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("POST", wire.PATH, wire.answer(script))
        one, other = await streamed(provider, ask()), await completed(provider, ask())
    for answer in (one, other):
        for part in answer.parts:
            if part.HasField("tool_call"):
                assert part.tool_call.call_id.startswith(f"call_{answer.response_id}_")
                part.tool_call.call_id = ""
        answer.response_id = ""
    assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
    assert [part.WhichOneof("kind") for part in one.parts] == ["reasoning", "text", "tool_call", "tool_call"]
    assert [part.tool_call.arguments_json for part in one.parts[2:]] == ['{"city":"Paris"}', '{"city":"Rome"}']
    assert one.parts[0].origin.api == "ollama_chat"
    assert one.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS


async def test_reasoning_goes_back_with_its_calls_and_results() -> None:
    script = Answer(pieces=(), thoughts=("I look.",), calls=(ToolCall("", "weather", {"city": "Paris"}),))
    async with FaultServer() as server, ollama(server.url, features=["TOOLS", "REASONING"]) as provider:
        server.on("POST", wire.PATH, wire.answer(script))
        server.on("POST", wire.PATH, wire.text("It is sunny."))
        request = ask(tools=[{"name": "weather"}])
        first = await streamed(provider, request)
        request.messages.add(role="ROLE_ASSISTANT").parts.extend(first.parts)
        call = first.parts[1].tool_call
        result = request.messages.add(role="ROLE_TOOL").parts.add().tool_result
        result.call_id = call.call_id
        result.parts.add().text.text = "sunny"
        await streamed(provider, request)
        assistant, tool = server.requests[1].json()["messages"][1:]
    assert assistant["thinking"] == "I look."
    assert assistant["tool_calls"] == [
        {"id": call.call_id, "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    ]
    assert tool == {"role": "tool", "content": "sunny", "tool_name": "weather", "tool_call_id": call.call_id}


async def test_a_connection_is_used_again() -> None:
    def reply(seen: Seen) -> list[Step]:
        # The end of the body comes later than the end of the answer.
        return [*wire.text()(seen), Wait(0.01)]

    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("POST", wire.PATH, reply)
        for way in (streamed, completed, streamed):
            await way(provider, ask())
        assert not any(seen.closed.is_set() for seen in server.requests)
        assert len(server.requests) == 3


async def test_deltas_arrive_as_they_are_sent() -> None:
    go_on = asyncio.Event()
    async with FaultServer() as server, ollama(server.url) as provider:
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
        (wire.in_band_error(2, message="server busy, please try again"), Overloaded),
        (wire.in_band_error(0), UpstreamError),
        (wire.stall_after(2), Timeout),
        (wire.stall_after(0), Timeout),
        (wire.stall_before_headers(), Timeout),
        (wire.error(503), Overloaded),
        (wire.error(401), ProviderAuth),
        (wire.error(404, message="model 'qwen3:8b' not found"), NotFound),
    ],
)
async def test_faults(way: Way, script: Any, expected: type[MaestroError]) -> None:
    async with FaultServer() as server, ollama(server.url, read_timeout="200ms") as provider:
        server.on("POST", wire.PATH, script)
        with pytest.raises(MaestroError) as caught:
            await way(provider, ask())
        assert len(server.requests) == 1, "retries are the dispatcher's"
    assert type(caught.value) is expected
    assert (caught.value.metadata["provider"], caught.value.metadata["model"]) == ("local", "qwen3:8b")


async def test_events_before_a_fault_are_delivered() -> None:
    got: list[ChatEvent] = []
    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("POST", wire.PATH, wire.in_band_error(2))
        with pytest.raises(UpstreamError, match="it broke"):
            async for events in provider.stream(ask()):
                got.extend(events)
    assert "".join(event.text.text for event in got) == "Hello from"
    assert not any(event.HasField("finish") for event in got)


@BOTH
async def test_retry_after_reaches_the_caller(way: Way) -> None:
    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("POST", wire.PATH, wire.rate_limited(3))
        with pytest.raises(RateLimited) as caught:
            await way(provider, ask())
    assert caught.value.retry_after == 3.0


@BOTH
async def test_strict_fails_before_the_server_is_asked(way: Way) -> None:
    async with FaultServer() as server, ollama(server.url) as provider:
        with pytest.raises(UnsupportedParameter):
            await way(provider, ask(logprobs={}, strict=True))
        assert server.requests == []


@pytest.mark.parametrize("pieces", [0, 2], ids=["before the first token", "within the answer"])
@pytest.mark.parametrize("leave", [close_stream, cancel_stream])
async def test_leaving_a_stream_closes_the_socket(pieces: int, leave: Leave) -> None:
    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("POST", wire.PATH, wire.stall_after(pieces))
        assert await leave(server, provider, ask(), "Hello from" if pieces else "") < CLOSE


async def test_cancelling_a_unary_call_closes_the_socket() -> None:
    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("POST", wire.PATH, wire.slow_first_token(30))
        assert await cancel_call(server, provider.complete(ask())) < CLOSE


async def test_over_grpc() -> None:
    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("GET", "/api/tags", SendJson(TAGS))
        server.on("POST", "/api/show", SendJson(SHOWN))
        await provider.refresh()
        async with (
            serve(ChatServicer(provider)) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            chat: Any = ChatServiceStub(channel)
            server.on("POST", wire.PATH, wire.text())
            whole = await chat.Chat(ask())
            events = [event async for message in chat.StreamChat(ask()) for event in message.events]
            assert fold(events).parts == whole.parts
            assert whole.finish_reason == FinishReason.FINISH_REASON_STOP
            server.on("POST", wire.PATH, wire.cut_after(3))
            text = ""
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for message in chat.StreamChat(ask()):
                    text += "".join(event.text.text for event in message.events)
            assert text == "Hello from the"
            assert type(from_rpc_error(caught.value)) is StreamBroken
            server.on("POST", wire.PATH, wire.stall_after(2))
            call = chat.StreamChat(ask())
            assert (await call.read()).events[0].HasField("started")
            call.cancel()
            await asyncio.wait_for((await server.request(len(server.requests) - 1)).closed.wait(), CLOSE)


async def test_embeddings() -> None:
    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("POST", "/api/embed", SendJson({"embeddings": [[0.6, 0.8], [1.0, 0.0]], "prompt_eval_count": 4}))
        server.on("POST", "/api/embed", Headers(400), SendJson({"error": "input length exceeds the context length"}))
        request = ParseDict({"model": "local/nomic", "inputs": [{"text": "a"}, {"text": "b"}]}, EmbedRequest())
        response = await provider.embed(request)
        assert [vector.index for vector in response.embeddings] == [0, 1]
        assert response.usage.input_tokens == 4
        with pytest.raises(MaestroError) as caught:
            await provider.embed(request)
    assert (caught.value.reason, caught.value.metadata["model"]) == ("CONTEXT_TOO_LONG", "nomic")


async def test_the_emulator_answers() -> None:
    """What it does not have (`/api/show`, thinking) is proven above."""
    call = {"id": "x", "name": "weather", "arguments": '{"city":"Paris"}'}
    fixtures: list[dict[str, Any]] = [
        {"match": {"userMessage": "hello"}, "response": {"content": "Hello from the emulator."}},
        {"match": {"userMessage": "tool"}, "response": {"toolCalls": [call, {**call, "name": "clock"}]}},
        {"match": {"userMessage": "limit"}, "response": {"error": {"message": "slow", "type": "x"}, "status": 429}},
    ]
    async with Aimock(fixtures, chunk=5) as aimock, ollama(aimock.url, features=["TOOLS"]) as provider:
        assert await provider.refresh()
        for way in (streamed, completed):
            answer = await way(provider, ask("hello"))
            assert answer.parts[0].text.text == "Hello from the emulator."
            assert answer.finish_reason == FinishReason.FINISH_REASON_STOP
            answer = await way(provider, ask("tool", tools=[{"name": "weather"}, {"name": "clock"}]))
            assert [part.tool_call.name for part in answer.parts] == ["weather", "clock"]
            assert answer.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
            with pytest.raises(RateLimited):
                await way(provider, ask("limit"))
