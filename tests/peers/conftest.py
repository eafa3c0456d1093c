"""What the tests of a mesh's own doors share."""

import asyncio
import inspect
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing.callers import Caller
from maestro_sdk.testing.mesh import MeshProcess

KEY = "mk-peers-0123456789abcdef"
FIGURES: list[str] = []


def asked(model: str) -> ChatRequest:
    """A chat."""
    return ChatRequest(model=model, messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])])


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a caller."""
    return (("authorization", f"Bearer {key}"),)


async def until_whole(mesh: MeshProcess, key: str, adapters: set[str]) -> None:
    """Waits until both gateways and all `adapters` serve, and Envoy knows it. Raises `TimeoutError`."""
    async with asyncio.timeout(40), Caller(mesh.url, key) as caller:
        while not await _is_whole(mesh, caller, adapters):
            await asyncio.sleep(0.05)


async def _is_whole(mesh: MeshProcess, caller: Caller, adapters: set[str]) -> bool:
    for gateway in ("gateway", "gateway-2"):
        async with open_channel(mesh.address(gateway)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            with suppress(grpc.aio.AioRpcError):
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    continue
            return False
    if not all(await _at_envoy(mesh)):
        return False
    told = (await caller.get("/v1/router/backends")).json()
    states = {found["name"]: found["state"] for found in told["adapters"] or ()}
    return told["router"]["reachable"] and states == dict.fromkeys(adapters, "serving")


async def _at_envoy(mesh: MeshProcess) -> list[bool]:
    """Whether Envoy sends requests to each of the gateways' doors."""
    config = yaml.safe_load((mesh.data / "run" / "envoy.yaml").read_text(encoding="utf-8"))
    place = config["admin"]["address"]["socket_address"]
    url = f"http://{place['address']}:{place['port_value']}/clusters?format=json"
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        clusters = (await response.json(content_type=None))["cluster_statuses"]
    return [
        host["health_status"] == {"eds_health_status": "HEALTHY"}
        for cluster in clusters
        if cluster["name"] in {"gateway", "websocket"}
        for host in cluster["host_statuses"]
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture
def figures() -> list[str]:
    """Lines that are printed after the tests."""
    return FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("peers")
        for line in FIGURES:
            terminalreporter.write_line(line)
