"""A caller who leaves closes the provider's socket: by every way in, unary and streamed, before and after a token."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import orjson
import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.testing import anthropic_messages, bedrock_converse, gemini_content, ollama_chat, openai_chat
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.faults import FaultServer, Seen
from maestro_sdk.testing.mesh import MeshProcess

LIMIT = 0.5
"""Seconds that the way down may take. The mesh promises it, not a machine that is busy otherwise."""
TRIES = 3
"""So one of so many tries has to keep it; the socket has to be closed by each."""
WIRES = {
    "openai": (openai_chat.WIRE, "openai/gpt-6.1-terra"),
    "anthropic": (anthropic_messages.WIRE, "anthropic/claude-sonnet-5-5"),
    "gemini": (gemini_content.WIRE, "vertex/gemini-2.5-flash"),
    "bedrock": (bedrock_converse.WIRE, "bedrock/amazon.nova-pro-v1:0"),
    "ollama": (ollama_chat.WIRE, "local/llama"),
}
Leave = Callable[[FaultServer, Caller, MeshProcess, str, bool], Coroutine[Any, Any, float]]
"""Asks, waits until the provider has the request (or, after the first token, until that is here), leaves; says when."""


async def arrived(provider: FaultServer) -> Seen:
    return await provider.request(0)


async def leave_rest_unary(provider: FaultServer, caller: Caller, mesh: MeshProcess, model: str, token: bool) -> float:
    call = asyncio.create_task(caller.chat(question(model=model)))
    await arrived(provider)
    await asyncio.sleep(0.05)  # the half document of the provider has arrived at its adapter
    call.cancel()
    left = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await call
    return left


async def leave_rest_stream(provider: FaultServer, caller: Caller, mesh: MeshProcess, model: str, token: bool) -> float:
    if not token:
        data = orjson.dumps(question(model=model, stream=True))
        call = asyncio.create_task(caller.post("/v1/chat", data))
        await arrived(provider)
        await asyncio.sleep(0.05)
        call.cancel()
        left = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await call
        return left
    async with caller.stream(question(model=model)) as events:
        async for event in events:
            if event.name == "text":
                break
    return time.monotonic()


async def leave_socket(provider: FaultServer, caller: Caller, mesh: MeshProcess, model: str, token: bool) -> float:
    async with caller.socket() as socket:
        await socket.send_json({"type": "chat", "id": "c", "request": question(model=model)})
        await arrived(provider)
        while token and (await socket.receive_json(timeout=10))["type"] != "text":
            pass
        # As a browser that is closed: no goodbye.
        left = time.monotonic()
        await caller.close()
    return left


async def leave_grpc(
    provider: FaultServer, mesh: MeshProcess, caller: Caller, model: str, *, stream: bool, token: bool
) -> float:
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])
    request = ChatRequest(model=model, messages=[message])
    async with grpc.aio.insecure_channel(mesh.target) as channel:
        stub = ChatServiceStub(channel)
        if not stream:
            call = stub.Chat(request, metadata=caller.metadata)
            waiting = asyncio.ensure_future(_outcome(call))
            await arrived(provider)
            await asyncio.sleep(0.05)
            call.cancel()
            left = time.monotonic()
            assert await waiting is grpc.StatusCode.CANCELLED
            return left
        flow = stub.StreamChat(request, metadata=caller.metadata)
        if token:
            async for part in flow:
                if any(event.HasField("text") for event in part.events):
                    break
        else:
            reading = asyncio.ensure_future(_drain(flow))
            await arrived(provider)
            await asyncio.sleep(0.05)
            reading.cancel()
        flow.cancel()
        return time.monotonic()


async def _outcome(call: Any) -> grpc.StatusCode:
    try:
        await call
    except asyncio.CancelledError:
        return grpc.StatusCode.CANCELLED
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def _drain(flow: Any) -> None:
    async for _ in flow:
        pass


async def leave_grpc_unary(provider: FaultServer, caller: Caller, mesh: MeshProcess, model: str, token: bool) -> float:
    return await leave_grpc(provider, mesh, caller, model, stream=False, token=token)


async def leave_grpc_stream(provider: FaultServer, caller: Caller, mesh: MeshProcess, model: str, token: bool) -> float:
    return await leave_grpc(provider, mesh, caller, model, stream=True, token=token)


WAYS: dict[str, Leave] = {
    "REST unary": leave_rest_unary,
    "REST stream": leave_rest_stream,
    "WebSocket": leave_socket,
    "gRPC unary": leave_grpc_unary,
    "gRPC stream": leave_grpc_stream,
}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("token", [False, True], ids=["before-first-token", "after-first-token"])
@pytest.mark.parametrize("way", WAYS)
async def test_leaving_closes_the_providers_socket(
    provider: FaultServer, alpha: Caller, mesh: MeshProcess, figures: list[str], way: str, token: bool, wire: str
):
    script, model = WIRES[wire]
    # Before: the provider has not sent a byte. After: two pieces (of a unary answer, half of its document).
    provider.on("POST", script.path, script.stall_after(2) if token else script.stall_before_headers())
    took = math.inf
    for _ in range(TRIES):
        left = await WAYS[way](provider, alpha, mesh, model, token)
        seen = provider.requests[0]
        async with asyncio.timeout(5):
            await seen.closed.wait()
        assert seen.closed_at is not None
        took = seen.closed_at - left
        assert len(provider.requests) == 1, "nobody tries again for a caller who is gone"
        provider.requests.clear()
        if took < LIMIT:
            break
    moment = "after" if token else "before"
    figures.append(
        f"caller leaves, provider's socket closed: {way:<11} {moment:<6} first token, {wire:<9} {took * 1000:4.0f} ms"
    )
    assert took < LIMIT
