"""Many readers that take nothing, by every door: the gateways' memory stays bounded, and nobody else waits for them."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from event_mesh import KEY, READERS

from maestro.event.v1.event_pb2 import RequestCompleted, SubscribeRequest
from maestro.event.v1.event_pb2_grpc import EventServiceStub
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.event_client import EventClient
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.events import new_event
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.callers import question
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.stuck import StuckReader

METADATA = (("authorization", f"Bearer {KEY}"),)
EVENTS, LABEL = 150, "x" * 20_000
"""3 MB for each reader: more than all buffers on the way to one hold."""
PIECES = tuple("y" * 16_384 for _ in range(64))
"""An answer of 1 MB."""
EACH = 256 * 1024
"""Bytes of a gateway that a reader who takes nothing may hold."""
SLACK = 48 * 2**20
"""Bytes that a gateway may take for other reasons."""
GATEWAYS = ("gateway", "gateway-2")
SIDE_BY_SIDE = 40


def memory(mesh: MeshProcess, *names: str) -> int:
    """Bytes that processes hold."""
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for name in names:
        total += int(Path(f"/proc/{mesh.members()[name].pid}/statm").read_text().split()[1]) * page
    return total


async def settled(mesh: MeshProcess) -> int:
    """What the gateways hold once that has stopped to grow: the most of it."""
    most, quiet = 0, 0
    async with asyncio.timeout(60):
        while quiet < 5:
            await asyncio.sleep(0.1)
            now = memory(mesh, *GATEWAYS)
            quiet = quiet + 1 if now <= most + 2**20 else 0
            most = max(most, now)
    return most


@asynccontextmanager
async def readers(mesh: MeshProcess, kind: str) -> AsyncGenerator[None]:
    """A third of the readers by each door, all of them begun, none of them reading."""
    async with AsyncExitStack() as stack:
        turn = asyncio.Semaphore(SIDE_BY_SIDE)
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(mesh.target, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(1 + READERS // 300)
        ]
        calls: list[Any] = []

        async def begin(number: int) -> None:
            async with turn:
                if number % 3 == 2:
                    channel = channels[number % len(channels)]
                    call: Any
                    if kind == "events":
                        call = EventServiceStub(channel).Subscribe(SubscribeRequest(), metadata=METADATA)
                    else:
                        message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])
                        call = ChatServiceStub(channel).StreamChat(ChatRequest(messages=[message]), metadata=METADATA)
                    await call.read()
                    calls.append(call)
                    return
                reader = await stack.enter_async_context(StuckReader(mesh.target, KEY))
                match kind, number % 3:
                    case "events", 0:
                        await reader.request("GET", "/v1/events/stream", until=b'"ready"')
                    case "events", _:
                        await reader.upgrade("/v1/events/stream", until=b'"ready"')
                    case _, 0:
                        await reader.request("POST", "/v1/chat", question(stream=True), until=b"event: started")
                    case _:
                        frame = {"type": "chat", "id": "c", "request": question()}
                        await reader.upgrade("/v1/chat/stream", frame, until=b'"started"')

        async with asyncio.TaskGroup() as group:
            for number in range(READERS):
                group.create_task(begin(number))
        try:
            yield
        finally:
            for call in calls:
                call.cancel()


async def test_readers_of_events_that_take_nothing(
    mesh: MeshProcess, publisher: EventPublisher, figures: list[str]
) -> None:
    async with EventClient(mesh.url, KEY) as client:
        before, nats = memory(mesh, *GATEWAYS), memory(mesh, "nats")
        async with readers(mesh, "events"):
            idle, idle_nats = await settled(mesh), memory(mesh, "nats")
            ready = asyncio.Event()
            reading = asyncio.create_task(attentive(client, ready))
            await ready.wait()
            begun = time.monotonic()
            for number in range(EVENTS):
                done = RequestCompleted(request_id=f"s{number}", metadata={"label": LABEL})
                publisher.publish(new_event(done, f"request/s{number}", tenant="acme"))
            found = await reading
            took = time.monotonic() - begun
            assert found == [f"s{number}" for number in range(EVENTS)]
            slow = await settled(mesh)
    assert slow - idle < READERS * EACH + SLACK
    figures.append(
        f"{READERS} readers of events that take nothing ({EVENTS * len(LABEL) / 1e6:.0f} MB for each): "
        f"the gateways hold {mib(before)} before, {mib(idle)} with all of them idle, {mib(slow)} with all of them slow "
        f"({(slow - idle) / READERS / 1024:.0f} KiB each); NATS {mib(nats)}, {mib(idle_nats)}, "
        f"{mib(memory(mesh, 'nats'))}; one that reads has everything after {took:.1f} s"
    )


async def attentive(client: EventClient, ready: asyncio.Event) -> list[str]:
    """The requests of the events that a reader gets who reads."""
    found: list[str] = []
    async with asyncio.timeout(120):
        events = client.follow(kinds=["request.completed"], on_ready=lambda _: ready.set())
        try:
            async for event in events:
                if event.request_completed.request_id.startswith("s"):
                    found.append(event.request_completed.request_id)
                if len(found) == EVENTS:
                    return found
        finally:
            await events.aclose()
    raise AssertionError("the events ended")


async def test_readers_of_answers_that_take_nothing(
    mesh: MeshProcess, provider: FaultServer, figures: list[str]
) -> None:
    provider.on("POST", openai_chat.PATH, openai_chat.text(PIECES))
    before = memory(mesh, *GATEWAYS)
    async with readers(mesh, "chat"):
        slow = await settled(mesh)
    assert slow - before < READERS * EACH + SLACK
    figures.append(
        f"{READERS} readers of answers of {sum(map(len, PIECES)) / 1e6:.0f} MB that take nothing: the gateways hold "
        f"{mib(before)} before, {mib(slow)} then ({(slow - before) / READERS / 1024:.0f} KiB each)"
    )


def mib(size: int) -> str:
    """A size for people."""
    return f"{size / 2**20:.0f} MiB"
