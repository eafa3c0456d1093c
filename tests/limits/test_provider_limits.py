"""Limits of providers are exact across three gateways and all tenants, and whoever has room answers instead."""

from __future__ import annotations

import asyncio
import bisect
import time
from typing import Any, cast

import aiohttp
from redis.asyncio import Redis

from maestro_sdk.errors import RateLimited

from .conftest import GATEWAYS, PLACES, RATE, WINDOW, Mesh, key_of
from .test_limits import attempt


async def test_three_gateways_keep_one_sliding_window_for_all_tenants(mesh: Mesh, figures: list[str]) -> None:
    refused: list[tuple[float, float, float]] = []
    accepted = 0
    counted: dict[bytes, float] = {}
    over = asyncio.Event()
    end = time.time() + 1.7 * WINDOW

    async def client(number: int) -> None:
        nonlocal accepted
        while time.time() < end:
            began = time.time()
            error = await attempt(mesh, ("free", "lease")[number % 2], number, model="ceiling/model")
            if error is None:
                accepted += 1
            else:
                assert type(error) is RateLimited
                assert error.metadata["whose"] == "provider ceiling"
                assert error.retry_after is not None
                refused.append((began, time.time(), error.retry_after))
            await asyncio.sleep(0.1)

    async def read() -> None:
        # The store's own clock is the one that counts, and entries stay there for a window at least.
        key = "maestro:limit:{provider:ceiling}:all:provider:ceiling:requests"
        async with cast("Any", Redis).from_url(mesh.store.url) as client:
            reading = True
            while reading:
                # Once more when all are answered: who began in the last moment is counted, too.
                reading = not over.is_set()
                for name, score in await client.zrange(key, 0, -1, withscores=True):
                    counted[name] = score / 1e6
                await asyncio.sleep(WINDOW / 10 if reading else 0)

    before = mesh.provider.answered["ceiling/model"]
    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        await asyncio.gather(*(client(number) for number in range(6)))
        over.set()
    moments = sorted(counted.values())
    assert len(moments) == accepted, "whoever was answered was counted, and nobody else"
    assert mesh.provider.answered["ceiling/model"] - before == accepted
    most = max(bisect.bisect_left(moments, moment + WINDOW) - at for at, moment in enumerate(moments))
    assert most == RATE, "no window of any position holds more, and one is full"
    for began, ended, _ in refused:
        held = bisect.bisect_right(moments, ended) - bisect.bisect_right(moments, began - WINDOW)
        assert held >= RATE, "nobody was refused while there was room"
    figures.append(
        f"{len(GATEWAYS)} gateways, {RATE} requests in {WINDOW:g} s at one provider: {accepted} accepted, "
        f"{len(refused)} refused; in each sliding window at most {most}"
    )


async def test_a_provider_never_answers_more_at_once_than_it_may(mesh: Mesh, figures: list[str]) -> None:
    refusals = 0
    mesh.provider.most.clear()

    async def caller(number: int) -> None:
        nonlocal refusals
        while (error := await attempt(mesh, "free", number, text="narrow", model="narrow/model")) is not None:
            assert type(error) is RateLimited
            refusals += 1
            await asyncio.sleep(0.2)

    began = time.monotonic()
    await asyncio.gather(*(caller(number) for number in range(100)))
    assert mesh.provider.most["narrow"] == PLACES
    figures.append(
        f"100 concurrent requests on {len(GATEWAYS)} gateways, {PLACES} at once at one backend: at most "
        f"{mesh.provider.most['narrow']} there, {refusals} refusals, all answered after "
        f"{time.monotonic() - began:.1f} s"
    )


async def test_who_has_no_room_is_passed_over_by_all_gateways(mesh: Mesh, figures: list[str]) -> None:
    found = await asyncio.gather(*(attempt(mesh, "free", number, model="spread") for number in range(3 * RATE)))
    assert found == [None] * (3 * RATE)
    answered = mesh.provider.answered
    assert (answered["nearly/model"], answered["roomy/model"]) == (RATE, 2 * RATE)
    figures.append(
        f"a route of two providers, {RATE} in an hour at the first: of {3 * RATE} requests {answered['nearly/model']} "
        f"were answered by it, {answered['roomy/model']} by the other one, 0 failed"
    )


async def test_rest_says_when_there_is_room(mesh: Mesh) -> None:
    body = {"model": "nearly/model", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": key_of("free")[0][1]}
    async with aiohttp.ClientSession(mesh.process.url, headers=headers) as http:
        for _ in range(RATE):
            async with http.post("/v1/chat", json=body) as reply:
                await reply.read()
        async with http.post("/v1/chat", json=body) as reply:
            error = (await reply.json())["error"]
        assert (reply.status, error["reason"], error["metadata"]["whose"]) == (
            429,
            "RATE_LIMITED",
            "model nearly/model",
        )
        assert 3400 < int(reply.headers["retry-after"]) <= 3600
