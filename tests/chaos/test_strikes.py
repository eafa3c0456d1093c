"""Processes are killed one at a time under load, and a storm of everything at once: nothing is lost without a word."""

import asyncio
import os
import random
import time
from collections.abc import Sequence

import pytest

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.testing.chaos.invariants import (
    broken_answers,
    lost,
    repeated_faults,
    tally,
    wrong_accounts,
)
from maestro_sdk.testing.chaos.load import Load
from maestro_sdk.testing.chaos.provider import Providers, Weather, describe
from maestro_sdk.testing.chaos.record import read_events
from maestro_sdk.testing.chaos.strike import strike
from maestro_sdk.testing.chaos.words import Words, broken_words, closings, held
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEY, OPEN_TIME, SEED

CLIENTS = 32
ROUTE = "both"
BACKENDS = {"openai": "openai:openai/gpt-6.1-terra", "anthropic": "claude:anthropic/claude-sonnet-5-5"}
# One of each kind first: those are all that the suite kills; a long storm (`make chaos`) kills the others, too.
VICTIMS = ("router", "nats", "gateway", "adapter-openai", "router-2", "gateway-2", "adapter-claude")
UNNOTICED = ("router", "nats")
"""Processes whose end no caller notices."""
LONG = "CHAOS_SECONDS" in os.environ
STORM = float(os.environ.get("CHAOS_SECONDS", "8"))


async def accounts(mesh: MeshProcess, load: Load, providers: Providers) -> list[str]:
    """What is wrong in the accounts of a load, when all of them are there."""

    def wrong(events: Sequence[Event]) -> list[str]:
        return list(wrong_accounts(load.name, load.shown, events, providers.calls))

    return wrong(await read_events(mesh.address("nats"), whole=lambda events: not wrong(events)))


def unanswered(load: Load) -> list[str]:
    """What those were told who should have been answered."""
    return [
        f"{each.door}, {each.mark}, after {each.ended - each.began:.3f} s: {each.failure} {each.message}"
        for each in load.shown
        if not each.answered and not each.refusable
    ]


def listen(mesh: MeshProcess) -> Words:
    """What both gateways say of the two backends."""
    return Words(mesh, KEY, ("gateway", "gateway-2"), BACKENDS.values())


@pytest.mark.parametrize("victim", VICTIMS if LONG else VICTIMS[:4])
async def test_one_process_is_killed(mesh: MeshProcess, providers: Providers, figures: list[str], victim: str):
    async with Load(mesh.url, KEY, ROUTE, CLIENTS) as load:
        aftermath = await strike(mesh, load, victim)
    figures.append(aftermath.row())
    assert lost(load.shown) == []
    assert list(broken_answers(load.shown)) == []
    unnoticed = victim.startswith(UNNOTICED)
    assert list(repeated_faults(load.shown, providers.calls, [] if unnoticed else [aftermath.at])) == []
    if unnoticed:
        assert [each.failure for each in aftermath.failures] == []
        assert await accounts(mesh, load, providers) == []
    elif victim.startswith("adapter"):
        # Before content the other provider answers; an answer that had begun is cut, and says so.
        assert [each.message for each in aftermath.failures if not each.text] == []


async def test_a_storm(mesh: MeshProcess, providers: Providers, figures: list[str]):
    """Failing, cut and late answers, and processes killed at random, until the time is over.

    No breaker that is open lets a call pass, whoever is killed. How soon the others hear of an opening, and a call that
    is under way arrives, is a matter of the machine, so that no time since the opening can tell a fault: on a busy one
    calls of the last moment came after 0.6 s. What counts is what the gateways say themselves: once each of them has
    said until when it leaves a backend alone, no question that is asked after that may reach it before then.
    """
    begun, dice = time.time(), random.Random(SEED)
    providers.weather["openai"] = Weather(failing=0.2, cut=0.1, late=0.05)
    providers.weather["anthropic"] = Weather(failing=0.05, cut=0.05)
    killed: list[tuple[str, float]] = []
    async with listen(mesh) as words, Load(mesh.url, KEY, ROUTE, CLIENTS) as load:
        while time.time() - begun < STORM:
            await asyncio.sleep(dice.uniform(0.5, 2.0))
            victim = dice.choice(VICTIMS)
            if mesh.members()[victim].state == "ready":
                killed.append((victim, time.time()))
                before = mesh.kill(victim)
                if dice.random() < 0.5:
                    await mesh.wait_restarted(before)
        providers.weather = {"openai": Weather(), "anthropic": Weather()}
        await load.answers(200)
    bound = held(load.shown, words.said, BACKENDS)

    def broken(events: Sequence[Event]) -> list[str]:
        return list(broken_words(providers.calls, bound, BACKENDS, closings(events, killed)))

    events = await read_events(mesh.address("nats"), whole=lambda events: not broken(events))
    figures.append(
        f"storm of {STORM:.0f} s, seed {SEED}, killed {', '.join(name for name, _ in killed)}: {tally(load.shown)}; "
        f"{len(bound)} questions while a breaker was open everywhere"
    )
    assert lost(load.shown) == []
    assert list(broken_answers(load.shown)) == []
    assert list(repeated_faults(load.shown, providers.calls, [moment for _, moment in killed])) == []
    assert broken(events) == []


async def test_a_provider_that_is_down_is_hardly_asked_whoever_dies(
    mesh: MeshProcess, providers: Providers, figures: list[str]
):
    """One trial call of each gateway in each open time: no router that takes over, knowing nothing, opens the door."""
    providers.weather["openai"] = Weather(failing=1.0)
    async with listen(mesh) as words, Load(mesh.url, KEY, ROUTE, CLIENTS) as load:
        async with asyncio.timeout(30):
            while not (bound := held(load.shown, words.said, {"openai": BACKENDS["openai"]})):
                await load.answers(10)
        for victims in (("nats", "router"), ("router-2",)):
            before = [mesh.kill(name) for name in victims]
            await asyncio.gather(*(mesh.wait_restarted(each) for each in before))
            await load.answers(20)
        await load.answers(60)
        over = time.time()
    # When this one was asked, every gateway had said that it asks nothing any more.
    begun = next(each.began for each in load.shown if each.mark == bound[0].mark)
    took = over - begun
    since = {each.mark for each in load.shown if each.began >= begun}
    tried = [call for call in providers.calls if call.provider == "openai" and call.mark in since]
    figures.append(
        f"a provider that is down for {took:.1f} s while NATS and both routers are killed: asked {len(tried)} times by "
        f"2 gateways, {len(since)} questions, {len([each for each in load.shown if each.answered])} answered"
    )
    assert len(tried) <= 2 * (1 + took / OPEN_TIME), describe(tried)
    assert unanswered(load) == []
    assert list(broken_words(providers.calls, held(load.shown, words.said, BACKENDS), BACKENDS, {})) == []


async def test_weather_alone_is_accounted_to_the_token(mesh: MeshProcess, providers: Providers, figures: list[str]):
    providers.weather["openai"] = Weather(failing=0.3)
    async with listen(mesh) as words, Load(mesh.url, KEY, ROUTE, CLIENTS) as load:
        await load.answers(400)
    figures.append(f"30 % of the calls to one of two providers fail: {tally(load.shown)}")
    assert unanswered(load) == []
    assert list(broken_answers(load.shown)) == []
    assert list(repeated_faults(load.shown, providers.calls)) == []
    assert list(broken_words(providers.calls, held(load.shown, words.said, BACKENDS), BACKENDS, {})) == []
    assert await accounts(mesh, load, providers) == []
