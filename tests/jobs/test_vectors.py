"""Jobs of vectors while processes are killed: a gateway that dies costs no second call of the provider."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import time
from collections.abc import Sequence
from decimal import Decimal

import pytest

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro_sdk.adapter.standing import LINGER
from maestro_sdk.testing import openai_embedding
from maestro_sdk.testing.faults import FaultServer, Seen, SendJson, Step, Wait
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import Jobs
from .drill import Strike, end_of, fell_between, kill_at_random, progress_falls, told_of

ITEMS = int(os.environ.get("JOB_VECTORS", "12"))
SEED = int(os.environ.get("CHAOS_SEED", "7"))
MODEL = "openai/text-embedding-3-small"
AT_ONCE = 4
_LASTS = 0.7
"""Seconds that the provider takes: most calls are under way when their gateway dies."""


@pytest.fixture
def asked(server: FaultServer, jobs: Jobs) -> dict[str, list[float]]:
    """When the provider was asked for each text."""
    calls: dict[str, list[float]] = {}

    def reply(seen: Seen) -> Sequence[Step]:
        body = seen.json()
        for text in re.findall(r"v\d+", str(body["input"])):
            calls.setdefault(text, []).append(time.time())
        return [Wait(_LASTS), SendJson(openai_embedding.embed(body, body["model"]))]

    server.replace("POST", "/v1/embeddings", reply)
    return calls


def texts(count: int) -> list[BatchItem]:
    """Items, each with a text of its own."""
    return [
        BatchItem(embed=EmbedRequest(model=MODEL, inputs=[EmbedInput(text=f"v{number}")])) for number in range(count)
    ]


async def test_gateways_that_die_cost_no_second_call(mesh: MeshProcess, jobs: Jobs, asked: dict[str, list[float]]):
    job = await jobs.create(texts(AT_ONCE), max_parallel=AT_ONCE)
    await jobs.until(job.job_id, lambda _: len(asked) == AT_ONCE)
    killed = [mesh.kill(name) for name in ("gateway", "gateway-2")]
    over = await jobs.until(job.job_id, lambda found: found.state == pb.JOB_STATE_COMPLETED, timeout=40)
    assert over.progress == pb.JobProgress(total=AT_ONCE, succeeded=AT_ONCE)
    assert {text: len(calls) for text, calls in asked.items()} == {f"v{number}": 1 for number in range(AT_ONCE)}
    assert over.usage.attempts == AT_ONCE
    for member in killed:
        await mesh.wait_restarted(member)


async def test_vectors_outlive_what_is_killed(
    mesh: MeshProcess, jobs: Jobs, asked: dict[str, list[float]], figures: list[str]
):
    begun = time.monotonic()
    job = await jobs.create(texts(ITEMS), max_parallel=AT_ONCE, max_runs=10)
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
    calls = sum(map(len, asked.values()))
    figures.append(
        f"{ITEMS} items of vectors in {took:.1f} s, seed {SEED}, {len(killed)} processes killed "
        f"({', '.join(strike.name for strike in killed)}): {len(results)} results, {calls} calls of the provider, "
        f"cost {over.usage.cost_usd}"
    )
    assert sorted(result.index for result in results) == list(range(ITEMS))
    assert [result for result in results if result.state != pb.JOB_ITEM_STATE_SUCCEEDED] == []
    assert all(len(result.item.embed.embeddings) == 1 for result in results)
    assert over.progress == pb.JobProgress(total=ITEMS, succeeded=ITEMS)
    cost = Decimal(over.usage.cost_usd)
    assert cost == sum(Decimal(result.item.cost.usd) for result in results) > 0
    assert cost == sum(Decimal(end.cost.usd or 0) for end in ends)
    repeated = [pair for times in asked.values() for pair in itertools.pairwise(times)]
    assert [pair for pair in repeated if not excused(killed, *pair)] == []
    assert progress_falls(events) == []


def excused(killed: Sequence[Strike], first: float, second: float) -> bool:
    """Whether an adapter took the first call with it, or kept it for a while in which no gateway came."""
    return fell_between(killed, "adapter-openai", first, second) or second - first > LINGER
