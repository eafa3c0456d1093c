"""One mesh with two gateways behind the real Envoy, for clients that bring files."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2

from maestro.llm.v1.model_pb2 import Feature, Support
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.scripted import ScriptedProvider, scripted_model
from maestro_sdk.testing.servers import serve

MIB = 2**20
SIZE = int(os.environ.get("FILES_MIB", "24")) * MIB
"""Bytes of a large file; FILES_MIB=200 for the full figure."""
MAX_FILE = 256 * MIB
KEY, OTHER, NARROW = "mk-acme-0123456789", "mk-globex-0123456789", "mk-narrow-0123456789"
GATEWAYS = ("gateway", "gateway-2")
MODEL = "fake/model"
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {
        "replicas": 2,
        "keys": [
            {"tenant": "acme", "key": {"env": "KEY_ACME"}},
            {"tenant": "globex", "key": {"env": "KEY_GLOBEX"}},
            {"tenant": "acme", "key": {"env": "KEY_NARROW"}, "scopes": ["chat"], "name": "narrow"},
        ],
    },
    "routes": {"default": {"targets": [MODEL]}},
    "aliases": {},
    "files": {"max_file": MAX_FILE, "tenants": {"globex": {"max_file": 1000, "max_tenant": 1500}}},
    "grace": "5s",
}
_health: Any = grpc_health  # the asyncio half has no types


class Mesh:
    """The running mesh and its REST door."""

    def __init__(self, process: MeshProcess, http: aiohttp.ClientSession, provider: ScriptedProvider) -> None:
        self.process = process
        self.provider = provider
        self.http = http

    async def rest(
        self, method: str, path: str, key: str = KEY, *, data: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON of a call."""
        told = {"authorization": f"Bearer {key}", **{name.replace("_", "-"): text for name, text in headers.items()}}
        async with self.http.request(method, self.process.url + path, data=data, headers=told) as response:
            return response.status, await response.json(content_type=None)

    async def download(self, file_id: str, key: str = KEY, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and bytes of a download."""
        told = {"authorization": f"Bearer {key}", **{name.replace("_", "-"): text for name, text in headers.items()}}
        async with self.http.get(f"{self.process.url}/v1/files/{file_id}/content", headers=told) as response:
            return response.status, {k.lower(): v for k, v in response.headers.items()}, await response.read()

    async def listed(self, key: str = KEY) -> set[str]:
        """The identifiers of a tenant's files."""
        _, page = await self.rest("GET", "/v1/files?page_size=1000", key)
        return {file["file_id"] for file in page["files"]}

    def forget_highest(self, name: str) -> None:
        """Lets `highest` begin anew."""
        Path(f"/proc/{self.process.members()[name].pid}/clear_refs").write_text("5")

    def highest(self, name: str) -> int:
        """The most memory in bytes that a process had since `forget_highest`."""
        return _memory(self.process.members()[name].pid, "VmHWM")

    def memory(self, name: str) -> int:
        """The memory in bytes that a process has now."""
        return _memory(self.process.members()[name].pid, "VmRSS")


def _memory(pid: int | None, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(180))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """The mesh of all tests."""
    keys = {"KEY_ACME": KEY, "KEY_GLOBEX": OTHER, "KEY_NARROW": NARROW}
    model = scripted_model(MODEL)
    for feature in (Feature.FEATURE_VISION, Feature.FEATURE_DOCUMENTS):
        model.features.add(feature=feature, support=Support.SUPPORT_NATIVE)
    provider = ScriptedProvider(models=[model])
    statuses: Any = _health.aio.HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    async with (
        serve(ChatServicer(provider), ModelServicer(provider), statuses) as adapter,
        MeshProcess(
            tmp_path_factory.mktemp("files"), {**CONFIG, "adapters": {"fake": {"address": adapter}}}, keys
        ) as process,
        aiohttp.ClientSession() as http,
    ):
        yield Mesh(process, http, provider)
