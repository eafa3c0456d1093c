"""A whole mesh whose router and adapters take connections with certificates of its authority alone."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.router.v1 import router_pb2
from maestro.router.v1.router_pb2_grpc import RouterServiceStub
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.meshes import MeshTlsConfig
from maestro_sdk.service.peer import Certificates, Peer
from maestro_sdk.testing.authority import Authority
from maestro_sdk.testing.callers import question
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEY, asked

MODEL = "local/offline"
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {"replicas": 2},
    "adapters": {"local": {"module": "maestro_adapter_local", "address": "127.0.0.1:50065"}},
    "routes": {"default": {"targets": [MODEL]}},
    "aliases": {},
    "grace": "2s",
}


async def refused(channel: grpc.aio.Channel, call: Any) -> bool:
    """Whether the connection was not even made."""
    async with channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel)
        return caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_mesh_of_certificates(tmp_path: Path, figures: list[str]) -> None:
    authority = Authority(tmp_path)
    tls = authority.issue("mesh", ["mesh.internal"]) | {"name": "mesh.internal"}
    stranger = Certificates(*MeshTlsConfig.model_validate(Authority(tmp_path, "other").issue("x")).read())
    config = CONFIG | {"mesh": {"tls": tls}}
    async with MeshProcess(tmp_path, config, {"MAESTRO_KEY": KEY}) as mesh, aiohttp.ClientSession() as http:
        # What the command makes where nothing else protects the mesh is not needed here.
        assert not (mesh.data / "mesh-token").exists()
        headers, body = {"authorization": f"Bearer {KEY}"}, question(model=MODEL)

        async def chat() -> int:
            async with http.post(f"{mesh.url}/v1/chat", json=body, headers=headers) as response:
                return response.status

        async def ask(channel: grpc.aio.Channel) -> None:
            await ChatServiceStub(channel).Chat(asked(MODEL), timeout=10)

        async def list_backends(channel: grpc.aio.Channel) -> None:
            await RouterServiceStub(channel).ListBackends(router_pb2.ListBackendsRequest(), timeout=10)

        assert await chat() == 200
        for name, call in (("adapter-local", ask), ("router", list_backends)):
            address = mesh.address(name)
            assert await refused(open_channel(address), call)
            assert await refused(Peer((), stranger).open_channel(address), call)
            own = Certificates(*MeshTlsConfig.model_validate(tls).read(), "mesh.internal")
            async with Peer((), own).open_channel(address) as channel:
                await call(channel)
        await mesh.wait_restarted(mesh.kill("adapter-local"))
        async with asyncio.timeout(20):
            while await chat() != 200:
                await asyncio.sleep(0.02)
    figures.append(f"mesh with mTLS ready after {mesh.ready_after:.1f} s, and again after kill -9 of its adapter")
