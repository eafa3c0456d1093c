"""Routers that share their state over a real NATS: what one finds out, the gateways of all know."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2

from maestro.router.v1 import router_pb2 as pb
from maestro.router.v1.router_pb2_grpc import RouterServiceStub
from maestro_router.service import router
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import ProviderQuota, UpstreamError
from maestro_sdk.mesh.watch import RouteWatcher
from maestro_sdk.service.settings import load
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import serve

BACKEND = "first:scripted/model"
OPEN, ACTIVE = pb.BACKEND_STATE_OPEN, pb.BACKEND_STATE_ACTIVE
PROMPT = 0.25
"""Seconds within which every gateway has to know."""


class Mesh:
    """One scripted adapter, and routers on one NATS."""

    def __init__(self, folder: Path, nats: Any, stack: AsyncExitStack) -> None:
        self.nats = nats
        self._folder = folder
        self._stack = stack
        self._document: dict[str, Any] = {
            "version": 1,
            "router": {"address": "127.0.0.1:1", "breaker": {"consecutive_failures": 2, "open_time": "300ms"}},
            "routes": {"default": {"targets": ["scripted/model"]}},
            "aliases": {},
            "nats": {"url": nats.url},
        }

    async def adapter(self, stack: AsyncExitStack | None = None) -> None:
        provider, serving = ScriptedProvider(), vars(health)["aio"].HealthServicer()
        await serving.set("", health_pb2.HealthCheckResponse.SERVING)
        servicers = (ChatServicer(provider), ModelServicer(provider), serving)
        address = await (stack or self._stack).enter_async_context(serve(*servicers))
        self._document["adapters"] = {"first": {"address": address}}

    @asynccontextmanager
    async def router(self, name: str) -> AsyncGenerator[str]:
        file = self._folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(self._document | {"data": str(self._folder / name)}))
        async with router(load(file, env={})) as service, serve(*service.servicers) as address:
            yield address

    async def gateways(self, count: int, *addresses: str) -> list[RouteWatcher]:
        watchers = [
            await self._stack.enter_async_context(RouteWatcher(addresses, f"gateway {number}"))
            for number in range(count)
        ]
        await until(lambda: all(state_of(watcher) == ACTIVE for watcher in watchers))
        return watchers


@pytest.fixture
async def mesh(tmp_path: Path, nats_server: Any) -> AsyncGenerator[Mesh]:
    async with AsyncExitStack() as stack:
        mesh = Mesh(tmp_path, nats_server, stack)
        await mesh.adapter()
        yield mesh


async def until(condition: Callable[[], bool], timeout: float = 15.0) -> float:
    """Seconds until it holds."""
    begun = time.monotonic()
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.001)
    return time.monotonic() - begun


def state_of(watcher: RouteWatcher) -> int:
    backend = watcher.table.backends.get(BACKEND)
    return backend.state if backend is not None and watcher.connected else 0


def barred(watchers: Sequence[RouteWatcher]) -> bool:
    """Whether every gateway leaves the backend alone."""
    now = time.time()
    return all(watcher.local.bars(watcher.table.backends[BACKEND], now) for watcher in watchers)


def fail(watcher: RouteWatcher, error: Any, times: int = 1) -> None:
    """Failures of calls at one gateway, as its dispatcher notes them."""
    backend, now = watcher.table.backends[BACKEND], time.time()
    for _ in range(times):
        watcher.local.begin(backend, now)
        watcher.local.fail(backend, error, now, now)
        outcome = pb.Outcome(backend_id=BACKEND, reason=error.reason_value, counts_against_health=True)
        watcher.report(outcome)


def succeed(watcher: RouteWatcher) -> None:
    backend, now = watcher.table.backends[BACKEND], time.time()
    watcher.local.begin(backend, now)
    watcher.local.succeed(backend, now, now)
    watcher.report(pb.Outcome(backend_id=BACKEND))


async def test_an_opening_at_one_gateway_is_honoured_by_all_of_both_routers(mesh: Mesh) -> None:
    async with mesh.router("one") as one, mesh.router("two") as two:
        watchers = [*await mesh.gateways(3, one), *await mesh.gateways(3, two)]
        openings: list[float] = []
        closings: list[float] = []
        for turn in range(5):
            fail(watchers[turn], UpstreamError("gone"), 2)
            openings.append(await until(lambda: barred(watchers)))
            await until(lambda: all(state_of(watcher) == OPEN for watcher in watchers))
            reasons = {watcher.table.backends[BACKEND].state_reason for watcher in watchers}
            assert reasons == {"UPSTREAM_ERROR, 2 failures in a row"}
            await until(lambda: all(state_of(watcher) == pb.BACKEND_STATE_HALF_OPEN for watcher in watchers))
            succeed(watchers[turn - 1])
            closings.append(await until(lambda: all(state_of(watcher) == ACTIVE for watcher in watchers)))
            assert not any(watcher.local.bars(watcher.table.backends[BACKEND], time.time()) for watcher in watchers)
        # The middle one of five: others use the machine, too.
        assert sorted(openings)[2] < PROMPT, openings
        assert sorted(closings)[2] < PROMPT, closings


async def test_what_happens_while_nats_is_away_is_known_to_all_when_it_is_back(mesh: Mesh) -> None:
    async with mesh.router("one") as one, mesh.router("two") as two:
        first, second = *await mesh.gateways(1, one), *await mesh.gateways(1, two)
        await mesh.nats.kill()
        fail(first, ProviderQuota("used up"))
        # Routing goes on with what each router knows by itself.
        await until(lambda: state_of(first) == OPEN)
        assert state_of(second) == ACTIVE
        await mesh.nats.start()
        await until(lambda: state_of(second) == OPEN)
        assert second.table.backends[BACKEND].until == pytest.approx(first.table.backends[BACKEND].until)


async def test_the_only_router_keeps_its_breakers_and_the_operators_wishes_when_it_is_restarted(mesh: Mesh) -> None:
    async with mesh.router("only") as address:
        (watcher,) = await mesh.gateways(1, address)
        fail(watcher, ProviderQuota("used up"))
        await until(lambda: state_of(watcher) == OPEN)
        told = watcher.table.backends[BACKEND].until
    async with mesh.router("only") as again, RouteWatcher((again,), "gateway") as other:
        await until(lambda: state_of(other) != 0)
        assert state_of(other) == OPEN
        assert other.table.backends[BACKEND].until == pytest.approx(told)


async def test_a_router_that_takes_over_hears_from_the_gateways_what_is_open(mesh: Mesh) -> None:
    async with mesh.router("two") as two:
        async with mesh.router("one") as one:
            watchers = await mesh.gateways(3, one, two)
            await mesh.nats.kill()
            fail(watchers[0], ProviderQuota("used up"))
            await until(lambda: all(state_of(watcher) == OPEN for watcher in watchers))
            told = watchers[0].table.backends[BACKEND].until
        kept: list[bool] = []

        def taken_over() -> bool:
            kept.append(barred(watchers))
            return all(watcher.address == two and state_of(watcher) == OPEN for watcher in watchers)

        await until(taken_over)
        assert all(kept), "a gateway would have called meanwhile"
        assert watchers[2].table.backends[BACKEND].until == pytest.approx(told)


async def test_what_was_closed_meanwhile_is_not_opened_by_who_did_not_hear_of_it(mesh: Mesh) -> None:
    async with mesh.router("two") as two:
        async with mesh.router("one") as one:
            (watcher,) = await mesh.gateways(1, one, two)
            (witness,) = await mesh.gateways(1, two)
            fail(watcher, ProviderQuota("used up"))
            await until(lambda: state_of(watcher) == state_of(witness) == OPEN)
            await mesh.nats.kill()
            async with grpc.aio.insecure_channel(two) as channel:
                wish = pb.SetBackendStateRequest(backend_id=BACKEND, state=ACTIVE)
                await RouterServiceStub(channel).SetBackendState(wish)
            await until(lambda: state_of(witness) == ACTIVE)
            assert state_of(watcher) == OPEN
        await until(lambda: watcher.address == two and not barred([watcher]))
        assert state_of(watcher) == state_of(witness) == ACTIVE


async def test_who_was_not_proven_well_is_tried_with_few_calls_after_a_restart(mesh: Mesh) -> None:
    async with mesh.router("only") as address:
        (watcher,) = await mesh.gateways(1, address)
        fail(watcher, UpstreamError("gone"), 2)
        await until(lambda: state_of(watcher) == OPEN)
        told = watcher.table.backends[BACKEND].until
    await until(lambda: time.time() > told)
    async with mesh.router("only") as again, RouteWatcher((again,), "gateway") as other:
        await until(lambda: state_of(other) != 0)
        assert state_of(other) == pb.BACKEND_STATE_HALF_OPEN
        succeed(other)
        await until(lambda: state_of(other) == ACTIVE)


async def test_an_operators_wish_holds_at_every_router_and_active_ends_what_was_open(mesh: Mesh) -> None:
    async with mesh.router("one") as one, mesh.router("two") as two:
        first, second = *await mesh.gateways(1, one), *await mesh.gateways(1, two)
        async with grpc.aio.insecure_channel(one) as a, grpc.aio.insecure_channel(two) as b:
            fail(first, ProviderQuota("used up"))
            await until(lambda: state_of(second) == OPEN)
            wish = pb.SetBackendStateRequest(backend_id=BACKEND, state=pb.BACKEND_STATE_DISABLED, reason="too dear")
            await RouterServiceStub(a).SetBackendState(wish)
            await until(lambda: state_of(second) == pb.BACKEND_STATE_DISABLED)
            assert second.table.backends[BACKEND].state_reason == "too dear"
            await RouterServiceStub(b).SetBackendState(pb.SetBackendStateRequest(backend_id=BACKEND, state=ACTIVE))
            await until(lambda: state_of(first) == state_of(second) == ACTIVE)
    async with mesh.router("three") as three:
        await mesh.gateways(1, three)


async def test_an_adapter_that_was_restarted_while_no_router_looked_begins_anew(mesh: Mesh) -> None:
    async with mesh.router("one") as one:
        (watcher,) = await mesh.gateways(1, one)
        fail(watcher, ProviderQuota("used up"))
        await until(lambda: state_of(watcher) == OPEN)
    await mesh.adapter()
    async with mesh.router("one") as again:
        (watcher,) = await mesh.gateways(1, again)
        assert state_of(watcher) == ACTIVE
        assert not barred([watcher])
