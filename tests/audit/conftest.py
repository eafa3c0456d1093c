"""One mesh with two gateways, of which one tenant has content recorded, and its ledger and audit as NATS holds them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import nats
import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from maestro.event.v1.event_pb2 import Event
from maestro.usage.v1.usage_pb2 import AuditRecord
from maestro_gateway.audit.chain import STREAM as AUDIT
from maestro_gateway.audit.chain import subject_of
from maestro_gateway.ledger.scan import scan
from maestro_gateway.ledger.stream import STREAM as LEDGER
from maestro_sdk.cli.app import app
from maestro_sdk.testing.mesh import MeshProcess

KEY = "mk-audited-0123456789abcdef"
TENANT = "development"
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {"replicas": 2},
    "adapters": {"local": {"module": "maestro_adapter_local", "address": "127.0.0.1:50065"}},
    "routes": {"default": {"targets": ["local/offline"]}},
    "aliases": {},
    "tenants": {TENANT: {"audit": {"content": True}}},
    "grace": "2s",
}


@dataclass
class Mesh:
    """The running mesh, and its NATS behind its back."""

    process: MeshProcess
    http: aiohttp.ClientSession
    nats: Any

    async def rest(self, method: str, path: str, key: str = KEY, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of a REST call."""
        told = {"authorization": f"Bearer {key}", **headers}
        async with self.http.request(method, self.process.url + path, json=body, headers=told) as response:
            return response.status, await response.json(content_type=None)

    async def chat(self, request_id: str, text: str = "hello", key: str = KEY, claims: str = "", **more: Any) -> int:
        """Asks; the status. `claims` is the address that the caller says to have."""
        body = {"messages": [{"role": "user", "content": text}], **more}
        headers = {"authorization": f"Bearer {key}", "x-request-id": request_id}
        if claims:
            headers |= {"x-forwarded-for": claims, "x-envoy-external-address": claims}
        async with self.http.post(self.process.url + "/v1/chat", json=body, headers=headers) as response:
            await response.read()
            return response.status

    async def cli(self, *arguments: str, here: bool = True) -> Result:
        """The `maestro` command at this mesh, unless `here` is false."""
        # In this process: to start Python takes longer than all that is asked.
        where = ("--url", self.process.url, "--key", KEY) if here else ()
        return await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *where])

    async def replay(self, request_id: str) -> tuple[int, str, str]:
        """`maestro replay` in a process of its own: exit code, output, error output."""
        return await self.process.run("replay", request_id, "--url", self.process.url, "--key", KEY)

    async def ledger(self, tenant: str = TENANT) -> list[str]:
        """Identifiers of the tenant's entries of the ledger."""
        found: list[str] = []
        async with aclosing(scan(self.nats, LEDGER, [f"maestro.events.{tenant}.>"])) as batches:
            async for batch in batches:
                found += [Event.FromString(entry.data).id for entry in batch]
        return list(dict.fromkeys(found))

    async def records(self, tenant: str = TENANT) -> list[AuditRecord]:
        """The tenant's chain."""
        found: list[AuditRecord] = []
        async with aclosing(scan(self.nats, AUDIT, [subject_of(tenant)])) as batches:
            async for batch in batches:
                found += [AuditRecord.FromString(entry.data) for entry in batch]
        return found

    async def until(self, done: Callable[[list[AuditRecord]], bool], tenant: str = TENANT) -> list[AuditRecord]:
        """The chain, as soon as it is so."""
        async with asyncio.timeout(30):
            while not done(records := await self.records(tenant)):
                await asyncio.sleep(0.05)
        return records


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    folder: Path = tmp_path_factory.mktemp("audit")
    async with MeshProcess(folder, CONFIG, {"MAESTRO_KEY": KEY}) as process, aiohttp.ClientSession() as http:
        client = await cast("Any", nats).connect(f"nats://{process.address('nats')}", max_reconnect_attempts=-1)
        try:
            yield Mesh(process, http, client)
        finally:
            await client.close()
