"""Sums over many hours: by several gateways, with entries that come late, twice, or both; exact for every span."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import os
import random
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any, cast

import nats
import pytest

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.ledger import STREAM, ensure_ledger
from maestro_gateway.ledger.desk import Desk, Read, Span
from maestro_gateway.ledger.rollups import Rollups
from maestro_gateway.ledger.scan import Entry, scan
from maestro_gateway.ledger.stream import BUCKET
from maestro_gateway.ledger.tally import Tally
from maestro_sdk.service import bus
from maestro_sdk.testing.nats import NatsServer

from .spending import attempt, completed, estimate, failed, metered

HOUR = 3600 * 10**9
MONTH = 30 * 24 * HOUR
BEGIN = 1_700_000_000 // 3600 * HOUR
ENTRIES = int(os.environ.get("LEDGER_ENTRIES", "1500"))
"""Of the month in a real stream."""


@pytest.fixture
async def client(tmp_path: Path) -> AsyncGenerator[Any]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    client = await cast("Any", nats).connect(server.url)
    try:
        await ensure_ledger(client, 400 * 86400.0)
        yield client
    finally:
        await client.close()
        await server.kill()


class Past:
    """A ledger of one tenant whose entries arrived when a test says so."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.read_so_far = 0

    def add(self, event: Event, arrived: int) -> None:
        self.entries.append(Entry("", len(self.entries) + 1, arrived, event.SerializeToString(), {}))

    async def read(self, start: int | datetime.datetime) -> AsyncGenerator[list[Entry]]:
        """What `scan` gives."""
        if isinstance(start, datetime.datetime):
            moment = int(start.timestamp() * 1e9)
            begin = next((n for n, entry in enumerate(self.entries) if entry.time >= moment), len(self.entries))
            found = self.entries[begin:]
        else:
            found = self.entries[start - 1 :]
        for at in range(0, len(found), 50):
            self.read_so_far += len(found[at : at + 50])
            yield found[at : at + 50]


async def summed(desk: Desk, rollups: Rollups, read: Read, now: int, span: Span) -> Tally:
    await desk.catch_up(rollups, read, now // HOUR)
    return await desk.tally(rollups, read, span)


def within(events: Sequence[Event], span: Span) -> tuple[int, int]:
    return metered(event for event in events if span.holds(event))


@pytest.mark.parametrize("seed", range(int(os.environ.get("LEDGER_SEEDS", "4"))))
async def test_every_span_is_exact_for_every_gateway(client: Any, seed: int) -> None:
    rng = random.Random(seed)
    past, events, now = Past(), list[Event](), BEGIN
    rollups = Rollups(client, "acme", 1)
    longest = rng.choice([3, 20, 20_000])
    desks = [Desk(1, longest) for _ in range(3)]
    # True ends whose gateway died before they got here: only what was estimated of them counts as yet.
    to_come: list[tuple[Event, Event]] = []
    later: list[Event] = []
    for turn in range(12):
        for _ in range(rng.randrange(60)):
            # Now and then the clock of NATS is set back a little.
            now += rng.randrange(HOUR // 10) if rng.random() < 0.95 else -rng.randrange(HOUR // 30)
            late = rng.choice([0, 0, 0, rng.randrange(HOUR), rng.randrange(30 * HOUR)])
            used = attempt(rng.randrange(10**12), rng.randrange(10**6), model=rng.choice("ab"))
            event = (completed if rng.random() < 0.8 else failed)(used, at=now - late)
            if rng.random() < 0.3:
                guess = estimate(event, rng.randrange(3 * HOUR), attempt(rng.randrange(10**12), 7, model="a"))
                if rng.random() < 0.6:
                    to_come.append((event, guess))
                    event = guess
                else:
                    later.append(guess)
            events.append(event)
            past.add(event, now)
            if later and rng.random() < 0.5:
                # Whoever found that the gateway died did not know that the end was told.
                past.add(later.pop(), now)
            if to_come and rng.random() < 0.25:
                event, guess = to_come.pop(rng.randrange(len(to_come)))
                events[events.index(guess)] = event
                past.add(event, now)
            if rng.random() < 0.2:
                past.add(rng.choice(events), now)
        if turn == 6:
            desks[1] = Desk(1, longest)  # a gateway that was started anew
        edges = sorted(
            rng.choice([BEGIN + rng.randrange(-30, 80) * HOUR, rng.randrange(BEGIN, now + HOUR)]) for _ in "ab"
        )
        for span in (Span(BEGIN - 40 * HOUR, None), Span(edges[0], edges[1] + 1), Span(edges[0], None)):
            desk = rng.choice(desks)
            assert (await summed(desk, rollups, past.read, now, span)).total() == within(events, span)


async def test_hours_that_are_over_are_read_once_by_all(client: Any) -> None:
    past = Past()
    events = [completed(attempt(number), at=BEGIN + number * HOUR // 4) for number in range(400)]
    for event in events:
        past.add(event, event.time.ToNanoseconds())
    now, everything = BEGIN + 100 * HOUR, Span(BEGIN, None)
    rollups = Rollups(client, "acme", 1)
    assert (await summed(Desk(1), rollups, past.read, now, everything)).total() == metered(events)
    assert past.read_so_far == 400
    another = Desk(1)
    assert (await summed(another, rollups, past.read, now, everything)).total() == metered(events)
    assert past.read_so_far == 400
    # Nor does a view of them need them.
    await another.catch_up(rollups, past.read, now // HOUR)
    one_row = await another.tally(rollups, past.read, everything, lambda row: row._replace(hour=0))
    assert len(one_row.rows) == 1
    assert one_row.total() == metered(events)
    assert past.read_so_far == 400
    # A span that begins amid an hour: that hour alone is read entry by entry.
    cut = Span(BEGIN + 50 * HOUR + HOUR // 2, BEGIN + 60 * HOUR)
    assert (await summed(another, rollups, past.read, now, cut)).total() == within(events, cut)
    assert past.read_so_far < 700
    # A span that ends before it begins holds nothing: what others have is not read for it.
    assert not [run async for run in rollups.read(BEGIN // HOUR + 100, BEGIN // HOUR + 50, 10**6)]
    # The sums belong to that life of the ledger alone, and to that tenant.
    for strange in (Rollups(client, "acme", 2), Rollups(client, "ac", 1)):
        assert not (await Desk(1).tally(strange, Past().read, everything)).rows


async def test_many_labels_take_several_entries(client: Any) -> None:
    past = Past()
    events = [
        completed(at=BEGIN + number, **{f"l{each}": f"{number}" * 100 for each in range(8)}) for number in range(700)
    ]
    for event in events:
        past.add(event, event.time.ToNanoseconds())
    rollups = Rollups(client, "acme", 1)
    await summed(Desk(1), rollups, past.read, BEGIN + HOUR, Span(BEGIN, None))
    info = await client.jetstream().stream_info(f"KV_{BUCKET}")
    assert info.state.messages > 3
    found = await summed(Desk(1), rollups, past.read, BEGIN + HOUR, Span(BEGIN, None))
    assert len(found.rows) == 700
    assert found.total() == metered(events)


async def test_a_month(client: Any) -> None:
    """LEDGER_ENTRIES=100000 for the figure. The stream is real; only the times of arrival are those of a month."""
    await bus.ensure_stream(client, 7 * 86400.0)
    js = client.jetstream(publish_async_max_pending=512)
    step = MONTH // ENTRIES
    events = [
        completed(
            attempt(number, model=f"m-{number % 7}"),
            key=f"k{number % 5}",
            at=BEGIN + number * step,
            team=f"t{number % 3}",
        )
        for number in range(ENTRIES)
    ]
    for event in events:
        await js.publish_async("maestro.events.acme.request.completed", event.SerializeToString())
    await js.publish_async_completed()
    async with asyncio.timeout(60):
        while (await js.stream_info(STREAM)).state.messages < ENTRIES:
            await asyncio.sleep(0.02)
    rollups = Rollups(client, "acme", 1)

    async def read(start: int | datetime.datetime) -> AsyncGenerator[list[Entry]]:
        sequence = start if isinstance(start, int) else max(1, (int(start.timestamp() * 1e9) - BEGIN) // step)
        async for batch in scan(client, STREAM, ["maestro.events.acme.>"], sequence):
            yield [dataclasses.replace(entry, time=BEGIN + (entry.sequence - 1) * step) for entry in batch]

    times: list[float] = []
    for desk in (first := Desk(1), first, Desk(1)):
        begun = time.perf_counter()
        found = await summed(desk, rollups, read, BEGIN + MONTH, Span(BEGIN, BEGIN + MONTH))
        times.append(time.perf_counter() - begun)
        assert found.total() == metered(events)
    state = (await client.jetstream().stream_info(f"KV_{BUCKET}")).state
    figures = ", ".join(f"{seconds:.2f} s" for seconds in times)
    print(f"{ENTRIES} entries: first, second, another gateway's first query: {figures}; {state.bytes} bytes of sums")
