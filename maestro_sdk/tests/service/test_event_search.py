"""Searching the stream's past on a real NATS: the own tenant's events only, from a moment on, within bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from maestro.event.v1 import event_pb2
from maestro.event.v1.event_pb2 import Event
from maestro_sdk.errors import NoBackend
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.event_search import Search
from maestro_sdk.service.events import new_event
from maestro_sdk.testing.servers import free_port

KINDS = ("request.completed", "request.failed")


def completed(name: str, tenant: str = "acme") -> Event:
    return new_event(event_pb2.RequestCompleted(request_id=name), f"request/{name}", tenant=tenant)


@pytest.fixture
async def publisher(nats_server: Any, tmp_path: Path) -> AsyncIterator[EventPublisher]:
    async with EventPublisher(nats_server.url, tmp_path / "spool") as publisher:
        yield publisher


@pytest.fixture
async def reader(nats_server: Any) -> AsyncIterator[EventReader]:
    async with EventReader(nats_server.url) as reader:
        yield reader


def looking(name: str, since: float = 0.0, *, first: bool = True, **more: Any) -> tuple[Search, list[Event]]:
    found: list[Event] = []

    def take(event: Event) -> bool:
        found.append(event)
        return first

    return Search("acme", KINDS, since, name.encode(), take, **more), found


async def test_what_is_sought_is_found_among_many(publisher: EventPublisher, reader: EventReader) -> None:
    for number in range(2500):
        publisher.publish(completed(f"req_{number}"))
        publisher.publish(completed(f"req_{number}", "globex"))
        publisher.publish(new_event(event_pb2.RequestStarted(request_id=f"req_{number}"), "request/x", tenant="acme"))
    assert await publisher.flush()
    search, found = looking("request/req_2400")
    await search.run(reader, timeout=10)
    assert [(event.tenant, event.request_completed.request_id) for event in found] == [("acme", "req_2400")]
    assert (search.enough, search.seen) == (True, 2401)
    search, found = looking("request/req_7", first=False)
    await search.run(reader, timeout=10)
    assert len(found) == 111, "7, 70 to 79, 700 to 799"
    assert (search.enough, search.seen) == (False, 2500)
    search, found = looking("nothing of that", most=1200)
    await search.run(reader, timeout=10)
    assert (found, search.seen) == ([], 1200)


async def test_the_past_before_the_moment_is_not_looked_at(publisher: EventPublisher, reader: EventReader) -> None:
    publisher.publish(completed("req_old"))
    assert await publisher.flush()
    moment = time.time()
    while time.time() < moment + 0.05:
        await asyncio.sleep(0.01)
    search, found = looking("req_old", time.time())
    await search.run(reader, timeout=10)
    assert (found, search.seen) == ([], 0)
    search, found = looking("req_old", moment - 60)
    await search.run(reader, timeout=10)
    assert len(found) == 1


async def test_what_is_on_its_way_is_waited_for(publisher: EventPublisher, reader: EventReader) -> None:
    publisher.publish(completed("req_1"))
    assert await publisher.flush()
    search, found = looking("req_2")
    running = asyncio.create_task(search.run(reader, timeout=10, linger=5.0))
    await until(lambda: search.seen)
    begun = time.monotonic()
    publisher.publish(completed("req_2"))
    await running
    assert (len(found), search.enough) == (1, True)
    assert time.monotonic() - begun < 2
    search, _ = looking("req_3")
    begun = time.monotonic()
    await search.run(reader, timeout=10, linger=0.2)
    assert (search.enough, search.seen) == (False, 2)
    assert 0.15 < time.monotonic() - begun < 3


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def test_without_nats_it_says_so_and_does_not_hang() -> None:
    async with EventReader(f"nats://127.0.0.1:{free_port()}") as reader:
        search, _ = looking("req_1")
        begun = time.monotonic()
        with pytest.raises(NoBackend, match="can't be read now: NATS can't be reached"):
            await search.run(reader, timeout=0.5)
        assert time.monotonic() - begun < 3


async def test_nats_that_dies_meanwhile(nats_server: Any, publisher: EventPublisher, reader: EventReader) -> None:
    publisher.publish(completed("req_1"))
    assert await publisher.flush()
    search, _ = looking("req_2")
    running = asyncio.create_task(search.run(reader, timeout=1.5, linger=60.0))
    await until(lambda: search.seen)
    await nats_server.kill()
    with pytest.raises(NoBackend, match="can't be read now"):
        await running
