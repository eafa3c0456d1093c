"""Jobs of one gateway on a real NATS: whose turn it is, what waits, what expires, what is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import Event
from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_gateway.account import Accountant
from maestro_gateway.audit.acts import Acts
from maestro_gateway.audit.record import record_of
from maestro_gateway.identity import Principal, enter
from maestro_gateway.jobs import JobService, running_jobs
from maestro_gateway.jobs.keeper import Keeper
from maestro_gateway.jobs.record import Creator, JobRecord
from maestro_gateway.jobs.states import Board, States
from maestro_gateway.jobs.streams import Streams
from maestro_gateway.limits import Limiter
from maestro_gateway.mesh import Mesh
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.errors import NoBackend, NotFound, TenantConcurrency
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.dispatch import Dispatcher
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.service.events import EventPublisher
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.service.limits import LimitConfig, LimitsConfig, RateConfig
from maestro_sdk.service.settings import load
from maestro_sdk.testing import tables
from maestro_sdk.testing.chaos.record import read_events
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import serve
from maestro_sdk.tracing import Call, enter_call

from .conftest import Routers, Source

ALL = frozenset({"jobs"})


class Provider(ScriptedProvider):
    """Answers when it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(models=[tables.model("p/model")])
        self.open = asyncio.Event()
        self.asked: list[str] = []

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        self.asked.append(request.messages[0].parts[0].text.text)
        await self.open.wait()
        async for events in super().stream(request):
            yield events


@dataclass
class Gateway:
    """Jobs of a running gateway, asked by tenants."""

    service: JobService
    provider: Provider
    published: list[Event] = field(default_factory=list[Event])

    async def reached(self) -> bool:
        """Whether jobs can be asked for."""
        try:
            await self.service.ListJobs(pb.ListJobsRequest(), None)
        except NoBackend:
            return False
        return True

    async def create(self, name: str, count: int, tenant: str = "acme", **fields: Any) -> pb.Job:
        """A job whose questions begin with a name."""
        as_tenant(tenant)
        request = pb.CreateJobRequest(items=[item(f"{name}{number}") for number in range(count)], **fields)
        return await self.service.CreateJob(request, None)

    async def get(self, job: pb.Job, tenant: str = "acme") -> pb.Job:
        """A job as it is now."""
        as_tenant(tenant)
        return await self.service.GetJob(pb.GetJobRequest(job_id=job.job_id), None)

    async def over(self, job: pb.Job, tenant: str = "acme") -> pb.Job:
        """A job once it is over."""
        await until(lambda: self.get(job, tenant), lambda found: found.HasField("end_time"))
        return await self.get(job, tenant)

    async def results(self, job: pb.Job) -> Sequence[pb.JobResult]:
        """The results of a job."""
        return (await self.service.ListJobResults(pb.ListJobResultsRequest(job_id=job.job_id), None)).results


def as_tenant(tenant: str) -> None:
    enter(Principal(tenant=tenant, key_id=f"key-{tenant}", scopes=ALL, source="key"))
    enter_call(Call("req-of-the-test", tenant, ""))


def item(text: str) -> BatchItem:
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return BatchItem(chat=ChatRequest(model="p/model", messages=[message]))


async def until(ask: Callable[[], Any], fits: Callable[[Any], bool]) -> None:
    async with asyncio.timeout(15):
        while not fits(await ask()):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(
    nats_url: str, folder: Path, limits: LimitsConfig | None = None, **jobs: Any
) -> AsyncGenerator[Gateway]:
    """A gateway with one provider."""
    settings = {"nats.url": nats_url, "data": str(folder), **{f"jobs.{name}": value for name, value in jobs.items()}}
    config = load(None, {}).replaced(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(EventPublisher.from_config(config, "gateway"))
        provider = Provider()
        address = await stack.enter_async_context(serve(ChatServicer(provider), interceptors=[MeshInterceptor()]))
        backend = tables.backend("p", tables.model("p/model"), address)
        source = Source(compile_table(tables.message([backend], {"default": [("p/model", 1.0)]})))
        channels = Backends()
        stack.push_async_callback(channels.close)
        published: list[Event] = []
        limiter = Limiter(limits or LimitsConfig())
        mesh = Mesh(
            source=source,
            routers=Routers(),
            backends=channels,
            dispatcher=Dispatcher(source, channels),
            accountant=Accountant(published.append, lambda: False, limiter),
        )
        service = await stack.enter_async_context(
            running_jobs(config, mesh, "gateway", most_jobs=limiter.most_jobs, acts=Acts(published.append))
        )
        gateway = Gateway(service, provider, published)
        as_tenant("acme")
        await until(gateway.reached, bool)
        yield gateway


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


def streams_up(streams: Streams) -> Callable[[], Any]:
    async def ask() -> bool:
        return streams.up

    return ask


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
        keeper = Keeper("gateway", streams, states, board, None, lease=2.0, loss=0.3)
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
    kinds = [event.kind for event in await read_events(nats_url.removeprefix("nats://"), quiet=0.2)]
    assert kinds == ["job.queued", "job.started", "job.failed"]
