"""One reader of NATS per tenant: what fits into its ring, what does not, and a stream that was made anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import Event, JobProgress, RequestStarted
from maestro_gateway.events import Feeds, Query
from maestro_gateway.events.entry import Entry
from maestro_gateway.events.feed import MOST, SIZE, Feed, Follower, Gap
from maestro_sdk.service.bus import STREAM
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.events import new_event
from maestro_sdk.service.stream_page import read_page
from maestro_sdk.testing.nats import NatsServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    yield server
    await server.kill()


@pytest.fixture
async def publisher(server: NatsServer, tmp_path: Path) -> AsyncIterator[EventPublisher]:
    async with EventPublisher(server.url, tmp_path / "spool") as publisher:
        yield publisher


@pytest.fixture
async def reader(server: NatsServer) -> AsyncIterator[EventReader]:
    async with EventReader(server.url) as reader:
        yield reader


def event(number: int, tenant: str = "acme") -> Event:
    return new_event(RequestStarted(request_id=f"r{number}"), f"request/r{number}", tenant=tenant)


async def collect(follower: Follower, count: int, found: list[Entry | Gap] | None = None) -> list[Entry | Gap]:
    """What comes, until there are `count` of it."""
    found = [] if found is None else found
    async with asyncio.timeout(10):
        async for step in follower.steps():
            found += step if isinstance(step, list) else [step] if step is not None else []
            if len(found) >= count:
                return found
    raise AssertionError("it ended")


def names(found: Sequence[Entry | Gap]) -> list[str]:
    return [
        each.event.request_started.request_id if isinstance(each, Entry) else f"gap {each.sequence}" for each in found
    ]


async def consumers(reader: EventReader) -> int:
    client, _ = await reader.connection()
    return int((await client.jetstream().stream_info(STREAM)).state.consumer_count)


async def test_all_followers_of_a_tenant_share_one_consumer(publisher: EventPublisher, reader: EventReader) -> None:
    feeds = Feeds(reader)
    async with (
        feeds.follow("acme", Query()) as one,
        feeds.follow("acme", Query(("job.*",))) as two,
        feeds.follow("globex", Query()) as three,
    ):
        taking = [asyncio.create_task(collect(follower, 1)) for follower in (one, two, three)]
        publisher.publish(event(1))
        publisher.publish(new_event(JobProgress(job_id="j"), "job/j", tenant="acme"))
        publisher.publish(event(2, "globex"))
        first, second, third = await asyncio.gather(*taking)
        assert (names(first)[0], names(third)) == ("r1", ["r2"])
        assert [each.event.kind for each in second if isinstance(each, Entry)] == ["job.progress"]
        assert (len(feeds), await consumers(reader)) == (2, 2)
    async with asyncio.timeout(5):
        while len(feeds) or await consumers(reader):
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("bad", ["*", ">", "acme.>", "a b", "", "acme\n"])
async def test_no_other_subject_than_that_of_one_tenant(reader: EventReader, bad: str) -> None:
    with pytest.raises(ValueError, match="is not a tenant"):
        async with Feeds(reader).follow(bad, Query()):
            pass


async def test_who_is_behind_the_ring_reads_pages_until_it_is_caught(
    publisher: EventPublisher, reader: EventReader
) -> None:
    """Followers from everywhere in the past, while more events come than the ring holds: each sees every event once."""
    feeds = Feeds(reader, ring=16)
    before, after = 3 * MOST + 7, 5 * MOST
    for number in range(before):
        publisher.publish(event(number))
        publisher.publish(event(number, "globex"))
    assert await publisher.flush()
    starts = [0, 1, 2 * MOST, 2 * before - 3, 2 * before]
    async with asyncio.TaskGroup() as group:
        ready: list[asyncio.Event] = []

        async def follow(start: int) -> None:
            left = [number for number in range(before) if 2 * number + 1 > start]
            wanted = [f"r{number}" for number in (*left, *range(before, before + after))]
            begun = asyncio.Event()
            ready.append(begun)
            async with feeds.follow("acme", Query(after=start)) as follower:
                begun.set()
                assert names(await collect(follower, len(wanted))) == wanted

        tasks = [group.create_task(follow(start)) for start in starts]
        await asyncio.sleep(0)
        await asyncio.gather(*(begun.wait() for begun in ready))
        for number in range(before, before + after):
            publisher.publish(event(number))
            if number % MOST == 0:
                await publisher.flush()
        await asyncio.gather(*tasks)


async def test_pages_are_bounded_in_bytes(publisher: EventPublisher, reader: EventReader) -> None:
    for number in range(100):
        large = event(number)
        large.request_started.requested_model = "m" * (20_000 if number < 50 else 10)
        publisher.publish(large)
    assert await publisher.flush()
    client, _ = await reader.connection()
    sizes: list[int] = []
    after, seen = 0, 0
    while seen < 100:
        page = await read_page(client, STREAM, ["maestro.events.acme.>"], after=after, most=MOST, size=SIZE)
        sizes.append(sum(len(data) for _, data in page.messages))
        after, seen = page.upto, seen + len(page.messages)
    assert max(sizes) < 2 * SIZE
    assert (after, len(sizes) < 20) == (100, True)


async def test_what_is_no_longer_kept_is_told(publisher: EventPublisher, reader: EventReader) -> None:
    for number in range(10):
        publisher.publish(event(number))
    assert await publisher.flush()
    client, _ = await reader.connection()
    await client.jetstream().purge_stream(STREAM, seq=6)
    async with Feeds(reader).follow("acme", Query(after=2)) as follower:
        assert names(await collect(follower, 6)) == ["gap 5", "r5", "r6", "r7", "r8", "r9"]


async def test_a_stream_that_was_made_anew(publisher: EventPublisher, reader: EventReader) -> None:
    feeds = Feeds(reader)
    for number in range(5):
        publisher.publish(event(number))
    assert await publisher.flush()
    async with feeds.follow("acme", Query(after=0)) as follower:
        found = await collect(follower, 5)
        feed = follower._feed
        feed.put([(1, event(100)), (2, event(101))])
        assert names(await collect(follower, 8, found))[5:] == ["gap 5", "r100", "r101"]
    # Who comes back with a sequence of a stream that is no more begins anew.
    async with feeds.follow("acme", Query(after=999)) as follower:
        assert (follower.start, names(await collect(follower, 5))) == (0, ["r0", "r1", "r2", "r3", "r4"])


async def test_the_ring_is_bounded_in_events_and_bytes(reader: EventReader) -> None:
    feed = Feed(reader, "acme", 8, 10_000)
    try:
        for number in range(1, 21):
            feed.put([(number, event(number))])
        assert (feed.floor, feed.head, feed.place_after(11), feed.place_after(12)) == (12, 20, None, 12)
        large: Any = event(21)
        large.request_started.requested_model = "m" * 9_000
        feed.put([(21, large)])
        assert (feed.floor, feed.place_after(20)) == (13, 20)
        feed.put([(22, large)])
        assert (feed.floor, feed.at(20), feed.place_after(21)) == (21, None, 21)
        big = Feed(reader, "acme", 8, 10 * SIZE)
        huge: Any = event(1)
        huge.request_started.requested_model = "m" * SIZE
        big.put([(1, huge), (2, huge), (3, event(3)), (4, event(4))])
        assert [len(big.at(place) or ()) for place in (0, 1, 2, 3, 4)] == [1, 1, 2, 1, 0]
        await big.end()
    finally:
        await feed.end()


async def test_events_come_without_loss_or_doubling_over_restarts_of_nats(
    server: NatsServer, publisher: EventPublisher, reader: EventReader
) -> None:
    feeds, total = Feeds(reader, ring=16), 300
    async with feeds.follow("acme", Query(after=0)) as early:
        taking = asyncio.create_task(collect(early, total))
        for number in range(total):
            publisher.publish(event(number))
            await asyncio.sleep(0.001)
            if number in (80, 180):
                await server.kill()
                await server.start()
        wanted = [f"r{number}" for number in range(total)]
        assert names(await taking) == wanted
        async with feeds.follow("acme", Query(after=0)) as late:
            assert names(await collect(late, total)) == wanted
