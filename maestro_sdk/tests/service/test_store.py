"""Both stores of counts keep the same promises; what only the shared one has stands in test_shared_store.py."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Sequence

import pytest

from maestro_sdk.service.store import UNDO, Claim, Kind, MemoryStore, Store, StoreConfig, Verdict
from maestro_sdk.service.store.shared import SharedStore
from maestro_sdk.testing.redis import RedisServer, find_redis

WINDOW = 0.4
NUMBERS = itertools.count()


@pytest.fixture(params=["memory", "shared"])
async def store(request: pytest.FixtureRequest) -> AsyncGenerator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    if find_redis() is None:
        pytest.skip("neither redis-server nor valkey-server is installed")
    async with RedisServer() as server, SharedStore(StoreConfig(url=server.url, timeout=2.0)) as shared:
        yield shared


async def take(store: Store, *claims: Claim, entry: str = "") -> Verdict:
    found = store.take(entry or f"e{next(NUMBERS)}", claims)
    return found if isinstance(found, Verdict) else await found


def each(limit: int, key: str = "{t}:r", window: float = 30.0) -> Claim:
    return Claim(key, Kind.EACH, limit, window)


def amount(limit: int, tokens: int, key: str = "{t}:t", window: float = 30.0) -> Claim:
    return Claim(key, Kind.SUM, limit, window, tokens)


def place(limit: int, key: str = "{t}:p") -> Claim:
    return Claim(key, Kind.PLACES, limit)


async def test_a_window_slides(store: Store) -> None:
    taken: list[float] = []
    refusals: list[tuple[float, float]] = []
    end = time.monotonic() + 3 * WINDOW
    while time.monotonic() < end:
        before = time.monotonic()
        verdict = await take(store, each(5, window=WINDOW))
        if verdict.refused is None:
            taken.append(time.monotonic())
        else:
            assert verdict.retry_after is not None
            refusals.append((before, verdict.retry_after))
        await asyncio.sleep(random.uniform(0.001, 0.02))
    assert len(taken) >= 11
    for first, sixth in zip(taken, taken[5:], strict=False):
        assert sixth - first >= WINDOW - 0.05, "never six in one window"
    for moment, wait in refusals:
        later = [each for each in taken if each > moment]
        if later:
            assert later[0] >= moment + wait - 0.02, "the told wait is no shorter than the real one"


async def test_what_the_wait_promises_is_there(store: Store) -> None:
    for _ in range(3):
        assert (await take(store, each(3, window=WINDOW))).refused is None
        await asyncio.sleep(0.03)
    refused = await take(store, each(3, window=WINDOW))
    assert refused.refused == 0
    assert refused.retry_after is not None
    assert 0.2 < refused.retry_after < WINDOW
    await asyncio.sleep(refused.retry_after)
    verdicts = [await take(store, each(3, window=WINDOW)) for _ in range(2)]
    assert [verdict.refused for verdict in verdicts] == [None, 0], "one place is free then, and no more"


async def test_left_and_reset_tell_where_one_stands(store: Store) -> None:
    verdict = await take(store, each(10), amount(1000, 400), place(3))
    assert verdict.refused is None
    assert verdict.left == (9, 600, 2)
    assert verdict.reset[:2] == pytest.approx((30.0, 30.0), abs=0.5)


async def test_all_or_nothing(store: Store) -> None:
    assert (await take(store, place(1), each(10), entry="a")).refused is None
    for _ in range(5):
        assert (await take(store, each(10), amount(100, 10), place(1))).refused == 2
    store.finish("a", [place(1)], [0])
    verdict = await take(store, each(10), amount(100, 10), place(1))
    assert (verdict.refused, verdict.left) == (None, (8, 90, 0)), "those who were refused took nothing"


async def test_the_longest_wait_of_all_limits_is_told(store: Store) -> None:
    assert (await take(store, each(1, "{t}:short", 0.2), each(1, "{t}:long", 5.0))).refused is None
    verdict = await take(store, each(1, "{t}:short", 0.2), each(1, "{t}:long", 5.0))
    assert verdict.refused == 1
    assert verdict.retry_after == pytest.approx(5.0, abs=0.2)


async def test_sums_are_settled(store: Store) -> None:
    reserved = amount(1000, 800)
    assert (await take(store, reserved, entry="a")).left == (200,)
    assert (await take(store, amount(1000, 300))).refused == 0
    store.finish("a", [reserved], [100])
    assert (await take(store, amount(1000, 300), entry="b")).left == (600,), "what was not used is back"
    store.finish("b", [amount(1000, 300)], [950])
    assert (await take(store, amount(1000, 1))).refused == 0, "and more than was thought counts as well"


async def test_the_wait_of_a_sum_is_that_until_enough_is_over(store: Store) -> None:
    await take(store, amount(100, 40, window=WINDOW))
    await asyncio.sleep(0.15)
    await take(store, amount(100, 40, window=WINDOW))
    little, much = await take(store, amount(100, 30, window=WINDOW)), await take(store, amount(100, 90, window=WINDOW))
    assert little.retry_after == pytest.approx(WINDOW - 0.15, abs=0.06)
    assert much.retry_after == pytest.approx(WINDOW, abs=0.06)


async def test_more_than_the_whole_limit_never_fits(store: Store) -> None:
    verdict = await take(store, each(5), amount(100, 101))
    assert (verdict.refused, verdict.retry_after) == (1, None)


async def test_finishing_twice_and_what_never_was_do_no_harm(store: Store) -> None:
    claims: Sequence[Claim] = (each(2), amount(100, 60), place(2))
    assert (await take(store, *claims, entry="a")).refused is None
    for _ in range(2):
        store.finish("a", claims, [0, 20, 0])
    store.finish("nobody", claims, [UNDO] * 3)
    verdict = await take(store, *claims, entry="b")
    assert verdict.left == (0, 20, 1)
    store.finish("b", claims, [UNDO] * 3)
    assert (await take(store, *claims)).left == (0, 20, 1), "what is undone never was"


async def test_many_at_once_never_take_more_places_than_there_are(store: Store) -> None:
    most = now = 0

    async def one(number: int) -> bool:
        nonlocal most, now
        if (await take(store, place(7), entry=f"n{number}")).refused is not None:
            return False
        now += 1
        most = max(most, now)
        await asyncio.sleep(random.uniform(0, 0.01))
        now -= 1
        store.finish(f"n{number}", [place(7)], [0])
        return True

    served = await asyncio.gather(*(one(number) for number in range(200)))
    assert most == 7
    assert sum(served) >= 7
    assert (await take(store, place(7))).left == (6,), "all places came back"


async def test_a_sum_is_whole_again_when_its_window_is_over(store: Store) -> None:
    tokens = amount(100, 100, window=WINDOW)
    assert (await take(store, tokens, entry="a")).left == (0,)
    await asyncio.sleep(WINDOW + 0.02)
    assert (await take(store, tokens)).refused is None
    store.finish("a", [tokens], [0])
    assert (await take(store, tokens)).refused == 0, "what is settled too late changes nothing"
