"""`GET /v1/events/stream` on a real NATS: own tenant only, filters, resume by sequence, slow readers, bad queries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from maestro.event.v1.event_pb2 import JobProgress, JobQueued, RequestCompleted, RequestStarted
from maestro.llm.v1.chat_pb2 import FinishReason
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_gateway.events import Query
from maestro_gateway.events.entry import Entry
from maestro_gateway.events.feed import Gap
from maestro_gateway.events.query import read_parameters
from maestro_gateway.events.socket import EventSocket
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.events import new_event
from maestro_sdk.testing.scripted import ScriptedProvider

from .conftest import OTHER_KEY, Gateway, Start


@pytest.fixture
async def publisher(nats_url: str, tmp_path: Path) -> AsyncIterator[EventPublisher]:
    async with EventPublisher(nats_url, tmp_path / "spool") as publisher:
        yield publisher


@pytest.fixture
async def gateway(start: Start, nats_url: str) -> AsyncIterator[Gateway]:
    async with EventReader(nats_url) as reader:
        yield await start(ScriptedProvider(), events=reader)


def started(number: int, tenant: str = "acme") -> Any:
    return new_event(RequestStarted(request_id=f"r{number}"), f"request/r{number}", tenant=tenant)


async def receive(socket: Any, count: int) -> list[dict[str, Any]]:
    return [await socket.receive_json(timeout=5) for _ in range(count)]


async def test_events_of_the_own_tenant_only_and_resume(gateway: Gateway, publisher: EventPublisher) -> None:
    async with gateway.socket(path="/v1/events/stream") as socket:
        (ready,) = await receive(socket, 1)
        assert (ready["type"], ready["kind"]) == ("notice", "ready")
        for number in range(4):
            publisher.publish(started(number, "acme" if number % 2 else "globex"))
        usage = Usage(input_tokens=3, output_tokens=5)
        done = RequestCompleted(
            request_id="r9", usage=usage, cost=Cost(usd="0.054390"), finish_reason=FinishReason.FINISH_REASON_TOOL_CALLS
        )
        done.latency.FromNanoseconds(1_500_000_000)
        publisher.publish(new_event(done, "request/r9", tenant="acme"))
        first, second, third = await receive(socket, 3)
    assert [event["request_started"]["request_id"] for event in (first, second)] == ["r1", "r3"]
    assert {event["tenant"] for event in (first, second, third)} == {"acme"}
    assert third["kind"] == "request.completed"
    assert third["request_completed"] == {
        "request_id": "r9",
        "finish_reason": "tool_calls",
        "usage": {"input_tokens": 3, "output_tokens": 5},
        "cost": {"usd": "0.054390"},
        "latency": 1.5,
    }
    assert first["sequence"] < second["sequence"] < third["sequence"]
    async with gateway.socket(path=f"/v1/events/stream?after={first['sequence']}") as socket:
        _, *again = await receive(socket, 3)
    assert [event["sequence"] for event in again] == [second["sequence"], third["sequence"]]
    async with gateway.socket(OTHER_KEY, "/v1/events/stream?after=0") as socket:
        _, *others = await receive(socket, 3)
    assert [event["request_started"]["request_id"] for event in others] == ["r0", "r2"]


@pytest.mark.parametrize("kinds", ["request.compleated", "requests.*", "nope", "request.", "*", ">", "job.*.x", "\0"])
def test_a_kind_that_there_is_not_is_refused(kinds: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_parameters([("kinds", f"job.*,{kinds}")])
    assert [violation.field for violation in caught.value.violations] == ["kinds[1]"]
    assert "request.completed" in caught.value.message


async def test_filters(gateway: Gateway, publisher: EventPublisher) -> None:
    publisher.publish(started(1))
    publisher.publish(new_event(JobQueued(job_id="j1", total=3), "job/j1", tenant="acme"))
    publisher.publish(new_event(JobProgress(job_id="j2"), "job/j2", tenant="acme"))
    publisher.publish(new_event(JobProgress(job_id="j1"), "job/j1", tenant="acme"))
    assert await publisher.flush()
    async with gateway.socket(path="/v1/events/stream?after=0&kinds=job.progress,request.*") as socket:
        _, *found = await receive(socket, 4)
    assert [event["kind"] for event in found] == ["request.started", "job.progress", "job.progress"]
    async with gateway.socket(path="/v1/events/stream?after=0&kinds=job.*&job=j1") as socket:
        _, *found = await receive(socket, 3)
    assert [event["kind"] for event in found] == ["job.queued", "job.progress"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("after=-1", "after"),
        ("after=x", "after"),
        ("after=99999999999999999999", "after"),
        ("kinds=Request", "kinds[0]"),
        (f"job={'j' * 129}", "job"),
        ("kind=request.started", "kind"),
    ],
)
async def test_a_bad_query_is_refused_before_the_upgrade(start: Start, query: str, field: str) -> None:
    gateway = await start(ScriptedProvider())
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with gateway.socket(path=f"/v1/events/stream?{query}"):
            pass
    assert caught.value.status == 400
    items = [(name, value) for name, _, value in (pair.partition("=") for pair in query.split("&"))]
    with pytest.raises(InvalidRequest) as wrong:
        read_parameters(items)
    assert wrong.value.violations[0].field == field


def test_a_good_query() -> None:
    items = [("kinds", "request.*, job.progress"), ("kinds", "tool.failed"), ("job", "j1"), ("after", "0")]
    assert read_parameters(items) == Query(("request.*", "job.progress", "tool.failed"), "j1", 0)
    assert read_parameters([("access_token", "x")]) == Query()


async def test_no_events_without_nats(start: Start, unused_tcp_port: int) -> None:
    async with EventReader(f"nats://127.0.0.1:{unused_tcp_port}") as reader:
        gateway = await start(ScriptedProvider(), events=reader)
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with gateway.socket(path="/v1/events/stream"):
                pass
    assert caught.value.status == 503


async def test_a_drain_says_where_to_go_on(gateway: Gateway, publisher: EventPublisher) -> None:
    async with gateway.socket(path="/v1/events/stream") as socket:
        await receive(socket, 1)
        publisher.publish(started(1))
        (event,) = await receive(socket, 1)
        draining = asyncio.create_task(gateway.sockets.drain(5))
        (notice,) = await receive(socket, 1)
        assert (notice["kind"], notice["sequence"]) == ("draining", event["sequence"])
        assert (await socket.receive(timeout=5)).data == 1001
        await draining


class Stuck:
    """A socket whose peer takes nothing after the first `free` frames."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.frames: list[bytes] = []
        self.closed_with = 0
        self.over = asyncio.Event()

    async def send_frame(self, frame: bytes, opcode: Any) -> None:
        self.frames.append(frame)
        if len(self.frames) > self.free:
            await asyncio.Event().wait()

    async def close(self, *, code: int, message: bytes) -> None:
        self.closed_with = code
        self.over.set()

    def __aiter__(self) -> Stuck:
        return self

    async def __anext__(self) -> Any:
        await self.over.wait()
        raise StopAsyncIteration


class Endless:
    """A follower that never runs dry."""

    start, newest = 5, 5

    async def steps(self, idle: float | None = None) -> AsyncIterator[list[Entry] | Gap | None]:
        assert idle is None or idle > 0
        yield Gap(3)
        sequence = self.newest
        while True:
            sequence += 1
            yield [Entry(sequence, started(sequence))]


async def test_a_reader_that_takes_nothing_is_dropped_with_a_notice() -> None:
    socket: Any = Stuck(free=4)
    endless: Any = Endless()

    running = asyncio.create_task(EventSocket(socket, endless, callers=False, patience=0.05).run())
    async with asyncio.timeout(5):
        while not any(b"slow_consumer" in frame for frame in socket.frames):
            await asyncio.sleep(0.01)
    kinds = [frame.split(b'"kind":"')[1].split(b'"')[0] for frame in socket.frames]
    assert kinds == [b"ready", b"gap", b"request.started", b"request.started", b"request.started", b"slow_consumer"]
    assert b'"sequence":7' in socket.frames[-1]
    socket.over.set()
    await running
