"""One of three providers fails 30 % of its calls under 32 callers: nobody notices; while it is open nobody calls it.

Eight seconds of it belong to every run; `DRILL_SECONDS=60` makes them sixty.
"""

import asyncio
import itertools
import os
import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from drill_config import KEY, STRICT_BREAKER
from drill_doors import DOORS, Got, Stand, ask
from drill_stage import Stage, prompt

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.events import MESH
from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.chaos.load import Shown
from maestro_sdk.testing.chaos.provider import Call
from maestro_sdk.testing.chaos.words import Words, broken_words, closings, held
from maestro_sdk.testing.faults import Reply, Seen, Step
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.wire import Wire

CASE = "third"
CALLERS = 32
SECONDS = float(os.environ.get("DRILL_SECONDS", "8"))
FAILING = (0, 3, 6)
"""Which of ten calls fail: never two in a row, so that it is the share that opens the breaker."""
BACKEND = "openai:openai/third"
BACKENDS = {"openai": BACKEND}
_QUESTION = re.compile(rb"question (r\d+)")


@dataclass(slots=True)
class Provider:
    """A provider that fails a share of its calls until it is healed; calls as (Unix time, whether it failed)."""

    wire: Wire
    text: str
    ill: bool = False
    calls: list[tuple[float, bool]] = field(default_factory=list[tuple[float, bool]])
    asked: list[Call] = field(default_factory=list[Call])
    """The same calls with the marks of their questions."""

    def reply(self, seen: Seen) -> Sequence[Step]:
        """Answers, or fails."""
        fails = self.ill and len(self.calls) % 10 in FAILING
        self.calls.append((time.time(), fails))
        [mark] = _QUESTION.findall(seen.body)
        self.asked.append(Call("openai", mark.decode(), time.time(), "failed" if fails else "answered", 0, seen))
        return (self.wire.error(500) if fails else self.wire.text(self.text))(seen)


@asynccontextmanager
async def watching(mesh: MeshProcess) -> AsyncGenerator[list[Event]]:
    """The events of breakers, as they come."""
    found: list[Event] = []

    async def read(reader: EventReader, begun: asyncio.Event) -> None:
        async with reader.subscribe(MESH, kinds=("backend.*",)) as subscription:
            begun.set()
            async for _, event in subscription:
                found.append(event)

    async with EventReader(f"nats://{mesh.address('nats')}") as reader:
        begun = asyncio.Event()
        task = asyncio.create_task(read(reader, begun))
        await begun.wait()
        try:
            yield found
        finally:
            task.cancel()
            await asyncio.wait((task,))


def opened(events: Sequence[Event]) -> list[tuple[float, float]]:
    """When the breaker of the backend opened, and until when, in Unix time."""
    return [
        (event.time.ToNanoseconds() / 1e9, event.backend_opened.until.ToNanoseconds() / 1e9)
        for event in events
        if event.HasField("backend_opened") and event.backend_opened.backend_id == BACKEND
    ]


async def test_nobody_notices(strict: MeshProcess, stage: Stage, stand: Stand, figures: list[str]):
    ill = Provider(openai_chat.WIRE, "first", ill=True)
    well = [Provider(anthropic_messages.WIRE, "second"), Provider(openai_chat.WIRE, "third")]
    replies: list[tuple[str, Reply]] = [
        ("openai", ill.reply),
        ("anthropic", well[0].reply),
        ("vllm", well[1].reply),
    ]
    for provider, reply in replies:
        stage.script(CASE, provider, reply)
    answers: list[Got] = []
    shown: list[Shown] = []
    stop = asyncio.Event()
    doors = itertools.cycle(DOORS)

    async def call() -> None:
        while not stop.is_set():
            door, mark = next(doors), f"r{len(shown)}"
            shown.append(Shown(mark, door, refusable=False, began=time.time()))
            answers.append(await ask(stand, door, f"{prompt(CASE)} It is question {mark}.", model="third"))

    async with watching(strict) as events, Words(strict, KEY, ("gateway",), [BACKEND]) as words:
        begun = time.time()
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(call())
            await asyncio.sleep(SECONDS)
            ill.ill, healed = False, time.time()
            # It is healed when it is in the rotation again: the breaker is closed for every caller.
            async with asyncio.timeout(10):
                while sum(at > healed for at, _ in ill.calls) < 20:
                    await asyncio.sleep(0.02)
            stop.set()
        intervals = opened(events)
    stage.forget(CASE)

    failed = [got for got in answers if got.error or got.text not in ("first", "second", "third")]
    early = [got for got in answers if (got.began, got.ended) != (1, 1)]
    # The gateway hears of an opening a moment later, on a busy machine much later: what counts is what it says itself.
    bound = held(shown, words.said, BACKENDS)
    inside = list(broken_words(ill.asked, bound, BACKENDS, closings(events, [])))
    recovery = sorted(at for at, _ in ill.calls if at > healed)[19] - healed
    before = sum(at <= intervals[0][0] for at, _ in ill.calls) if intervals else -1
    failures = sum(fails for _, fails in ill.calls)
    figures.append(
        f"30 % fail for {healed - begun:.0f} s: {len(answers)} calls, {len(failed)} failures seen by "
        f"callers, {failures} at the provider, opened {len(intervals)} times, first after {before} calls, "
        f"{len(bound)} questions while open, {len(inside)} calls for them, back in {recovery:.2f} s"
    )
    assert failed == []
    assert early == []
    # It opened as soon as it had seen enough; what was under way then was counted, too.
    assert 0 < before <= int(STRICT_BREAKER["minimum_calls"]) + CALLERS
    assert bound, "the gateway never said that it asks nothing of the provider"
    assert inside == []
    assert recovery < 2.0 + 1.5  # the breaker's open time, and a moment
    assert wrong_trials(ill.calls, intervals) == []


def wrong_trials(calls: Sequence[tuple[float, bool]], intervals: Sequence[tuple[float, float]]) -> list[str]:
    """After an open time one call is a trial: others go out only when it has succeeded."""
    found: list[str] = []
    for _, until in intervals:
        later = [(at, fails) for at, fails in calls if at >= until - 0.01]
        if len(later) > 1 and later[0][1] and later[1][0] - later[0][0] < 1.5:
            found.append(f"a call {later[1][0] - later[0][0]:.3f} s after a trial that failed")
    return found
