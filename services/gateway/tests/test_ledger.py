"""The ledger in a real NATS: each request once, whatever happens to NATS, to its streams and to gateways."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import nats
import pytest

from maestro_gateway.ledger import STREAM, Ledger, ensure_ledger
from maestro_gateway.ledger.stream import BUCKET, KINDS
from maestro_sdk.errors import NoBackend
from maestro_sdk.service import bus
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.testing.nats import NatsServer

from .spending import Meter, attempt, completed, failed, metered

DAY = 86400.0
HOUR = 3600 * 10**9
FULL = bool(os.environ.get("LEDGER_FULL"))
"""Whether to wait for what takes NATS long."""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


@asynccontextmanager
async def client_of(server: NatsServer) -> AsyncGenerator[Any]:
    client = await cast("Any", nats).connect(server.url)
    try:
        yield client
    finally:
        await client.close()


async def spent_when_read(ledger: Ledger, since: float) -> tuple[int, int]:
    """What is spent, as soon as the ledger can be read."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await ledger.spent("acme", since)
            except NoBackend:
                await asyncio.sleep(0.05)


async def copied(client: Any, messages: int) -> dict[str, Any]:
    """The ledger's state once it holds so many entries."""
    async with asyncio.timeout(45):
        while True:
            found = json.loads((await client.request(f"$JS.API.STREAM.INFO.{STREAM}")).data)
            if found.get("state", {}).get("messages", 0) >= messages:
                return found
            await asyncio.sleep(0.02)


async def test_what_is_spent_is_known_at_once(server: NatsServer, tmp_path: Path) -> None:
    async with EventPublisher(server.url, tmp_path / "a.events") as publisher, Ledger(server.url) as ledger:
        for number in range(50):
            publisher.publish(completed(attempt(1001), attempt(7, model="m-2"), team=f"t{number % 2}"))
            publisher.publish(completed(attempt(5), tenant="other"))
        assert await publisher.flush()
        now = time.time()
        assert await ledger.spent("acme", now - DAY) == (50 * 1008, 50 * 22)
        assert await ledger.spent("acme", now - DAY, labels={"team": "t1"}) == (25 * 1008, 25 * 22)
        assert await ledger.spent("acme", now - DAY, key_id="k2") == (0, 0)
        assert await ledger.spent("acme", now - DAY, now - 60) == (0, 0)
        assert await ledger.spent("acme", now - 60, now + 60) == (50 * 1008, 50 * 22)
        assert await ledger.spent("nobody", 0.0) == (0, 0)
        assert await ledger.tenants() == ["acme", "other"]


async def test_two_gateways_a_killed_nats_and_late_entries(server: NatsServer, tmp_path: Path) -> None:
    meter, since = Meter(), time.time() - DAY
    async with (
        EventPublisher(server.url, tmp_path / "a.events") as one,
        EventPublisher(server.url, tmp_path / "b.events") as two,
        Ledger(server.url) as ledger,
    ):
        for number in range(200):
            (one if number % 2 else two).publish(meter.note(completed(attempt(number))))
        assert await one.flush()
        assert await two.flush()
        assert await ledger.spent("acme", since) == meter.total
        await server.kill()
        late = time.time_ns() - 5 * HOUR
        for number in range(300):
            event = completed(attempt(7 * number), at=late) if number % 3 else failed(attempt(number), at=late)
            (one if number % 2 else two).publish(meter.note(event))
        with pytest.raises(NoBackend, match="the ledger can't be read now"):
            await ledger.spent("acme", since)
        await server.start()
        assert await one.flush(10)
        assert await two.flush(10)
        assert await spent_when_read(ledger, since) == meter.total
        # What waited for hours stands in the hour in which it happened.
        tally = await ledger.tally("acme", late // HOUR * HOUR, (late // HOUR + 1) * HOUR)
        assert sum(sums.requests for sums in tally.rows.values()) == 300
        assert sum(sums.failed_requests for sums in tally.rows.values()) == 100


async def test_what_comes_again_counts_once(server: NatsServer, tmp_path: Path) -> None:
    """A spool that delivers again behind the window in which NATS itself knows an event by its id."""
    events = [completed(attempt(3), at=time.time_ns() - number * HOUR) for number in range(20)]
    async with Ledger(server.url) as ledger, client_of(server) as client:
        await bus.ensure_stream(client, 7 * DAY)
        assert await spent_when_read(ledger, 0.0) == (0, 0)
        for turn in range(3):
            for event in events:
                # Without its id NATS takes it for another event, as it does with the id once the window is over.
                await client.jetstream().publish("maestro.events.acme.request.completed", event.SerializeToString())
            assert await ledger.spent("acme", time.time() - 2 * DAY) == metered(events)
            await copied(client, 20 * (turn + 1))
        assert await ledger.spent("acme", time.time() - 2 * DAY) == metered(events)


async def test_it_outlives_the_stream_of_events(server: NatsServer, tmp_path: Path) -> None:
    """NATS goes on with the new stream by itself, after 10 to 25 seconds; what is spent is exact all the time."""
    meter, since = Meter(), time.time() - DAY
    async with Ledger(server.url) as ledger, client_of(server) as client:
        async with EventPublisher(server.url, tmp_path / "a.events") as publisher:
            for number in range(30):
                publisher.publish(meter.note(completed(attempt(number))))
            assert await publisher.flush()
            assert await spent_when_read(ledger, since) == meter.total
            await copied(client, 30)
            await client.jetstream().delete_stream(bus.STREAM)
            assert await ledger.spent("acme", since) == meter.total
        for number in range(1, 41):
            async with EventPublisher(server.url, tmp_path / "b.events") as publisher:
                publisher.publish(meter.note(completed(attempt(number))))
                assert await publisher.flush()
            if number in {1, 40}:
                # Fewer events than the ledger has seen of the old stream, and more.
                assert await ledger.spent("acme", since) == meter.total
        if FULL:
            await copied(client, 70)
            assert await ledger.spent("acme", since) == meter.total


async def test_what_nats_has_not_copied_yet_counts(server: NatsServer, tmp_path: Path) -> None:
    since = time.time() - DAY
    async with (
        EventPublisher(server.url, tmp_path / "a.events") as publisher,
        Ledger(server.url) as ledger,
        client_of(server) as client,
    ):
        first, second = completed(attempt(11)), completed(attempt(13))
        publisher.publish(first)
        assert await publisher.flush()
        found = await copied(client, 1)
        # A ledger that gets nothing any more: nothing but the stream of events can tell.
        config = {**found["config"], "sources": []}
        await client.request(f"$JS.API.STREAM.UPDATE.{STREAM}", json.dumps(config).encode())
        publisher.publish(second)
        publisher.publish(first)
        assert await publisher.flush()
        assert await ledger.spent("acme", since) == metered([first, second])
        # The next gateway that comes mends it.
        async with Ledger(server.url) as another:
            assert await spent_when_read(another, since) == metered([first, second])
            assert (await copied(client, 2))["config"]["sources"][0]["name"] == bus.STREAM


async def test_gateways_may_start_before_nats(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    event = completed(attempt(9))
    async with (
        EventPublisher(server.url, tmp_path / "a.events") as publisher,
        Ledger(server.url) as one,
        Ledger(server.url) as two,
    ):
        publisher.publish(event)
        with pytest.raises(NoBackend):
            await one.spent("acme", 0.0)
        await server.start()
        try:
            assert await publisher.flush(10)
            assert await spent_when_read(one, 0.0) == metered([event])
            assert await spent_when_read(two, 0.0) == metered([event])
        finally:
            await server.kill()


async def test_bringing_it_up_to_date_keeps_what_others_set(server: NatsServer) -> None:
    async with client_of(server) as client:
        await ensure_ledger(client, 400 * DAY)
        found = json.loads((await client.request(f"$JS.API.STREAM.INFO.{STREAM}")).data)["config"]
        assert found["max_age"] == 400 * DAY * 1e9
        added = {"src": "maestro.events.*.tool.completed", "dest": "maestro.events.{{wildcard(1)}}.tool.completed"}
        found["sources"][0]["subject_transforms"].append(added)
        found |= {"description": "An operator's words", "max_bytes": 10**9}
        await client.request(f"$JS.API.STREAM.UPDATE.{STREAM}", json.dumps(found).encode())
        await ensure_ledger(client, 30 * DAY)
        after = json.loads((await client.request(f"$JS.API.STREAM.INFO.{STREAM}")).data)["config"]
        assert after["description"] == "An operator's words"
        assert after["max_bytes"] == 10**9
        assert after["max_age"] == 30 * DAY * 1e9
        sources = [each["src"] for each in after["sources"][0]["subject_transforms"]]
        assert sources == [*(f"maestro.events.*.{kind}" for kind in KINDS), added["src"]]
        bucket = json.loads((await client.request(f"$JS.API.STREAM.INFO.KV_{BUCKET}")).data)["config"]
        assert bucket["max_age"] == 30 * DAY * 1e9


async def test_sums_that_are_lost_are_made_anew(server: NatsServer, tmp_path: Path) -> None:
    event = completed(attempt(4))
    async with (
        EventPublisher(server.url, tmp_path / "a.events") as publisher,
        Ledger(server.url) as ledger,
        client_of(server) as client,
    ):
        publisher.publish(event)
        assert await publisher.flush()
        assert await spent_when_read(ledger, 0.0) == metered([event])
        for lost in (f"KV_{BUCKET}", STREAM):
            await client.jetstream().delete_stream(lost)
            assert await ledger.spent("acme", 0.0) == metered([event]), lost
            assert lost in [each.config.name for each in await client.jetstream().streams_info()]
