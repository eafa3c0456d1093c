"""One mesh with three gateways that share a Redis-compatible store, and a provider that sees who gets through."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing.mesh import MeshMember, MeshProcess
from maestro_sdk.testing.redis import RedisServer, find_redis
from maestro_sdk.testing.scripted import ScriptedProvider, scripted_model
from maestro_sdk.testing.servers import serve

GATEWAYS = ("gateway", "gateway-2", "gateway-3")
PROVIDERS = ("fake", "ceiling", "narrow", "leased", "frozen", "nearly", "roomy")
TENANTS = ("rate", "places", "lease", "tokens", "frozen", "free", "openai", "anthropic")
RATE, WINDOW = int(os.environ.get("LIMITS_RATE", "20")), float(os.environ.get("LIMITS_WINDOW", "2"))
PLACES = 7
TIMEOUT = 1.0
"""Of the store. A busy machine must not look like a store that is away: then each gateway counts for itself."""
LEASE = 2.0
TOKENS = 1000
_health: Any = grpc_health  # the asyncio half has no types


class Provider(ScriptedProvider):
    """Counts the answers that are under way for each question. A question "hold" is never answered."""

    def __init__(self) -> None:
        super().__init__(models=[scripted_model(f"{name}/model") for name in PROVIDERS])
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        """By model."""
        self.pause = 0.02

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        text = request.messages[-1].parts[0].text.text
        self.running[text] += 1
        self.most[text] = max(self.most[text], self.running[text])
        try:
            started, first, *rest = self.events
            yield (started,)
            yield (first,)
            await asyncio.sleep(3600 if text == "hold" else self.pause)
            for event in rest:
                yield (event,)
            self.answered[request.model] += 1
        finally:
            self.running[text] -= 1


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

    async def ask(self, tenant: str, number: int = 0, text: str = "hello", **more: Any) -> ChatResponse:
        """One chat with the gateway of a number."""
        stub = self.stubs[GATEWAYS[number % len(GATEWAYS)]]
        return await stub.Chat(question(text, **more), metadata=key_of(tenant), timeout=20)

    def stream(self, tenant: str, number: int, text: str, **more: Any) -> Any:
        """One streamed chat."""
        stub = self.stubs[GATEWAYS[number % len(GATEWAYS)]]
        return stub.StreamChat(question(text, **more), metadata=key_of(tenant))

    def kill(self, name: str) -> MeshMember:
        """SIGKILL."""
        return self.process.kill(name)

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels:
            await channel.close()


def question(text: str, model: str = "fake/model", **more: Any) -> ChatRequest:
    """A question to the provider."""
    return ChatRequest(
        model=model, messages=[Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])], **more
    )


def key_of(tenant: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a caller of a tenant."""
    return (("authorization", f"Bearer mk-{tenant}-0123456789"),)


def configuration(store: str, adapter: str) -> dict[str, Any]:
    """What the mesh is started with."""
    keys = [{"tenant": name, "key": {"env": f"KEY_{name.upper()}"}} for name in TENANTS]
    tenants: dict[str, Any] = {
        "rate": {"requests": {"limit": RATE, "per": WINDOW}},
        "places": {"concurrency": PLACES},
        "lease": {"concurrency": 3},
        "tokens": {"tokens": {"limit": TOKENS, "per": "1h"}},
        "frozen": {"requests": 100_000},
        "openai": {"requests": {"limit": 1, "per": "1h"}},
        "anthropic": {"requests": {"limit": 1, "per": "1h"}},
    }
    providers: dict[str, Any] = {
        "ceiling": {"requests": {"limit": RATE, "per": WINDOW}},
        "fake:narrow/model": {"concurrency": PLACES},
        "leased": {"concurrency": 3},
        "frozen": {"requests": 100_000},
        "nearly/model": {"requests": {"limit": RATE, "per": "1h"}},
    }
    return {
        "version": 1,
        "gateway": {"replicas": 3, "keys": keys},
        "adapters": {"fake": {"address": adapter}},
        # Who finds no room at a provider shall be told so, not wait for it.
        "routes": {
            "default": {"targets": ["fake/model"], "retry": {"back_off": "5ms", "longest_back_off": "5ms"}},
            "spread": {"targets": ["nearly/model", "roomy/model"]},
        },
        "aliases": {},
        "store": {"url": store, "lease": LEASE, "timeout": TIMEOUT},
        "limits": {"headers_on_success": True, "tenants": tenants, "providers": providers},
        "grace": "5s",
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(60 + 3 * WINDOW))
            if find_redis() is None:
                item.add_marker(pytest.mark.skip(reason="neither redis-server nor valkey-server is installed"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """The mesh of all tests."""
    environment = {f"KEY_{name.upper()}": f"mk-{name}-0123456789" for name in TENANTS}
    folder = tmp_path_factory.mktemp("limits")
    provider = Provider()
    statuses: Any = _health.aio.HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    async with (
        RedisServer() as store,
        serve(ChatServicer(provider), ModelServicer(provider), statuses) as adapter,
        MeshProcess(folder, configuration(store.url, adapter), environment) as process,
    ):
        mesh = Mesh(process, store, provider)
        await _answers(mesh)
        try:
            yield mesh
        finally:
            await mesh.close()


async def _answers(mesh: Mesh) -> None:
    """Waits until each gateway knows the model."""
    end = time.monotonic() + 20
    for number in range(len(GATEWAYS)):
        while True:
            try:
                await mesh.ask("free", number)
                break
            except grpc.aio.AioRpcError:
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(0.05)
