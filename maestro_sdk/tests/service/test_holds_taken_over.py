"""Holds that somebody else goes on with, or that were asked for twice; counters that are forgotten to save memory."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count

import pytest

from maestro_sdk.service.store import StoreConfig
from maestro_sdk.service.store.holds import Answer, Balance, Hold, Holds, Outcome, Share
from maestro_sdk.service.store.memory_holds import MemoryHolds
from maestro_sdk.service.store.shared import SharedStore
from maestro_sdk.service.store.shared_holds import SharedHolds
from maestro_sdk.testing.redis import RedisServer, find_redis

needs_store = pytest.mark.skipif(find_redis() is None, reason="neither redis-server nor valkey-server is installed")
TODAY, TOMORROW = "b|2026-11-30", "b|2026-12-01"
ENDS = int(time.time() * 1000) + 3_600_000
_numbers = count()


def wish(usd: int, counter: str = TODAY, limit: int = 100, name: str = "") -> Hold:
    return Hold(name or f"w{next(_numbers)}", (Share(counter, usd, 0, limit, -1, ENDS),), b"")


async def reserve(holds: Holds, hold: Hold) -> Answer:
    found = holds.reserve(hold)
    return await found if inspect.isawaitable(found) else found


async def seeded(holds: Holds, counter: str = TODAY) -> None:
    first = wish(0, counter, -1)
    async with asyncio.timeout(5):
        while (found := await reserve(holds, first)).outcome is Outcome.UNSEEDED:
            if found.busy:
                await asyncio.sleep(0.02)
            else:
                assert await holds.seed(counter, found.generation, 0, 0, ENDS)
    holds.undo(first)


async def balance(holds: Holds, counter: str = TODAY) -> Balance:
    (found,) = await holds.balances(counter)
    return found


@asynccontextmanager
async def shared(server: RedisServer, lease: float = 10.0) -> AsyncGenerator[SharedHolds]:
    config = StoreConfig(url=server.url, timeout=2.0)
    async with SharedStore(config) as store, SharedHolds(store, lease, lambda charge: None, 0.05) as holds:
        yield holds


@pytest.fixture
async def server() -> AsyncGenerator[RedisServer]:
    async with RedisServer() as server:
        yield server


async def test_a_call_that_is_taken_up_in_a_process_is_held_once() -> None:
    holds = MemoryHolds(lambda charge: None)
    await seeded(holds)
    for _ in range(2):
        assert (await reserve(holds, wish(40, name="call"))).outcome is Outcome.TAKEN
    assert (await balance(holds)).held_usd == 40
    holds.settle(wish(40, name="call"), 7, 0, b"the end")
    assert await balance(holds) == Balance(TODAY, 7, 0, 0, 0)


@needs_store
async def test_a_call_that_is_taken_up_tomorrow_leaves_no_counter_waiting(server: RedisServer) -> None:
    async with shared(server) as first, shared(server) as second:
        await seeded(first)
        await reserve(first, wish(40, name="call"))
        first.leave(wish(40, name="call"))
        late = wish(40, TOMORROW, name="call")
        assert (await reserve(second, late)).outcome is Outcome.TAKEN
        second.settle(late, 7, 0, b"the end")
        second.forget(["call"])
        assert (await balance(second)).held_usd == 0
        found = await reserve(second, wish(1, TOMORROW))
        assert found.outcome is Outcome.UNSEEDED
        assert not found.busy, "what was settled there is safe"


@needs_store
async def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(server: RedisServer) -> None:
    async with shared(server, lease=1.0) as holds, shared(server) as other:
        await seeded(holds)
        twice = wish(60)
        asked = asyncio.ensure_future(holds.reserve(twice))
        # Somebody whose time is up gives back, and asks a last time: meanwhile another one has taken the room.
        holds.undo(twice)
        between = asyncio.ensure_future(holds.reserve(wish(60)))
        assert (await reserve(holds, twice)).outcome is Outcome.HELD
        await asyncio.gather(asked, between)
        await asyncio.sleep(0.5)
        assert (await balance(other)).held_usd == 60, "only one of them holds anything"


async def test_a_process_forgets_idle_counters_before_they_are_too_many() -> None:
    """Callers make counters: each value of a label is one. What nobody holds is in the ledger."""
    holds = MemoryHolds(lambda charge: None, most=2000)
    names = [f"{TODAY}|u{number}" for number in range(4000)]
    held, untold = wish(9, names[0]), wish(9, names[1])
    for number, name in enumerate(names):
        await seeded(holds, name)
        if number == 1:
            await reserve(holds, held)
            await reserve(holds, untold)
            holds.settle(untold, 5, 0, b"the end")
    assert (await reserve(holds, wish(0, names[-1]))).outcome is Outcome.TAKEN
    outcomes = [(await reserve(holds, wish(0, name))).outcome for name in names[:1500]]
    assert outcomes[:2] == [Outcome.TAKEN] * 2, "what is held or not told yet is nowhere else"
    assert set(outcomes[2:]) == {Outcome.UNSEEDED}
