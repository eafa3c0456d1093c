"""Watches the adapters: their health as they stream it, and their facts and models whenever they come into service."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maestro.llm.v1.model_pb2 import GetInfoRequest, GetInfoResponse, ListModelsRequest, Model
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro.router.v1 import router_pb2 as pb
from maestro_router.compile import Adapter
from maestro_sdk.adapter.servicer import SPI_VERSION
from maestro_sdk.errors import from_rpc_error
from maestro_sdk.service.channel import open_channel

if TYPE_CHECKING:
    from maestro.llm.v1.model_pb2_grpc import ModelServiceAsyncStub

log = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_CALL_TIMEOUT = 5.0
_LONGEST_PAUSE = 1.0


class AdapterWatch:
    """Follows one adapter; tells `on_change` each time its view differs from the last one."""

    def __init__(self, adapter: Adapter, refresh: float, on_change: Callable[[Adapter], None]) -> None:
        """`refresh` is the time in seconds between two readings of the models while the adapter serves."""
        self.view = adapter
        self._refresh = refresh
        self._on_change = on_change

    async def run(self) -> None:
        """Watches until cancelled."""
        pause = 0.05
        async with open_channel(self.view.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            models: ModelServiceAsyncStub = ModelServiceStub(channel)
            while True:
                call = health.Watch(health_pb2.HealthCheckRequest())
                try:
                    async with aclosing(self._follow(call)) as states:
                        async for serving in states:
                            pause = 0.05
                            if serving:
                                await self._read(models)
                            else:
                                await self._read_reason(models)
                    raise ConnectionError("the adapter ended the health watch")
                except (grpc.aio.AioRpcError, ConnectionError) as error:
                    self._change(state=pb.ADAPTER_STATE_DOWN, reason=_say(error))
                finally:
                    call.cancel()
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)

    async def _follow(self, call: Any) -> AsyncGenerator[bool]:
        """Whether the adapter serves: at each change, and while it does so again every `refresh` seconds."""
        serving = False
        # A read that is cancelled cancels its call, so a pause without news leaves it pending.
        read = asyncio.ensure_future(call.read())
        try:
            while True:
                done, _ = await asyncio.wait({read}, timeout=self._refresh)
                if done:
                    answer = read.result()
                    if not isinstance(answer, health_pb2.HealthCheckResponse):
                        return
                    serving = answer.status == _SERVING
                    read = asyncio.ensure_future(call.read())
                    yield serving
                elif serving:
                    yield True
        finally:
            read.cancel()

    async def _read(self, stub: ModelServiceAsyncStub) -> None:
        info = await stub.GetInfo(GetInfoRequest(), timeout=_CALL_TIMEOUT)
        if SPI_VERSION not in info.spi_versions:
            served = ", ".join(info.spi_versions) or "none"
            reason = f"it serves {served}, the mesh speaks {SPI_VERSION}: upgrade the adapter"
            self._change(state=pb.ADAPTER_STATE_INCOMPATIBLE, reason=reason, version=info.version, models=())
            return
        models = await self._read_models(stub)
        if not info.ready:
            self._unready(info, models)
            return
        self._change(
            state=pb.ADAPTER_STATE_SERVING,
            reason="",
            version=info.version,
            providers=tuple(info.providers),
            models=models,
        )

    async def _read_reason(self, stub: ModelServiceAsyncStub) -> None:
        info = await stub.GetInfo(GetInfoRequest(), timeout=_CALL_TIMEOUT)
        if info.ready:
            self._change(state=pb.ADAPTER_STATE_DOWN, reason="draining")
        else:
            # Who asks for one of its models should hear what is missing, not that there is no such model.
            self._unready(info, await self._read_models(stub))

    async def _read_models(self, stub: ModelServiceAsyncStub) -> tuple[Model, ...]:
        found: list[Model] = []
        token = ""
        while True:
            page = await stub.ListModels(ListModelsRequest(page_token=token), timeout=_CALL_TIMEOUT)
            found += page.models
            token = page.next_page_token
            if not token:
                return tuple(found)

    def _unready(self, info: GetInfoResponse, models: tuple[Model, ...]) -> None:
        self._change(
            state=pb.ADAPTER_STATE_UNCONFIGURED,
            reason=info.not_ready_reason,
            version=info.version,
            providers=tuple(info.providers),
            models=models,
        )

    def _change(self, **facts: object) -> None:
        fresh = replace(self.view, **facts)
        if fresh.state != pb.ADAPTER_STATE_SERVING:
            fresh = replace(fresh, since=0.0)
        elif not fresh.since:
            fresh = replace(fresh, since=time.time())
        if fresh != self.view:
            if fresh.state != self.view.state:
                state = pb.AdapterState.Name(fresh.state).removeprefix("ADAPTER_STATE_").lower()
                log.info("adapter %s is %s %s", fresh.name, state, fresh.reason)
            self.view = fresh
            self._on_change(fresh)


def _say(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            return "it serves no grpc.health.v1.Health or no maestro.llm.v1.ModelService"
        return f"not reachable: {from_rpc_error(error).message}"
    return str(error)
