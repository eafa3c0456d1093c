"""One mesh with two gateways behind the real Envoy, on which one tenant has something of everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2

from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.plain_embedding_servicer import PlainEmbedder
from maestro_sdk.testing.receiver import Receiver, Say
from maestro_sdk.testing.redis import RedisServer, find_redis
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import serve

from .isolation_mesh import KEYS, SECRET, VECTORS, Client, Echo, Owned, config, settle

_health: Any = grpc_health  # the asyncio half has no types


@dataclass
class Stage:
    """The running mesh with what is on it."""

    process: MeshProcess
    http: aiohttp.ClientSession
    provider: Echo
    embedder: PlainEmbedder
    owned: Owned

    def client(self, name: str) -> Client:
        """REST with one of the keys."""
        return Client(self.http, self.process.url, name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Ready, with everything that the owner has."""
    provider, embedder = Echo(), PlainEmbedder(VECTORS)
    statuses: Any = _health.aio.HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    keys = {f"KEY_{name.upper()}": key for name, (_, key, _) in KEYS.items()}
    async with (
        Receiver(SECRET) as receiver,
        serve(ChatServicer(provider), ModelServicer(provider), statuses) as chats,
        serve(embedder, ModelServicer(ScriptedProvider(models=[embedder.model])), statuses) as vectors,
        aiohttp.ClientSession() as http,
        AsyncExitStack() as stack,
    ):
        receiver.answer = lambda message: Say(500)
        whole: dict[str, Any] = {
            **config(receiver.url),
            "adapters": {"fake": {"address": chats}, "p0": {"address": vectors}},
        }
        if find_redis() is None:
            # Two gateways can't count together without a store.
            del whole["budgets"]
        else:
            whole["store"] = {"url": (await stack.enter_async_context(RedisServer())).url}
        async with MeshProcess(tmp_path_factory.mktemp("isolation"), whole, {**keys, "HOOK": SECRET}) as process:
            async with asyncio.timeout(30):
                owned = await settle(Client(http, process.url, "owner"))
            yield Stage(process, http, provider, embedder, owned)
