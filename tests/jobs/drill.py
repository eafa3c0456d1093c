"""Kills the processes of a mesh at random points, and reads what its events tell."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

from maestro.event.v1.event_pb2 import Event, RequestCompleted, RequestFailed
from maestro.job.v1 import job_pb2 as pb
from maestro_sdk.cli.restarts import Restarts
from maestro_sdk.testing.chaos.provider import Call
from maestro_sdk.testing.chaos.record import read_events
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import LONG

VICTIMS = (("gateway", "gateway-2"), ("nats",), ("adapter-openai",), ("gateway",), ("gateway-2",))
"""What dies together: all gateways, and each kind of process alone."""
FEW = (("gateway", "gateway-2"), ("nats", "adapter-openai"))
"""What dies in a short run: a process of each kind, once."""


@dataclass(frozen=True, slots=True)
class Strike:
    """A process that was killed, and when, in Unix time."""

    name: str
    at: float


_OVER = {"job.completed", "job.failed", "job.cancelled"}
_SHORT = Restarts().most - 2
"""Short lives that a process may have, one after another."""


class Lives:
    """How long processes lived: the supervisor gives up one that dies soon after its start again and again."""

    def __init__(self, killed: Iterable[str] = ()) -> None:
        """`killed` are those that an earlier drill killed, nobody remembers how often of late."""
        self._begun: dict[str, float] = dict.fromkeys(killed, time.monotonic())
        self._short: dict[str, int] = dict.fromkeys(self._begun, _SHORT)

    def begin(self, name: str) -> None:
        """A process was started again."""
        self._begun[name] = time.monotonic()

    async def leave_alone(self, name: str, done: asyncio.Event) -> None:
        """Waits until a process may be killed once more, or until `done`."""
        settled = self._begun.get(name, 0.0) + Restarts().settled + 1.0
        if self._short.get(name, 0) < _SHORT or time.monotonic() >= settled:
            self._short[name] = 0 if time.monotonic() >= settled else self._short.get(name, 0) + 1
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(settled - time.monotonic()):
                await done.wait()
        self._short[name] = 0

    async def settle(self) -> None:
        """Waits until every process has lived so long that its earlier deaths don't count any more."""
        settled = max(self._begun.values(), default=0.0) + Restarts().settled + 1.0
        await asyncio.sleep(settled - time.monotonic())


async def kill_at_random(mesh: MeshProcess, done: asyncio.Event, dice: random.Random) -> list[Strike]:
    """Kills each group of victims in turn until `done`, a long run's again and again; what was killed.

    A long run ends when the supervisor has forgotten it: what is killed next is started again, too.
    """
    lives = Lives(name for name, member in mesh.members().items() if LONG and member.restarts)
    killed = [strike async for strike in _strikes(mesh, done, dice, lives)]
    if LONG:
        await lives.settle()
    return killed


async def _strikes(mesh: MeshProcess, done: asyncio.Event, dice: random.Random, lives: Lives) -> AsyncGenerator[Strike]:
    groups = VICTIMS if LONG else FEW
    rounds = itertools.count() if LONG else range(1)
    for group in itertools.chain.from_iterable(dice.sample(groups, len(groups)) for _ in rounds):
        with suppress(TimeoutError):
            async with asyncio.timeout(dice.uniform(0.1, 0.4)):
                await done.wait()
                return
        for name in group:
            await lives.leave_alone(name, done)
        if done.is_set():
            return
        members = [mesh.kill(name) for name in group]
        for name in group:
            yield Strike(name, time.time())
        for member in members:
            await mesh.wait_restarted(member, timeout=60)
            lives.begin(member.name)


def progress_falls(events: Sequence[Event]) -> list[pb.JobProgress]:
    """The progress that is behind an earlier one."""
    told = [event.job_progress.progress for event in events if event.kind == "job.progress"]
    highest, found = (0, 0, 0), list[pb.JobProgress]()
    for each in told:
        counts = (each.succeeded, each.failed, each.cancelled)
        if any(now < before for now, before in zip(counts, highest, strict=True)):
            found.append(each)
        highest = counts
    return found


async def told_of(mesh: MeshProcess, job: pb.Job) -> list[Event]:
    """The events of a job that is over, once its end is among them, and all that it paid for."""

    def own(events: Sequence[Event]) -> list[Event]:
        return [event for event in events if job_of(event) == job.job_id]

    def whole(events: Sequence[Event]) -> bool:
        found = own(events)
        paid = sum(Decimal(end.cost.usd or 0) for event in found if (end := end_of(event)) is not None)
        return paid >= Decimal(job.usage.cost_usd or 0) and any(event.kind in _OVER for event in found)

    return own(await read_events(mesh.address("nats"), whole=whole))


def job_of(event: Event) -> str:
    """The job that an event tells of; empty for none."""
    field = event.WhichOneof("payload")
    return getattr(getattr(event, field), "job_id", "") if field else ""


def end_of(event: Event) -> RequestCompleted | RequestFailed | None:
    """What an event tells of the end of a request."""
    match event.WhichOneof("payload"):
        case "request_completed":
            return event.request_completed
        case "request_failed":
            return event.request_failed
        case _:
            return None


def fell(killed: Sequence[Strike], name: str, first: Call, second: Call) -> bool:
    """Whether a process of that name was killed between two calls."""
    return fell_between(killed, name, first.at, second.at)


def fell_between(killed: Sequence[Strike], name: str, first: float, second: float) -> bool:
    """Whether a process of that name was killed between two moments of calls, in Unix time."""
    # A call may arrive a moment after the end of whoever asked for it.
    return any(strike.name.startswith(name) and first - 1.0 < strike.at < second for strike in killed)
