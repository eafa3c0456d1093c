"""Clients lose their sockets and gateways are killed at random: texts arrive whole, from one call of the provider."""

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.testing.chaos.provider import Providers, text_of
from maestro_sdk.testing.chaos.record import read_events
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import GATEWAYS, KEY, SEED
from .reader import Reader, Seen

RUNS = int(os.environ.get("RESUME_RUNS", "12"))
AT_ONCE = 12
RESTED = 12.0
"""Seconds that a gateway lives at least between two kills: the supervisor gives up what crashes again and again."""


async def test_texts_are_identical_and_paid_once(mesh: MeshProcess, providers: Providers, figures: list[str]):
    begun, dice = time.time(), random.Random(SEED)
    readers = [Reader(mesh.url, KEY, f"r{number}") for number in range(RUNS)]
    places = asyncio.Semaphore(AT_ONCE)

    async def run(reader: Reader) -> Seen:
        async with places:
            cutting = asyncio.create_task(_cut(reader, random.Random(f"{SEED}/{reader.seen.mark}")))
            try:
                return await reader.read()
            finally:
                cutting.cancel()

    done = asyncio.Event()
    killing = asyncio.create_task(_kill_some(mesh, dice, done))
    seen = await asyncio.gather(*(run(reader) for reader in readers))
    done.set()
    killed = await killing
    names = {each.request_id for each in seen}

    def ends_of(events: Sequence[Event]) -> list[Event]:
        found = [event for event in events if event.kind in ("request.completed", "request.failed")]
        return [event for event in found if event.subject.removeprefix("request/") in names]

    ends = ends_of(await read_events(mesh.address("nats"), whole=lambda events: len(ends_of(events)) >= RUNS))
    figures.append(
        f"{RUNS} runs, seed {SEED}: {sum(each.connections for each in seen) - RUNS} broken connections, gateways "
        f"killed {killed}, provider called {len(providers.calls)} times, ends told {len(ends)}, longest time without "
        f"an event {max(each.longest_pause for each in seen):.2f} s, {time.time() - begun:.0f} s"
    )
    figures.append(f"refusals on the way: {dict(Counter(why for each in seen for why in each.refused))}")
    for each in seen:
        assert each.error == {}, (each, mesh.logs(40))
        assert each.text == text_of(each.mark)
        assert each.numbers == list(range(1, len(each.numbers) + 1)), each
        assert Counter(each.kinds)["finish"] == 1
        assert Counter(each.kinds)["started"] == 1
    assert Counter(call.mark for call in providers.calls) == Counter(each.mark for each in seen)
    costs = {event.request_completed.request_id: event.request_completed.cost.usd for event in ends}
    assert Counter(event.kind for event in ends) == {"request.completed": RUNS}
    assert costs.keys() == names
    assert all(Decimal(costs[each.request_id]) == Decimal(each.finish["cost_usd"]) for each in seen)


async def _cut(reader: Reader, dice: random.Random) -> None:
    """Breaks a client's connection some times, at random moments of its stream."""
    for _ in range(dice.randint(0, 3)):
        await asyncio.sleep(dice.uniform(0.0, 0.4))
        reader.cut()


async def _kill_some(mesh: MeshProcess, dice: random.Random, done: asyncio.Event) -> int:
    """Kills gateways until all is read, each when the one before is back."""
    killed: list[tuple[str, float]] = []
    while not done.is_set():
        await asyncio.sleep(dice.uniform(0.2, 0.8))
        tired = {name for name, at in killed if time.monotonic() - at < RESTED}
        if choice := [name for name in GATEWAYS if name not in tired]:
            before = mesh.kill(dice.choice(choice))
            await mesh.wait_restarted(before)
            killed.append((before.name, time.monotonic()))
    return len(killed)
