"""Events with a real NATS: each once and in order, whatever dies in between; readers resume and see one tenant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import nats
import pytest

from maestro.event.v1 import event_pb2
from maestro.event.v1.event_pb2 import Event
from maestro_sdk.errors import NoBackend
from maestro_sdk.service.bus import Link, ensure_stream
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.event_reader import EventReader, filters
from maestro_sdk.service.events import new_event
from maestro_sdk.service.validation import validate
from maestro_sdk.testing.servers import free_port
from maestro_sdk.tracing import Call, enter_call


def started(number: int, tenant: str = "acme", **facts: Any) -> Event:
    payload = event_pb2.RequestStarted(request_id=f"req_{number}", **facts)
    return new_event(payload, f"request/req_{number}", tenant=tenant)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def read(url: str, count: int, tenant: str = "acme", **options: Any) -> list[tuple[int, Event]]:
    """The first `count` events, and proof that no further one follows."""
    found: list[tuple[int, Event]] = []
    async with EventReader(url) as reader, reader.subscribe(tenant, timeout=20, **options) as subscription:
        events = aiter(subscription)
        async with asyncio.timeout(20):
            while len(found) < count:
                found.append(await anext(events))
        following = asyncio.ensure_future(anext(events))
        assert not (await asyncio.wait((following,), timeout=0.2))[0], "there is one more"
        following.cancel()
        await asyncio.wait((following,))
        await events.aclose()
    return found


def ids(events: Sequence[Event]) -> list[str]:
    return [event.id for event in events]


async def test_an_event_says_what_the_contract_wants() -> None:
    enter_call(Call("req_1", "acme", f"00-{'a' * 32}-{'b' * 16}-01"))
    event = new_event(event_pb2.BackendHalfOpen(backend_id="a:p/m", probes=1), "backend/a:p/m")
    assert (event.tenant, event.kind, event.trace_id) == ("acme", "backend.half_open", "a" * 32)
    assert event.backend_half_open.probes == 1
    validate(event)
    many = [new_event(event_pb2.ConfigReloaded(), "service/x", tenant="_mesh").id for _ in range(300)]
    assert len(set(many)) == len(many)
    with pytest.raises(ValueError, match="is not a tenant"):
        new_event(event_pb2.ConfigReloaded(), "service/x", tenant="a.b")


@pytest.mark.parametrize("field", [field.name for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields])
def test_every_payload_has_a_kind_of_the_contract(field: str) -> None:
    event = new_event(getattr(Event(), field), "x/y", tenant="t")
    assert event.WhichOneof("payload") == field
    validate(event)


async def test_what_is_published_is_in_the_stream(nats_server: Any, tmp_path: Path) -> None:
    events = [started(number) for number in range(2000)]
    async with EventPublisher(nats_server.url, tmp_path / "a.events") as publisher:
        for event in events:
            publisher.publish(event)
        assert (publisher.accepted, publisher.secured) == (2000, 0), "a death would take them all"
        assert await publisher.flush(20)
        assert publisher.counters.delivered == publisher.secured == 2000
        assert publisher.ready
    found = await read(nats_server.url, 2000, after=0)
    assert ids([event for _, event in found]) == ids(events)
    assert [sequence for sequence, _ in found] == list(range(1, 2001))
    assert [event.sequence for _, event in found] == list(range(1, 2001))
    assert not (tmp_path / "a.events").exists()


async def test_events_of_an_outage_follow_once_and_in_order(nats_server: Any, tmp_path: Path) -> None:
    events = [started(number) for number in range(900)]
    seen: list[str] = []
    async with (
        EventReader(nats_server.url) as reader,
        EventPublisher(nats_server.url, tmp_path / "a.events") as publisher,
        reader.subscribe("acme", after=0, timeout=20) as subscription,
    ):

        async def follow() -> None:
            async for _, event in subscription:
                seen.append(event.id)

        following = asyncio.create_task(follow())
        await until(lambda: publisher.ready)
        for event in events[:300]:
            publisher.publish(event)
        # It dies while events are on their way.
        await until(lambda: publisher.counters.delivered or len(seen))
        await nats_server.kill()
        for event in events[300:600]:
            publisher.publish(event)
        await until(lambda: publisher.counters.waiting >= 300)
        await until(lambda: publisher.secured == 600)
        assert "NATS" in publisher.degraded
        assert not await publisher.flush(0.05)
        await nats_server.start()
        for event in events[600:]:
            publisher.publish(event)
        assert await publisher.flush(20)
        assert publisher.degraded == ""
        await until(lambda: len(seen) >= 900)
        following.cancel()
        await asyncio.wait((following,))
    assert seen == ids(events)
    found = await read(nats_server.url, 900, after=0)
    assert ids([event for _, event in found]) == ids(events)


async def test_events_wait_for_the_next_start(nats_server: Any, tmp_path: Path) -> None:
    events = [started(number) for number in range(50)]
    await nats_server.kill()
    async with EventPublisher(nats_server.url, tmp_path / "a.events") as publisher:
        for event in events[:40]:
            publisher.publish(event)
    await nats_server.start()
    async with EventPublisher(nats_server.url, tmp_path / "a.events") as publisher:
        assert publisher.counters.waiting == 40
        for event in events[40:]:
            publisher.publish(event)
        assert await publisher.flush(20)
    found = await read(nats_server.url, 50, after=0)
    assert ids([event for _, event in found]) == ids(events)


async def test_a_publisher_that_was_killed_lost_only_what_was_in_memory(nats_server: Any, tmp_path: Path) -> None:
    await nats_server.kill()
    path = tmp_path / "a.events"
    events = [started(number) for number in range(20)]
    async with EventPublisher(nats_server.url, path) as publisher:
        for event in events:
            publisher.publish(event)
        await until(lambda: publisher.counters.waiting == 20)
        left = path.read_bytes()
    # What a killed process leaves: the last record was being written.
    path.write_bytes(left[:-3])
    await nats_server.start()
    async with EventPublisher(nats_server.url, path) as publisher:
        assert await publisher.flush(20)
        assert publisher.counters.delivered == 19
    found = await read(nats_server.url, 19, after=0)
    assert ids([event for _, event in found]) == ids(events[:19])


async def test_an_event_that_is_sent_twice_is_kept_once(nats_server: Any, tmp_path: Path) -> None:
    event = started(1)
    for _ in range(2):
        async with EventPublisher(nats_server.url, tmp_path / "a.events") as publisher:
            publisher.publish(event)
            assert await publisher.flush(20)
    assert [found.id for _, found in await read(nats_server.url, 1, after=0)] == [event.id]


async def test_what_fits_nowhere_is_counted(tmp_path: Path) -> None:
    url = f"nats://127.0.0.1:{free_port()}"
    async with EventPublisher(url, tmp_path / "a.events", queue=100, spool_bytes=2000) as publisher:
        for number in range(250):
            publisher.publish(started(number))
        counters = publisher.counters
        assert (counters.queued, counters.waiting + counters.dropped) == (100, 150)
    counters = publisher.counters
    assert 10 < counters.waiting < 30
    assert counters.waiting + counters.dropped == 250
    assert (tmp_path / "a.events").stat().st_size <= 2000


async def test_leaving_takes_no_time_when_nats_is_gone(nats_server: Any, tmp_path: Path) -> None:
    async with asyncio.timeout(15):
        async with EventPublisher(nats_server.url, tmp_path / "a.events") as publisher:
            await until(lambda: publisher.ready)
            await nats_server.kill()
            await until(lambda: not publisher.ready)
            begun = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begun < 3


async def test_a_stream_that_refuses_loses_nothing(nats_server: Any, tmp_path: Path) -> None:
    events = [started(number) for number in range(30)]

    async def limit(most: int) -> None:
        async def prepare(client: Any) -> None:
            await ensure_stream(client, 86400)
            js = client.jetstream()
            config = (await js.stream_info("MAESTRO_EVENTS")).config
            config.max_msgs, config.discard = most, "new" if most > 0 else "old"
            await js.update_stream(config)
            done.set()

        done = asyncio.Event()
        link = Link(nats_server.url, "test", lambda: None)
        keeping = asyncio.create_task(link.keep(prepare))
        await asyncio.wait_for(done.wait(), 20)
        keeping.cancel()
        await asyncio.wait((keeping,))

    await limit(10)
    async with EventPublisher(nats_server.url, tmp_path / "a.events", retention=86400) as publisher:
        for event in events:
            publisher.publish(event)
        await until(lambda: "maximum messages exceeded; 20 events wait on the disk" in publisher.degraded)
        await limit(-1)
        assert await publisher.flush(20)
        assert publisher.counters.dropped == 0
    found = await read(nats_server.url, 30, after=0)
    assert ids([event for _, event in found]) == ids(events)


async def test_a_stream_that_somebody_deletes_is_made_anew(nats_server: Any, tmp_path: Path) -> None:
    before, events = started(0), [started(number) for number in range(1, 31)]
    async with EventPublisher(nats_server.url, tmp_path / "a.events") as publisher:
        publisher.publish(before)
        assert await publisher.flush()
        client = await cast("Any", nats).connect(nats_server.url)
        try:
            await client.jetstream().delete_stream("MAESTRO_EVENTS")
        finally:
            await client.close()
        for event in events:
            publisher.publish(event)
        assert await publisher.flush(10)
        assert (publisher.degraded, publisher.counters.dropped) == ("", 0)
    found = await read(nats_server.url, 30, after=0)
    assert ids([event for _, event in found]) == ids(events)


async def test_a_tenant_sees_only_its_own(nats_server: Any, tmp_path: Path) -> None:
    events = [started(number, tenant=("acme", "globex", "acme2")[number % 3]) for number in range(9)]
    async with EventPublisher(nats_server.url, tmp_path / "a.events") as publisher:
        for event in events:
            publisher.publish(event)
        assert await publisher.flush(20)
    for tenant in ("acme", "globex", "acme2"):
        found = await read(nats_server.url, 3, tenant, after=0)
        assert ids([event for _, event in found]) == ids([event for event in events if event.tenant == tenant])


async def test_a_reader_resumes_and_filters(nats_server: Any, tmp_path: Path) -> None:
    events = [
        started(0),
        started(1, job_id="j1"),
        new_event(event_pb2.JobQueued(job_id="j1", total=3), "job/j1", tenant="acme"),
        new_event(event_pb2.JobQueued(job_id="j2", total=3), "job/j2", tenant="acme"),
        new_event(event_pb2.RequestFailed(request_id="r"), "request/r", tenant="acme"),
    ]
    async with EventPublisher(nats_server.url, tmp_path / "a.events") as publisher:
        for event in events:
            publisher.publish(event)
        assert await publisher.flush(20)
    url = nats_server.url
    assert [sequence for sequence, _ in await read(url, 2, after=3)] == [4, 5]
    assert [sequence for sequence, _ in await read(url, 3, after=0, kinds=["request.*", "request.failed"])] == [1, 2, 5]
    assert [sequence for sequence, _ in await read(url, 3, after=0, kinds=["request.failed", "job.queued"])] == [
        3,
        4,
        5,
    ]
    assert [sequence for sequence, _ in await read(url, 2, after=0, job="j1")] == [2, 3]
    # Without `after` only what comes from now on.
    assert await read(url, 0) == []


async def test_from_now_on_begins_when_the_subscription_stands(nats_server: Any, tmp_path: Path) -> None:
    old, new = started(1), started(2)
    async with (
        EventReader(nats_server.url) as reader,
        EventPublisher(nats_server.url, tmp_path / "a.events") as publisher,
    ):
        publisher.publish(old)
        assert await publisher.flush(20)
        async with reader.subscribe("acme") as subscription:
            assert (subscription.newest, subscription.lost) == (1, 0)
            publisher.publish(new)
            assert await publisher.flush(20)
            batches = subscription.batches()
            batch = await asyncio.wait_for(anext(batches), 20)
            await batches.aclose()
    assert [(sequence, event.id) for sequence, event in batch] == [(2, new.id)]


async def test_what_is_no_longer_kept_is_told(nats_server: Any, tmp_path: Path) -> None:
    async with EventPublisher(nats_server.url, tmp_path / "a.events") as publisher:
        for number in range(10):
            publisher.publish(started(number))
        assert await publisher.flush(20)
    async with EventReader(nats_server.url) as reader:
        client, _ = await asyncio.wait_for(reader.connection(), 20)
        await client.jetstream().purge_stream("MAESTRO_EVENTS", seq=6)
        async with reader.subscribe("acme", after=2) as subscription:
            assert (subscription.newest, subscription.lost) == (10, 5)
            events = aiter(subscription)
            assert (await asyncio.wait_for(anext(events), 20))[0] == 6
            await events.aclose()


async def test_reading_without_nats_is_an_error_soon() -> None:
    async with EventReader(f"nats://127.0.0.1:{free_port()}") as reader:
        with pytest.raises(NoBackend, match="NATS can't be reached"):
            async with reader.subscribe("acme", timeout=0.6):
                pass


def test_a_family_swallows_its_members() -> None:
    assert filters("t", []) == ["maestro.events.t.>"]
    assert filters("t", ["job.queued", "job.*", "request.failed"]) == [
        "maestro.events.t.job.*",
        "maestro.events.t.request.failed",
    ]
