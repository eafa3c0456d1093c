"""One mesh with two gateways, a provider that writes down every call, and callers of two tenants."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from maestro.job.v1 import job_pb2 as pb
from maestro.job.v1.job_pb2_grpc import JobServiceStub
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.batch import JobsClient
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing import openai_embedding
from maestro_sdk.testing.chaos.provider import Providers, Weather
from maestro_sdk.testing.faults import FaultServer, Seen, SendJson, Step
from maestro_sdk.testing.mesh import MeshProcess

from .batch_account import Account

LONG = "JOB_ITEMS" in os.environ
ITEMS = int(os.environ.get("JOB_ITEMS", "40"))
"""Items of the job that processes are killed under."""
KEYS = {name: f"mk-jobs-{name}-0123456789" for name in ("acme", "globex", "chatter", "initech")}
SCOPES = {"chatter": ["chat"], "initech": ["jobs", "files", "chat", "embeddings"]}
MODEL = "openai/gpt-6.1-terra"
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {
        "replicas": 2,
        "keys": [
            {"tenant": name, "key": {"env": f"KEY_{name.upper()}"}, "scopes": SCOPES.get(name, ["jobs", "files"])}
            for name in KEYS
        ],
    },
    "router": {"breaker": {"open_time": "1s"}},
    "jobs": {"lease": "1s", "parallel": 16, "per_tenant": 16},
    "adapters": {
        "openai": {
            "module": "maestro_adapter_openai",
            "address": "127.0.0.1:50062",
            "settings": {"api_key": {"env": "OPENAI_API_KEY"}, "base_url": "${PROVIDERS}/v1"},
        },
        "local": {"module": "maestro_adapter_local", "address": "127.0.0.1:50065"},
    },
    "routes": {"default": {"targets": [MODEL]}},
    "aliases": {},
    "grace": "3s",
}


class Jobs(JobsClient):
    """A tenant's client of the running mesh, and its stub for what the client does not ask."""

    def __init__(self, process: MeshProcess, tenant: str) -> None:
        super().__init__(process.url, KEYS[tenant])
        self._channel = open_channel(process.target)
        self.stub: Any = JobServiceStub(self._channel)
        self.key = (("authorization", f"Bearer {KEYS[tenant]}"),)

    async def until(self, job_id: str, fits: Callable[[pb.Job], bool], timeout: float = 20.0) -> pb.Job:
        """The job as soon as it fits."""
        async with asyncio.timeout(timeout):
            while not fits(job := await self.get(job_id)):
                await asyncio.sleep(0.05)
            return job

    async def listed(self, job_id: str, page_size: int = 100) -> list[pb.JobResult]:
        """All results, page by page, until there is none."""
        found: list[pb.JobResult] = []
        request = pb.ListJobResultsRequest(job_id=job_id, page_size=page_size)
        async with asyncio.timeout(20):
            while True:
                page = await self.stub.ListJobResults(request, metadata=self.key, timeout=10)
                found.extend(page.results)
                if not page.next_page_token:
                    return found
                request.page_token = page.next_page_token

    async def close(self) -> None:
        """Cancels what a test has left: it would be asked of the provider of the next one."""
        for job in await self.list(pb.JOB_STATE_QUEUED, pb.JOB_STATE_RUNNING, pb.JOB_STATE_CANCELLING):
            await self.cancel(job.job_id)
            await self.wait(job.job_id, 20)
        await super().close()
        await self._channel.close()


def chat(text: str, *, model: str = MODEL, **fields: Any) -> ChatRequest:
    """A question."""
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return ChatRequest(model=model, messages=[message], **fields)


def questions(count: int, name: str = "r") -> list[BatchItem]:
    """Items whose answers are known."""
    return [BatchItem(chat=chat(f"[{name}{number}] go on")) for number in range(count)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(120 + ITEMS))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server() -> AsyncIterator[FaultServer]:
    """The server that stands for the provider."""
    async with FaultServer() as running:
        yield running


@pytest.fixture
def providers(server: FaultServer) -> Providers:
    """The provider, which takes its time, with an empty record of calls."""
    found = Providers(server, 7)
    found.weather["openai"] = Weather(late=1.0, lateness=0.3)
    server.replace("POST", "/v1/embeddings", _embed)
    return found


def _embed(seen: Seen) -> list[Step]:
    body = seen.json()
    return [SendJson(openai_embedding.embed(body, body["model"]))]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MeshProcess]:
    """The running mesh."""
    environment = {
        **{f"KEY_{name.upper()}": key for name, key in KEYS.items()},
        "PROVIDERS": server.url,
        "OPENAI_API_KEY": "sk-test",
    }
    async with MeshProcess(tmp_path_factory.mktemp("jobs"), CONFIG, environment) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def jobs(mesh: MeshProcess, providers: Providers) -> AsyncIterator[Jobs]:
    """The jobs of one tenant."""
    client = Jobs(mesh, "acme")
    yield client
    await client.close()


@pytest_asyncio.fixture(loop_scope="session")
async def others(mesh: MeshProcess) -> AsyncIterator[Jobs]:
    """The jobs of another tenant."""
    client = Jobs(mesh, "globex")
    yield client
    await client.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def wire(server: FaultServer) -> AsyncIterator[Account]:
    """The provider's account for all tests."""
    yield Account(server)


@pytest.fixture
def account(wire: Account, providers: Providers) -> Account:
    """The account of a test, whose batches take a moment."""
    wire.failing.clear()
    wire.answered.clear()
    wire.wire.takes, wire.wire.late = 0.2, 0.0
    return wire


async def status_of(call: Awaitable[Any]) -> tuple[str, str]:
    """Code and text of the status that a call ends with."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""
