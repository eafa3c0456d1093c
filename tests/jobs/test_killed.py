"""A job while every process is killed at random points: each item is answered once, and the sums are exact."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import signal
import time
from decimal import Decimal

from maestro.job.v1 import job_pb2 as pb
from maestro_sdk.adapter.standing import LINGER
from maestro_sdk.testing.chaos.provider import Providers, Weather, text_of
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import ITEMS, Jobs, questions
from .drill import end_of, fell, kill_at_random, progress_falls, told_of

SEED = int(os.environ.get("CHAOS_SEED", "7"))
ONCE = ("job.queued", "job.started", "job.completed")
AT_ONCE = 5


async def test_nothing_is_lost_or_paid_twice(mesh: MeshProcess, jobs: Jobs, providers: Providers, figures: list[str]):
    begun = time.monotonic()
    job = await jobs.create(questions(ITEMS), max_parallel=AT_ONCE, max_runs=10)
    done = asyncio.Event()
    killing = asyncio.create_task(kill_at_random(mesh, done, random.Random(SEED)))
    try:
        results = [result async for result in jobs.results(job.job_id)]
        took = time.monotonic() - begun
    finally:
        done.set()
        killed = await killing
    over = await jobs.wait(job.job_id)
    events = await told_of(mesh, over)
    ends = [end for event in events if (end := end_of(event)) is not None]
    attempts = sum(len(end.attempt_usages) for end in ends)
    repeated = [pair for mark in text_marks() for pair in itertools.pairwise(providers.of(mark))]
    orphans = [pair for pair in repeated if fell(killed, "gateway", *pair)]
    figures.append(
        f"{ITEMS} items in {took:.1f} s, seed {SEED}, {len(killed)} processes killed "
        f"({', '.join(strike.name for strike in killed)}): {len(results)} results, {len(providers.calls)} calls of the "
        f"provider, {attempts} attempts in the ledger, cost {over.usage.cost_usd}"
    )
    assert sorted(result.index for result in results) == list(range(ITEMS))
    assert results == await jobs.listed(job.job_id)
    assert [result for result in results if result.state != pb.JOB_ITEM_STATE_SUCCEEDED] == []
    for result in results:
        assert result.item.chat.parts[0].text.text == text_of(f"r{result.index}")
    assert over.state == pb.JOB_STATE_COMPLETED
    assert over.progress == pb.JobProgress(total=ITEMS, succeeded=ITEMS)
    # The sums: of the results, of the job, and of the ledger, each by the price of one answer.
    cost = Decimal(over.usage.cost_usd)
    assert cost == sum(Decimal(result.item.cost.usd) for result in results) > 0
    assert cost == sum(Decimal(end.cost.usd or 0) for end in ends)
    assert cost == ITEMS * min(Decimal(result.item.cost.usd) for result in results)
    # The provider is asked again only for what an adapter took with it, or kept for a while in which no gateway came;
    # and the ledger tells of that, unless the gateway that had asked was gone by then.
    lost = [pair for pair in repeated if fell(killed, "adapter-openai", *pair) or pair[1].at - pair[0].at > LINGER]
    assert [pair for pair in repeated if pair not in lost] == []
    assert len(providers.calls) - len(orphans) <= attempts
    assert progress_falls(events) == []
    assert [event.kind for event in events if event.kind in ONCE] == list(ONCE)


async def test_gateways_that_stop_hand_over_what_they_have_begun(mesh: MeshProcess, jobs: Jobs, providers: Providers):
    """The provider's answers go on meanwhile: nothing is asked twice, and nobody accounts for what another one ends."""
    providers.weather["openai"] = Weather(late=1.0, lateness=1.8)
    job = await jobs.create(questions(4))
    await jobs.until(job.job_id, lambda _: len(providers.calls) == 4)
    stopped = [mesh.kill(name, signal.SIGTERM) for name in ("gateway", "gateway-2")]
    for member in stopped:
        await mesh.wait_restarted(member)
    over = await jobs.wait(job.job_id)
    results = await jobs.listed(job.job_id)
    events = await told_of(mesh, over)
    assert (over.progress.succeeded, len(providers.calls)) == (4, 4)
    assert [result.runs for result in results] == [1] * 4
    ends = [event.kind for event in events if event.kind in {"request.completed", "request.failed"}]
    assert ends == ["request.completed"] * 4


def text_marks() -> list[str]:
    """The marks of all questions."""
    return [f"r{number}" for number in range(ITEMS)]
