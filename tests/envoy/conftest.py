"""One Envoy with the product's configuration, in front of a gateway double that does what a request's text says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sysconfig
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import grpc
import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web
from google.api.httpbody_pb2 import HttpBody
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from maestro.gateway.v1 import http_pb2, http_pb2_grpc
from maestro.llm.v1 import chat_pb2, chat_pb2_grpc
from maestro_sdk.cli.rendering import EnvoyValues, render_envoy
from maestro_sdk.errors import BY_REASON, InvalidRequest, MaestroError, RateLimited, Violation, to_status
from maestro_sdk.service.free_ports import find_free_ports

ROOT = Path(__file__).resolve().parents[2]
ENVOY = Path(sysconfig.get_path("scripts"), "envoy")
MAX_BODY = 1_000_000
JSON = "application/json"
SSE = "text/event-stream"


class RestDouble(http_pb2_grpc.HttpServiceServicer):
    """The REST side: see the `match` of `Chat` for what can be asked. The fields tell what arrived."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self.body = b""
        self.sent = 0
        self.cancelled = asyncio.Event()
        self.go_on = asyncio.Event()

    def _note(self, context: Any) -> None:
        self.seen = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self._note(context)
        self.body = request.data
        try:
            asked = json.loads(request.data)
        except ValueError:
            await context.send_initial_metadata((("x-http-status", "400"),))
            yield HttpBody(content_type=JSON, data=b'{"error":{"code":400,"reason":"INVALID_REQUEST"}}')
            return
        match asked.get("do"):
            case "limit":
                await context.send_initial_metadata((("x-http-status", "429"), ("retry-after", "7")))
                yield HttpBody(content_type=JSON, data=b'{"error":{"code":429,"reason":"RATE_LIMITED"}}')
            case "abort":
                await abort(
                    context, InvalidRequest('not "so" \\ good', violations=[Violation("messages[0]", 'say "hi"')])
                )
            case "limited status":
                await abort(context, RateLimited("slow down", retry_after=3))
            case "crash":
                raise RuntimeError("bad luck")
            case "stream":
                for index in range(3):
                    yield HttpBody(content_type=SSE, data=b"data: %d\n\n" % index)
                    await self.go_on.wait()
                    self.go_on.clear()
            case "hang":
                try:
                    await self.go_on.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "stream and hang":
                try:
                    yield HttpBody(content_type=SSE, data=b"data: first\n\n")
                    await self.go_on.wait()
                except (asyncio.CancelledError, GeneratorExit):
                    self.cancelled.set()
                    raise
            case "flood":
                self.sent = 0
                for _ in range(asked["messages"]):
                    self.sent += 1
                    yield HttpBody(content_type=SSE, data=b"x" * 16384)
            case _:
                yield HttpBody(content_type=JSON, data=json.dumps({"length": len(request.data)}).encode())

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._note(context)
        return HttpBody(content_type=JSON, data=b'{"models":[]}')

    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def ListBackends(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def Explain(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.body = request.data
        if request.data.startswith(b'{"reason":'):
            told = json.loads(request.data)
            await abort(context, BY_REASON[told.pop("reason")](**told))
        return HttpBody(content_type=JSON, data=b"{}")

    async def GetProviderHealth(self, request: Any, context: Any) -> Any:  # noqa: N802
        return HttpBody(content_type=JSON, data=b'{"providers":[]}')

    async def EstimateChat(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def FollowChat(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def EndChat(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def ExportUsage(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def CreateJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def ListJobResults(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def CancelJob(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def EstimateCost(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def CreateKey(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def RevokeKey(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def ReplayDeadLetters(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def TestWebhook(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def RotateKey(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Tells what came of the path and of the body."""
        told = {"key_id": request.key_id, "kind": request.body.content_type, "body": request.body.data.decode()}
        return HttpBody(content_type=JSON, data=json.dumps(told).encode())


class NativeDouble(chat_pb2_grpc.ChatServiceServicer):
    """The native side of the double."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.cancelled = asyncio.Event()
        self.seen: dict[str, str] = {}

    async def Chat(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.seen = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        match request.model:
            case "abort":
                await abort(context, InvalidRequest.at("messages[0]", "is empty"))
            case "hang":
                self.deadline = context.time_remaining()
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case _:
                pass
        return chat_pb2.ChatResponse(response_id="r1", raw_reason=str(request.ByteSize()))

    async def CountTokens(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        for index in range(3):
            event = chat_pb2.ChatEvent(text=chat_pb2.TextDelta(index=0, text=str(index)))
            yield chat_pb2.StreamChatResponse(events=[event])
        if request.model == "abort":
            await abort(context, RateLimited("later", retry_after=2))


async def abort(context: Any, error: MaestroError) -> None:
    await context.abort_with_status(rpc_status.to_status(to_status(error)))


async def echo(request: web.Request) -> web.StreamResponse:
    """Returns every text it receives, with the query in front; "bye" closes with code 4000."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            if message.data == "bye":
                await socket.close(code=4000, message=b"bye")
            else:
                await socket.send_str(
                    f"{request.query_string}|{request.headers.get('x-maestro-tenant', '')}|{message.data}"
                )
    return socket


async def ready(request: web.Request) -> web.Response:
    """What Envoy asks of the HTTP port."""
    return web.json_response({"status": "ok"})


class Doubles:
    """The servers of the double, gRPC and WebSocket. `cut` does to gRPC what the sudden death of a gateway does."""

    def __init__(self, grpc_port: int, websocket_port: int) -> None:
        self.http = RestDouble()
        self.native = NativeDouble()
        self.health: Any = cast("Any", health).aio.HealthServicer()
        self._grpc_port = grpc_port
        self._websocket_port = websocket_port
        self._cables: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        http_pb2_grpc.add_HttpServiceServicer_to_server(self.http, self.server)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(self.native, self.server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        name = http_pb2.DESCRIPTOR.services_by_name["HttpService"].full_name
        reflection.enable_server_reflection([name, reflection.SERVICE_NAME], self.server)
        behind = self.server.add_insecure_port("127.0.0.1:0")
        await self.server.start()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", behind)
            self._cables |= {writer, other_writer}
            await asyncio.gather(carry(reader, other_writer), carry(other_reader, writer))
            self._cables -= {writer, other_writer}

        self.relay = await asyncio.start_server(relay, "127.0.0.1", self._grpc_port)
        await self.set_health(serving=True)
        app = web.Application()
        app.router.add_get("/readyz", ready)
        app.router.add_get("/v1/chat/stream", echo)
        app.router.add_get("/v1/events/stream", echo)
        self.runner = web.AppRunner(app)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", self._websocket_port).start()

    async def set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        await self.health.set("", status)

    def cut(self) -> None:
        for writer in self._cables:
            writer.transport.abort()

    async def stop(self) -> None:
        await self.runner.cleanup()
        self.relay.close()
        self.cut()
        await self.server.stop(None)


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@dataclass
class Mesh:
    """Envoy and the doubles behind it."""

    url: str
    address: str
    admin: str
    doubles: Doubles
    client: aiohttp.ClientSession

    async def ask(self, do: str, **more: Any) -> tuple[aiohttp.ClientResponse, bytes]:
        async with self.client.post(f"{self.url}/v1/chat", json={"do": do, **more}) as response:
            return response, await response.read()


@pytest.fixture(scope="module")
def ports() -> list[int]:
    """Five free ports: public, admin, gateway, websocket, one where nobody listens."""
    return find_free_ports(5)


@pytest.fixture(scope="module")
def envoy_file(ports: list[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    public, admin, gateway, websocket, _ = (f"127.0.0.1:{port}" for port in ports)
    values = EnvoyValues(
        public=public,
        admin=admin,
        gateways=(gateway,),
        websockets=(websocket,),
        max_body=MAX_BODY,
        ping=15.0,
        descriptors=ROOT / "envoy/maestro.binpb",
    )
    file = tmp_path_factory.mktemp("envoy") / "envoy.yaml"
    file.write_text(render_envoy((ROOT / "envoy/envoy.yaml").read_text(), values))
    return file


@pytest.fixture(scope="module")
def envoy(envoy_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Envoy itself. It asks the kernel to end it with the thread that started it: pytest's main thread."""
    command = [
        ENVOY,
        "--config-path",
        envoy_file,
        "--use-dynamic-base-id",
        "--concurrency",
        "1",
        "--log-level",
        "warning",
    ]
    with (
        (envoy_file.parent / "envoy.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        yield process
        process.terminate()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(envoy: subprocess.Popen[bytes], envoy_file: Path, ports: list[int]) -> AsyncIterator[Mesh]:
    public, admin, gateway, websocket, _ = ports
    doubles = Doubles(gateway, websocket)
    await doubles.start()
    url = f"http://127.0.0.1:{public}"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client:
        mesh = Mesh(url, f"127.0.0.1:{public}", f"http://127.0.0.1:{admin}", doubles, client)
        try:
            async with asyncio.timeout(20):
                while await status_of(client, f"{url}/readyz") != 200:
                    assert envoy.poll() is None, (envoy_file.parent / "envoy.log").read_text()
                    await asyncio.sleep(0.02)
            yield mesh
        finally:
            await doubles.stop()


async def status_of(client: aiohttp.ClientSession, url: str) -> int:
    """The HTTP status of a GET, 0 when nobody listens."""
    try:
        async with client.get(url) as response:
            return response.status
    except aiohttp.ClientConnectionError:
        return 0
