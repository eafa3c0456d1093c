"""Limits are exact across three gateways, outlive a killed one, and do what was declared when their store is away."""

from __future__ import annotations

import asyncio
import bisect
import time
from typing import Any, cast

import anthropic
import grpc
import openai
import pytest
import yaml
from redis.asyncio import Redis

from maestro_sdk.errors import (
    MaestroError,
    NoBackend,
    RateLimited,
    TenantConcurrency,
    TenantRateLimited,
    from_rpc_error,
)

from .conftest import GATEWAYS, LEASE, PLACES, RATE, TIMEOUT, TOKENS, WINDOW, Mesh, key_of, question

FROZEN = 1.0 + TIMEOUT
"""Seconds for which the store is away."""


async def attempt(mesh: Mesh, tenant: str, number: int = 0, **more: Any) -> MaestroError | None:
    """What a chat failed with."""
    try:
        await mesh.ask(tenant, number, **more)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


async def test_three_gateways_keep_one_sliding_window(mesh: Mesh, figures: list[str]) -> None:
    refused: list[tuple[float, float, float]] = []
    accepted = 0
    counted: dict[bytes, float] = {}
    over = asyncio.Event()
    end = time.time() + 2.6 * WINDOW

    async def client(number: int) -> None:
        nonlocal accepted
        while time.time() < end:
            began = time.time()
            error = await attempt(mesh, "rate", number)
            if error is None:
                accepted += 1
            else:
                assert type(error) is TenantRateLimited
                assert error.retry_after is not None
                refused.append((began, time.time(), error.retry_after))
            await asyncio.sleep(0.1)

    async def read() -> None:
        # The store's own clock is the one that counts, and entries stay there for a window at least.
        async with cast("Any", Redis).from_url(mesh.store.url) as client:
            reading = True
            while reading:
                # Once more when all are answered: who began in the last moment is counted, too.
                reading = not over.is_set()
                for name, score in await client.zrange(
                    "maestro:limit:{rate}:tenant:rate:requests", 0, -1, withscores=True
                ):
                    counted[name] = score / 1e6
                await asyncio.sleep(WINDOW / 10 if reading else 0)

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        await asyncio.gather(*(client(number) for number in range(6)))
        over.set()
    moments = sorted(counted.values())
    assert len(moments) == accepted, "whoever was answered was counted, and nobody else"
    most = max(bisect.bisect_left(moments, moment + WINDOW) - at for at, moment in enumerate(moments))
    assert most == RATE, "no window of any position holds more, and one is full"
    for began, ended, _ in refused:
        held = bisect.bisect_right(moments, ended) - bisect.bisect_right(moments, began - WINDOW)
        assert held >= RATE, "nobody was refused while there was room"
    fewest = min(
        bisect.bisect_right(moments, ended) - bisect.bisect_right(moments, ended - WINDOW) for _, ended, _ in refused
    )
    figures.append(
        f"{len(GATEWAYS)} gateways, {RATE} requests in {WINDOW:g} s: {accepted} accepted, {len(refused)} refused; in "
        f"each sliding window at most {most}, at a refusal at least {fewest}"
    )


async def test_200_callers_never_have_more_places_than_there_are(mesh: Mesh, figures: list[str]) -> None:
    refusals = 0
    mesh.provider.most.clear()

    async def caller(number: int) -> None:
        nonlocal refusals
        while (error := await attempt(mesh, "places", number, text="place")) is not None:
            assert type(error) is TenantConcurrency
            refusals += 1
            await asyncio.sleep(0.2)

    began = time.monotonic()
    await asyncio.gather(*(caller(number) for number in range(200)))
    assert mesh.provider.most["place"] == PLACES
    figures.append(
        f"200 concurrent requests on 3 gateways, {PLACES} at once: at most {mesh.provider.most['place']} at the "
        f"provider, {refusals} refusals, all answered after {time.monotonic() - began:.1f} s"
    )


async def test_a_killed_gateway_frees_its_places(mesh: Mesh, figures: list[str]) -> None:
    held = [mesh.stream("lease", 1, "hold") for _ in range(3)]
    held += [mesh.stream("free", 1, "hold", model="leased/model") for _ in range(3)]
    for call in held:
        await call.read()
    assert type(await attempt(mesh, "lease", 0)) is TenantConcurrency
    assert type(await attempt(mesh, "free", 0, model="leased/model")) is RateLimited
    # They stay taken for as long as their gateway lives.
    await asyncio.sleep(1.2 * LEASE)
    assert type(await attempt(mesh, "lease", 2)) is TenantConcurrency
    assert type(await attempt(mesh, "free", 2, model="leased/model")) is RateLimited
    before = mesh.kill(GATEWAYS[1])
    killed = time.monotonic()
    took = 0.0
    for tenant, model in (("lease", "fake/model"), ("free", "leased/model")):
        while True:
            began = time.monotonic() - killed
            if await attempt(mesh, tenant, 0, model=model) is None:
                break
            # What counts is when it was asked: an answer may take its time.
            assert began < LEASE + 1, f"{tenant} was refused {began:.1f} s after the end of who had the places"
            await asyncio.sleep(0.05)
        took = max(took, began)
    figures.append(
        f"kill -9 of a gateway with 3 streams of a tenant and 3 at a provider: their places are free after "
        f"{took:.1f} s (lease {LEASE:g} s)"
    )
    for call in held:
        call.cancel()
    await mesh.process.wait_restarted(before)
    async with asyncio.timeout(20):
        while await attempt(mesh, "free", 1) is not None:
            await asyncio.sleep(0.05)


async def test_a_cut_stream_gives_its_tokens_back_to_all_gateways(mesh: Mesh) -> None:
    call = mesh.stream("tokens", 0, "hold", max_tokens=TOKENS - 100)
    await call.read()
    error = await attempt(mesh, "tokens", 1, max_tokens=TOKENS // 2)
    assert type(error) is TenantRateLimited
    call.cancel()
    async with asyncio.timeout(5):
        while await attempt(mesh, "tokens", 1, max_tokens=TOKENS // 2) is not None:
            await asyncio.sleep(0.02)
    for number in range(12):
        async with asyncio.timeout(2):
            while await attempt(mesh, "tokens", number, max_tokens=TOKENS // 2) is not None:
                await asyncio.sleep(0.01)


async def test_the_official_clients_know_it_for_a_rate_limit(mesh: Mesh) -> None:
    key = key_of("openai")[0][1].removeprefix("Bearer ")
    async with openai.AsyncOpenAI(base_url=f"{mesh.process.url}/v1", api_key=key, max_retries=0) as client:
        completions = client.chat.completions.with_raw_response
        good = await completions.create(model="fake/model", messages=[{"role": "user", "content": "hello"}])
        assert good.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as caught:
            await completions.create(model="fake/model", messages=[{"role": "user", "content": "hello"}])
        assert 3500 < int(caught.value.response.headers["retry-after"]) <= 3600
    key = key_of("anthropic")[0][1].removeprefix("Bearer ")
    async with anthropic.AsyncAnthropic(base_url=mesh.process.url, api_key=key, max_retries=0) as other:
        messages = other.messages.with_raw_response
        fine = await messages.create(model="fake/model", max_tokens=9, messages=[{"role": "user", "content": "hello"}])
        assert fine.headers["anthropic-ratelimit-requests-remaining"] == "0"
        with pytest.raises(anthropic.RateLimitError) as refused:
            await messages.create(model="fake/model", max_tokens=9, messages=[{"role": "user", "content": "hello"}])
        assert 3500 < int(refused.value.response.headers["retry-after"]) <= 3600
        assert "anthropic-ratelimit-requests-reset" in refused.value.response.headers


async def test_what_was_declared_holds_while_the_store_is_away(mesh: Mesh, figures: list[str]) -> None:
    file = mesh.process.data.parent / "maestro.yaml"
    for policy in ("allow", "deny"):
        document = yaml.safe_load(file.read_text())
        document["limits"]["on_store_failure"] = policy
        document["limits"]["tenants"]["frozen"]["requests"] = 50_000 if policy == "allow" else 50_001
        file.write_text(yaml.safe_dump(document))
        limit = str(document["limits"]["tenants"]["frozen"]["requests"])
        await _limit_is(mesh, limit)
        mesh.store.freeze()
        frozen = time.monotonic()
        slowest, shown, others = 0.0, list[MaestroError | None](), list[MaestroError | None]()
        while time.monotonic() - frozen < FROZEN:
            for number in range(3):
                began = time.monotonic()
                shown.append(await attempt(mesh, "frozen", number))
                shown.append(await attempt(mesh, "free", number, model="frozen/model"))
                slowest = max(slowest, time.monotonic() - began)
                others.append(await attempt(mesh, "free", number))
        mesh.store.thaw()
        assert others == [None] * len(others), "who is not limited does not notice"
        failed = [error for error in shown if error is not None]
        if policy == "allow":
            assert failed == []
        else:
            assert len(failed) == len(shown)
            assert all(type(error) is NoBackend and error.retry_after == 1.0 for error in failed)
        assert slowest < TIMEOUT + 1.25
        thawed = time.monotonic()
        for number in range(3):
            while await attempt(mesh, "frozen", number) is not None:
                assert time.monotonic() - thawed < 5
                await asyncio.sleep(0.05)
        figures.append(
            f"store away for {FROZEN:g} s, {policy}: {len(shown) - len(failed)} of {len(shown)} answered, "
            f"{len(others)} of {len(others)} of a tenant without limits; the slowest took {slowest * 1000:.0f} ms; "
            f"as before {time.monotonic() - thawed:.2f} s after its return"
        )


async def _limit_is(mesh: Mesh, limit: str) -> None:
    """Waits until every gateway goes by the changed configuration."""
    async with asyncio.timeout(20):
        for stub in mesh.stubs.values():
            while True:
                call = stub.Chat(question("hello"), metadata=key_of("frozen"))
                await call
                if dict(await call.trailing_metadata())["x-ratelimit-limit-requests"] == limit:
                    break
                await asyncio.sleep(0.05)
