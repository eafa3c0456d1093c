"""Processes that go away: what is under way ends well, and what comes next is answered."""

import asyncio
import json
import signal
import time
from typing import Any

import aiohttp
import grpc
import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshMember, MeshProcess
from maestro_sdk.testing.wire import PIECES

OPENAI = "openai/gpt-6.1-terra"
PACE = 1.25
"""Seconds between pieces: four gaps make a stream of five seconds."""
Taken = tuple[str, str, float]
"""What came by one way: the text, the kind of the last event, and the seconds that it took."""


async def back(mesh: MeshProcess, caller: Caller, before: MeshMember, model: str) -> None:
    """Waits until a process was started again, a request that needs it succeeds, and Envoy knows all doors as open."""
    await mesh.wait_restarted(before)
    async with asyncio.timeout(20):
        while True:
            try:
                answer = await caller.chat(question(model=model))
                if answer.status == 200 and (await caller.get("/readyz")).status == 200:
                    return
            except aiohttp.ClientConnectionError:
                pass  # nobody listens there yet
            await asyncio.sleep(0.1)


async def by_rest(caller: Caller) -> Taken:
    began = time.monotonic()
    events = await caller.collect(question(model=OPENAI))
    text = "".join(event.json()["text"] for event in events if event.name == "text")
    assert events[-1].data == "[DONE]"
    return text, events[-2].name, events[-2].at - began


async def by_socket(caller: Caller) -> Taken:
    frames: list[Any] = []
    async with caller.socket() as socket:
        await socket.send_json({"type": "chat", "id": "c", "request": question(model=OPENAI)})
        began = time.monotonic()
        while not frames or frames[-1]["type"] not in ("finish", "error"):
            frames.append(await socket.receive_json(timeout=15))
    text = "".join(frame["text"] for frame in frames if frame["type"] == "text")
    return text, frames[-1]["type"], time.monotonic() - began


async def by_grpc(caller: Caller, target: str) -> Taken:
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])
    began = time.monotonic()
    async with grpc.aio.insecure_channel(target) as channel:
        request = ChatRequest(model=OPENAI, messages=[message])
        call = ChatServiceStub(channel).StreamChat(request, metadata=caller.metadata, timeout=30)
        events = [event async for part in call for event in part.events]
    text = "".join(event.text.text for event in events if event.HasField("text"))
    return text, events[-1].WhichOneof("kind") or "", time.monotonic() - began


@pytest.mark.parametrize("name", ["gateway", "adapter-openai"])
async def test_sigterm_lets_streams_of_five_seconds_end(
    mesh: MeshProcess, alpha: Caller, provider: FaultServer, figures: list[str], name: str
):
    provider.on("POST", openai_chat.PATH, openai_chat.text(PIECES, pace=PACE))
    ways = {"REST": by_rest(alpha), "WebSocket": by_socket(alpha), "gRPC": by_grpc(alpha, mesh.target)}
    streams = [asyncio.create_task(way) for way in ways.values()]
    await provider.request(len(streams) - 1)
    await asyncio.sleep(0.3)
    assert not any(stream.done() for stream in streams)
    before = mesh.kill(name, signal.SIGTERM)
    for way, (text, end, lasted) in zip(ways, await asyncio.gather(*streams), strict=True):
        assert (way, text, end) == (way, "".join(PIECES), "finish")
        assert lasted > 4 * PACE * 0.9
        figures.append(f"SIGTERM to {name} during a stream: {way:<9} went on to its end, {lasted:.1f} s in all")
    await back(mesh, alpha, before, OPENAI)


async def test_an_adapter_killed_mid_run_is_replaced_by_the_fallback(
    mesh: MeshProcess, alpha: Caller, provider: FaultServer
):
    provider.on("POST", openai_chat.PATH, openai_chat.text("from openai"))
    provider.on("POST", anthropic_messages.PATH, anthropic_messages.text("from the fallback"))
    assert (await alpha.chat(question(model="openai-first"))).json()["text"] == "from openai"
    before = mesh.kill("adapter-openai")
    answers = await asyncio.gather(*(alpha.chat(question(model="openai-first")) for _ in range(5)))
    assert {answer.status for answer in answers} == {200}
    assert {answer.json()["text"] for answer in answers} == {"from the fallback"}
    events = await alpha.collect(question(model="openai-first"))
    assert [event.name for event in events].count("started") == 1
    assert events[-1].data == "[DONE]"
    alone = await alpha.chat(question(model=OPENAI))
    if alone.status != 200:  # the adapter may be back already
        assert alone.status == 503
        assert "openai" in json.dumps(alone.error)
    await back(mesh, alpha, before, OPENAI)


async def test_an_adapter_killed_during_a_stream_ends_it_with_an_error(
    mesh: MeshProcess, alpha: Caller, provider: FaultServer
):
    provider.on("POST", openai_chat.PATH, openai_chat.stall_after(2))
    provider.on("POST", openai_chat.PATH, openai_chat.text())
    before: MeshMember | None = None
    names: list[str] = []
    async with alpha.stream(question(model="openai-first")) as events:
        async for event in events:
            names.append(event.name or event.data)
            if event.name == "text" and before is None:
                before = mesh.kill("adapter-openai")
    assert names[-1] == "error"
    assert "finish" not in names
    assert before is not None
    await back(mesh, alpha, before, OPENAI)


async def test_a_killed_router_costs_no_request(mesh: MeshProcess, alpha: Caller, provider: FaultServer):
    provider.on("POST", openai_chat.PATH, openai_chat.text())
    before = mesh.kill("router")
    returned = asyncio.create_task(mesh.wait_restarted(before))
    asked = 0
    while not returned.done() or asked < 20:
        answer = await alpha.chat(question(model="openai-first"))
        assert answer.status == 200, answer.body
        events = await alpha.collect(question(model=OPENAI))
        assert events[-1].data == "[DONE]"
        asked += 1
    await returned
    assert (await alpha.chat(question(model="openai-first"))).status == 200


async def test_without_nats_chat_goes_on_and_events_come_later(mesh: MeshProcess, alpha: Caller):
    async with alpha.socket("/v1/events/stream") as socket:
        newest = (await socket.receive_json(timeout=10))["sequence"]
    before = mesh.kill("nats")
    answer = await alpha.post("/v1/chat", question(model="fast"), {"x-request-id": "while-nats-is-away"})
    assert answer.status == 200, answer.body
    await mesh.wait_restarted(before)
    kinds: list[str] = []
    async with asyncio.timeout(20):
        while "request.completed" not in kinds:
            kinds = await _follow(alpha, newest, "while-nats-is-away")
    assert kinds == ["request.started", "request.completed"]


async def _follow(caller: Caller, after: str, request_id: str) -> list[str]:
    """The kinds of the events of one request since a sequence, up to its end, or to that of the connection."""
    kinds: list[str] = []
    try:
        async with caller.socket(f"/v1/events/stream?after={after}") as socket:
            while "request.completed" not in kinds:
                frame = await socket.receive_json(timeout=5)
                if frame["type"] == "event" and frame["subject"] == f"request/{request_id}":
                    kinds.append(frame["kind"])
    except (aiohttp.ClientError, TypeError, TimeoutError):
        # NATS is not back yet, or the gateway has not found it again.
        await asyncio.sleep(0.2)
    return kinds
