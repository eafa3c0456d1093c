"""What the tests of a mesh's own doors share."""

import asyncio
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import yaml
from google.api.httpbody_pb2 import HttpBody
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maestro.gateway.v1.http_pb2 import ListBackendsRequest
from maestro.gateway.v1.http_pb2_grpc import HttpServiceStub
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing.mesh import MeshProcess

KEY = "mk-peers-0123456789abcdef"
GATEWAYS = ("gateway", "gateway-2")


def asked(model: str) -> ChatRequest:
    """A chat."""
    return ChatRequest(model=model, messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])])


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a caller."""
    return (("authorization", f"Bearer {key}"),)


async def until_whole(mesh: MeshProcess, key: str, models: Sequence[str]) -> None:
    """Waits until each gateway serves, follows a router, and would ask for all `models`; and until Envoy knows it.

    Raises `TimeoutError`.
    """
    async with asyncio.timeout(40):
        while not (
            all([await _is_whole(mesh.address(gateway), key, models) for gateway in GATEWAYS])
            and all(await _at_envoy(mesh))
        ):
            await asyncio.sleep(0.05)


async def _is_whole(gateway: str, key: str, models: Sequence[str]) -> bool:
    async with open_channel(gateway) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        http = HttpServiceStub(channel)
        try:
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=1)
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                return False
            told = await http.ListBackends(ListBackendsRequest(), metadata=bearer(key), timeout=1)
            # What this gateway would do: another one may follow another router, which hears of a start later.
            asked = [HttpBody(data=json.dumps({"model": model}).encode()) for model in models]
            plans = [await http.Explain(each, metadata=bearer(key), timeout=1) for each in asked]
        except grpc.aio.AioRpcError:
            return False
    # A model that nobody offers yet is answered with an error.
    kept = [[candidate["kept"] for candidate in json.loads(plan.data).get("candidates", ())] for plan in plans]
    return json.loads(told.data)["router"]["reachable"] and kept == [[True]] * len(models)


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
