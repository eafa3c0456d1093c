"""NATS and the store go away under load, standing still and dead: chats go on, money is exact."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.audit import prove
from maestro_sdk.service.store.holds import Balance
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.redis import RedisServer, find_redis
from maestro_sdk.testing.servers import serve

from .outage import (
    LEASE,
    MOST,
    TOKEN,
    Books,
    Load,
    Meter,
    configuration,
    cost_of,
    environment,
    name_of,
    share,
)

SECONDS = float(os.environ.get("OUTAGE_SECONDS", "0.5"))
"""How long NATS and the store are away, each time."""
CLIENTS = int(os.environ.get("OUTAGE_CLIENTS", "12"))
KILLED_AT = random.Random(os.environ.get("OUTAGE_SEED", "")).uniform(0.1, 0.9)
"""The share of that time after which a gateway is killed."""
pytestmark = pytest.mark.skipif(find_redis() is None, reason="neither redis-server nor valkey-server is installed")
_health: Any = grpc_health  # the asyncio half has no types


@dataclass
class Stage:
    """The running mesh, and who it depends on."""

    mesh: MeshProcess
    store: RedisServer
    provider: Meter
    books: Books


@asynccontextmanager
async def staged(folder: Path, on_store_failure: str) -> AsyncGenerator[Stage]:
    """A mesh with a store, and a policy for when that is away."""
    provider = Meter()
    statuses: Any = _health.aio.HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    saved = folder / "store"
    saved.mkdir()
    async with (
        RedisServer("--dir", str(saved)) as store,
        serve(ChatServicer(provider), ModelServicer(provider), statuses) as adapter,
        MeshProcess(folder, configuration(store.url, adapter, on_store_failure), environment()) as mesh,
    ):
        books = await Books.open(mesh, store)
        try:
            yield Stage(mesh, store, provider, books)
        finally:
            await books.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("outage"), "allow") as stage:
        yield stage


async def stand_still(stage: Stage) -> None:
    """NATS and the store are stopped where they are: their connections stay, and nothing answers."""
    stage.mesh.kill("nats", signal.SIGSTOP)
    stage.store.freeze()
    await asyncio.sleep(SECONDS)
    stage.store.thaw()
    stage.mesh.kill("nats", signal.SIGCONT)


async def die(stage: Stage) -> None:
    """The store dies and forgets all; NATS dies, and what is started in its place answers nobody for a while."""
    end = time.monotonic() + SECONDS
    await stage.store.kill()
    before = stage.mesh.kill("nats")
    while (pid := stage.mesh.members()["nats"].pid) in (None, before.pid):
        await asyncio.sleep(0.005)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(max(0.0, end - time.monotonic()))
    await stage.store.start()
    os.kill(pid, signal.SIGCONT)
    await stage.mesh.wait_restarted(before)


async def forget(stage: Stage) -> None:
    """The store dies, and comes back with what it knew some time before. NATS stays."""
    await stage.store.save()
    await asyncio.sleep(SECONDS)
    await stage.store.kill()
    await stage.store.start()


OUTAGES = {"stand still": stand_still, "are dead": die}


async def answers(load: Load, count: int) -> None:
    """Waits until so many requests that begin from now on were answered, and some of them to each tenant."""
    begun = time.monotonic()
    async with asyncio.timeout(60):
        found: Counter[str] = Counter()
        while found.total() < count or {each.tenant for each in load.asked} - found.keys():
            await asyncio.sleep(0.01)
            found = Counter(each.tenant for each in load.asked if not each.failure and each.begun > begun)


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
async def test_money_and_audit_are_exact_after_an_outage(stage: Stage, figures: list[str], *, killed: bool) -> None:
    paid, free = tenants = ("paid-killed", "free-killed") if killed else ("paid", "free")
    spans: dict[str, tuple[float, float]] = {}
    async with Load(stage.mesh, tenants, CLIENTS) as load:
        await answers(load, 30)
        outages = {f"NATS and store {name}": outage for name, outage in OUTAGES.items()}
        for name, outage in (outages | {"store goes back in time": forget}).items():
            if killed and outage is not stand_still and SECONDS < 5:
                # Each restart of a gateway takes some seconds: a short run has one.
                continue
            begun = time.monotonic()
            away = asyncio.create_task(outage(stage))
            if killed:
                await asyncio.sleep(SECONDS * KILLED_AT)
                before = stage.mesh.kill("gateway-2")
                await away
                await stage.mesh.wait_restarted(before)
            await away
            spans[name] = begun, time.monotonic()
            await answers(load, 30)
        end = time.monotonic() + 10
        while await stage.books.balance(paid) is None:
            assert time.monotonic() < end, "nobody tells the store what was spent"
            await asyncio.sleep(0.05)
    for name, span in spans.items():
        for tenant in tenants:
            asked = [each for each in load.asked if each.tenant == tenant]
            count, answered, slow, failures = share(asked, *span)
            figures.append(
                f"{name} for {span[1] - span[0]:.1f} s{', a gateway is killed' if killed else ''}: "
                f"{tenant}: {answered} of {count} answered ({answered / max(1, count):.2%}), p99 {slow * 1000:.0f} ms, "
                f"{dict(failures)}"
            )
            assert killed or answered == count, failures
    for tenant in tenants:
        entries = await settled(stage, load, tenant)
        exact(stage, load, tenant, entries, killed=killed)
        records = await stage.books.audit(tenant)
        written = await stage.books.entries(tenant)
        assert [record.record_id for record in records] == list(written), "each entry has one record, in its order"
        assert prove(records).broken is None
    spent = sum(map(cost_of, (await stage.books.ledger(paid)).values()))
    balance = await balanced(stage, paid, spent)
    assert balance is not None
    assert (balance.held_usd, balance.held_tokens) == (0, 0)
    assert balance.usd == spent, f"the counter is {balance.usd - spent:+} nano-dollars beside the ledger"
    figures.append(
        f"  then the ledger has {spent} nano-dollars, the budget {balance.usd - spent:+} and 0 held; "
        f"{paid} and {free}: audit whole, chain proven"
    )


async def settled(stage: Stage, load: Load, tenant: str) -> dict[str, Event]:
    """The ledger of a tenant, once every answered request is in it, nothing more comes, and all of it is sealed."""
    wanted = {each.text for each in load.asked if each.tenant == tenant and not each.failure}
    entries: dict[str, Event] = {}
    missing = wanted
    end = time.monotonic() + 40 + SECONDS
    while time.monotonic() < end:
        before, entries = len(entries), await stage.books.entries(tenant)
        missing = wanted - {name_of(event) for event in entries.values()}
        if not missing and len(entries) == before and len(await stage.books.audit(tenant)) == len(entries):
            return await stage.books.ledger(tenant)
        await asyncio.sleep(0.3)
    raise AssertionError(
        f"{tenant}: {len(missing)} of {len(wanted)} answered requests are not in the ledger: {sorted(missing)[:5]}; "
        f"{len(entries)} entries, {len(await stage.books.audit(tenant))} records"
    )


async def balanced(stage: Stage, tenant: str, spent: int) -> Balance | None:
    """What the store counts, once that is what was spent, or some seconds later."""
    end = time.monotonic() + LEASE + 3
    while (balance := await stage.books.balance(tenant)) is None or balance.usd != spent or balance.held_usd:
        if time.monotonic() > end:
            break
        await asyncio.sleep(0.1)
    return balance


def exact(stage: Stage, load: Load, tenant: str, entries: dict[str, Event], *, killed: bool) -> None:
    """Each request is told once, with what the provider charged for it."""
    told = Counter(name_of(event) for event in entries.values())
    assert set(told.values()) == {1}, [name for name, count in told.items() if count > 1][:5]
    answered = {each.text for each in load.asked if each.tenant == tenant and not each.failure}
    wrong = {
        name: (cost_of(event), stage.provider.meter.get(name, 0))
        for event in entries.values()
        if cost_of(event) != stage.provider.meter.get(name := name_of(event), 0)
    }
    if not killed:
        assert sum(map(cost_of, entries.values())) == stage.provider.charged(tenant), wrong
        asked = {each.text for each in load.asked if each.tenant == tenant}
        # Of very many refusals some are told as a number.
        assert answered <= set(told) <= asked
        return
    # What was answered is exact. What a killed gateway had under way is estimated: where a budget held for it, as the
    # most that it may have cost, else as its question, which costs nothing here.
    assert not answered & set(wrong), {name: wrong[name] for name in answered & set(wrong)}
    most = MOST * TOKEN if tenant.startswith("paid") else 0
    assert all(mine == most for mine, _ in wrong.values()), wrong
    assert all(event.request_failed.usage.estimated for event in entries.values() if name_of(event) in wrong)
    charged = {name for name in stage.provider.meter if name.startswith(f"{tenant}:")}
    assert charged <= set(told), f"the ledger does not tell {sorted(charged - set(told))[:5]}"
