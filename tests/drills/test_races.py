"""Two attempts at once: whatever becomes of either, the caller gets one answer, and nothing of the other."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pytest
import pytest_asyncio
from drill_doors import DOORS, STREAMED, Stand, ask
from drill_stage import Stage, chosen, prompt, run_all
from drill_table import OTHER, WIRES

from maestro_sdk.testing.faults import Reply, Seen, Step, Wait, WaitFor
from maestro_sdk.testing.wire import Wire

AT_ONCE = 16
LATE = 0.5
"""Seconds after the beginning of the second attempt."""
NEVER = 20.0
"""Seconds after which an answer would come that somebody else gives before, on a busy machine, too."""

Fate = Callable[[Wire], Reply]


def after(seconds: float, fate: Fate) -> Fate:
    """The same, but nothing happens before."""

    def late(wire: Wire) -> Reply:
        reply = fate(wire)

        def steps(seen: Seen) -> Sequence[Step]:
            return (Wait(seconds), *reply(seen))

        return steps

    return late


def behind(asked: asyncio.Event, reply: Reply) -> Reply:
    """The same, but not before the second attempt has begun, however late that is."""
    return lambda seen: (WaitFor(asked), *reply(seen))


def telling(asked: asyncio.Event, reply: Reply) -> Reply:
    """The same, and who waits for the second attempt goes on."""

    def steps(seen: Seen) -> Sequence[Step]:
        asked.set()
        return reply(seen)

    return steps


def says(text: str) -> Fate:
    return lambda wire: wire.text(text)


def fails(status: int) -> Fate:
    return lambda wire: wire.error(status)


@dataclass(frozen=True, slots=True)
class Race:
    """What both providers do, and what comes of it: the answer and its attempt, or the error's reason.

    The first one does it once the second one was asked, unless it says nothing at all.
    """

    first: Fate
    second: Fate
    text: str = ""
    attempt: int = 0
    reason: str = ""
    silent: bool = False
    """Whether the first one would go on with nothing, so that its socket has to be closed."""


RACES = {
    "the second is quicker": Race(after(NEVER, says("first")), says("second"), "second", 2),
    "the first is quicker after all": Race(says("first"), after(NEVER, says("second")), "first", 1),
    "the second fails": Race(after(LATE, says("first")), fails(500), "first", 1),
    "the second refuses": Race(after(LATE, says("first")), fails(400), "first", 1),
    "the first fails late": Race(after(LATE, fails(500)), after(LATE, says("second")), "second", 2),
    "the first is cut": Race(after(LATE, Wire.cut_before_content), after(LATE, says("second")), "second", 2),
    "the first says nothing": Race(Wire.stall_before_headers, says("second"), "second", 2, silent=True),
    "the first only begins": Race(lambda wire: wire.stall_after(0), says("second"), "second", 2, silent=True),
    "both fail": Race(after(LATE, fails(500)), fails(500), reason="UPSTREAM_ERROR"),
    "both are late": Race(after(LATE, says("first")), after(LATE + 2.0, says("second")), "first", 1),
}


CASES = {f"{name}, {door}": (race, door) for name, race in RACES.items() for door in DOORS}


async def drill(name: str, stage: Stage, stand: Stand) -> None:
    """One case. Raises `AssertionError`."""
    (race, door), case = CASES[name], f"race, {name}"
    begun, first = asyncio.Event(), race.first(WIRES["openai"])
    stage.script(case, "openai", first if race.silent else behind(begun, first))
    stage.script(case, "anthropic", telling(begun, race.second(WIRES["anthropic"])))
    got = await ask(stand, door, prompt(case), model="race")
    asked = {provider: stage.seen(case, provider) for provider in OTHER}
    assert {provider: len(seen) for provider, seen in asked.items()} == {"openai": 1, "anthropic": 1}
    assert (got.reason, got.text, got.attempt) == (race.reason, race.text, race.attempt)
    assert (got.began, got.ended) == (int(not race.reason), 1)
    if race.silent:
        async with asyncio.timeout(2):
            await asked["openai"][0].closed.wait()
    stage.forget(case)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(
    request: pytest.FixtureRequest, stage: Stage, calm_stand: Stand, figures: list[str]
) -> Mapping[str, str]:
    """What was wrong with each case that was asked for, by name."""
    found = await run_all(chosen(request, test_race), lambda name: drill(name, stage, calm_stand), AT_ONCE)
    figures.append(f"two attempts at once: {len(found)} cases, {sum(map(bool, found.values()))} failures")
    return found


@pytest.mark.parametrize("name", CASES)
async def test_race(outcomes: Mapping[str, str], name: str):
    assert not outcomes[name], outcomes[name]


@pytest.mark.parametrize("door", STREAMED)
async def test_the_winner_is_cut_and_another_goes_on(stage: Stage, calm_stand: Stand, door: str):
    """Who lost the race is not asked again, and what it said is nowhere."""
    case = f"race and relay, {door}"
    stage.script(case, "openai", after(NEVER, says("of the loser"))(WIRES["openai"]))
    stage.script(case, "anthropic", WIRES["anthropic"].cut_after(2))
    stage.script(case, "vllm", WIRES["openai"].text([" the", " third."]))
    got = await ask(calm_stand, door, prompt(case), model="race-and-relay")
    asked = {provider: len(stage.seen(case, provider)) for provider in ("openai", "anthropic", "vllm")}
    stage.forget(case)
    assert got.text == "Hello from the third."
    assert (got.began, got.ended, got.finish, got.error) == (1, 1, "stop", {})
    assert [(each["from_model"], each["to_model"]) for each in got.switched] == [("anthropic/relay", "local/third")]
    assert asked == {"openai": 1, "anthropic": 1, "vllm": 1}
