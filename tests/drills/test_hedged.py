"""Five in a hundred answers take ten seconds to begin: a second attempt hides that, within what it may cost."""

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from drill_config import HEDGE_SHARE
from drill_doors import Stand, ask
from drill_stage import Stage, prompt
from drill_table import WIRES

from maestro_sdk.testing.callers import question
from maestro_sdk.testing.faults import Reply, Seen, Step
from maestro_sdk.testing.wire import Wire

CALLS = 200
AT_ONCE = 16
LATE = 10.0
EVERY = 20
"""One of so many is late."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: seconds to its first text, its provider, and when the text came, in monotonic time."""

    first: float
    provider: str
    at: float


def sometimes_late(wire: Wire) -> Reply:
    """One answer in twenty is late, evenly."""
    count = 0

    def reply(seen: Seen) -> Sequence[Step]:
        nonlocal count
        count += 1
        return (wire.slow_first_token(LATE) if count % EVERY == EVERY // 2 else wire.text())(seen)

    return reply


async def listen(stand: Stand, case: str, route: str) -> Answered:
    """One streamed answer, read to its end."""
    begun, first, provider = time.monotonic(), 0.0, ""
    kinds: list[str] = []
    async with stand.caller.stream(question(prompt(case), model=route)) as events:
        async for event in events:
            kinds.append(event.name or event.data)
            if event.name == "started":
                provider = json.loads(event.data)["provider"]
            if event.name == "text" and not first:
                first = event.at
    assert kinds.count("started") == kinds.count("finish") == kinds.count("[DONE]") == 1, kinds
    return Answered(first - begun, provider, first)


async def run(stage: Stage, stand: Stand, case: str, route: str) -> list[Answered]:
    """All calls of one route."""
    stage.script(case, "openai", sometimes_late(WIRES["openai"]))
    stage.script(case, "anthropic", WIRES["anthropic"].text())
    gate = asyncio.Semaphore(AT_ONCE)

    async def one() -> Answered:
        async with gate:
            return await listen(stand, case, route)

    return await asyncio.gather(*(one() for _ in range(CALLS)))


def p99(answers: Sequence[Answered]) -> float:
    """The 99th percentile of the time to the first text, in seconds."""
    return statistics.quantiles((answer.first for answer in answers), n=100)[98]


async def test_a_late_answer_is_not_waited_for(stage: Stage, stand: Stand, figures: list[str]):
    plain, hedged = "unhedged", "hedged"
    without, with_it = await asyncio.gather(run(stage, stand, plain, plain), run(stage, stand, hedged, hedged))
    asked = len(stage.seen(hedged, "openai"))
    extra = len(stage.seen(hedged, "anthropic"))
    late = [seen for number, seen in enumerate(stage.seen(hedged, "openai"), 1) if number % EVERY == EVERY // 2]
    async with asyncio.timeout(5):
        await asyncio.gather(*(seen.closed.wait() for seen in late))
    # Each late call was outrun by one answer of the second provider: its socket closes once that has begun.
    wins = sorted(answer.at for answer in with_it if answer.provider == "anthropic")
    closings = sorted(seen.closed_at or 0.0 for seen in late)
    lag = max(closed - won for won, closed in zip(wins, closings, strict=False))
    before, after = p99(without), p99(with_it)
    figures.append(
        f"hedging, 5 % begin after {LATE:.0f} s, {CALLS} calls: p99 of the first token {before:.2f} s without, "
        f"{after:.2f} s with it ({before / after:.0f} times less); {extra} second calls beside {asked} "
        f"({100 * extra / asked:.1f} % extra spend, {100 * HEDGE_SHARE:.0f} % allowed); "
        f"losers' sockets closed {1000 * max(0.0, lag):.0f} ms after the first token at most"
    )
    stage.forget(plain)
    stage.forget(hedged)
    assert before / after > 5
    assert len(late) <= extra
    # One call more is granted, so that a quiet route hedges at all.
    assert extra <= HEDGE_SHARE * asked + 1
    assert lag < 0.2


async def test_what_it_may_cost_is_a_bound(stage: Stage, stand: Stand):
    """When every answer is late, the cap holds all the same, and each caller still gets exactly one answer."""
    case, calls = "hedged, all late", 60
    stage.script(case, "openai", WIRES["openai"].slow_first_token(1.2))
    stage.script(case, "anthropic", WIRES["anthropic"].text())
    answers = await asyncio.gather(*(ask(stand, "sse", prompt(case), model="capped") for _ in range(calls)))
    extra = len(stage.seen(case, "anthropic"))
    stage.forget(case)
    assert [(got.began, got.ended, got.finish) for got in answers] == [(1, 1, "stop")] * calls
    assert 0 < extra <= HEDGE_SHARE * calls + 1
