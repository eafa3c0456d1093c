"""Watches the adapters: their health as they stream it, and their facts and models whenever they come into service."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maestro.llm.v1.model_pb2 import GetInfoRequest, GetInfoResponse, ListModelsRequest, Model
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro.llm.v1.usage_pb2 import Price
from maestro.router.v1 import router_pb2 as pb
from maestro_router.compile import Adapter
from maestro_sdk.adapter.servicer import SPI_VERSION
from maestro_sdk.errors import from_rpc_error
from maestro_sdk.service.peer import NOBODY, Peer
from maestro_sdk.service.validation import VALIDATED

if TYPE_CHECKING:
    from maestro.llm.v1.model_pb2_grpc import ModelServiceAsyncStub

log = logging.getLogger(__name__)

_SERVING = health_pb2.HealthCheckResponse.SERVING
_AMOUNT = re.compile(r"[0-9]{1,12}(\.[0-9]{1,18})?")
_CALL_TIMEOUT = 5.0
_LONGEST_PAUSE = 1.0
_MOST = 10_000, 16 * 1024 * 1024
"""Models of an adapter, and bytes of their descriptions."""
_MOST_ANNOUNCED = 1_000, 200 * 1024
"""The same for one that joins by announcement: a hundred of them have to fit into one table."""
_LONGEST_WORD = 500
_LONGEST_ID = 256
_MOST_COMPLAINTS = 20


class AdapterWatch:
    """Follows one adapter; tells `on_change` each time its view differs from the last one."""

    def __init__(
        self, adapter: Adapter, refresh: float, on_change: Callable[[Adapter], None], peer: Peer = NOBODY
    ) -> None:
        """`refresh` is the time in seconds between two readings of the models while the adapter serves."""
        self.view = adapter
        self._peer = peer
        self._refresh = refresh
        self._on_change = on_change
        self._complaints: set[tuple[str, str]] = set()
        self.seen = asyncio.Event()
        """Set once it is known how the adapter is."""

    async def run(self) -> None:
        """Watches until cancelled."""
        pause = 0.05
        async with self._peer.open_channel(self.view.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            models: ModelServiceAsyncStub = ModelServiceStub(channel)
            while True:
                # Who is known to be away is waited for: the channel says sooner than a pause that it is back.
                away = self.view.state == pb.ADAPTER_STATE_DOWN and self.seen.is_set()
                call = health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=away)
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
            started=info.started.ToNanoseconds() / 1e9 if info.HasField("started") else 0.0,
        )

    async def _read_reason(self, stub: ModelServiceAsyncStub) -> None:
        info = await stub.GetInfo(GetInfoRequest(), timeout=_CALL_TIMEOUT)
        if info.ready:
            self._change(state=pb.ADAPTER_STATE_DOWN, reason="draining")
        else:
            # Who asks for one of its models should hear what is missing, not that there is no such model.
            self._unready(info, await self._read_models(stub))

    async def _read_models(self, stub: ModelServiceAsyncStub) -> tuple[Model, ...]:
        found: dict[str, Model] = {}
        most, most_bytes = _MOST_ANNOUNCED if self.view.announced else _MOST
        told = size = 0
        token = ""
        while True:
            page = await stub.ListModels(
                ListModelsRequest(page_token=token), metadata=(VALIDATED,), timeout=_CALL_TIMEOUT
            )
            told += max(1, len(page.models))
            size += page.ByteSize()
            if told > most or size > most_bytes:
                bound = f"{most} entries" if told > most else f"{most_bytes} bytes"
                raise ConnectionError(f"its list of models is too long: more than {bound}")
            for model in page.models:
                if wrong := mend(model):
                    self._complain(model, wrong)
                if _is_named(model):
                    found.setdefault(model.id, model)
            token = page.next_page_token
            if not token:
                return tuple(found.values())

    def _complain(self, model: Model, wrong: str) -> None:
        if len(self._complaints) < _MOST_COMPLAINTS and (model.id, wrong) not in self._complaints:
            self._complaints.add((model.id, wrong))
            log.warning("adapter %s: model %.100r: %s", self.view.name, model.id, wrong)

    def _unready(self, info: GetInfoResponse, models: tuple[Model, ...]) -> None:
        self._change(
            state=pb.ADAPTER_STATE_UNCONFIGURED,
            # It stands at each of its models in everybody's table.
            reason=info.not_ready_reason[:_LONGEST_WORD],
            version=info.version,
            providers=tuple(info.providers),
            models=models,
        )

    def _change(self, **facts: object) -> None:
        fresh = replace(self.view, **facts)
        if fresh.state != pb.ADAPTER_STATE_SERVING:
            fresh = replace(fresh, since=0.0)
        elif fresh.started or not fresh.since:
            # What it says itself is the same for every router, and for one that was started anew.
            fresh = replace(fresh, since=fresh.started or time.time())
        self.seen.set()
        if fresh != self.view:
            if fresh.state != self.view.state:
                state = pb.AdapterState.Name(fresh.state).removeprefix("ADAPTER_STATE_").lower()
                log.info("adapter %s is %s %s", fresh.name, state, fresh.reason)
            self.view = fresh
            self._on_change(fresh)


async def settle(watches: Iterable[AdapterWatch], timeout: float) -> None:
    """Waits until it is known of every adapter how it is, at most `timeout` seconds."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            for watch in watches:
                await watch.seen.wait()


async def answers(address: str, timeout: float = 1.0, peer: Peer = NOBODY) -> bool:
    """Whether an adapter says, asked now and over a new connection, that it serves."""
    async with peer.open_channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.aio.AioRpcError:
            return False
        return answer.status == _SERVING


def mend(model: Model) -> str:
    """Takes from a model what would break those who read the table; tells what was wrong, "" for nothing."""
    if not _is_named(model):
        return 'left out, since its id is not "provider/name", or nothing that a request can name'
    wrong = [price for price in model.announced_prices if not _is_decimal(price)]
    for price in wrong:
        model.announced_prices.remove(price)
    if model.HasField("price") and not _is_decimal(model.price):
        model.ClearField("price")
        return "its price is not decimal text, so it counts as unknown"
    return "an announced price is not decimal text, so it is left out" if wrong else ""


def _is_decimal(price: Price) -> bool:
    return all(_AMOUNT.fullmatch(amount) for amount in (price.input, price.output, price.minimum_charge or "0"))


def _is_named(model: Model) -> bool:
    named = bool(model.provider and model.name) and model.id == f"{model.provider}/{model.name}"
    # A request's `model` has 256 characters at most; and names stand in logs and on terminals.
    return named and len(model.id) <= _LONGEST_ID and model.id.isprintable() and " " not in model.id


def _say(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            return "it serves no grpc.health.v1.Health or no maestro.llm.v1.ModelService"
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return f"it refuses this router: {error.details()}"
        return f"not reachable: {from_rpc_error(error).message}"
    return str(error)
