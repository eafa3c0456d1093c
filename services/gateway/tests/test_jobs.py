"""Jobs of one gateway on a real NATS: whose turn it is, what waits, what expires, what is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from maestro.job.v1 import job_pb2 as pb
from maestro_gateway.audit.record import record_of
from maestro_gateway.jobs.asides import Asides
from maestro_gateway.jobs.keeper import Keeper
from maestro_gateway.jobs.record import Creator, JobRecord
from maestro_gateway.jobs.states import Board, States
from maestro_gateway.jobs.streams import Streams
from maestro_sdk.errors import NotFound, TenantConcurrency
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.limits import LimitConfig, LimitsConfig, RateConfig
from maestro_sdk.testing.chaos.record import read_events

from .job_gateway import item, running, streams_up, until


async def test_what_a_limit_refuses_waits_and_loses_no_run(nats_url: str, tmp_path: Path):
    limits = LimitsConfig(every_tenant=LimitConfig(requests=RateConfig(limit=4, per=1.0)))
    async with running(nats_url, tmp_path, limits) as gateway:
        gateway.provider.open.set()
        job = await gateway.create("q", 6, max_runs=1)
        over = await gateway.over(job)
        assert over.progress == pb.JobProgress(total=6, succeeded=6)
        assert [result.runs for result in await gateway.results(job)] == [1] * 6
        assert "request.denied" in {event.kind for event in gateway.published}
        assert len(gateway.provider.asked) == 6


async def test_the_higher_priority_goes_first(nats_url: str, tmp_path: Path):
    async with running(nats_url, tmp_path, parallel=1) as gateway:
        first = await gateway.create("first", 1)
        await until(lambda: gateway.get(first), lambda _: gateway.provider.asked == ["first0"])
        jobs = [
            await gateway.create("low", 2, priority=pb.JOB_PRIORITY_LOW),
            await gateway.create("usual", 2),
            await gateway.create("high", 2, priority=pb.JOB_PRIORITY_HIGH),
        ]
        gateway.provider.open.set()
        for job in jobs:
            await gateway.over(job)
        assert gateway.provider.asked == ["first0", "high0", "high1", "usual0", "usual1", "low0", "low1"]


async def test_a_lower_priority_gets_nothing_while_a_higher_one_waits(nats_url: str, tmp_path: Path):
    """Not even the places that come free while the queue of the higher one is asked."""
    async with running(nats_url, tmp_path, parallel=4) as gateway:
        first = await gateway.create("first", 4)
        await until(lambda: gateway.get(first), lambda _: len(gateway.provider.asked) == 4)
        low = await gateway.create("low", 20, priority=pb.JOB_PRIORITY_LOW)
        usual = await gateway.create("usual", 40)
        gateway.provider.open.set()
        for job in (usual, low):
            await gateway.over(job)
        asked = [text.rstrip("0123456789") for text in gateway.provider.asked[4:]]
        last = len(asked) - asked[::-1].index("usual")
        assert asked[:last].count("low") == 0, asked


async def test_a_tenant_with_few_items_does_not_wait_for_one_with_many(nats_url: str, tmp_path: Path):
    async with running(nats_url, tmp_path, parallel=2) as gateway:
        many = await gateway.create("many", 40)
        await until(lambda: gateway.get(many), lambda _: len(gateway.provider.asked) == 2)
        few = await gateway.create("few", 2, tenant="globex")
        gateway.provider.open.set()
        await gateway.over(few, "globex")
        await gateway.over(many)
        assert gateway.provider.asked.index("few1") < 12


async def test_few_jobs_of_a_tenant_at_a_time(nats_url: str, tmp_path: Path):
    limits = LimitsConfig(tenants={"acme": LimitConfig(jobs=1)})
    async with running(nats_url, tmp_path, limits, most=2) as gateway:
        first = await gateway.create("first", 2)
        second = await gateway.create("second", 2)
        with pytest.raises(TenantConcurrency):
            await gateway.create("third", 1)
        other = await gateway.create("other", 1, tenant="globex")
        await until(lambda: gateway.get(first), lambda _: len(gateway.provider.asked) == 3)
        assert (await gateway.get(second)).state == pb.JOB_STATE_QUEUED
        gateway.provider.open.set()
        for job, tenant in ((first, "acme"), (second, "acme"), (other, "globex")):
            await gateway.over(job, tenant)
        assert {text[:-1] for text in gateway.provider.asked[:3]} == {"first", "other"}


async def test_who_makes_and_cancels_jobs_is_told_once(nats_url: str, tmp_path: Path):
    async with running(nats_url, tmp_path) as gateway:
        job, _ = await asyncio.gather(*(gateway.create("q", 1, request_id="r1") for _ in range(2)))
        assert (await gateway.create("q", 1, request_id="r1")).job_id == job.job_id
        for _ in range(2):
            await gateway.service.CancelJob(pb.CancelJobRequest(job_id=job.job_id), None)
        acts = [record_of(event) for event in gateway.published if event.kind == "admin.acted"]
        assert [(act.tenant, act.operation, act.target, act.key_id) for act in acts if act is not None] == [
            ("acme", "job", f"{action} job/{job.job_id}", "key-acme") for action in ("create", "cancel")
        ]


async def test_an_item_of_which_a_piece_is_lost_fails(nats_url: str, tmp_path: Path):
    """Whoever would hand it out again and again would keep the job, and its place, until the deadline and beyond."""
    async with running(nats_url, tmp_path, parallel=1) as gateway, Streams(nats_url) as streams:
        await until(streams_up(streams), bool)
        first = await gateway.create("first", 1)
        await until(lambda: gateway.get(first), lambda _: gateway.provider.asked == ["first0"])
        request = pb.CreateJobRequest(items=[item("x" * 600_000), item("small")])
        job = await gateway.service.CreateJob(request, None)
        await streams.purge("MAESTRO_JOB_PARTS", f"maestro.jobs.parts.{job.job_id}.>")
        gateway.provider.open.set()
        over = await gateway.over(job)
        assert over.progress == pb.JobProgress(total=2, succeeded=1, failed=1)
        told = {result.index: result.item.error.message for result in await gateway.results(job)}
        assert "can't be read any more" in told[0]


async def test_a_cancelled_job_of_which_a_piece_is_lost_ends(nats_url: str, tmp_path: Path):
    async with running(nats_url, tmp_path, parallel=1) as gateway, Streams(nats_url) as streams:
        await until(streams_up(streams), bool)
        first = await gateway.create("first", 1)
        await until(lambda: gateway.get(first), lambda _: gateway.provider.asked == ["first0"])
        job = await gateway.service.CreateJob(pb.CreateJobRequest(items=[item("x" * 600_000)]), None)
        await streams.purge("MAESTRO_JOB_PARTS", f"maestro.jobs.parts.{job.job_id}.>")
        await gateway.service.CancelJob(pb.CancelJobRequest(job_id=job.job_id), None)
        assert (await gateway.over(job)).progress == pb.JobProgress(total=1, cancelled=1)


async def test_results_are_deleted_when_their_time_is_over(nats_url: str, tmp_path: Path):
    async with running(nats_url, tmp_path) as gateway:
        gateway.provider.open.set()
        request = pb.CreateJobRequest(items=[item("q")])
        request.keep_results.seconds = 1  # callers may not say less than a minute
        job = await gateway.service.CreateJob(request, None)
        await gateway.over(job)
        async with asyncio.timeout(10), Streams(nats_url) as streams:
            while not streams.up:
                await asyncio.sleep(0.02)
            while await streams.read("MAESTRO_JOB_RESULTS", f"maestro.jobs.results.{job.job_id}.*", 0):
                await asyncio.sleep(0.05)
        with pytest.raises(NotFound):
            await gateway.get(job)


async def test_a_job_whose_items_are_lost_fails_and_says_so(nats_url: str, tmp_path: Path):
    """JetStream was restored from an old copy, say: nothing waits, and nothing more will come."""
    async with EventPublisher(nats_url, tmp_path / "spool"), Streams(nats_url) as streams:
        states = States(streams)
        board = Board(streams, states)
        keeper = Keeper("gateway", streams, states, board, None, 2.0, Asides(streams), loss=0.3)
        async with asyncio.timeout(5):
            while not streams.up:
                await asyncio.sleep(0.02)
        job = pb.Job(job_id="job_" + "0" * 24, state=pb.JOB_STATE_RUNNING, progress=pb.JobProgress(total=3, queued=3))
        job.create_time.GetCurrentTime()
        job.start_time.GetCurrentTime()
        job.deadline.FromSeconds(job.create_time.seconds + 3600)
        await states.create(JobRecord(job, Creator("acme"), "", ready=True, keep=60.0))
        tasks = [asyncio.create_task(board.follow()), asyncio.create_task(keeper.run())]
        try:
            await until(lambda: states.find("acme", job.job_id), lambda found: found.over)
            found = await states.find("acme", job.job_id)
            assert found.job.state == pb.JOB_STATE_FAILED
            assert "3 items" in found.job.error.message
            await until(lambda: states.find("acme", job.job_id), lambda found: found.cleared)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    address = nats_url.removeprefix("nats://")
    events = await read_events(address, quiet=0.2, whole=lambda events: any(e.kind == "job.failed" for e in events))
    kinds = [event.kind for event in events]
    assert kinds == ["job.queued", "job.started", "job.failed"]
