"""The whole router with adapters that announce themselves: its table, and the events of the mesh."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from maestro.event.v1 import event_pb2
from maestro.router.v1 import router_pb2 as pb
from maestro.router.v1.router_pb2_grpc import RouterServiceStub
from maestro_router.board import Board
from maestro_router.compile import DEVELOPMENT, Adapter
from maestro_router.service import router
from maestro_sdk.adapter.announce import announcing
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.events import MESH
from maestro_sdk.service.settings import load
from maestro_sdk.testing.flawed_servicer import serve_flawed
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.testing.scripted import scripted_model
from maestro_sdk.testing.servers import serve

UP = pb.ADAPTER_STATE_SERVING


@asynccontextmanager
async def routing(folder: Path, url: str, mode: str) -> AsyncGenerator[Any]:
    """The whole router, as a stub of its service."""
    env = {"MAESTRO__NATS__URL": url, "MAESTRO__ROUTER__ADMISSION": mode, "MAESTRO__DATA": str(folder / "data")}
    async with (
        router(load(env=env)) as service,
        serve(*service.servicers) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield RouterServiceStub(channel)


@pytest.mark.timeout(90)
async def test_events_tell_who_came_and_left_and_a_new_router_knows_at_once(tmp_path: Path, nats_server: NatsServer):
    async with (
        asyncio.timeout(60),
        EventReader(nats_server.url) as reader,
        reader.subscribe(MESH, kinds=["adapter.*"], after=0) as events,
        serve_flawed(None) as address,
        aclosing(aiter(events)) as following,
        # Closed whatever happens: what is left behind keeps the loop from its end.
        AsyncExitStack() as stack,
    ):
        announcement = pb.AdapterAnnouncement(name="echo", address=address, instance="one")
        async with announcing(announcement, nats_server.url, beat=60.0):
            async with routing(tmp_path, nats_server.url, "verified"):
                _, joined = await anext(following)
            assert (joined.adapter_joined.adapter, joined.adapter_joined.models) == ("echo", 2)
            # The first table of a router has those who are there, and passed at an earlier one.
            stub = await stack.enter_async_context(routing(tmp_path, nats_server.url, "verified"))
            first = await anext(aiter(stub.WatchRoutes(pb.WatchRoutesRequest(subscriber="gateway"))))
            assert [each.id for each in first.table.backends if each.state == pb.BACKEND_STATE_ACTIVE] == [
                "echo:obliging/embedder",
                "echo:obliging/model",
            ]
        (_, again), (_, last) = await anext(following), await anext(following)
        assert (again.kind, last.kind) == ("adapter.joined", "adapter.left")
        left = last.adapter_left
        assert (left.adapter, left.cause) == ("echo", event_pb2.ADAPTER_LEAVE_CAUSE_DRAINED)


async def test_one_that_is_not_admitted_changes_nothing_for_the_routes():
    config = load(env={"MAESTRO__ADAPTERS": "{local: {address: '127.0.0.1:1'}}"})
    board = Board(config, lambda subject, payload: None)
    offline = scripted_model("local/offline")
    offline.tags.append(DEVELOPMENT)
    board.see(Adapter("local", "127.0.0.1:1", UP, providers=["local"], models=[offline], since=1.0))
    alone = [target.model for target in board.message.routes[0].targets]
    board.see(Adapter("echo", "127.0.0.1:2", pb.ADAPTER_STATE_VERIFYING, announced=True))
    assert "local/offline" in alone  # it stands in, since no adapter of the others is here
    assert [target.model for target in board.message.routes[0].targets] == alone
    board.forget("echo")
    assert [adapter.name for adapter in board.adapters()] == ["local"]
    board.close()
