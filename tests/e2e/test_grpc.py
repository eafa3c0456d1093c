"""Generated stubs through Envoy and at the gateway itself, gRPC-Web, and the law: unary is the fold of the stream."""

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, Tool
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import GetInfoRequest, ListModelsRequest
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import InvalidRequest, MaestroError, NotFound, RateLimited, Unauthenticated, from_rpc_error
from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.callers import Caller
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.wire import PIECES, Answer, Tokens, ToolCall

OPENAI, ANTHROPIC = "openai/gpt-6.1-terra", "anthropic/claude-sonnet-5-5"
CALLS = (ToolCall("c1", "add", {"a": 1, "b": 2}), ToolCall("c2", "find", {"query": "x"}))


@pytest.fixture(params=["envoy", "gateway"])
def target(request: pytest.FixtureRequest) -> str:
    """Where a channel goes: through Envoy, or to the gateway itself."""
    return str(request.param)


@pytest_asyncio.fixture(loop_scope="session")
async def channel(target: str, mesh: MeshProcess) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the mesh."""
    async with grpc.aio.insecure_channel(mesh.target if target == "envoy" else mesh.address("gateway")) as opened:
        yield opened


def ask(model: str = "", text: str = "hello") -> ChatRequest:
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return ChatRequest(model=model, messages=[message])


async def stream(channel: grpc.aio.Channel, request: ChatRequest, caller: Caller) -> list[ChatEvent]:
    call = ChatServiceStub(channel).StreamChat(request, metadata=caller.metadata, timeout=10)
    return [event async for message in call for event in message.events]


async def refusal(call: grpc.aio.UnaryUnaryCall[ChatRequest, ChatResponse]) -> MaestroError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_chat_and_stream(channel: grpc.aio.Channel, alpha: Caller, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.text())
    unary = await ChatServiceStub(channel).Chat(ask(OPENAI), metadata=alpha.metadata, timeout=10)
    assert (unary.parts[0].text.text, f"{unary.provider}/{unary.model}") == ("".join(PIECES), OPENAI)
    events = await stream(channel, ask(OPENAI), alpha)
    assert [event.text.text for event in events if event.HasField("text")] == list(PIECES)
    assert [events[0].WhichOneof("kind"), events[-1].WhichOneof("kind")] == ["started", "finish"]


async def test_the_default_route_and_the_offline_model(channel: grpc.aio.Channel, alpha: Caller):
    unary = await ChatServiceStub(channel).Chat(ask(), metadata=alpha.metadata, timeout=10)
    assert (unary.provider, unary.model) == ("local", "offline")
    assert unary.parts[0].text.text


async def test_models_and_info(channel: grpc.aio.Channel, alpha: Caller):
    stub = ModelServiceStub(channel)
    models = await stub.ListModels(ListModelsRequest(), metadata=alpha.metadata, timeout=10)
    ids = [model.id for model in models.models]
    assert {OPENAI, ANTHROPIC, "local/offline"} <= set(ids)
    assert ids == sorted(ids)
    info = await stub.GetInfo(GetInfoRequest(), metadata=alpha.metadata, timeout=10)
    assert info.ready
    assert list(info.spi_versions) == ["maestro.llm.v1"]


async def test_health_needs_no_key(channel: grpc.aio.Channel):
    stub: Any = HealthStub(channel)  # generated without types
    answer = await stub.Check(HealthCheckRequest(), timeout=5)
    assert answer.status == HealthCheckResponse.SERVING


async def test_errors_keep_their_details(channel: grpc.aio.Channel, target: str, alpha: Caller, provider: FaultServer):
    stub = ChatServiceStub(channel)
    model = "openai/gpt-6-astra" if target == "envoy" else "openai/gpt-6-sol"
    provider.on("POST", openai_chat.PATH, openai_chat.rate_limited(7))
    # A backend of its own: while the limit lasts, the mesh asks it nothing more.
    limited = await refusal(stub.Chat(ask(model), metadata=alpha.metadata, timeout=30))
    assert type(limited) is RateLimited
    assert limited.retry_after is not None
    assert 0 < limited.retry_after <= 7
    assert limited.metadata["provider"] == "openai"
    unknown = await refusal(stub.Chat(ask("nope"), metadata=alpha.metadata, timeout=10))
    assert type(unknown) is NotFound
    empty = await refusal(stub.Chat(ChatRequest(), metadata=alpha.metadata, timeout=10))
    assert type(empty) is InvalidRequest
    assert [violation.field for violation in empty.violations] == ["messages"]
    stranger = await refusal(stub.Chat(ask(), timeout=10))
    assert type(stranger) is Unauthenticated


async def test_a_callers_deadline_reaches_the_provider(channel: grpc.aio.Channel, alpha: Caller, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.stall_after(0))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ChatServiceStub(channel).Chat(ask(OPENAI), metadata=alpha.metadata, timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(2):
        await provider.requests[0].closed.wait()


FAULT_FREE = {
    "text": (OPENAI, openai_chat.WIRE, Answer()),
    "cached": (OPENAI, openai_chat.WIRE, Answer(tokens=Tokens(input=100, output=20, cache_read=60, reasoning=5))),
    "one call": (OPENAI, openai_chat.WIRE, Answer(pieces=(), calls=CALLS[:1])),
    "two calls": (OPENAI, openai_chat.WIRE, Answer(pieces=("I see.",), calls=CALLS)),
    "interleaved calls": (OPENAI, openai_chat.WIRE, Answer(pieces=(), calls=CALLS, interleaved=True)),
    "length": (OPENAI, openai_chat.WIRE, Answer(stop="length")),
    "claude text": (ANTHROPIC, anthropic_messages.WIRE, Answer()),
    "claude cached": (
        ANTHROPIC,
        anthropic_messages.WIRE,
        Answer(tokens=Tokens(input=90, cache_read=3, cache_write_5m=80)),
    ),
    "claude calls": (ANTHROPIC, anthropic_messages.WIRE, Answer(pieces=("I see.",), calls=CALLS)),
    "claude thinks": (
        ANTHROPIC,
        anthropic_messages.WIRE,
        Answer(pieces=("Yes.",), thoughts=("Let me", " think"), signature="c2ln"),
    ),
}


@pytest.mark.parametrize("script", FAULT_FREE)
async def test_unary_is_the_fold_of_the_stream(mesh: MeshProcess, alpha: Caller, provider: FaultServer, script: str):
    model, wire, answer = FAULT_FREE[script]
    provider.on("POST", wire.path, wire.answer(answer))
    tools = [Tool(name=call.name, input_schema='{"type":"object"}') for call in answer.calls]
    request = ask(model)
    request.tools.extend(tools)
    async with grpc.aio.insecure_channel(mesh.target) as channel:
        unary = await ChatServiceStub(channel).Chat(request, metadata=alpha.metadata, timeout=10)
        folded = fold(await stream(channel, request, alpha))
    assert unary == folded
    assert unary.SerializeToString(deterministic=True) == folded.SerializeToString(deterministic=True)


def frame(data: bytes) -> bytes:
    return struct.pack(">BI", 0, len(data)) + data


def unframe(body: bytes) -> tuple[list[bytes], dict[str, str]]:
    """The messages and the trailers of a gRPC-Web answer."""
    messages: list[bytes] = []
    trailers: dict[str, str] = {}
    while body:
        flags, length = struct.unpack(">BI", body[:5])
        data, body = body[5 : 5 + length], body[5 + length :]
        if flags & 0x80:
            trailers = {
                name: value.strip() for name, _, value in (line.partition(":") for line in data.decode().split("\r\n"))
            }
        else:
            messages.append(data)
    return messages, trailers


async def test_grpc_web(alpha: Caller, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.text())
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": "http://localhost:3000"}
    path = "/maestro.llm.v1.ChatService/Chat"
    answer = await alpha.post(path, frame(ask(OPENAI).SerializeToString()), headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/grpc-web+proto")
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    messages, trailers = unframe(answer.body)
    assert ChatResponse.FromString(messages[0]).parts[0].text.text == "".join(PIECES)
    assert trailers["grpc-status"] == "0"
    provider.reset()
    provider.on("POST", openai_chat.PATH, openai_chat.text(PIECES, pace=0.05))
    path = "/maestro.llm.v1.ChatService/StreamChat"
    answer = await alpha.post(path, frame(ask(OPENAI).SerializeToString()), headers)
    messages, trailers = unframe(answer.body)
    assert len(messages) >= 2
    assert trailers["grpc-status"] == "0"


async def test_grpc_web_refusal(nobody: Caller):
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", "origin": "http://localhost:3000"}
    answer = await nobody.post("/maestro.llm.v1.ChatService/Chat", frame(ask().SerializeToString()), headers)
    _, trailers = unframe(answer.body)
    assert (trailers or answer.headers)["grpc-status"] == "16"


@pytest.mark.parametrize("path", ["/maestro.llm.v1.ChatService/Chat", "/v1/chat"])
async def test_preflight_needs_no_key(nobody: Caller, path: str):
    headers = {
        "origin": "http://localhost:3000",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-grpc-web",
    }
    async with nobody.session.options(path, headers=headers) as response:
        assert response.status in (200, 204)
        assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "authorization" in response.headers["access-control-allow-headers"]
        assert "POST" in response.headers["access-control-allow-methods"]


async def test_preflight_of_a_foreign_page_is_not_allowed(nobody: Caller):
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    async with nobody.session.options("/v1/chat", headers=headers) as response:
        assert "access-control-allow-origin" not in response.headers
