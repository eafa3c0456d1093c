"""One mesh with three gateways and two routers, and ways to look at each of them."""

import asyncio
import inspect
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maestro.gateway.v1.http_pb2 import ListBackendsRequest
from maestro.gateway.v1.http_pb2_grpc import HttpServiceStub
from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing.mesh import MeshMember, MeshProcess

KEY = "mk-replicas-0123456789"
MODEL = "local/offline"
BACKEND = "local:local/offline"
GATEWAYS = ("gateway", "gateway-2", "gateway-3")
ROUTERS = ("router", "router-2")
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {"replicas": 3},
    "router": {"replicas": 2},
    "adapters": {
        "local": {
            "module": "maestro_adapter_local",
            "address": "127.0.0.1:50065",
            "settings": {"offline": {"pace": "3ms"}},
        }
    },
    "routes": {"default": {"targets": [MODEL]}},
    "aliases": {},
    "grace": "5s",
}


class Mesh:
    """The running mesh, with each of its gateways by itself."""

    def __init__(self, process: MeshProcess) -> None:
        self.process = process
        self.url = process.url
        self._channels = {name: open_channel(process.address(name)) for name in GATEWAYS}

    async def ask(self, gateway: str, method: str, request: Any) -> Any:
        """One REST call to a gateway itself. Raises `grpc.aio.AioRpcError` while it is not there."""
        call = getattr(HttpServiceStub(self._channels[gateway]), method)
        metadata = (("authorization", f"Bearer {KEY}"),)
        return json.loads((await call(request, metadata=metadata, timeout=5)).data)

    async def router_of(self, gateway: str) -> dict[str, Any]:
        """What a gateway tells of its router: address, reachable, degraded, table_version…"""
        return (await self.ask(gateway, "ListBackends", ListBackendsRequest()))["router"]

    async def all_routers(self, fits: Callable[[dict[str, Any]], bool], gateways: tuple[str, ...] = GATEWAYS) -> float:
        """The seconds until what each gateway tells of its router fits."""

        async def wait(gateway: str) -> None:
            while True:
                with suppress(grpc.aio.AioRpcError):
                    if fits(await self.router_of(gateway)):
                        return
                await asyncio.sleep(0.01)

        return await seconds(asyncio.gather(*(wait(gateway) for gateway in gateways)))

    async def chat(self, gateway: str) -> ChatResponse:
        """One chat with a gateway itself."""
        message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])
        stub = ChatServiceStub(self._channels[gateway])
        metadata = (("authorization", f"Bearer {KEY}"),)
        return await stub.Chat(ChatRequest(model=MODEL, messages=[message]), metadata=metadata, timeout=10)

    async def serving(self, gateway: str) -> float:
        """The seconds until a gateway says that it serves."""

        async def wait() -> None:
            stub: Any = health_pb2_grpc.HealthStub(self._channels[gateway])
            while True:
                with suppress(grpc.aio.AioRpcError):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                await asyncio.sleep(0.02)

        return await seconds(wait())

    async def hold(self, name: str) -> int:
        """Kills a process, and stops the one that takes its place before it does anything; `go_on` takes its pid."""
        before = self.process.kill(name)
        async with asyncio.timeout(10):
            while True:
                member = self.process.members()[name]
                if member.pid is not None and member.pid != before.pid:
                    os.kill(member.pid, signal.SIGSTOP)
                    return member.pid
                await asyncio.sleep(0.005)

    def stop(self, pid: int) -> None:
        """Stops a process where it stands, until `go_on`."""
        os.kill(pid, signal.SIGSTOP)

    def go_on(self, *pids: int) -> None:
        """Lets processes go on that were held."""
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    def kill(self, name: str) -> MeshMember:
        """SIGKILL."""
        return self.process.kill(name)

    async def gone(self, member: MeshMember) -> float:
        """The Unix time at which a killed process is no more: its sockets are closed.

        They are when its last thread has ended; the first thread, whose state is the process's, may end long before.
        """
        async with asyncio.timeout(10):
            while _lives(member.pid):
                await asyncio.sleep(0.001)
        return time.time()

    async def noticed(self, member: MeshMember) -> float:
        """The Unix time at which Envoy says that it has no connection to a gateway any more, or it is back already."""
        config = yaml.safe_load((self.process.data / "run" / "envoy.yaml").read_text(encoding="utf-8"))
        place = config["admin"]["address"]["socket_address"]
        url = f"http://{place['address']}:{place['port_value']}/clusters?format=json"
        async with asyncio.timeout(30), aiohttp.ClientSession() as http:
            while self.process.members()[member.name].restarts == member.restarts:
                async with http.get(url) as response:
                    if _connections(await response.json(content_type=None), member.address) == 0:
                        break
                await asyncio.sleep(0.002)
        return time.time()

    async def whole(self) -> None:
        """Waits until every process runs and every gateway follows a router."""
        async with asyncio.timeout(30):
            while any(member.state != "ready" for member in self.process.members().values()):
                await asyncio.sleep(0.02)
            await self.all_routers(lambda router: bool(router["reachable"]))

    async def close(self) -> None:
        """Closes the channels to the gateways."""
        for channel in self._channels.values():
            await channel.close()


def _connections(clusters: Any, address: str) -> int:
    """How many connections Envoy has to a gateway's address for gRPC, which carries all but WebSockets."""
    [host] = [
        host
        for cluster in clusters["cluster_statuses"]
        if cluster["name"] == "gateway"
        for host in cluster["host_statuses"]
        if str(host["address"]["socket_address"]["port_value"]) == address.rpartition(":")[2]
    ]
    return next(int(stat.get("value", 0)) for stat in host["stats"] if stat["name"] == "cx_active")


def _lives(pid: int | None) -> bool:
    try:
        return any(_runs(thread) for thread in Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return False


def _runs(thread: Path) -> bool:
    try:
        return (thread / "stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


async def seconds(work: Awaitable[Any], limit: float = 30.0) -> float:
    """The time that `work` takes. Raises `TimeoutError`."""
    begun = time.monotonic()
    await asyncio.wait_for(work, limit)
    return time.monotonic() - begun


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(120))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def running(figures: list[str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """The mesh of all tests."""
    environment: Mapping[str, str] = {"MAESTRO_KEY": KEY}
    async with MeshProcess(tmp_path_factory.mktemp("replicas"), CONFIG, environment) as process:
        figures.append(f"start with 3 gateways and 2 routers: {process.ready_after:.1f} s")
        mesh = Mesh(process)
        try:
            yield mesh
        finally:
            await mesh.close()


@pytest_asyncio.fixture(loop_scope="session")
async def mesh(running: Mesh) -> Mesh:
    """The mesh when everybody is there."""
    await running.whole()
    return running
