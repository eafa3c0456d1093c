"""The gateway as its own process: ready with the router's table, a drain that cuts nothing, a taken port."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import orjson
import yaml
from google.api.httpbody_pb2 import HttpBody
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maestro.gateway.v1.http_pb2 import ListBackendsRequest
from maestro.gateway.v1.http_pb2_grpc import HttpServiceStub
from maestro.router.v1 import router_pb2 as pb
from maestro.router.v1.router_pb2_grpc import RouterServiceServicer
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.errors import Unimplemented
from maestro_sdk.testing import tables
from maestro_sdk.testing.scripted import ScriptedProvider, answer
from maestro_sdk.testing.servers import free_port, serve

from .conftest import KEY, metadata, question


class Router(RouterServiceServicer):
    """Sends one table and nothing more."""

    def __init__(self, table: pb.RouteTable) -> None:
        self.table = table
        self.outcomes: list[pb.Outcome] = []

    async def WatchRoutes(self, request: pb.WatchRoutesRequest, context: Any) -> None:
        await context.write(pb.WatchRoutesResponse(table=self.table))
        await asyncio.Event().wait()

    async def Report(self, request: pb.ReportRequest, context: Any) -> pb.ReportResponse:
        self.outcomes += request.outcomes
        return pb.ReportResponse()

    async def ListBackends(self, request: pb.ListBackendsRequest, context: Any) -> pb.ListBackendsResponse:
        status = pb.AdapterStatus(name="adapter", state=pb.ADAPTER_STATE_SERVING, models=1)
        return pb.ListBackendsResponse(backends=self.table.backends, adapters=[status])

    async def Route(self, request: pb.RouteRequest, context: Any) -> pb.RouteResponse:
        raise Unimplemented("a gateway decides by itself")

    async def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:
        raise Unimplemented("a gateway decides by itself")

    async def SetBackendState(self, request: pb.SetBackendStateRequest, context: Any) -> pb.SetBackendStateResponse:
        raise Unimplemented("a gateway sets no states")


class Process:
    """A gateway process and clients of it."""

    def __init__(self, process: asyncio.subprocess.Process, channel: grpc.aio.Channel, socket_port: int) -> None:
        self.process = process
        self.rest: Any = HttpServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)
        self.socket_port = socket_port

    async def ready(self) -> None:
        serving = health_pb2.HealthCheckResponse.SERVING
        async with asyncio.timeout(20):
            while True:
                try:
                    if (await self.health.Check(health_pb2.HealthCheckRequest())).status == serving:
                        return
                except grpc.aio.AioRpcError:
                    pass
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(folder: Path, router: str, **gateway: Any) -> AsyncGenerator[Process]:
    address, socket_port = f"127.0.0.1:{free_port()}", free_port()
    config = {
        "data": str(folder / "data"),
        "gateway": {"address": address, "websocket": f"127.0.0.1:{socket_port}", **gateway},
        "router": {"address": router},
        "nats": {"url": f"nats://127.0.0.1:{free_port()}"},
        "grace": "10s",
    }
    file = folder / "maestro.yaml"
    file.write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "maestro_gateway"),
        env={**os.environ, "MAESTRO_CONFIG": str(file), "MAESTRO_KEY": KEY},
        stderr=asyncio.subprocess.PIPE,
    )
    channel = grpc.aio.insecure_channel(address)
    try:
        yield Process(process, channel, socket_port)
    finally:
        await channel.close()
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_drain_lets_streams_and_sockets_end(tmp_path: Path) -> None:
    provider = ScriptedProvider(answer(*"abcdefgh", model="p/model"), pace=0.1, models=[tables.model("p/model")])
    async with serve(ChatServicer(provider)) as adapter:
        table = tables.message(
            [tables.backend("adapter", tables.model("p/model"), adapter)], {"default": [("p/model", 1)]}
        )
        router = Router(table)
        async with serve(router) as router_address, running(tmp_path, router_address) as gateway:
            await gateway.ready()
            listed = orjson.loads((await gateway.rest.ListBackends(ListBackendsRequest(), metadata=metadata(KEY))).data)
            assert (listed["source"], listed["adapters"][0]["state"]) == ("router", "serving")
            body = HttpBody(data=orjson.dumps(question(stream=True)))
            messages = aiter(gateway.rest.Chat(body, metadata=metadata(KEY)))
            data = (await anext(messages)).data
            url = f"http://127.0.0.1:{gateway.socket_port}/v1/chat/stream?access_token={KEY}"
            async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
                await socket.send_json({"type": "chat", "id": "c", "request": question()})
                assert (await socket.receive_json(timeout=5))["type"] == "started"
                gateway.process.send_signal(signal.SIGTERM)
                async for message in messages:
                    data += message.data
                assert data.endswith(b"data: [DONE]\n\n")
                assert data.count(b"event: text\n") == 8
                kinds = [message.json()["type"] async for message in socket]
                assert kinds == ["text"] * 8 + ["finish"]
                assert socket.close_code == 1001
            assert await asyncio.wait_for(gateway.process.wait(), 10) == 0
            _, log = await gateway.process.communicate()
            assert KEY not in log.decode()
        assert len(router.outcomes) == 2


async def test_the_last_table_serves_a_restart_without_a_router(tmp_path: Path) -> None:
    provider = ScriptedProvider(answer("fine", model="p/model"), models=[tables.model("p/model")])
    async with serve(ChatServicer(provider)) as adapter:
        table = tables.message(
            [tables.backend("adapter", tables.model("p/model"), adapter)], {"default": [("p/model", 1)]}
        )
        async with serve(Router(table)) as router_address, running(tmp_path, router_address) as gateway:
            await gateway.ready()
        async with running(tmp_path, f"127.0.0.1:{free_port()}") as gateway:
            await gateway.ready()
            (answered,) = [
                orjson.loads(message.data)
                async for message in gateway.rest.Chat(HttpBody(data=orjson.dumps(question())), metadata=metadata(KEY))
            ]
            assert answered["text"] == "fine"


async def test_a_taken_port_is_told_with_its_setting(tmp_path: Path) -> None:
    taken = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    async with running(tmp_path, f"127.0.0.1:{free_port()}", websocket=f"127.0.0.1:{port}") as gateway:
        _, log = await asyncio.wait_for(gateway.process.communicate(), 20)
    taken.close()
    assert gateway.process.returncode == 2
    assert f"gateway.websocket: can't listen on 127.0.0.1:{port}" in log.decode()
    assert "Traceback" not in log.decode()
