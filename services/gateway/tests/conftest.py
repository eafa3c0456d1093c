"""A gateway on real sockets: scripted adapters behind gRPC, a fixed route table, two tenants, and all its events."""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import orjson
import pytest
from google.api.httpbody_pb2 import HttpBody

from maestro.event.v1.event_pb2 import Event
from maestro.event.v1.event_pb2_grpc import EventServiceStub
from maestro.gateway.v1.anthropic_pb2_grpc import AnthropicServiceStub
from maestro.gateway.v1.http_pb2_grpc import HttpServiceStub
from maestro.gateway.v1.openai_pb2_grpc import OpenAIServiceStub
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro.router.v1 import router_pb2 as pb
from maestro_gateway.account import Accountant
from maestro_gateway.anthropic.service import AnthropicService
from maestro_gateway.chat_service import ChatService
from maestro_gateway.events import Feeds
from maestro_gateway.events.service import SUBSCRIBE, EventService
from maestro_gateway.http_service import HttpService, Natives
from maestro_gateway.identity import Keys
from maestro_gateway.identity.door import authenticator
from maestro_gateway.identity.keys import configured
from maestro_gateway.identity.ring import KeyRing
from maestro_gateway.identity.sittings import Sittings
from maestro_gateway.jobs import JobService
from maestro_gateway.jobs.places import Places
from maestro_gateway.jobs.states import Board, States
from maestro_gateway.jobs.streams import Streams
from maestro_gateway.key_service import KeyService
from maestro_gateway.ledger import Ledger, Usage
from maestro_gateway.limits import Limiter
from maestro_gateway.mesh import Mesh
from maestro_gateway.model_service import ModelService
from maestro_gateway.openai.service import OpenAIService
from maestro_gateway.records import Records
from maestro_gateway.usage_service import UsageService
from maestro_gateway.webhooks.service import WebhookService
from maestro_gateway.websocket import SocketServer
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.dispatch import Dispatcher
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.table import Table, compile_table
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.service.jobs import JobsConfig
from maestro_sdk.testing import tables
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import free_port, serve

KEY = "mk-acme-0123456789"
OTHER_KEY = "mk-globex-0123456789"
ADMIN_KEY = "mk-acme-admin-0123456789"
OPERATOR_KEY = "mk-operator-0123456789"


@dataclass
class Source:
    """A fixed table."""

    table: Table
    local: LocalState = field(default_factory=LocalState)
    outcomes: list[pb.Outcome] = field(default_factory=list[pb.Outcome])

    def report(self, outcome: pb.Outcome) -> None:
        self.outcomes.append(outcome)


@dataclass
class Routers:
    """Those that sent the table: all of them are away."""

    router: Any = None
    address: str = "127.0.0.1:50052"
    degraded: bool = True
    table_age: float = 7.5


class Silence:
    """A reader of events that nobody asks for anything."""


@dataclass
class Reply:
    """What REST answered: status as Envoy would set it, headers, body."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.data)


class Gateway:
    """A running gateway and its clients. `events` are those that it published, oldest first."""

    def __init__(
        self, channel: grpc.aio.Channel, sockets: SocketServer, source: Source, routers: Routers, events: list[Event]
    ) -> None:
        self.sockets = sockets
        self.source = source
        self.routers = routers
        self.events = events
        self.chats: Any = ChatServiceStub(channel)
        self.models: Any = ModelServiceStub(channel)
        self.rest: Any = HttpServiceStub(channel)
        self.openai: Any = OpenAIServiceStub(channel)
        self.anthropic: Any = AnthropicServiceStub(channel)
        self.subscriptions: Any = EventServiceStub(channel)
        self.interceptor: MeshInterceptor
        self.keys: Keys
        self.http = aiohttp.ClientSession(f"http://127.0.0.1:{sockets.port}")

    def kinds(self) -> list[str]:
        """The kinds of the events so far."""
        return [event.kind for event in self.events]

    async def event(self, kind: str) -> Event:
        """The first event of a kind, as soon as it is there."""
        async with asyncio.timeout(5):
            while True:
                for event in self.events:
                    if event.kind == kind:
                        return event
                await asyncio.sleep(0.005)

    async def post(self, body: Any, key: str = KEY, *, method: str = "Chat") -> Reply:
        """One REST call with a body; an answer of several messages is joined."""
        call = self.call(body, key, method=method)
        data = b""
        if method == "Chat":
            async for message in call:
                data += message.data
        else:
            data = (await call).data
        return await self._reply(call, data)

    def call(self, body: Any, key: str = KEY, *, method: str = "Chat") -> Any:
        """A running REST call; it gives `HttpBody` messages."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        request = HttpBody(content_type="application/json", data=data)
        return getattr(self.rest, method)(request, metadata=metadata(key))

    async def get(self, method: str, request: Any, key: str = KEY) -> Reply:
        """One REST call without a body."""
        call = getattr(self.rest, method)(request, metadata=metadata(key))
        return await self._reply(call, (await call).data)

    async def _reply(self, call: Any, data: bytes) -> Reply:
        headers = {name: str(value) for name, value in await call.initial_metadata()}
        return Reply(int(headers.get("x-http-status", "200")), headers, data)

    def socket(self, key: str = KEY, path: str = "/v1/chat/stream") -> Any:
        """A WebSocket, to be used in `async with`."""
        return self.http.ws_connect(path, headers={"authorization": f"Bearer {key}"} if key else {})


def metadata(key: str, request_id: str = "req-of-the-test") -> list[tuple[str, str]]:
    """The metadata of a caller."""
    return [("x-request-id", request_id), *([("authorization", f"Bearer {key}")] if key else [])]


def question(text: str = "hello", **more: Any) -> dict[str, Any]:
    """The body of a chat."""
    return {"messages": [{"role": "user", "content": text}], **more}


Start = Callable[..., Awaitable[Gateway]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts gateways: `start(provider, …, ping=…, events=reader, total_timeout=…)`, one on those adapters in order."""
    async with AsyncExitStack() as stack:

        async def begin(
            *providers: ScriptedProvider | str,
            ping: float = 15.0,
            events: EventReader | None = None,
            limiter: Limiter | None = None,
            patience: float = 20.0,
            **limits: Any,
        ) -> Gateway:
            return await stack.enter_async_context(_running(providers, ping, events, limiter, patience, limits))

        yield begin


@asynccontextmanager
async def _running(
    providers: Sequence[ScriptedProvider | str],
    ping: float,
    events: EventReader | None,
    limiter: Limiter | None,
    patience: float,
    limits: Mapping[str, Any],
) -> AsyncGenerator[Gateway]:
    async with AsyncExitStack() as stack:
        backends, targets = [], []
        features = limits.get("features", ("TOOLS", "JSON_SCHEMA"))
        for number, provider in enumerate(providers):
            name = f"p{number}"
            if isinstance(provider, str):
                address = provider
            else:
                provider_models = [tables.model(f"{name}/model", *features)]
                provider._models = provider_models
                address = await stack.enter_async_context(
                    serve(ChatServicer(provider), interceptors=[MeshInterceptor()])
                )
            model = tables.model(f"{name}/model", *features)
            if name in limits.get("prices", {}):
                model.price.CopyFrom(limits["prices"][name])
            backends.append(tables.backend(f"adapter-{name}", model, address))
            targets.append((model.id, 1.0))
        routes = {"default": targets, "first": targets[:1]}
        described = tables.message(backends, routes, **limits)
        described.aliases["first"] = "p0/model"
        source = Source(compile_table(described))
        source.local.adopt(source.table, time.time())
        channels = Backends()
        published: list[Event] = []
        budgets = limits.get("budgets")
        routers = Routers()
        mesh = Mesh(
            source=source,
            routers=routers,
            backends=channels,
            dispatcher=Dispatcher(source, channels, gate=limiter.gate if limiter is not None else None),
            accountant=Accountant(
                published.append, lambda: False, limiter, budgets(source, published) if budgets is not None else None
            ),
            cache=limits.get("store"),
            files=limits.get("files"),
            recorder=limits.get("recorder"),
            switched_off=(("claude", "ANTHROPIC_API_KEY is not set"),),
        )
        keys = Keys(
            [
                ("acme", KEY),
                ("globex", OTHER_KEY),
                configured("acme", ADMIN_KEY, ["admin"]),
                configured("operations", OPERATOR_KEY, ["operator"]),
            ]
        )
        reader: Any = events or Silence()
        feeds = Feeds(reader)
        sittings = await stack.enter_async_context(Sittings(keys))
        sockets = SocketServer(mesh, keys, feeds, "127.0.0.1:0", max_body=100_000, ping=ping)
        await sockets.open()
        nowhere = "nats://127.0.0.1:1"
        usage = Usage(Ledger(nowhere))
        natives = natives_on(nowhere, mesh, keys, usage)
        rest = HttpService(mesh, Records(reader), usage, natives, max_body=100_000, ping=ping)
        interceptor = MeshInterceptor(authenticate=authenticator(keys), endless=(SUBSCRIBE,))
        address = await stack.enter_async_context(
            serve(
                ChatService(mesh),
                ModelService(source),
                EventService(feeds, sittings, patience=patience),
                rest,
                OpenAIService(mesh, None, max_body=100_000, ping=ping),
                AnthropicService(mesh, max_body=100_000, ping=ping),
                interceptors=[interceptor],
            )
        )
        channel = open_channel(address)
        gateway = Gateway(channel, sockets, source, routers, published)
        gateway.interceptor, gateway.keys = interceptor, keys
        try:
            yield gateway
        finally:
            await gateway.http.close()
            await channel.close()
            await sockets.close()
            await channels.close()


def natives_on(nats_url: str, mesh: Mesh, keys: Keys, usage: Usage) -> Natives:
    """What HTTP asks of gRPC's services: jobs without anybody who runs them, no audit, budgets or webhooks."""
    nobody: Any = None
    ring = KeyRing(nats_url, Path("keys.json"), keys)
    return Natives(
        jobs_on(nats_url, mesh), KeyService(ring), UsageService(usage, nobody, nobody), WebhookService(nobody)
    )


def jobs_on(nats_url: str, mesh: Mesh) -> JobService:
    """Jobs without anybody who runs them."""
    streams = Streams(nats_url)
    states = States(streams)
    board = Board(streams, states)
    places = Places(streams, states, board, lambda tenant: None)
    return JobService(mesh, streams, states, board, places, JobsConfig(), None)


@pytest.fixture
async def nats_url(tmp_path: Path) -> AsyncIterator[str]:
    """A real NATS server with JetStream on a folder of the test."""
    binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or "nats-server"
    port = free_port()
    options = ("--jetstream", "--store_dir", str(tmp_path / "nats"), "--addr", "127.0.0.1", "--port", str(port))
    process = await asyncio.create_subprocess_exec(binary, *options, stderr=asyncio.subprocess.DEVNULL)
    yield f"nats://127.0.0.1:{port}"
    process.terminate()
    await process.wait()
