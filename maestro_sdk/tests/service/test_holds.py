"""Holds of what may be spent: the same in a process and in a store of several, which forgets, and whose users die."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from maestro_sdk.service.store import StoreAway, StoreConfig
from maestro_sdk.service.store import shared as store_module
from maestro_sdk.service.store.holds import Answer, Charge, Hold, Holds, Orphan, Outcome, Share
from maestro_sdk.service.store.memory_holds import MemoryHolds
from maestro_sdk.service.store.shared import SharedStore
from maestro_sdk.service.store.shared_holds import SharedHolds
from maestro_sdk.testing.redis import RedisServer, find_redis

needs_store = pytest.mark.skipif(find_redis() is None, reason="neither redis-server nor valkey-server is installed")
GROUP = "b|2026-11"
COUNTER = f"{GROUP}|acme"
ENDS = int(time.time() * 1000) + 3_600_000
_numbers = count()


def share(usd: int, limit: int = 100, counter: str = COUNTER, **more: Any) -> Share:
    return Share(counter, usd, more.get("tokens", 0), limit, more.get("limit_tokens", -1), ENDS)


def hold(*shares: Share) -> Hold:
    name = f"h{next(_numbers)}"
    return Hold(name, shares, b"orphan " + name.encode())


async def reserve(holds: Holds, wish: Hold) -> Answer:
    found = holds.reserve(wish)
    return await found if inspect.isawaitable(found) else found


async def seeded(holds: Holds, usd: int = 0, counter: str = COUNTER) -> None:
    """Makes a counter known; a store that was empty lets nobody do that for a moment."""
    wish = hold(share(0, -1, counter))
    async with asyncio.timeout(5):
        while (found := await reserve(holds, wish)).outcome is Outcome.UNSEEDED:
            if found.busy:
                await asyncio.sleep(0.02)
            else:
                assert await holds.seed(counter, found.generation, usd, 0, ENDS)
    holds.undo(wish)


@asynccontextmanager
async def shared(
    server: RedisServer,
    lease: float = 10.0,
    told: Callable[[Charge], None] = lambda charge: None,
    grace: float = 0.1,
) -> AsyncGenerator[SharedHolds]:
    config = StoreConfig(url=server.url, timeout=2.0)
    async with SharedStore(config) as store, SharedHolds(store, lease, told, grace) as holds:
        yield holds


@pytest.fixture
async def server() -> AsyncGenerator[RedisServer]:
    async with RedisServer() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("shared", marks=needs_store)])
async def kept(request: pytest.FixtureRequest) -> AsyncGenerator[tuple[Holds, list[Charge]]]:
    charges: list[Charge] = []
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            yield MemoryHolds(charges.append), charges
            return
        server = await stack.enter_async_context(RedisServer())
        store = await stack.enter_async_context(SharedStore(StoreConfig(url=server.url, timeout=2.0)))
        yield await stack.enter_async_context(SharedHolds(store, 10.0, charges.append, 0.1)), charges


async def balance(holds: Holds) -> tuple[int, int, int, int]:
    (found,) = await holds.balances(GROUP)
    assert found.counter == COUNTER
    return found.usd, found.tokens, found.held_usd, found.held_tokens


async def test_a_hold_is_taken_settled_and_forgotten(kept: tuple[Holds, list[Charge]]) -> None:
    holds, charges = kept
    await seeded(holds, 30)
    wish = hold(share(70, tokens=7))
    assert (await reserve(holds, wish)).outcome is Outcome.TAKEN
    assert await balance(holds) == (30, 0, 70, 7)
    for _ in range(2):
        holds.settle(wish, 20, 5, b"the end")
        assert await balance(holds) == (50, 5, 0, 0)
    holds.forget([wish.id])
    holds.settle(wish, 20, 5, b"the end")
    assert (await balance(holds))[0] in {50, 70}, "nobody settles what was forgotten"
    assert charges[0] == Charge(COUNTER, 30, 0, 50, 5)


async def test_who_is_refused_learns_whether_waiting_may_help(kept: tuple[Holds, list[Charge]]) -> None:
    holds, _ = kept
    await seeded(holds, 30)
    other = hold(share(60))
    await reserve(holds, other)
    answers = [await reserve(holds, hold(share(usd))) for usd in (11, 70, 71, 71, 10)]
    assert [(found.outcome, found.first) for found in answers] == [
        (Outcome.HELD, False),
        (Outcome.HELD, False),
        (Outcome.SPENT, True),
        (Outcome.SPENT, False),
        (Outcome.TAKEN, False),
    ]
    assert (answers[0].balance.usd, answers[0].balance.held_usd) == (30, 60)
    holds.undo(other)
    assert (await reserve(holds, hold(share(50)))).outcome is Outcome.TAKEN
    never = await reserve(holds, hold(share(101, 100, COUNTER)))
    assert (never.outcome, never.first) == (Outcome.SPENT, False)


async def test_a_hold_takes_of_all_counters_or_of_none(kept: tuple[Holds, list[Charge]]) -> None:
    holds, _ = kept
    second = "c|2026-11-23|"
    await seeded(holds)
    await seeded(holds, 95, second)
    found = await reserve(holds, hold(share(10), share(10, 100, second)))
    assert (found.outcome, found.index) == (Outcome.SPENT, 1)
    assert await balance(holds) == (0, 0, 0, 0)
    tokens = await reserve(holds, hold(share(1, tokens=11, limit_tokens=10)))
    assert (tokens.outcome, tokens.index) == (Outcome.SPENT, 0)
    assert (await reserve(holds, hold(share(10), replace(share(10, -1, second))))).outcome is Outcome.TAKEN


async def test_what_is_settled_while_nobody_knows_the_counter_is_not_lost(kept: tuple[Holds, list[Charge]]) -> None:
    holds, _ = kept
    blind = hold(share(5))
    async with asyncio.timeout(5):
        while (found := await reserve(holds, hold(share(1)))).busy:
            await asyncio.sleep(0.02)
    holds.settle(blind, 5, 0, b"the end")
    assert not await holds.seed(COUNTER, found.generation, 0, 0, ENDS), "the ledger may not have known of it yet"
    again = await reserve(holds, hold(share(1)))
    assert (again.outcome, again.busy) == (Outcome.UNSEEDED, True)
    holds.forget([blind.id])
    again = await reserve(holds, hold(share(1)))
    assert (again.outcome, again.busy) == (Outcome.UNSEEDED, False)
    assert await holds.seed(COUNTER, again.generation, 5, 0, ENDS)
    assert await balance(holds) == (5, 0, 0, 0)
    late = hold(share(5))
    holds.settle(late, 3, 1, b"the end")
    assert await balance(holds) == (8, 1, 0, 0), "one that was never taken is charged all the same"


@needs_store
async def test_200_wishes_at_three_gateways_get_exactly_what_there_is(server: RedisServer) -> None:
    async with shared(server) as one, shared(server) as two, shared(server) as three:
        await seeded(one)
        wishes = [hold(share(7)) for _ in range(200)]
        answers = await asyncio.gather(*(reserve((one, two, three)[n % 3], wish) for n, wish in enumerate(wishes)))
        taken = [wish for wish, found in zip(wishes, answers, strict=True) if found.outcome is Outcome.TAKEN]
        assert len(taken) == 14
        assert {found.outcome for found in answers} == {Outcome.TAKEN, Outcome.HELD}
        for wish in taken:
            (one, two, three)[wishes.index(wish) % 3].settle(wish, 7, 0, b"the end")
        async with asyncio.timeout(10):
            while await balance(one) != (98, 0, 0, 0):
                await asyncio.sleep(0.01)
        assert [found.outcome for found in [await reserve(one, hold(share(usd))) for usd in (3, 2)]] == [
            Outcome.SPENT,
            Outcome.TAKEN,
        ]


@needs_store
async def test_a_hold_whose_owner_died_is_charged_and_told_until_that_is_safe(server: RedisServer) -> None:
    charges: list[Charge] = []
    async with shared(server, 1.0, charges.append) as living:
        await seeded(living)
        async with shared(server, 1.0) as dying:
            lost, ended, mine = hold(share(40, tokens=4)), hold(share(30)), hold(share(1))
            taken_up = replace(hold(share(9)), record=b"")
            for owner, wish in ((dying, lost), (dying, ended), (dying, taken_up), (living, mine)):
                assert (await reserve(owner, wish)).outcome is Outcome.TAKEN
            dying.settle(ended, 10, 1, b"its own end")
        assert await living.orphans(9) == []
        told: dict[str, bytes] = {}
        async with asyncio.timeout(5):
            while len(told) < 2:
                await asyncio.sleep(0.02)
                told |= {found.id: found.record for found in await living.orphans(9)}
        assert told == {lost.id: lost.record, ended.id: b"its own end"}
        assert charges == [Charge(COUNTER, 10, 1, 50, 5)]
        assert await balance(living) == (50, 5, 1, 0), "the living one still holds"
        again: set[str] = set()
        async with asyncio.timeout(5):
            while len(again) < 2:
                await asyncio.sleep(0.02)
                again |= {found.id for found in await living.orphans(9)}
        living.forget(list(told))
        living.settle(mine, 1, 0, b"the end")
        living.forget([mine.id])
        await asyncio.sleep(1.2)
        assert await living.orphans(9) == []
        assert await balance(living) == (51, 5, 0, 0)


@needs_store
async def test_an_end_that_comes_after_its_hold_was_charged_puts_the_counter_in_doubt(server: RedisServer) -> None:
    doubts: list[str] = []
    async with shared(server, 0.05) as slow, shared(server, 5.0) as other:
        slow.on_doubt = doubts.extend
        await seeded(other)
        for forgotten in (False, True):
            late = hold(share(40))
            assert (await reserve(slow, late)).outcome is Outcome.TAKEN
            # It stands still, and does not say that it lives.
            slow._own.pop(late.id)
            found: list[Orphan] = []
            async with asyncio.timeout(5):
                while not found:
                    await asyncio.sleep(0.02)
                    found = [each for each in await other.orphans(9) if each.id == late.id]
            assert found[0].charged == (COUNTER,)
            if forgotten:
                other.forget([late.id])
            slow.settle(late, 10, 0, b"the end")
            await balance(slow)
            assert doubts == [COUNTER]
            doubts.clear()
            slow.forget([late.id])
        assert (await balance(other))[0] == 80, "the ledger has to say what it was"
        for _ in range(2):
            await other.unseed(COUNTER)
            assert (await balance(other))[0] == 80, "it is told until another sum is known"
        await seeded(other, 20)
        assert await balance(other) == (20, 0, 0, 0)


@needs_store
async def test_the_next_life_settles_what_is_still_held(server: RedisServer) -> None:
    async with shared(server) as living:
        await seeded(living)
        async with shared(server) as dying:
            ended, gone = hold(share(40, tokens=4)), hold(share(9))
            for wish in (ended, gone):
                assert (await reserve(dying, wish)).outcome is Outcome.TAKEN
            dying.settle(gone, 9, 0, b"the end")
        for _ in range(2):
            living.close(ended.id, 15, 3, b"its own end")
            living.close(gone.id, 1, 1, b"another end")
            living.close("nobody", 1, 1, b"another end")
        assert await balance(living) == (24, 3, 0, 0)
        living.forget([ended.id, gone.id])
        assert await living.orphans(9) == []


@needs_store
async def test_nothing_that_the_store_holds_is_dropped_while_it_is_away(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_OWED", 5)
    async with shared(server) as one:
        await seeded(one)
        wishes = [hold(share(1)) for _ in range(20)]
        for wish in wishes:
            await reserve(one, wish)
        server.freeze()
        one.settle(wishes[0], 1, 0, b"the end")
        async with asyncio.timeout(10):
            while one.up:
                await asyncio.sleep(0.01)
        for wish in [hold(share(1)) for _ in range(20)] + wishes[1:]:
            one.settle(wish, 1, 0, b"the end")
        assert len(one._store._owed) == 5 + 19
        server.thaw()
        async with asyncio.timeout(10):
            # Of the others it is found that the store does not know them.
            while not one.up or await balance(one) != (40, 0, 0, 0):
                await asyncio.sleep(0.02)


@needs_store
async def test_all_counters_are_listed_however_many(server: RedisServer) -> None:
    async with shared(server) as one:
        names = {f"{GROUP}|t{number}" for number in range(2300)}
        await asyncio.gather(*(one.seed(name, 0, number, 0, ENDS) for number, name in enumerate(names)))
        assert {found.counter for found in await one.balances(GROUP)} == names


@needs_store
async def test_what_a_dead_owner_left_to_others_is_charged_however_late_they_come(server: RedisServer) -> None:
    """A hold without a record is that of a call which another gateway takes up: perhaps after the lease is over."""
    async with shared(server) as living:
        await seeded(living)
        again, without = (replace(hold(share(9)), record=b"") for _ in range(2))
        async with shared(server, lease=0.05) as dying:
            for each in (again, without):
                assert (await reserve(dying, each)).outcome is Outcome.TAKEN
        async with asyncio.timeout(5):
            while (await balance(living))[2]:
                assert await living.orphans(9) == []
                await asyncio.sleep(0.02)
        assert (await reserve(living, again)).outcome is Outcome.TAKEN
        assert await balance(living) == (0, 0, 9, 0), "who takes it up holds again what it may cost"
        # The other one is refused, say: it goes on all the same, and is charged.
        for each in (again, without):
            living.settle(each, 5, 0, b"end")
        await living.orphans(9)
        assert await balance(living) == (10, 0, 0, 0)


@needs_store
async def test_a_store_that_forgot_everything_learns_what_is_held(server: RedisServer) -> None:
    async with shared(server, 1.0) as one:
        await seeded(one, 10)
        running, ended = hold(share(40)), hold(share(20))
        for wish in (running, ended):
            await reserve(one, wish)
        one.settle(ended, 15, 0, b"the end")
        assert await balance(one) == (25, 0, 40, 0)
        await server.kill()
        await server.start()
        wish = hold(share(40))
        async with asyncio.timeout(10):
            while True:
                try:
                    found = await reserve(one, wish)
                except Exception:  # noqa: BLE001 - the store is not there yet
                    await asyncio.sleep(0.05)
                    continue
                wish = hold(share(40))
                if found.outcome is Outcome.UNSEEDED and found.generation:
                    break
                await asyncio.sleep(0.05)
        assert found.busy, "what was settled is not known to be safe"
        one.forget([ended.id])
        await seeded(one, 25)
        assert await balance(one) == (25, 0, 40, 0)
        assert (await reserve(one, hold(share(40)))).outcome is Outcome.HELD


@needs_store
async def test_what_a_quiet_gateway_holds_is_known_before_an_empty_store_lets_anybody_through(
    server: RedisServer,
) -> None:
    async with shared(server, grace=1.0) as one, shared(server, grace=1.0) as quiet:
        await seeded(one, 10)
        assert (await reserve(quiet, hold(share(40)))).outcome is Outcome.TAKEN
        await server.kill()
        await server.start()
        await answered(one, hold(share(60)))
        await seeded(one, 10)
        assert (await answered(one, hold(share(60)))).outcome is Outcome.HELD


@needs_store
async def test_a_store_that_comes_back_with_what_it_knew_long_ago_learns_what_was_spent(tmp_path: Path) -> None:
    async with RedisServer("--dir", str(tmp_path)) as server, shared(server) as one, shared(server, 0.5) as other:
        await seeded(one, 10)
        running = hold(share(9))
        assert (await reserve(other, running)).outcome is Outcome.TAKEN
        await server.save()
        ended = hold(share(40))
        await reserve(one, ended)
        one.settle(ended, 35, 0, b"the end")
        one.forget([ended.id])
        assert await balance(one) == (45, 0, 9, 0)
        await server.kill()
        await server.start()
        # Nobody asked for anything meanwhile: it is the first question that finds out.
        wish = hold(share(40))
        assert (await answered(one, wish)).outcome is Outcome.UNSEEDED, "it knows nothing of what was spent since"
        await seeded(one, 45)
        assert await balance(one) == (45, 0, 9, 0), "what is under way is held"
        other.settle(running, 5, 0, b"its end")
        assert (await answered(one, hold(share(60)))).outcome is Outcome.SPENT
        # A connection that is opened anew to the same store changes nothing.
        async with shared(server) as third:
            assert await balance(third) == (50, 0, 0, 0)
            assert (await reserve(third, hold(share(50)))).outcome is Outcome.TAKEN


async def answered(holds: Holds, wish: Hold) -> Answer:
    """What a store says as soon as it is there again."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await reserve(holds, wish)
            except StoreAway:
                await asyncio.sleep(0.05)
