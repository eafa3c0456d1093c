"""Ollama's own wire over real HTTP: each way in which a server can fail, discovery, embeddings, and gRPC before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import orjson
import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, FinishReason
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_adapter_local.models import BASIC_FEATURES, Knowledge
from maestro_adapter_local.ollama.discovery import Tag, read_show, read_tags
from maestro_adapter_local.ollama.provider import OllamaServer
from maestro_adapter_local.settings import ServerSettings
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
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, SendJson, Stall, Step, Wait
from maestro_sdk.testing.servers import Aimock, serve
from maestro_sdk.testing.wire import Answer, Tokens, ToolCall

CLOSE = 2
"""Seconds within which a caller's going away has to reach the server's socket."""
SHOWN = {
    "details": {"family": "qwen3", "families": ["qwen3"]},
    "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960, "qwen3.block_count": 36},
    "capabilities": ["completion", "tools", "thinking"],
}
TAGS = {"models": [{"name": "qwen3:8b", "model": "qwen3:8b", "digest": "d1", "details": {"family": "qwen3"}}]}

Way = Callable[[OllamaServer, ChatRequest], Awaitable[ChatResponse]]


async def streamed(provider: OllamaServer, request: ChatRequest) -> ChatResponse:
    return fold([event async for events in provider.stream(request) for event in events])


async def completed(provider: OllamaServer, request: ChatRequest) -> ChatResponse:
    return fold(await provider.complete(request))


BOTH = pytest.mark.parametrize("way", [streamed, completed])


@asynccontextmanager
async def ollama(url: str, **settings: Any) -> AsyncGenerator[OllamaServer]:
    """The provider for a server at `url`, closed at the end."""
    read = ServerSettings.model_validate({"name": "box", "base_url": url, "api": "ollama", **settings})
    provider = OllamaServer(read, Knowledge(read), {"authorization": "Bearer sk-local"})
    try:
        yield provider
    finally:
        await provider.close()


def ask(text: str = "hi", model: str = "local/qwen3:8b", **fields: Any) -> ChatRequest:
    turn = {"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}
    return ParseDict({"model": model, "messages": [turn], **fields}, ChatRequest())


def named(model: Model) -> set[str]:
    return {Feature.Name(entry.feature).removeprefix("FEATURE_") for entry in model.features}


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
@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_leaving_a_stream_closes_the_socket(pieces: int, how: str) -> None:
    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("POST", wire.PATH, wire.stall_after(pieces))
        reached = asyncio.Event()

        async def read() -> None:
            text = ""
            async for events in provider.stream(ask()):
                text += "".join(event.text.text for event in events)
                if text == ("Hello from" if pieces else ""):
                    reached.set()

        if how == "cancel":
            task = asyncio.create_task(read())
            await reached.wait()
            begun = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            stream = cast("AsyncGenerator[Any]", provider.stream(ask()))
            await anext(stream)
            begun = time.monotonic()
            await stream.aclose()
        seen = await server.request()
        await asyncio.wait_for(seen.closed.wait(), CLOSE)
        assert seen.closed_at is not None
        assert seen.closed_at - begun < CLOSE


async def test_cancelling_a_unary_call_closes_the_socket() -> None:
    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("POST", wire.PATH, wire.slow_first_token(30))
        task = asyncio.create_task(provider.complete(ask()))
        seen = await server.request()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(seen.closed.wait(), CLOSE)


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


async def test_discovery_asks_for_each_model_once() -> None:
    name = "nomic-embed-text:latest"
    other: dict[str, Any] = {"name": name, "digest": "d2", "details": {"family": "nomic-bert"}}
    shown = {"qwen3:8b": SHOWN, name: {"capabilities": ["embedding"], "model_info": {}}}

    def show(seen: Seen) -> list[Step]:
        return [SendJson(shown[seen.json()["model"]])]

    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("GET", "/api/tags", SendJson({"models": [*TAGS["models"], other]}))
        server.on("POST", "/api/show", show)
        found = {model.name: model for model in await provider.refresh()}
        await provider.refresh()
        assert len([seen for seen in server.requests if seen.path == "/api/show"]) == 2
    qwen = found["qwen3:8b"]
    assert named(qwen) == {*BASIC_FEATURES, "JSON_SCHEMA", "LOGPROBS", "TOOLS", "PARALLEL_TOOLS", "REASONING"}
    assert (qwen.id, qwen.family, qwen.context_window) == ("local/qwen3:8b", "qwen3", 40960)
    assert not qwen.HasField("price")
    assert named(found[name]) == {"EMBEDDINGS"}


async def test_a_changed_model_is_shown_anew_and_one_that_is_not_shown_has_the_basics() -> None:
    async with FaultServer() as server, ollama(server.url, list_timeout="200ms") as provider:
        server.on("GET", "/api/tags", SendJson(TAGS))
        server.on("GET", "/api/tags", SendJson({"models": [{**TAGS["models"][0], "digest": "d9"}]}))
        server.on("POST", "/api/show", Headers(500), SendJson({"error": "oops"}))
        server.on("POST", "/api/show", Stall())
        server.on("POST", "/api/show", SendJson(SHOWN))
        for _ in range(2):
            (model,) = await provider.refresh()
            assert named(model) == set(BASIC_FEATURES)
        (model,) = await provider.refresh()
        assert "TOOLS" in named(model)


async def test_many_models_that_are_not_shown_do_not_hold_up_the_list() -> None:
    tags = [{"name": f"m{number:02}", "digest": str(number)} for number in range(40)]
    async with FaultServer() as server, ollama(server.url, list_timeout="100ms") as provider:
        server.on("GET", "/api/tags", SendJson({"models": tags}))
        server.on("POST", "/api/show", Stall())
        begun = time.monotonic()
        models = await provider.refresh()
        assert time.monotonic() - begun < 0.9, "not ten times the timeout"
    assert len(models) == 40
    assert all(named(model) == set(BASIC_FEATURES) for model in models)


@pytest.mark.parametrize(
    ("shown", "num_ctx", "window"),
    [
        ({}, None, None),
        ({}, 2048, 2048),
        ({"model_info": {"x.context_length": 4096}}, None, 4096),
        ({"model_info": {"x.context_length": 4096}}, 2048, 2048),
        ({"model_info": {"x.context_length": 4096}}, 8192, 4096),
        ({"model_info": {"x.context_length": 4096}, "parameters": 'stop "</s>"\nnum_ctx    1024'}, None, 1024),
        ({"model_info": {"x.context_length": "many"}, "parameters": 7}, None, None),
    ],
)
def test_windows(shown: dict[str, Any], num_ctx: int | None, window: int | None) -> None:
    served = read_show(orjson.dumps({"details": {}, **shown}), Tag("m", "", ""), num_ctx)
    assert served.context_window == window
    assert served.features is None


@pytest.mark.parametrize(
    ("shown", "features", "levels"),
    [
        (b'{"capabilities": ["completion"]}', {*BASIC_FEATURES, "JSON_SCHEMA", "LOGPROBS", "PREFILL"}, False),
        (
            b'{"capabilities": ["completion", "thinking"]}',
            {*BASIC_FEATURES, "JSON_SCHEMA", "LOGPROBS", "REASONING"},
            False,
        ),
        (b'{"capabilities": ["completion"], "remote_host": "https://ollama.com"}', set(BASIC_FEATURES), False),
        (b'{"capabilities": ["completion", "insert", "vision"], "details": {"family": "gptoss"}}', None, True),
        (b'{"capabilities": ["embedding"]}', {"EMBEDDINGS"}, False),
        (b'{"capabilities": ["new", 7]}', set[str](), False),
    ],
)
def test_capabilities(shown: bytes, features: set[str] | None, levels: bool) -> None:
    served = read_show(shown, Tag("m", "", ""))
    assert set(served.features or ()) == (
        {*BASIC_FEATURES, *("JSON_SCHEMA", "LOGPROBS", "VISION", "PREFILL")} if features is None else features
    )
    assert served.think_levels is levels


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"models": {}}', b"<html>"])
def test_a_list_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_tags(body)


def test_odd_entries_of_a_list_are_passed_over() -> None:
    body = b'{"models": [{"name": "b"}, {"name": ""}, {"x": 1}, 7, {"model": "a", "digest": 7, "details": []}]}'
    assert read_tags(body) == [Tag("a", "", ""), Tag("b", "", "")]


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
