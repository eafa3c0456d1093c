"""Keeps a router's table at hand and tells the router how attempts ended.

A router that is away hurts nobody: another one takes over, and while there is none the last table stays in force.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from maestro.router.v1.router_pb2 import BACKEND_STATE_ACTIVE, Outcome, ReportRequest, RouteTable, WatchRoutesRequest
from maestro.router.v1.router_pb2_grpc import RouterServiceStub
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.reports import Reports
from maestro_sdk.mesh.snapshot import Snapshot
from maestro_sdk.mesh.table import EMPTY, Table, compile_table
from maestro_sdk.service.peer import NOBODY, Peer
from maestro_sdk.service.validation import VALIDATED

if TYPE_CHECKING:
    from maestro.router.v1.router_pb2_grpc import RouterServiceAsyncStub

log = logging.getLogger(__name__)

_REPORT_INTERVAL = 0.2
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 0.5
_SETTLED = 1.0
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class Patience:
    """Times in seconds after which a router counts as gone, although its connection stands.

    A report goes out every `heartbeat` at least, empty if need be; it, and the first table, are answered within
    `answer`. `start` is the time that routers have to appear when the process starts, before that is told.
    """

    heartbeat: float = 1.0
    answer: float = 3.0
    start: float = 3.0


class RouteWatcher:
    """Subscription to one of several routers, and to the next one when it is gone.

    `table` is always usable: empty, then the snapshot, then what the router pushes.
    """

    def __init__(
        self,
        routers: Sequence[str],
        subscriber: str,
        snapshot: Path | None = None,
        *,
        on_change: Callable[[], None] = lambda: None,
        patience: Patience = Patience(),
        peer: Peer = NOBODY,
    ) -> None:
        """`routers` are addresses in the order in which they are tried. `snapshot` is a file that keeps the last table,
        so that a restart without a router goes on with it. `on_change` is called when `lost` changes. `peer` is what
        this process shows the routers.
        """
        self.table: Table = EMPTY
        self.message = RouteTable()
        self.local = LocalState()
        self.router: RouterServiceAsyncStub | None = None
        """The router that is followed; None while there is none."""
        self.address = ""
        """The address of the router that is followed, or was followed last."""
        self.lost = False
        """Whether all routers are away: routing goes on with the last table that one of them sent."""
        self._routers = tuple(routers)
        self._subscriber = subscriber
        self._snapshot = Snapshot(snapshot) if snapshot is not None else None
        self._on_change = on_change
        self._patience = patience
        self._peer = peer
        self._refused = False
        self._reports = Reports(subscriber, self.local)
        self._changed = asyncio.Event()
        self._urgent = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def connected(self) -> bool:
        """Whether the table is a router's present one."""
        return self.router is not None

    @property
    def degraded(self) -> bool:
        """Whether decisions rest on a table that nobody renews, be it from a snapshot. Changing routers is not that."""
        return self.router is None and (self.lost or not self.address)

    @property
    def table_age(self) -> float:
        """Seconds since a router last stood behind the table; 0 without one."""
        return max(0.0, time.time() - self.local.router_seen) if self.local.router_seen else 0.0

    async def __aenter__(self) -> Self:
        if self._snapshot is not None and (found := self._snapshot.load()) is not None:
            self._recall(*found)
        self._following = asyncio.create_task(self._follow(), name="follow the routers")
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing = True
        batch = self._reports.take(time.time())
        if self.router is not None and batch is not None:
            with suppress(grpc.aio.AioRpcError):
                await self.router.Report(batch, metadata=(VALIDATED,), timeout=1.0)
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        if self._snapshot is not None:
            self._snapshot.flush(time.time())

    async def ready(self, timeout: float) -> bool:
        """Whether a table is there, waiting for it at most `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.table.version == 0:
                    self._changed.clear()
                    await self._changed.wait()
        return self.table.version != 0

    def report(self, outcome: Outcome) -> None:
        """Queues an outcome for the router; what concerns others goes out at once, the rest within a fifth of a second.

        The breakers that it opened in `local` go along.
        """
        self._reports.add(outcome, time.time())
        backend = self.table.backends.get(outcome.backend_id)
        # Also the success of a trial call: it lets all others call again.
        tried = backend is not None and backend.state != BACKEND_STATE_ACTIVE
        if tried or outcome.counts_against_health or outcome.HasField("retry_after"):
            self._urgent.set()

    def adopt(self, message: RouteTable, *, anew: bool = False) -> None:
        """Makes `message` the table in force; `anew` when it is the first one of a router."""
        self.table, self.message = compile_table(message), message
        self.local.adopt(self.table, time.time(), anew=anew)
        self._changed.set()

    def _recall(self, message: RouteTable, renewed: float) -> None:
        """Makes the table of an earlier life the one in force."""
        try:
            self.adopt(message)
        except Exception:  # whatever another version wrote there: a router tells the table anew
            log.exception("the route table of the snapshot can't be used and is ignored")
            return
        # A clock that was ahead then must not make the time without a router longer.
        self.local.router_seen = min(renewed, time.time())
        age = self.table_age
        log.info("route table version %d from a snapshot, renewed last %.0f s ago", self.table.version, age)

    async def _follow(self) -> None:
        begun = asyncio.get_running_loop().time()
        pause, failed = _FIRST_PAUSE, 0
        for address in itertools.cycle(self._routers):
            # One that sends a table and leaves at once, again and again, must not make this turn fast.
            if await self._stay(address) > _SETTLED:
                pause, failed = _FIRST_PAUSE, 0
            if self._closing:  # a task group that fails while it is cancelled tells only of the failure
                return
            failed += 1
            if failed < len(self._routers):
                continue
            if self.address or asyncio.get_running_loop().time() - begun > self._patience.start:
                self._lose()
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - it spreads tries, and guards nothing
            pause, failed = min(_LONGEST_PAUSE, pause * 2), 0

    async def _stay(self, address: str) -> float:
        """Follows one router until it is gone; returns for how many seconds its tables came."""
        joined: list[float] = []
        clock = asyncio.get_running_loop().time
        if self.lost and not await _listens(address, self._patience.answer):
            return 0.0
        try:
            # Its own channel, which tries to connect now: an old one might still be waiting for its next try.
            async with self._peer.open_channel(address) as channel, asyncio.TaskGroup() as group:
                router: RouterServiceAsyncStub = RouterServiceStub(channel)

                def join() -> None:
                    joined.append(clock())
                    self._join(router, address)
                    group.create_task(self._report(router))

                group.create_task(self._watch(router, join))
        except* (_RouterGone, grpc.aio.AioRpcError) as gone:
            if joined:
                log.warning("the router at %s is gone: %s", address, _told(gone))
            self._note_refusal(address, gone)
        except* Exception as failed:
            log.error("what the router at %s sent can't be used", address, exc_info=failed)
        finally:
            self.router = None
        return clock() - joined[0] if joined else 0.0

    async def _watch(self, router: RouterServiceAsyncStub, join: Callable[[], None]) -> None:
        request = WatchRoutesRequest(subscriber=self._subscriber, version=self.table.version)
        version = -1
        try:
            async with asyncio.timeout(self._patience.answer) as limit:
                async for response in router.WatchRoutes(request):
                    limit.reschedule(None)
                    self.local.router_seen = time.time()
                    # Versions of two routers can't be compared: the first table of each is taken.
                    if response.table.version > version:
                        self.adopt(response.table, anew=version < 0)
                        if self._snapshot is not None:
                            self._snapshot.keep(response.table, self.local.router_seen)
                    if version < 0:
                        join()
                    version = max(version, response.table.version, 0)
        except TimeoutError:
            raise _RouterGone("it sent no table") from None
        raise _RouterGone("it ended the stream of tables")

    async def _report(self, router: RouterServiceAsyncStub) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_REPORT_INTERVAL):
                    await self._urgent.wait()
            self._urgent.clear()
            now = time.time()
            batch = self._reports.take(now)
            if batch is None and 0.0 <= now - self.local.router_seen < self._patience.heartbeat:
                continue
            try:
                # What it holds is bounded here, and the router need not count again.
                report = batch or ReportRequest(reporter=self._subscriber)
                answer = await router.Report(report, metadata=(VALIDATED,), timeout=self._patience.answer)
            except BaseException as error:
                if isinstance(error, grpc.aio.AioRpcError) and error.code() not in _GONE:
                    log.warning("a report was refused by the router: %s", error.details())
                    self._reports.settle(0, now)
                    continue
                self._reports.give_back()
                raise
            self.local.router_seen = now = time.time()
            if self._reports.settle(answer.table_version, now) and self.table.version >= answer.table_version:
                # That table came before the answer: what it shows of these breakers counts now.
                self.local.adopt(self.table, now)
            if self._snapshot is not None:
                self._snapshot.confirm(self.local.router_seen)

    def _join(self, router: RouterServiceAsyncStub, address: str) -> None:
        self.router, self.address = router, address
        self._reports.introduce(time.time())
        self._urgent.set()
        log.info("route table version %d from the router at %s", self.table.version, address)
        if self.lost:
            self.lost = False
            self._on_change()

    def _note_refusal(self, address: str, gone: BaseExceptionGroup[BaseException]) -> None:
        """Tells once that a router takes this process for no member of the mesh: no waiting heals that."""
        first = gone.exceptions[0]
        if isinstance(first, grpc.aio.AioRpcError) and first.code() == grpc.StatusCode.UNAUTHENTICATED:
            if not self._refused:
                log.error("the router at %s refuses this process: %s", address, first.details())
            self._refused = True

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            log.warning("no router answers; going on with table version %d", self.table.version)
            self._on_change()


class _RouterGone(Exception):
    pass


async def _listens(address: str, timeout: float) -> bool:
    """Whether anybody takes connections there. Asking costs a tenth of a channel, and may go on for days."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _told(gone: BaseExceptionGroup[BaseException]) -> str:
    first = gone.exceptions[0]
    return first.code().name if isinstance(first, grpc.aio.AioRpcError) else str(first)
