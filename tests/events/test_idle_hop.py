"""A first token that takes long, behind a hop that cuts what is idle: what streams survives, and what does not."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import grpc
import orjson
import pytest
from event_mesh import KEY, TTFT

from maestro.event.v1.event_pb2 import SUBSCRIPTION_NOTICE_KIND_READY, RequestStarted, SubscribeRequest
from maestro.event.v1.event_pb2_grpc import EventServiceStub
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.events import new_event
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.faults import FaultServer, Wait
from maestro_sdk.testing.hop import IdleHop
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.wire import PIECES

IDLE = TTFT * 2 / 3
METADATA = (("authorization", f"Bearer {KEY}"),)
# The SDK's own keep-alive is 30 s, as Envoy's: enough for the hops that there are, too long for a short test.
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 30_000 if TTFT > 60 else 500),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
]
TEXT = "".join(PIECES)


def begin_late(provider: FaultServer) -> None:
    answer = openai_chat.text(PIECES)
    provider.on("POST", openai_chat.PATH, lambda seen: (Wait(TTFT), *answer(seen)))


async def by_rest(caller: Caller) -> list[str]:
    return [event.json()["text"] for event in await caller.collect(question()) if event.name == "text"]


async def by_openai(caller: Caller) -> list[str]:
    body = {"model": "default", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    found = await _data(caller, "/v1/chat/completions", body)
    assert found[-1] == "[DONE]"
    deltas = [orjson.loads(each)["choices"] for each in found[:-1]]
    return [text for choices in deltas if choices and (text := choices[0]["delta"].get("content"))]


async def by_anthropic(caller: Caller) -> list[str]:
    body = {"model": "default", "stream": True, "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}
    found = [orjson.loads(each) for each in await _data(caller, "/v1/messages", body)]
    assert found[-1]["type"] == "message_stop"
    return [each["delta"]["text"] for each in found if each["type"] == "content_block_delta"]


async def _data(caller: Caller, path: str, body: Any) -> list[str]:
    async with caller.session.post(path, json=body) as response:
        assert response.status == 200, await response.text()
        text = await response.text()
    return [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]


async def by_socket(caller: Caller) -> list[str]:
    frames: list[Any] = []
    async with caller.socket() as socket:
        await socket.send_json({"type": "chat", "id": "c", "request": question()})
        while not frames or frames[-1]["type"] not in ("finish", "error"):
            frames.append(await socket.receive_json(timeout=TTFT + 20))
    assert frames[-1]["type"] == "finish"
    return [frame["text"] for frame in frames if frame["type"] == "text"]


async def by_grpc(target: str) -> list[str]:
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])
    async with grpc.aio.insecure_channel(target, options=KEEPALIVE) as channel:
        call = ChatServiceStub(channel).StreamChat(
            ChatRequest(messages=[message]), metadata=METADATA, timeout=TTFT + 30
        )
        events = [event async for part in call for event in part.events]
    assert events[-1].WhichOneof("kind") == "finish"
    return [event.text.text for event in events if event.HasField("text")]


async def quiet_socket(caller: Caller) -> list[str]:
    async with caller.socket("/v1/events/stream?kinds=request.started&job=quiet") as socket:
        await socket.receive_json(timeout=10)
        return [(await socket.receive_json(timeout=TTFT + 30))["request_started"]["request_id"]]


async def quiet_server_sent(caller: Caller) -> list[str]:
    async with caller.session.get("/v1/events/stream?kinds=request.started&job=quiet") as response:
        async for line in response.content:
            if line.startswith(b"data: ") and b'"type":"event"' in line:
                return [orjson.loads(line[6:])["request_started"]["request_id"]]
    raise AssertionError("the stream ended")


async def quiet_grpc(target: str) -> list[str]:
    async with grpc.aio.insecure_channel(target, options=KEEPALIVE) as channel:
        request = SubscribeRequest(kinds=["request.started"], job_id="quiet")
        call: Any = EventServiceStub(channel).Subscribe(request, metadata=METADATA)
        assert (await call.read()).notice.kind == SUBSCRIPTION_NOTICE_KIND_READY
        found = [event.request_started.request_id for event in (await call.read()).events]
        call.cancel()
        return found


async def unary(target: str) -> float:
    """The seconds after which the connection of a whole answer was cut."""
    headers = {"authorization": f"Bearer {KEY}"}
    begun = time.monotonic()
    async with aiohttp.ClientSession(f"http://{target}", headers=headers, timeout=aiohttp.ClientTimeout()) as session:
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.post("/v1/chat", json=question("unary"))
    return time.monotonic() - begun


async def test_a_first_token_that_takes_long_behind_an_idle_hop(
    mesh: MeshProcess, provider: FaultServer, publisher: EventPublisher, figures: list[str]
) -> None:
    begin_late(provider)
    async with IdleHop(mesh.target, IDLE) as hop, IdleHop(mesh.target, IDLE) as other, AsyncExitStack() as stack:
        caller = await stack.enter_async_context(Caller(f"http://{hop.address}", KEY))
        streams = {
            "SSE": by_rest(caller),
            "OpenAI SSE": by_openai(caller),
            "Anthropic SSE": by_anthropic(caller),
            "WebSocket": by_socket(caller),
            "gRPC": by_grpc(hop.address),
        }
        quiet = [quiet_socket(caller), quiet_server_sent(caller), quiet_grpc(hop.address)]
        begun = time.monotonic()
        waiting = [asyncio.create_task(each) for each in quiet]
        cutting = asyncio.create_task(unary(other.address))
        answers = dict(zip(streams, await asyncio.gather(*streams.values()), strict=True))
        took = time.monotonic() - begun
        assert {name: "".join(pieces) for name, pieces in answers.items()} == dict.fromkeys(streams, TEXT)
        # A sign of life is no piece of the answer.
        assert all(len(pieces) <= len(PIECES) and "" not in pieces for pieces in answers.values())
        assert took >= TTFT
        publisher.publish(new_event(RequestStarted(request_id="late", job_id="quiet"), "request/late", tenant="acme"))
        assert await asyncio.gather(*waiting) == [["late"]] * 3
        assert hop.cut == 0
        assert abs(await cutting - IDLE) < max(1.0, IDLE / 10)
        assert other.cut == 1
    figures.append(
        f"first token after {TTFT:g} s behind a hop that cuts after {IDLE:g} s idle: {', '.join(streams)} whole; "
        f"quiet event streams by 3 doors whole; a unary answer is cut after {IDLE:g} s"
    )
