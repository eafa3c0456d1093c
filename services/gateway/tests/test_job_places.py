"""The jobs of a tenant that may be unfinished, and under way, counted over several gateways on a real NATS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from maestro.job.v1 import job_pb2 as pb
from maestro_gateway.jobs.places import Places
from maestro_gateway.jobs.record import Creator, JobRecord
from maestro_gateway.jobs.states import Board, States
from maestro_gateway.jobs.streams import Streams
from maestro_sdk.errors import TenantConcurrency
from maestro_sdk.service.limits import LimitConfig, LimitsConfig

from .job_gateway import Gateway, Provider, running, streams_up, until

MOST = 2


@asynccontextmanager
async def three(nats_url: str, folder: Path, provider: Provider, most: int = 100) -> AsyncGenerator[Sequence[Gateway]]:
    """Gateways of one mesh, in which one tenant may have two jobs under way."""
    limits = LimitsConfig(tenants={"acme": LimitConfig(jobs=MOST)})
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                running(nats_url, folder / str(number), limits, provider=provider, most=most, lease=1.0)
            )
            for number in range(3)
        ]


def most_at_once(jobs: Sequence[pb.Job]) -> int:
    """The most of these jobs that were under way at the same moment."""
    moments = [(job.start_time.ToNanoseconds(), 1) for job in jobs] + [
        (job.end_time.ToNanoseconds(), -1) for job in jobs
    ]
    highest = now = 0
    for _, change in sorted(moments):
        now += change
        highest = max(highest, now)
    return highest


async def test_three_gateways_run_two_jobs_of_a_tenant_at_a_time(nats_url: str, tmp_path: Path):
    provider = Provider()
    async with three(nats_url, tmp_path, provider) as gateways:
        jobs = [await gateways[number % 3].create(f"j{number}-", 3) for number in range(8)]
        other = await gateways[0].create("other", 2, tenant="globex")
        await until(lambda: gateways[0].get(other, "globex"), lambda _: {"other0", "other1"} <= set(provider.asked))
        assert len({text[:2] for text in provider.under_way if text.startswith("j")}) <= MOST
        provider.open.set()
        over = [await gateways[number % 3].over(job) for number, job in enumerate(jobs)]
        assert most_at_once(over) == MOST
        assert [job.progress.succeeded for job in over] == [3] * 8
        assert sorted(set(provider.asked)) == sorted(provider.asked)


async def test_three_gateways_take_no_more_jobs_than_there_may_be(nats_url: str, tmp_path: Path):
    provider = Provider()
    async with three(nats_url, tmp_path, provider, most=5) as gateways:

        async def create(number: int) -> pb.Job | None:
            try:
                return await gateways[number % 3].create(f"j{number}-", 1)
            except TenantConcurrency:
                return None

        made = [job for job in await asyncio.gather(*map(create, range(12))) if job is not None]
        assert len(made) == 5
        provider.open.set()
        await gateways[0].over(made[0])
        # The one that is over has left its place at every gateway, at once.
        assert await create(13) is not None


async def test_a_place_whose_taker_died_is_used(nats_url: str):
    """It was given to a job that nobody began: the next one that asks begins it."""
    async with Streams(nats_url) as streams:
        await until(streams_up(streams), bool)
        states = States(streams)

        def gateway() -> Places:
            return Places(streams, states, Board(streams, states), lambda _: 1)

        records = [await waiting(states, number) for number in range(2)]
        first, second = gateway(), gateway()
        begun = await first.start(records[0])
        assert begun is not None
        assert begun.job.state == pb.JOB_STATE_RUNNING

        def back(found: JobRecord) -> bool:
            found.job.state = pb.JOB_STATE_QUEUED
            return True

        await states.change("acme", records[0].job_id, back)
        assert await second.start(records[1]) is None
        assert (await states.find("acme", records[0].job_id)).job.state == pb.JOB_STATE_RUNNING

        def end(found: JobRecord) -> bool:
            found.job.state = pb.JOB_STATE_COMPLETED
            return True

        await states.change("acme", records[0].job_id, end)
        started = await second.start(records[1])
        assert started is not None
        assert started.job.state == pb.JOB_STATE_RUNNING


async def waiting(states: States, number: int) -> JobRecord:
    job = pb.Job(job_id=f"job_{number:024x}", state=pb.JOB_STATE_QUEUED, progress=pb.JobProgress(total=1))
    record = JobRecord(job, Creator("acme"), "", ready=True)
    await states.create(record)
    return record
