"""The router as a running service, with real adapters that come, go and drain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.model_pb2 import Feature
from maestro.router.v1 import router_pb2 as pb
from maestro.router.v1.router_pb2_grpc import RouterServiceStub
from maestro_router.service import router
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import CapabilityUnavailable, NotFound, from_rpc_error
from maestro_sdk.mesh.watch import RouteWatcher
from maestro_sdk.service.settings import load
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import free_port, serve

BACKEND = "first:scripted/model"


class Adapter:
    """A scripted adapter whose health can be set."""

    def __init__(self) -> None:
        self.provider = ScriptedProvider()
        self.health: Any = vars(health)["aio"].HealthServicer()  # types-grpcio does not know it

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[str]:
        await self.set(serving=True)
        async with serve(ChatServicer(self.provider), ModelServicer(self.provider), self.health) as address:
            yield address

    async def set(self, *, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        await self.health.set("", states.SERVING if serving else states.NOT_SERVING)


@asynccontextmanager
async def routed(folder: Path, addresses: dict[str, str]) -> AsyncGenerator[tuple[Any, str]]:
    file = folder / "maestro.yaml"
    document = {
        "version": 1,
        "data": str(folder / "data"),
        "router": {"address": "127.0.0.1:1", "breaker": {"consecutive_failures": 2, "open_time": "300ms"}},
        "adapters": {name: {"address": address} for name, address in addresses.items()},
        "routes": {"default": {"targets": ["scripted/model"]}},
        "aliases": {},
        "nats": {"url": f"nats://127.0.0.1:{free_port()}"},
    }
    file.write_text(yaml.safe_dump(document))
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(router(load(file, env={})))
        address = await stack.enter_async_context(serve(*service.servicers))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield RouterServiceStub(channel), address


async def backend_state(stub: Any, wanted: int, timeout: float = 10.0) -> pb.Backend:
    async with asyncio.timeout(timeout):
        while True:
            listed = await stub.ListBackends(pb.ListBackendsRequest())
            for backend in listed.backends:
                if backend.id == BACKEND and backend.state == wanted:
                    return backend
            await asyncio.sleep(0.02)


async def test_adapters_join_drain_and_leave(tmp_path: Path) -> None:
    adapter = Adapter()
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(adapter.run())
        stub, _ = await stack.enter_async_context(routed(tmp_path, {"first": address}))
        found = await backend_state(stub, pb.BACKEND_STATE_ACTIVE)
        assert (found.address, found.model.id) == (address, "scripted/model")
        adapter.provider.not_ready = "set SCRIPTED_KEY"
        await adapter.set(serving=False)
        assert (await backend_state(stub, pb.BACKEND_STATE_DOWN)).state_reason == "set SCRIPTED_KEY"
        status = (await stub.ListBackends(pb.ListBackendsRequest())).adapters[0]
        assert (status.state, status.reason) == (pb.ADAPTER_STATE_UNCONFIGURED, "set SCRIPTED_KEY")
        adapter.provider.not_ready = ""
        await adapter.set(serving=True)
        await backend_state(stub, pb.BACKEND_STATE_ACTIVE)


async def test_an_adapter_that_dies_is_down_and_comes_back(tmp_path: Path) -> None:
    adapter = Adapter()
    address = f"127.0.0.1:{free_port()}"
    async with routed(tmp_path, {"first": address}) as (stub, _):

        @asynccontextmanager
        async def alive() -> AsyncGenerator[None]:
            await adapter.set(serving=True)
            server = grpc.aio.server()
            from maestro_sdk.service.registration import register

            for servicer in (ChatServicer(adapter.provider), ModelServicer(adapter.provider), adapter.health):
                register(servicer, server)
            server.add_insecure_port(address)
            await server.start()
            try:
                yield
            finally:
                await server.stop(None)

        async with alive():
            await backend_state(stub, pb.BACKEND_STATE_ACTIVE)
        assert "not reachable" in (await backend_state(stub, pb.BACKEND_STATE_DOWN)).state_reason
        # What failed meanwhile says nothing about the adapter that comes; a quota would hold its breaker for minutes.
        quota = ErrorReason.ERROR_REASON_PROVIDER_QUOTA
        failed = pb.Outcome(backend_id=BACKEND, reason=quota, counts_against_health=True)
        await stub.Report(pb.ReportRequest(reporter="gateway", outcomes=[failed]))
        async with alive():
            await backend_state(stub, pb.BACKEND_STATE_ACTIVE)


async def test_the_first_table_knows_who_serves(tmp_path: Path) -> None:
    adapter = Adapter()
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(adapter.run())
        stub, _ = await stack.enter_async_context(
            routed(tmp_path, {"first": address, "gone": f"127.0.0.1:{free_port()}"})
        )
        call = stub.WatchRoutes(pb.WatchRoutesRequest(subscriber="gateway"))
        first = (await call.read()).table
        call.cancel()
    # A gateway that lost another router would have nobody to ask.
    assert [(backend.id, backend.state) for backend in first.backends] == [(BACKEND, pb.BACKEND_STATE_ACTIVE)]


async def test_reports_open_the_breaker_for_every_subscriber(tmp_path: Path) -> None:
    adapter = Adapter()
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(adapter.run())
        stub, router_address = await stack.enter_async_context(routed(tmp_path, {"first": address}))
        watchers = [await stack.enter_async_context(RouteWatcher([router_address], f"gateway {n}")) for n in range(2)]
        await backend_state(stub, pb.BACKEND_STATE_ACTIVE)
        failed = pb.Outcome(
            backend_id=BACKEND, reason=ErrorReason.ERROR_REASON_UPSTREAM_ERROR, counts_against_health=True
        )
        async with asyncio.timeout(10):
            while not all(BACKEND in watcher.table.backends and watcher.connected for watcher in watchers):
                await asyncio.sleep(0.01)
            watchers[0].report(failed)
            watchers[0].report(failed)
            while watchers[1].table.backends[BACKEND].state != pb.BACKEND_STATE_OPEN:
                await asyncio.sleep(0.005)
        seen = watchers[1].table.backends[BACKEND]
        assert seen.state_reason == "UPSTREAM_ERROR, 2 failures in a row"
        await backend_state(stub, pb.BACKEND_STATE_HALF_OPEN)
        watchers[1].report(pb.Outcome(backend_id=BACKEND))
        await backend_state(stub, pb.BACKEND_STATE_ACTIVE)


async def test_a_lost_router_leaves_the_last_table_in_force_and_a_snapshot(tmp_path: Path) -> None:
    adapter = Adapter()
    snapshot = tmp_path / "table"
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(adapter.run())
        life = await stack.enter_async_context(AsyncExitStack())
        stub, router_address = await life.enter_async_context(routed(tmp_path, {"first": address}))
        async with RouteWatcher([router_address], "gateway", snapshot) as watcher, asyncio.timeout(10):
            await backend_state(stub, pb.BACKEND_STATE_ACTIVE)
            while BACKEND not in watcher.table.backends:
                await asyncio.sleep(0.01)
            await life.aclose()
            while watcher.connected:
                await asyncio.sleep(0.01)
            assert BACKEND in watcher.table.backends
        restarted = await stack.enter_async_context(RouteWatcher([router_address], "gateway", snapshot))
        assert await restarted.ready(0.1)
        assert BACKEND in restarted.table.backends


async def test_explain_route_and_operator_states(tmp_path: Path) -> None:
    adapter = Adapter()
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(adapter.run())
        stub, _ = await stack.enter_async_context(routed(tmp_path, {"first": address}))
        await backend_state(stub, pb.BACKEND_STATE_ACTIVE)
        features = pb.RequestFeatures(model="default")
        routed_to = await stub.Route(pb.RouteRequest(features=features))
        assert [backend.id for backend in routed_to.backends] == [BACKEND]
        vision = pb.RequestFeatures(required=[Feature.FEATURE_VISION])
        explained = (await stub.Explain(pb.ExplainRequest(features=vision))).decision
        assert [(c.kept, c.reason) for c in explained.candidates] == [(False, "does not offer VISION")]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Route(pb.RouteRequest(features=vision))
        assert isinstance(from_rpc_error(caught.value), CapabilityUnavailable)
        drained = pb.SetBackendStateRequest(backend_id=BACKEND, state=pb.BACKEND_STATE_DRAINING, reason="upgrade")
        assert (await stub.SetBackendState(drained)).backend.state_reason == "upgrade"
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.SetBackendState(pb.SetBackendStateRequest(backend_id="x", state=pb.BACKEND_STATE_ACTIVE))
        assert isinstance(from_rpc_error(unknown.value), NotFound)
