"""One mesh with three gateways that share a Redis-compatible store, and a provider that keeps its own meter."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import nats
import pytest
import pytest_asyncio
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2

from maestro.event.v1.event_pb2 import Event
from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    ChatResponse,
    Finish,
    FinishReason,
    Started,
    TextDelta,
)
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_gateway.ledger.scan import scan
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.service import bus
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.store import StoreConfig
from maestro_sdk.service.store.holds import Balance
from maestro_sdk.service.store.shared import SharedStore
from maestro_sdk.service.store.shared_holds import SharedHolds
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.redis import RedisServer, find_redis
from maestro_sdk.testing.scripted import ScriptedProvider, scripted_model
from maestro_sdk.testing.servers import serve

GATEWAYS = ("gateway", "gateway-2", "gateway-3")
TENANTS = ("exact", "loose", "killed", "slow", "free")
TOKEN = 2_500_000
"""What a token of an answer costs, in nano-dollars."""
MOST = 40
"""Tokens that each request may have at most."""
SPARE = 7
"""Tokens that are left of a budget."""
EXACT, LOOSE, KILLED = 25, 2000, 60 * MOST + SPARE
"""Requests, and tokens, that the budgets of the tenants are for."""
LEASE = 2.0
_nats: Any = nats
_health: Any = grpc_health  # the asyncio half has no types


class Provider(ScriptedProvider):
    """Charges for what it has produced, whoever listens. Its meter is in nano-dollars, by the text of a request."""

    def __init__(self) -> None:
        model = scripted_model("fake/model")
        model.price.CopyFrom(Price(effective_date="2026-01-01", input="0", output="2500"))
        super().__init__(models=[model])
        self.meter: dict[str, int] = {}
        self.pause = 0.0
        self.frugal = False
        self.calls = 0

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        text = request.messages[-1].parts[0].text.text
        tokens = random.randint(1, request.max_tokens) if self.frugal else request.max_tokens
        self.calls += 1
        self.meter[text] = 0
        yield (ChatEvent(started=Started(response_id=text, provider="fake", model="model", attempt=1)),)
        pause = self.pause * random.random()
        await asyncio.sleep(pause)
        self.meter[text] = tokens // 2 * TOKEN
        yield (ChatEvent(text=TextDelta(text="half ")),)
        await asyncio.sleep(self.pause - pause)
        self.meter[text] = tokens * TOKEN
        used = Usage(input_tokens=3, output_tokens=tokens)
        yield (ChatEvent(finish=Finish(reason=FinishReason.FINISH_REASON_STOP, usage=used)),)


class Mesh:
    """The running mesh, with each of its gateways by itself."""

    def __init__(self, process: MeshProcess, store: RedisServer, provider: Provider) -> None:
        self.process = process
        self.store = store
        self.provider = provider
        self.stubs: dict[str, Any] = {}
        self._channels: list[grpc.aio.Channel] = []
        for name in GATEWAYS:
            self._channels.append(open_channel(process.address(name)))
            self.stubs[name] = ChatServiceStub(self._channels[-1])

    async def ask(self, tenant: str, number: int, text: str, tokens: int = MOST, *, stream: bool = False) -> Any:
        """One chat with the gateway of a number; a stream is read to its end."""
        stub = self.stubs[GATEWAYS[number % len(GATEWAYS)]]
        asked = question(text, max_tokens=tokens, metadata={"n": text})
        if not stream:
            return await stub.Chat(asked, metadata=key_of(tenant), timeout=40)
        return [batch async for batch in stub.StreamChat(asked, metadata=key_of(tenant), timeout=40)]

    async def balances(self, budget: str) -> list[Balance]:
        """What the store knows of a budget."""
        async with (
            SharedStore(StoreConfig(url=self.store.url, timeout=5.0)) as store,
            SharedHolds(store, 60.0, lambda charge: None) as holds,
        ):
            return list(await holds.balances(f"{budget}|{time.strftime('%Y-%m', time.gmtime())}"))

    async def ends(self, tenant: str) -> list[Event]:
        """The ends of a tenant's requests in the stream, each once: estimates count where no true end came."""
        client = await _nats.connect(f"nats://{self.process.address('nats')}")
        found: dict[str, Event] = {}
        subjects = [f"maestro.events.{tenant}.request.{kind}" for kind in ("completed", "failed")]
        try:
            async for batch in scan(client, bus.STREAM, subjects):
                events = [Event.FromString(entry.data) for entry in batch]
                found |= {event.id: event for event in events}
        finally:
            await client.close()
        return [event for event in found.values() if event.request_failed.estimate_of not in found]

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()


def question(text: str, **more: Any) -> ChatRequest:
    """A question to the provider."""
    return ChatRequest(
        model="fake/model", messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])], **more
    )


def key_of(tenant: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a caller of a tenant."""
    return (("authorization", f"Bearer mk-{tenant}-0123456789"),)


def configuration(store: str, adapter: str) -> dict[str, Any]:
    """What the mesh is started with."""
    keys = [
        {"tenant": name, "key": {"env": f"KEY_{name.upper()}"}, "scopes": ["chat", "admin"], "name": f"{name}-ci"}
        for name in TENANTS
    ]

    def dollars(tokens: int) -> str:
        return f"{tokens * TOKEN / 1e9:.9f}"

    shared = {"period": "month", "wait": "20s"}
    return {
        "version": 1,
        "gateway": {"replicas": 3, "keys": keys},
        "adapters": {"fake": {"address": adapter}},
        "routes": {"default": {"targets": ["fake/model"]}},
        "aliases": {},
        "store": {"url": store, "lease": LEASE, "timeout": "2s"},
        "budgets": {
            "exact": {**shared, "tenants": ["exact"], "usd": dollars(EXACT * MOST + SPARE)},
            "loose": {**shared, "keys": ["loose-ci"], "each": ["key"], "usd": dollars(LOOSE)},
            "killed": {**shared, "tenants": ["killed"], "usd": dollars(KILLED)},
            "slow": {**shared, "tenants": ["slow"], "usd": dollars(4 * MOST)},
        },
        "grace": "5s",
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(120))
            if find_redis() is None:
                item.add_marker(pytest.mark.skip(reason="neither redis-server nor valkey-server is installed"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """The mesh of all tests."""
    environment = {f"KEY_{name.upper()}": f"mk-{name}-0123456789" for name in TENANTS}
    provider = Provider()
    statuses: Any = _health.aio.HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    async with (
        RedisServer() as store,
        serve(ChatServicer(provider), ModelServicer(provider), statuses) as adapter,
        MeshProcess(tmp_path_factory.mktemp("budgets"), configuration(store.url, adapter), environment) as process,
    ):
        mesh = Mesh(process, store, provider)
        for number in range(len(GATEWAYS)):
            await answers(mesh, number)
        try:
            yield mesh
        finally:
            await mesh.close()


async def answers(mesh: Mesh, number: int) -> ChatResponse:
    """Waits until a gateway knows the model."""
    end = time.monotonic() + 20
    while True:
        try:
            return await mesh.ask("free", number, "are you there?", 1)
        except grpc.aio.AioRpcError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.05)
