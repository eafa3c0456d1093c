"""Budgets are kept to the nano-dollar across three gateways, also when one of them is killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections import Counter
from decimal import Decimal
from typing import Any

import aiohttp
import grpc

from maestro.event.v1.event_pb2 import Event, RequestCompleted, RequestFailed
from maestro_sdk.errors import BudgetExhausted, MaestroError, from_rpc_error

from .conftest import EXACT, GATEWAYS, KILLED, LEASE, LOOSE, MOST, SPARE, TOKEN, Mesh, key_of

REQUESTS = int(os.environ.get("BUDGET_REQUESTS", "200"))


async def attempt(mesh: Mesh, tenant: str, number: int, text: str, tokens: int = MOST) -> MaestroError | None:
    """What a chat failed with."""
    try:
        await mesh.ask(tenant, number, text, tokens, stream=number % 2 == 0)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)
    return None


async def many(mesh: Mesh, tenant: str, count: int = REQUESTS) -> list[MaestroError | None]:
    return await asyncio.gather(*(attempt(mesh, tenant, n, f"{tenant} {n}") for n in range(count)))


def metered(mesh: Mesh, tenant: str) -> int:
    """What the provider charges for the requests of a tenant."""
    return sum(cost for text, cost in mesh.provider.meter.items() if text.startswith(f"{tenant} "))


def end_of(event: Event) -> RequestCompleted | RequestFailed:
    return event.request_completed if event.HasField("request_completed") else event.request_failed


def cost_of(event: Event) -> int:
    """What a request cost by its attempts, in nano-dollars."""
    return sum(int(Decimal(used.cost.usd) * 10**9) for used in end_of(event).attempt_usages if used.HasField("cost"))


async def ledger(mesh: Mesh, tenant: str, requests: int) -> list[Event]:
    """The ends of a tenant's requests, as soon as there are so many."""
    async with asyncio.timeout(15):
        while len(found := await mesh.ends(tenant)) < requests:
            await asyncio.sleep(0.05)
    return found


async def test_a_budget_for_so_many_requests_is_for_so_many(mesh: Mesh, figures: list[str]) -> None:
    mesh.provider.pause = 0.05
    began = time.monotonic()
    outcomes = await many(mesh, "exact")
    took = time.monotonic() - began
    accepted = outcomes.count(None)
    refused = Counter(type(error) for error in outcomes if error is not None)
    assert (accepted, refused) == (EXACT, {BudgetExhausted: REQUESTS - EXACT})
    spent = EXACT * MOST * TOKEN
    assert metered(mesh, "exact") == spent
    (balance,) = await mesh.balances("exact")
    assert (balance.usd, balance.held_usd, balance.held_tokens) == (spent, 0, 0)
    assert type(await attempt(mesh, "exact", 0, "exact more", SPARE + 1)) is BudgetExhausted
    assert await attempt(mesh, "exact", 1, "exact rest", SPARE) is None, "what fits passes"
    assert type(await attempt(mesh, "exact", 2, "exact beyond", 1)) is BudgetExhausted
    events = await ledger(mesh, "exact", EXACT + 1)
    assert sum(map(cost_of, events)) == metered(mesh, "exact") == (EXACT * MOST + SPARE) * TOKEN
    figures.append(
        f"{REQUESTS} concurrent requests on {len(GATEWAYS)} gateways, budget for {EXACT}: {accepted} accepted, "
        f"{sum(refused.values())} refused in {took:.1f} s; a request for the rest passes; ledger = meter = "
        f"{metered(mesh, 'exact')} nano-dollars"
    )


async def test_what_others_did_not_use_is_used(mesh: Mesh, figures: list[str]) -> None:
    mesh.provider.pause, mesh.provider.frugal = 0.02, True
    outcomes = await many(mesh, "loose")
    spent = metered(mesh, "loose")
    left = LOOSE - spent // TOKEN
    assert 0 <= left < MOST, "nobody was refused while there was room for anybody"
    mesh.provider.frugal = False
    assert left == 0 or await attempt(mesh, "loose", 0, "loose rest", left) is None
    (balance,) = await mesh.balances("loose")
    assert (balance.usd, balance.held_usd) == (LOOSE * TOKEN, 0)
    events = await ledger(mesh, "loose", outcomes.count(None) + bool(left))
    assert sum(map(cost_of, events)) == LOOSE * TOKEN == metered(mesh, "loose")
    figures.append(
        f"{REQUESTS} requests that use less than they reserve, budget for {LOOSE} tokens: {outcomes.count(None)} "
        f"accepted, {spent // TOKEN} tokens used, 0 held; the rest of {left} is used by the next one"
    )


async def test_a_killed_gateway_leaves_no_hold_and_no_debt(mesh: Mesh, figures: list[str]) -> None:
    mesh.provider.pause = 0.2
    asked = asyncio.create_task(many(mesh, "killed"))
    async with asyncio.timeout(20):
        # Some are answered, some are under way, and many wait.
        while metered(mesh, "killed") < KILLED * TOKEN // 3:
            await asyncio.sleep(0.005)
    mesh.process.kill(GATEWAYS[1])
    killed = time.monotonic()
    outcomes = await asked
    assert metered(mesh, "killed") <= KILLED * TOKEN
    async with asyncio.timeout(LEASE + 10):
        while (await mesh.balances("killed"))[0].held_usd:
            await asyncio.sleep(0.05)
    freed = time.monotonic() - killed
    (balance,) = await mesh.balances("killed")
    assert balance.held_tokens == 0
    async with asyncio.timeout(15):
        while sum(map(cost_of, events := await mesh.ends("killed"))) != balance.usd:
            await asyncio.sleep(0.1)
    texts = Counter(end_of(event).metadata["n"] for event in events)
    assert set(texts.values()) == {1}, "each request is told once"
    orphans = [event for event in events if any(used.cost.estimated for used in end_of(event).attempt_usages)]
    known = [event for event in events if event not in orphans]
    for event in known:
        assert cost_of(event) == mesh.provider.meter[end_of(event).metadata["n"]]
    for event in orphans:
        assert MOST * TOKEN == cost_of(event) >= mesh.provider.meter.get(end_of(event).metadata["n"], 0)
    assert set(texts) >= {text for text, cost in mesh.provider.meter.items() if text.startswith("killed ") and cost}
    left = KILLED - balance.usd // TOKEN
    mesh.provider.pause = 0.0
    assert left >= SPARE, "nobody spent more than there was"
    assert await attempt(mesh, "killed", 0, "killed rest", left) is None, "what fits passes"
    figures.append(
        f"kill -9 of one of {len(GATEWAYS)} gateways among {REQUESTS} requests: {outcomes.count(None)} answered, "
        f"{len(orphans)} orphans charged as estimated, 0 held after {freed:.1f} s (lease {LEASE:g} s); "
        f"store = ledger = {balance.usd} nano-dollars, {len(known)} entries equal to the meter"
    )


async def test_a_gateway_that_was_taken_for_dead_puts_the_estimate_right(mesh: Mesh, figures: list[str]) -> None:
    mesh.provider.pause, mesh.provider.frugal = 0.3, True
    assert await attempt(mesh, "slow", 0, "slow before") is None
    before = metered(mesh, "slow")
    asked = asyncio.create_task(mesh.ask("slow", 2, "slow one", stream=True))
    async with asyncio.timeout(10):
        while "slow one" not in mesh.provider.meter:
            await asyncio.sleep(0.005)
    mesh.process.kill(GATEWAYS[2], signal.SIGSTOP)
    try:
        async with asyncio.timeout(LEASE + 10):
            while len(guessed := await mesh.ends("slow")) < 2 or (await mesh.balances("slow"))[0].held_usd:
                await asyncio.sleep(0.05)
        estimate = guessed[-1].request_failed
        assert (estimate.usage.estimated, cost_of(guessed[-1])) == (True, MOST * TOKEN)
        async with asyncio.timeout(10):
            while (await mesh.balances("slow"))[0].usd != before + MOST * TOKEN:
                await asyncio.sleep(0.05)
    finally:
        mesh.process.kill(GATEWAYS[2], signal.SIGCONT)
    assert (await asked)[-1].events[-1].HasField("finish")
    mesh.provider.pause, mesh.provider.frugal = 0.0, False
    async with asyncio.timeout(10):
        while (await mesh.balances("slow"))[0].usd != metered(mesh, "slow"):
            await asyncio.sleep(0.05)
    # The store hears of it first, then the ledger, then who adds that up.
    end = time.monotonic() + 15
    while sum(map(cost_of, ends := await mesh.ends("slow"))) != metered(mesh, "slow") and time.monotonic() < end:
        await asyncio.sleep(0.05)
    assert [end_of(event).metadata["n"] for event in ends] == ["slow before", "slow one"]
    assert sum(map(cost_of, ends)) == metered(mesh, "slow")
    wanted = {"requests": "2", "failed_requests": "0", "estimated_requests": "0", "cost": metered(mesh, "slow")}
    while (totals := await usage(mesh, "slow")) != wanted and time.monotonic() < end:
        await asyncio.sleep(0.05)
    assert totals == wanted
    figures.append(
        f"a gateway that stood still for {LEASE:g} s and more: {MOST * TOKEN} nano-dollars estimated by another one, "
        f"then put right: store = ledger = usage = meter = {metered(mesh, 'slow')}"
    )


async def usage(mesh: Mesh, tenant: str) -> dict[str, Any]:
    """What `GET /v1/usage` tells: numbers of requests, and the cost in nano-dollars."""
    async with (
        aiohttp.ClientSession(mesh.process.url, headers=dict(key_of(tenant))) as session,
        session.get("/v1/usage") as answer,
    ):
        totals = (await answer.json())["totals"]
    counts = {name: totals.get(name, "0") for name in ("requests", "failed_requests", "estimated_requests")}
    return {**counts, "cost": round(float(totals["cost_usd"]) * 1e9)}


async def test_how_a_budget_stands_is_told_at_the_public_port(mesh: Mesh) -> None:
    code, out, err = await mesh.process.run(
        "budgets", "--url", mesh.process.url, "--key", "mk-exact-0123456789", "--json"
    )
    assert code == 0, err
    (told,) = json.loads(out)["budgets"]
    assert (told["budget"], told["tenant"], told["held_usd"]) == ("exact", "exact", "0.000000")
    assert (
        told["spent_usd"]
        == told["limit_usd"]
        == f"{(EXACT * MOST + SPARE) * TOKEN / 1e9:.6f}".rstrip("0").ljust(8, "0")
    )
    code, out, _ = await mesh.process.run(
        "budgets", "--url", mesh.process.url, "--key", "mk-killed-0123456789", "exact"
    )
    assert (code, out) == (1, ""), "the budgets of others are not there"
    body = {"messages": [{"role": "user", "content": "x" * 40}], "max_tokens": 4}
    async with aiohttp.ClientSession(mesh.process.url, headers=dict(key_of("exact"))) as session:
        async with session.post("/v1/chat:estimate", json=body) as answer:
            assert answer.status == 200
            (estimate,) = (await answer.json())["estimates"]
        other = dict(key_of("killed"))
        async with session.get("/v1/budgets", params={"budget": "exact"}, headers=other) as hidden:
            assert hidden.status == 404, "the budgets of others are not there"
        async with session.post("/v1/chat", json=body) as refused:
            error = (await refused.json())["error"]
    assert (estimate["model"], estimate["input_tokens"], estimate["max_output_tokens"]) == ("model", 10, 4)
    assert (estimate["minimum_usd"], estimate["maximum_usd"]) == ("0.000000", "0.010000")
    assert (refused.status, error["reason"]) == (402, "BUDGET_EXHAUSTED")
    assert 0 < int(refused.headers["retry-after"]) <= 31 * 86400


async def test_a_store_that_lost_everything_learns_it_from_the_ledger(mesh: Mesh, figures: list[str]) -> None:
    before = {name: (await mesh.balances(name))[0].usd for name in ("exact", "loose")}
    await mesh.store.kill()
    await mesh.store.start()
    began = time.monotonic()
    # While nobody knows what was spent it is found out: nobody is let through, nobody is refused for nothing.
    async with asyncio.timeout(15):
        while not all([await mesh.balances(name) for name in before]):
            asked = [attempt(mesh, name, n, f"{name} again", 1) for n in (0, 2) for name in before]
            assert {type(error) for error in await asyncio.gather(*asked)} == {BudgetExhausted}
    assert {name: (await mesh.balances(name))[0].usd for name in before} == before
    figures.append(f"a store that lost everything knows what was spent {time.monotonic() - began:.1f} s later")
