"""Items that wait to be tried again hold none of their job's places, on a real NATS."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

from maestro.job.v1 import job_pb2 as pb
from maestro_gateway.jobs.asides import Asides
from maestro_gateway.jobs.outcome import Note
from maestro_gateway.jobs.record import Creator, JobRecord
from maestro_gateway.jobs.streams import ITEMS, PARTS, Streams
from maestro_sdk.errors import RateLimited

from .job_gateway import Provider, item, running, streams_up, until


async def test_an_item_that_waits_holds_no_place(nats_url: str, tmp_path: Path):
    """Its provider says for how long; meanwhile the others of the job go on, in the one place that there is."""
    async with running(nats_url, tmp_path) as gateway:
        provider = gateway.provider
        provider.failing["slow"] = RateLimited("later", retry_after=600.0)
        provider.open.set()
        items = [item("slow"), *(item(f"q{number}", "p/other") for number in range(5))]
        job = await gateway.service.CreateJob(pb.CreateJobRequest(items=items, max_parallel=1), None)
        await until(
            lambda: gateway.get(job), lambda found: found.progress.succeeded == 5 and not found.progress.running
        )
        assert (await gateway.get(job)).progress == pb.JobProgress(total=6, queued=1, succeeded=5)
        assert provider.asked == ["slow", *(f"q{number}" for number in range(5))]
        # What waits ends with its job, and what it used is told.
        await gateway.service.CancelJob(pb.CancelJobRequest(job_id=job.job_id), None)
        over = await gateway.over(job)
        assert over.progress == pb.JobProgress(total=6, succeeded=5, cancelled=1)
        assert (over.state, over.usage.attempts) == (pb.JOB_STATE_CANCELLED, 6)


async def test_what_waits_outlives_every_gateway(nats_url: str, tmp_path: Path):
    provider = Provider()
    provider.failing["slow"] = RateLimited("later", retry_after=3.0)
    provider.open.set()
    async with running(nats_url, tmp_path / "first", provider=provider, lease=1.0) as gateway:
        job = await gateway.service.CreateJob(pb.CreateJobRequest(items=[item("slow")]), None)
        begun = time.monotonic()
        async with Streams(nats_url) as streams:
            await until(streams_up(streams), bool)
            # It lies aside, and has left its queue.
            queue = f"maestro.jobs.items.{job.job_id}.*"
            await until(lambda: streams.read(PARTS, f"maestro.jobs.parts.{job.job_id}.aside.*", 0), bool)
            await until(lambda: streams.read(ITEMS, queue, 0), lambda found: not found)
    async with running(nats_url, tmp_path / "second", provider=provider, lease=1.0) as gateway:
        over = await gateway.over(job)
        assert time.monotonic() - begun > 2.0
        assert (over.progress.succeeded, provider.asked) == (1, ["slow", "slow"])
        assert [result.runs for result in await gateway.results(job)] == [2]


async def test_a_job_that_is_out_of_time_takes_what_waits_along(nats_url: str, tmp_path: Path):
    async with running(nats_url, tmp_path) as gateway:
        gateway.provider.failing["slow"] = RateLimited("later", retry_after=600.0)
        gateway.provider.open.set()
        request = pb.CreateJobRequest(items=[item("slow"), item("q", "p/other")])
        request.timeout.seconds = 2
        over = await gateway.over(await gateway.service.CreateJob(request, None))
        assert over.progress == pb.JobProgress(total=2, succeeded=1, failed=1)


async def test_an_item_is_never_in_its_queue_twice(nats_url: str):
    """Two that both think they keep the books give it back, as often as they like: it stands there once."""
    job_id = "job_" + "1" * 24
    record = JobRecord(pb.Job(job_id=job_id, progress=pb.JobProgress(total=1)), Creator("acme"), "")
    async with AsyncExitStack() as stack:
        streams = await stack.enter_async_context(Streams(nats_url))
        await until(streams_up(streams), bool)
        subject = f"maestro.jobs.items.{job_id}.0"
        await streams.put(subject, b"the item")
        await streams.make_queue(job_id, 5.0, 4)
        [message] = [each async for each in streams.pull(job_id, 1, 0.5)]
        keepers = [Asides(streams), Asides(streams)]
        await keepers[0].put(record, 0, message, Note(runs=1), time.time() + 0.2)
        # Whoever held it died before it could take it out of the queue: it is still there, and handed out.
        await asyncio.sleep(0.3)
        assert [await keeper.release(record) for keeper in keepers] == [0, 0]
        assert len(await streams.read(ITEMS, subject, 0)) == 1
        await streams.acknowledge(message)
        await until(lambda: streams.read(ITEMS, subject, 0), lambda found: not found)
        fresh = [Asides(streams), Asides(streams)]
        await asyncio.gather(*(keeper.release(record) for keeper in fresh))
        [stored] = await streams.read(ITEMS, subject, 0)
        assert (stored.data, stored.headers["Maestro-Again"]) == (b"the item", "1")
