"""Keeps the router's table at hand and tells the router how attempts ended.

A router that is away hurts nobody: the last table stays in force.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
from google.protobuf.message import DecodeError

from maestro.router.v1.router_pb2 import Outcome, ReportRequest, RouteTable, WatchRoutesRequest
from maestro.router.v1.router_pb2_grpc import RouterServiceStub
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.table import EMPTY, Table, compile_table
from maestro_sdk.service.channel import open_channel

if TYPE_CHECKING:
    from maestro.router.v1.router_pb2_grpc import RouterServiceAsyncStub

log = logging.getLogger(__name__)

_REPORT_INTERVAL = 0.2
_MOST_OUTCOMES = 10_000


class RouteWatcher:
    """Subscription to one router. `table` is always usable: empty, then the snapshot, then what the router pushes."""

    def __init__(self, router_address: str, subscriber: str, snapshot: Path | None = None) -> None:
        """`snapshot` is a file that keeps the last table, so that a restart without a router goes on with it."""
        self.table: Table = EMPTY
        self.message = RouteTable()
        self.local = LocalState()
        self.connected = False
        """Whether the table is the router's present one; otherwise routing goes on with the last one ("degraded")."""
        self._subscriber = subscriber
        self._snapshot = snapshot
        self._channel = open_channel(router_address)
        self._router: RouterServiceAsyncStub = RouterServiceStub(self._channel)
        self._changed = asyncio.Event()
        self._outcomes: deque[Outcome] = deque(maxlen=_MOST_OUTCOMES)
        self._urgent = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._load()
        self._running = [asyncio.create_task(self._watch()), asyncio.create_task(self._send_reports())]
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._outcomes and self.connected:
            with suppress(grpc.aio.AioRpcError):
                await self._router.Report(self._take(), timeout=1.0)
        await self._channel.close()

    async def ready(self, timeout: float) -> bool:
        """Whether a table is there, waiting for it at most `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.table.version == 0:
                    self._changed.clear()
                    await self._changed.wait()
        return self.table.version != 0

    def report(self, outcome: Outcome) -> None:
        """Queues an outcome for the router; failures are sent at once, successes within a fifth of a second."""
        self._outcomes.append(outcome)
        if outcome.counts_against_health:
            self._urgent.set()

    def adopt(self, message: RouteTable) -> None:
        """Makes `message` the table in force."""
        self.message = message
        self.table = compile_table(message)
        self.local.adopt(self.table, time.time())
        self._changed.set()

    async def _watch(self) -> None:
        pause = 0.05
        while True:
            try:
                request = WatchRoutesRequest(subscriber=self._subscriber, version=self.table.version)
                async for response in self._router.WatchRoutes(request):
                    pause = 0.05
                    if not self.connected:
                        log.info("route table version %d from the router", response.table.version)
                    self.connected = True
                    self.adopt(response.table)
                    self._save(response.table)
            except grpc.aio.AioRpcError as error:
                if self.connected:
                    log.warning(
                        "the router is away (%s); going on with table version %d", error.code().name, self.table.version
                    )
            self.connected = False
            await asyncio.sleep(pause)
            pause = min(1.0, pause * 2)

    async def _send_reports(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_INTERVAL):
                    await self._urgent.wait()
            self._urgent.clear()
            if not self._outcomes or not self.connected:
                continue
            batch = self._take()
            try:
                await self._router.Report(batch, timeout=2.0)
            except grpc.aio.AioRpcError as error:
                # Outcomes are statistics of the last seconds; after an outage older ones would only mislead.
                log.debug("%d outcomes were not taken by the router: %s", len(batch.outcomes), error.code().name)

    def _take(self) -> ReportRequest:
        batch = ReportRequest(reporter=self._subscriber, outcomes=self._outcomes)
        self._outcomes.clear()
        return batch

    def _load(self) -> None:
        if self._snapshot is None or not self._snapshot.exists():
            return
        try:
            self.adopt(RouteTable.FromString(self._snapshot.read_bytes()))
        except (DecodeError, OSError) as error:
            log.warning("the snapshot of the route table can't be read and is ignored: %s", error)
            return
        age = time.time() - self._snapshot.stat().st_mtime
        log.info("route table version %d from a snapshot, %.0f s old", self.table.version, age)

    def _save(self, message: RouteTable) -> None:
        if self._snapshot is None:
            return
        fresh = self._snapshot.with_suffix(".new")
        try:
            self._snapshot.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(message.SerializeToString())
            fresh.replace(self._snapshot)
        except OSError as error:
            log.warning("the route table can't be kept in %s: %s", self._snapshot, error)
