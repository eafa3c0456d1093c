"""Gateways that run jobs in this process, on a real NATS, for tests of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maestro.event.v1.event_pb2 import Event
from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_gateway.account import Accountant
from maestro_gateway.audit.acts import Acts
from maestro_gateway.identity import Principal, enter
from maestro_gateway.jobs import JobFiles, JobService, running_jobs
from maestro_gateway.jobs.streams import Streams
from maestro_gateway.limits import Limiter
from maestro_gateway.mesh import Mesh
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.errors import MaestroError, NoBackend
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.dispatch import Dispatcher
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.service.limits import LimitsConfig
from maestro_sdk.service.settings import load
from maestro_sdk.testing import tables
from maestro_sdk.testing.scripted import ScriptedProvider, answer
from maestro_sdk.testing.servers import serve
from maestro_sdk.tracing import Call, enter_call

from .conftest import Routers, Source

ALL = frozenset({"jobs"})
LONG_ANSWER = 600_000
"""Characters of an answer that is more than a message of a result holds."""


class Provider(ScriptedProvider):
    """Answers when it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(models=[tables.model("p/model"), tables.model("p/other")])
        self.open = asyncio.Event()
        self.asked: list[str] = []
        self.under_way: list[str] = []
        self.failing: dict[str, MaestroError] = {}
        """What questions fail with the next time that they are asked."""

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        text = request.messages[0].parts[0].text.text
        self.asked.append(text)
        self.under_way.append(text)
        try:
            await self.open.wait()
            if (error := self.failing.pop(text, None)) is not None:
                raise error
            if text.startswith("long"):
                for event in answer("x" * LONG_ANSWER):
                    yield (event,)
                return
            async for events in super().stream(request):
                yield events
        finally:
            self.under_way.remove(text)


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
    """Asks in the name of a tenant from now on."""
    enter(Principal(tenant=tenant, key_id=f"key-{tenant}", scopes=ALL, source="key"))
    enter_call(Call("req-of-the-test", tenant, ""))


def item(text: str, model: str = "p/model") -> BatchItem:
    """A question."""
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return BatchItem(chat=ChatRequest(model=model, messages=[message]))


async def until(ask: Callable[[], Any], fits: Callable[[Any], bool]) -> None:
    """Waits until what is asked for fits."""
    async with asyncio.timeout(15):
        while not fits(await ask()):
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(
    nats_url: str,
    folder: Path,
    limits: LimitsConfig | None = None,
    *,
    provider: Provider | None = None,
    files: JobFiles | None = None,
    **jobs: Any,
) -> AsyncGenerator[Gateway]:
    """A gateway with one provider, which several may share."""
    settings = {"nats.url": nats_url, "data": str(folder), **{f"jobs.{name}": value for name, value in jobs.items()}}
    config = load(None, {}).replaced(settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(EventPublisher.from_config(config, "gateway"))
        provider = provider or Provider()
        address = await stack.enter_async_context(serve(ChatServicer(provider), interceptors=[MeshInterceptor()]))
        backends = [tables.backend("p", tables.model(name), address) for name in ("p/model", "p/other")]
        source = Source(compile_table(tables.message(backends, {"default": [("p/model", 1.0)]})))
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
            running_jobs(config, mesh, "gateway", files, most_jobs=limiter.most_jobs, acts=Acts(published.append))
        )
        gateway = Gateway(service, provider, published)
        as_tenant("acme")
        await until(gateway.reached, bool)
        yield gateway


def streams_up(streams: Streams) -> Callable[[], Any]:
    """What asks whether NATS is reached."""

    async def ask() -> bool:
        return streams.up

    return ask
