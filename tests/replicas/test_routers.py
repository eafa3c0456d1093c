"""Routers that go away under load: another one takes over, and without any the last table stays in force."""

import asyncio
import time
from collections.abc import Sequence

from maestro.event.v1.event_pb2 import ROUTE_DEGRADATION_ROUTER_BACK, ROUTE_DEGRADATION_ROUTER_LOST, Event
from maestro_sdk.testing.chaos.load import Load
from maestro_sdk.testing.chaos.record import read_events

from .conftest import GATEWAYS, KEY, MODEL, ROUTERS, Mesh

CLIENTS = 32


def failures(load: Load) -> list[str]:
    """What callers got that were not answered well."""
    return [f"{shown.door}: {shown.failure}" for shown in load.shown if not shown.answered]


async def test_gateways_start_at_different_routers(mesh: Mesh):
    followed = [(await mesh.router_of(gateway))["address"] for gateway in GATEWAYS]
    assert len(set(followed)) == 2, followed


async def test_a_killed_router_is_replaced_by_the_other_one_and_nobody_notices(mesh: Mesh, figures: list[str]):
    for name, other in (ROUTERS, ROUTERS[::-1]):
        left = mesh.process.address(other)
        async with Load(mesh.url, KEY, MODEL, CLIENTS) as load:
            await load.answers(60)
            before = mesh.kill(name)
            took = await mesh.all_routers(lambda router, left=left: router["address"] == left and router["reachable"])
            # The other one is still alone: whoever asks now is answered by its table.
            assert mesh.process.members()[name].state != "ready", f"{name} was back before, after {took:.1f} s"
            await load.answers(60)
            await mesh.process.wait_restarted(before)
            await load.answers(60)
        assert failures(load) == []
        figures.append(
            f"kill -9 {name} under {CLIENTS} clients: all 3 gateways with the other one after {took * 1000:.0f} ms, "
            f"{len(load.shown)} requests, {len(failures(load))} failed"
        )


async def test_without_any_router_the_last_table_decides_even_after_a_restart(mesh: Mesh, figures: list[str]):
    versions = {gateway: (await mesh.router_of(gateway))["table_version"] for gateway in GATEWAYS}
    begun = time.time()
    held: list[int] = []
    try:
        async with Load(mesh.url, KEY, MODEL, CLIENTS) as load:
            held += await asyncio.gather(*(mesh.hold(name) for name in ROUTERS))
            lost = await mesh.all_routers(lambda router: router["degraded"] and not router["reachable"])
            for gateway in GATEWAYS:
                assert (await mesh.router_of(gateway))["table_version"] >= versions[gateway]
            await load.answers(60)
        assert failures(load) == []
        figures.append(
            f"kill -9 of both routers under {CLIENTS} clients: all gateways tell of it {lost * 1000:.0f} ms after "
            f"these are gone, {len(load.shown)} requests, 0 failed"
        )

        # A gateway that is killed now starts with what it knew in its last life.
        mesh.kill("gateway-2")
        there = await mesh.serving("gateway-2")
        alone = await mesh.router_of("gateway-2")
        assert (alone["address"], alone["degraded"]) == (None, True)
        assert alone["table_version"] >= versions["gateway-2"]
        assert 0 < alone["table_age_seconds"] < time.time() - begun + 11
        answers = await asyncio.gather(*(mesh.chat("gateway-2") for _ in range(20)))
        assert {answer.model for answer in answers} == {"offline"}
        figures.append(f"kill -9 of a gateway meanwhile: it serves again, with its snapshot, after {there:.1f} s")

        async with Load(mesh.url, KEY, MODEL, CLIENTS) as load:
            await load.answers(30)
            mesh.go_on(*held)
            held.clear()
            back = await mesh.all_routers(lambda router: bool(router["reachable"]) and not router["degraded"])
            await load.answers(60)
        assert failures(load) == []
        figures.append(
            f"the routers return: all gateways follow one {back:.1f} s after these began to start, "
            f"{len(load.shown)} requests, 0 failed"
        )
    finally:
        mesh.go_on(*held)
    await tell(mesh, begun)


async def tell(mesh: Mesh, begun: float) -> None:
    """Checks that each gateway published once that the routers were lost, and once that they were back."""
    once = [ROUTE_DEGRADATION_ROUTER_LOST, ROUTE_DEGRADATION_ROUTER_BACK]
    # The second one lost them in two lives: the one that was killed, and the one that began without a router.
    wanted = {"gateway": once, "gateway-2": [ROUTE_DEGRADATION_ROUTER_LOST, *once], "gateway-3": once}

    def causes(events: Sequence[Event]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {gateway: [] for gateway in GATEWAYS}
        for event in events:
            if event.kind == "route.degraded" and event.time.ToNanoseconds() / 1e9 > begun:
                told = event.route_degraded
                assert event.subject == f"service/{told.service}"
                assert told.table_version > 0
                found[told.service].append(told.cause)
        return found

    events = await read_events(mesh.process.address("nats"), whole=lambda events: causes(events) == wanted)
    assert causes(events) == wanted
    completed = [
        event.request_completed.degraded
        for event in events
        if event.kind == "request.completed" and event.time.ToNanoseconds() / 1e9 > begun
    ]
    assert sum(completed) >= 80, "what was answered meanwhile is marked"
    assert not completed[-1]
