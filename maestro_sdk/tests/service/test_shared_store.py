"""Several processes, one store; a store that dies, hangs, forgets; processes that die."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from maestro_sdk.service.store import Claim, Kind, StoreAway, StoreConfig, Verdict
from maestro_sdk.service.store.shared import SharedStore
from maestro_sdk.testing.redis import RedisServer, find_redis
from maestro_sdk.testing.servers import free_port

pytestmark = pytest.mark.skipif(find_redis() is None, reason="neither redis-server nor valkey-server is installed")

PLACE = Claim("{t}:p", Kind.PLACES, 2)
EACH = Claim("{t}:r", Kind.EACH, 100, 60.0)


@pytest.fixture
async def server() -> AsyncGenerator[RedisServer]:
    async with RedisServer() as server:
        yield server


async def take(store: SharedStore, entry: str, *claims: Claim) -> Verdict:
    return await store.take(entry, claims)


async def until(condition: Any, limit: float = 5.0) -> float:
    began = time.monotonic()
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.005)
    return time.monotonic() - began


async def test_three_processes_count_as_one(server: RedisServer) -> None:
    config = StoreConfig(url=server.url, timeout=2.0)
    async with SharedStore(config) as one, SharedStore(config) as two, SharedStore(config) as three:
        asked = [take(store, f"{id(store)}-{n}", EACH) for n in range(100) for store in (one, two, three)]
        verdicts = await asyncio.gather(*asked)
    assert sum(verdict.refused is None for verdict in verdicts) == 100


async def test_places_of_a_process_that_died_come_back(server: RedisServer) -> None:
    config = StoreConfig(url=server.url, lease=1.0)
    async with SharedStore(config) as living:
        async with SharedStore(config) as dying:
            assert (await take(dying, "a", PLACE)).refused is None
            assert (await take(living, "b", PLACE)).refused is None
        # Its block is over and "a" was never given back: so does a process end that is killed.
        ended = time.monotonic()
        while (await take(living, "c", PLACE)).refused is not None:
            await asyncio.sleep(0.02)
        waited = time.monotonic() - ended
        assert 0.5 < waited < 1.5
        await asyncio.sleep(1.2)
        assert (await take(living, "d", PLACE)).refused == 0, "those of a process that lives stay taken"


async def test_a_store_that_dies_is_known_at_once_and_found_again(server: RedisServer) -> None:
    changes: list[bool] = []
    config = StoreConfig(url=server.url, timeout=0.2)
    async with (store := SharedStore(config, lambda: changes.append(store.up))):
        assert (await take(store, "a", PLACE)).refused is None
        await server.kill()
        began = time.monotonic()
        with pytest.raises(StoreAway):
            await take(store, "b", PLACE)
        assert time.monotonic() - began < 0.5
        for _ in range(100):
            with pytest.raises(StoreAway):
                store.take("c", [PLACE])
        assert time.monotonic() - began < 0.6, "once it is known to be away, nobody waits for it"
        await server.start()
        await until(lambda: store.up)
        assert (await take(store, "d", PLACE)).left == (0,), "the place of `a` is known to the new one as well"
        assert changes == [True, False, True]


async def test_a_store_that_hangs_costs_one_timeout(server: RedisServer) -> None:
    async with SharedStore(StoreConfig(url=server.url, timeout=0.2)) as store:
        server.freeze()
        began = time.monotonic()
        results = await asyncio.gather(*(take(store, f"e{n}", PLACE) for n in range(50)), return_exceptions=True)
        assert all(isinstance(result, StoreAway) for result in results)
        assert time.monotonic() - began < 0.6
        server.thaw()
        await until(lambda: store.up)
        verdict = await take(store, "after", PLACE)
        assert (verdict.refused, verdict.left) == (None, (1,)), "what was asked of it and never answered is undone"


async def test_a_store_that_is_not_there_at_the_start(server: RedisServer) -> None:
    nowhere = SharedStore(StoreConfig(url=f"redis://127.0.0.1:{free_port()}"))
    async with nowhere as store:
        assert not store.up
        with pytest.raises(StoreAway):
            store.take("a", [PLACE])


async def test_a_store_that_takes_no_writes_is_away(server: RedisServer) -> None:
    async with SharedStore(StoreConfig(url=server.url)) as store:
        async with cast("Any", Redis).from_url(server.url) as admin:
            await admin.config_set("min-replicas-to-write", "1")
            with pytest.raises(StoreAway):
                await take(store, "a", EACH)
            await admin.config_set("min-replicas-to-write", "0")
        await until(lambda: store.up)
        assert (await take(store, "b", EACH)).refused is None


async def test_forgotten_scripts_are_loaded_again(server: RedisServer) -> None:
    async with SharedStore(StoreConfig(url=server.url)) as store:
        async with cast("Any", Redis).from_url(server.url) as admin:
            await admin.script_flush()
        assert (await take(store, "a", EACH)).left == (99,)
        assert store.up


async def test_a_caller_that_leaves_takes_nothing(server: RedisServer) -> None:
    async with SharedStore(StoreConfig(url=server.url, timeout=2.0)) as store:
        server.freeze()
        waiting = asyncio.ensure_future(take(store, "gone", PLACE))
        await asyncio.sleep(0.02)
        waiting.cancel()
        store.finish("gone", [PLACE], [-1])
        server.thaw()
        assert (await take(store, "a", PLACE)).left == (1,)


async def test_nothing_is_left_behind_but_for_a_while(server: RedisServer) -> None:
    claims = (Claim("{t}:s", Kind.SUM, 100, 1.0, 10), Claim("{t}:e", Kind.EACH, 100, 1.0), PLACE)
    async with SharedStore(StoreConfig(url=server.url, lease=1.0)) as store:
        await take(store, "a", *claims)
        async with cast("Any", Redis).from_url(server.url) as admin:
            keys = list(await admin.keys("{t}*"))
            lives = [await admin.pttl(key) for key in keys]
    assert len(keys) == 4
    assert all(0 < life <= 2000 for life in lives)
