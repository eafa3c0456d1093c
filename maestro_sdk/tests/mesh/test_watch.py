"""A subscriber and its routers: who is followed, when another one is, what is told to whom, and what outlives them."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.router.v1 import router_pb2 as pb
from maestro.router.v1.router_pb2_grpc import RouterServiceServicer, add_RouterServiceServicer_to_server
from maestro_sdk.errors import PermissionDenied, UpstreamError
from maestro_sdk.mesh.snapshot import Snapshot
from maestro_sdk.mesh.watch import Patience, RouteWatcher
from maestro_sdk.service.replica import in_turn, process_name
from maestro_sdk.testing import tables
from maestro_sdk.testing.servers import free_port

BACKEND = "a:p/m"
QUICK = Patience(heartbeat=0.05, answer=0.3, start=0.2)


class Router(RouterServiceServicer):
    """A router that sends the tables it is given and notes what it is told; `mute` makes it answer no report."""

    def __init__(self, version: int = 1) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.version = version
        self.mute = False
        self.reports: list[pb.ReportRequest] = []
        self.subscribers = 0
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Router]:
        """Serves; at the end all connections break, as after a kill."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_RouterServiceServicer_to_server(self, server)
        server.add_insecure_port(self.address)
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)

    def push(self, version: int) -> None:
        """Sends another table."""
        self.version = version
        self._changed.set()
        self._changed = asyncio.Event()

    async def WatchRoutes(self, request: pb.WatchRoutesRequest, context: Any) -> None:  # noqa: N802
        self.subscribers += 1
        try:
            while True:
                sent, changed = self.version, self._changed
                await context.write(pb.WatchRoutesResponse(table=table(sent)))
                if sent == self.version:
                    await changed.wait()
        finally:
            self.subscribers -= 1

    async def Report(self, request: pb.ReportRequest, context: Any) -> pb.ReportResponse:  # noqa: N802
        if self.mute:
            await asyncio.Event().wait()
        self.reports.append(request)
        return pb.ReportResponse()

    async def Route(self, request: Any, context: Any) -> Any:  # noqa: N802
        raise NotImplementedError("asked by no test")

    Explain = ListBackends = SetBackendState = Route

    @property
    def openings(self) -> list[str]:
        """What was told to be open, oldest first."""
        return [opening.scope for report in self.reports for opening in report.openings]

    @property
    def reasons(self) -> list[str]:
        """How the reported attempts ended."""
        return [ErrorReason.Name(outcome.reason) for report in self.reports for outcome in report.outcomes]


def table(version: int) -> pb.RouteTable:
    made = tables.message(
        [tables.backend("a", tables.model("p/m"))], {"default": [("p/m", 1.0)]}, breaker={"consecutive_failures": 2}
    )
    made.version = version
    return made


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Waits; returns the seconds that it took."""
    begun = time.monotonic()
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)
    return time.monotonic() - begun


def failed(watcher: RouteWatcher, error: UpstreamError | PermissionDenied | None = None) -> None:
    """What the dispatcher does when an attempt failed."""
    error = error or UpstreamError("broken")
    watcher.local.fail(watcher.table.backends[BACKEND], error, time.time())
    watcher.report(
        pb.Outcome(backend_id=BACKEND, reason=error.reason_value, counts_against_health=error.counts_against_health)
    )


async def test_the_next_router_takes_over_and_its_first_table_counts_whatever_its_version() -> None:
    first, second = Router(version=900), Router(version=5)
    changes: list[bool] = []
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(second.running())
        async with AsyncExitStack() as life:
            await life.enter_async_context(first.running())
            watcher = RouteWatcher(
                [first.address, second.address], "gateway", on_change=lambda: changes.append(watcher.lost)
            )
            await stack.enter_async_context(watcher)
            await until(lambda: watcher.table.version == 900)
            assert (watcher.address, watcher.connected, watcher.degraded) == (first.address, True, False)
            assert second.subscribers == 0
        took = await until(lambda: watcher.table.version == 5)
        assert took < 1.0
        assert (watcher.address, watcher.connected) == (second.address, True)
        # Of one router only what is newer counts.
        second.push(4)
        second.push(3)
        second.push(6)
        await until(lambda: watcher.table.version == 6)
        assert changes == [], "another router was there at once: nothing was lost"


async def test_a_router_that_refuses_is_passed_over() -> None:
    nobody, second = f"127.0.0.1:{free_port()}", Router(version=5)
    async with second.running(), RouteWatcher([nobody, second.address], "gateway") as watcher:
        assert await watcher.ready(2.0)
        assert (watcher.address, watcher.table.version) == (second.address, 5)


async def test_a_router_that_falls_silent_is_left() -> None:
    first, second = Router(version=900), Router(version=5)
    routers = [first.address, second.address]
    async with first.running(), second.running(), RouteWatcher(routers, "gateway", patience=QUICK) as watcher:
        await until(lambda: watcher.address == first.address and len(first.reports) >= 3)
        first.mute = True
        took = await until(lambda: watcher.address == second.address)
        assert took < 2 * (QUICK.heartbeat + QUICK.answer) + 0.5
        await until(lambda: first.subscribers == 0)
        assert watcher.table.version == 5


async def test_a_router_that_accepts_and_sends_no_table_is_passed_over() -> None:
    second = Router(version=5)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel connects, and nobody says a word
        routers = [f"127.0.0.1:{server.getsockname()[1]}", second.address]
        async with second.running(), RouteWatcher(routers, "gateway", patience=QUICK) as watcher:
            assert await watcher.ready(2.0)
            assert watcher.address == second.address


async def test_signs_of_a_quiet_router_keep_it_seen() -> None:
    router = Router()
    async with router.running(), RouteWatcher([router.address], "gateway", patience=QUICK) as watcher:
        assert await watcher.ready(2.0)
        for _ in range(3):
            before = watcher.local.router_seen
            await until(lambda before=before: watcher.local.router_seen > before, 1.0)
        assert abs(time.time() - watcher.local.router_seen) < 1.0
        assert not router.openings
        assert not router.reasons


async def test_an_opening_goes_out_at_once_and_again_to_the_next_router() -> None:
    first, second = Router(), Router()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(second.running())
        async with AsyncExitStack() as life:
            await life.enter_async_context(first.running())
            watcher = await stack.enter_async_context(RouteWatcher([first.address, second.address], "gateway-2"))
            assert await watcher.ready(2.0)
            failed(watcher)
            failed(watcher)
            took = await until(lambda: BACKEND in first.openings, 1.0)
            assert took < 0.1
            assert first.reports[-1].reporter == "gateway-2"
        # The first router may have died before it told anybody.
        await until(lambda: BACKEND in second.openings)
        [opening] = [found for report in second.reports for found in report.openings]
        assert opening.until.ToNanoseconds() / 1e9 > time.time()
        assert opening.reason == "UPSTREAM_ERROR, 2 failures in a row"


async def test_an_opening_that_is_over_is_told_nobody() -> None:
    first, second = Router(), Router()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(second.running())
        async with AsyncExitStack() as life:
            await life.enter_async_context(first.running())
            watcher = await stack.enter_async_context(RouteWatcher([first.address, second.address], "gateway"))
            assert await watcher.ready(2.0)
            failed(watcher)
            failed(watcher)
            await until(lambda: BACKEND in first.openings)
            breaker = watcher.local.breaker(BACKEND)
            later = breaker.until + 0.01
            watcher.local.begin(watcher.table.backends[BACKEND], later)
            watcher.local.succeed(watcher.table.backends[BACKEND], later)
        await until(lambda: bool(second.reports))
        assert second.openings == []


async def test_failures_that_nobody_took_go_to_the_next_router_and_successes_do_not() -> None:
    first, second = Router(), Router()
    async with first.running(), second.running():
        routers = [first.address, second.address]
        async with RouteWatcher(routers, "gateway", patience=Patience(heartbeat=30.0, answer=0.3)) as watcher:
            assert await watcher.ready(2.0)
            first.mute = True
            watcher.report(pb.Outcome(backend_id=BACKEND))
            failed(watcher)
            await until(lambda: bool(second.reasons))
            assert second.reasons == ["ERROR_REASON_UPSTREAM_ERROR"]


async def test_while_all_routers_are_away_the_last_table_holds_and_it_is_told_once() -> None:
    first, second = Router(version=900), Router(version=5)
    changes: list[tuple[bool, bool]] = []
    async with AsyncExitStack() as stack:
        async with AsyncExitStack() as lives:
            for router in (first, second):
                await lives.enter_async_context(router.running())
            watcher = RouteWatcher(
                [first.address, second.address],
                "gateway",
                on_change=lambda: changes.append((watcher.lost, watcher.degraded)),
            )
            await stack.enter_async_context(watcher)
            assert await watcher.ready(2.0)
        await until(lambda: watcher.degraded)
        failed(watcher)
        failed(watcher)
        await asyncio.sleep(0.5)  # the time in which it would be told again
        assert changes == [(True, True)]
        assert watcher.table.version == 900
        assert 0.4 < watcher.table_age < 10
        second.version = 1
        async with second.running():
            took = await until(lambda: not watcher.degraded)
            assert took < 1.0
            assert changes == [(True, True), (False, False)]
            assert (watcher.table.version, watcher.connected) == (1, True)
            await until(lambda: BACKEND in second.openings)


async def test_a_restart_without_a_router_goes_on_with_the_snapshot(tmp_path: Path) -> None:
    snapshot = tmp_path / "gateway" / "routes.binpb"
    router = Router(version=900)
    async with router.running(), RouteWatcher([router.address], "gateway", snapshot) as watcher:
        assert await watcher.ready(2.0)
        for version in range(901, 911):
            router.push(version)
            await until(lambda version=version: watcher.table.version == version)
    kept = Snapshot(snapshot).load()
    assert kept is not None
    assert kept[0].version == 910
    os.utime(snapshot, (time.time() - 100, time.time() - 100))
    changes: list[bool] = []
    again = RouteWatcher(
        [router.address], "gateway", snapshot, on_change=lambda: changes.append(again.lost), patience=QUICK
    )
    async with again:
        assert (again.table.version, again.connected, again.degraded, again.lost) == (910, False, True, False)
        assert 99 < again.table_age < 110
        took = await until(lambda: again.lost)
        assert took > QUICK.start * 0.5, "a router that starts at the same time gets a moment"
        assert changes == [True]


async def test_a_snapshot_of_a_clock_that_was_ahead_is_as_old_as_now(tmp_path: Path) -> None:
    path = tmp_path / "routes.binpb"
    Snapshot(path).keep(table(5), time.time())
    os.utime(path, (time.time() + 86400, time.time() + 86400))
    async with RouteWatcher([f"127.0.0.1:{free_port()}"], "gateway", path, patience=QUICK) as watcher:
        assert watcher.table.version == 5
        assert 0.0 <= time.time() - watcher.local.router_seen < 10.0, "a route may count the time without a router"


def kept_bytes(folder: Path, message: pb.RouteTable) -> bytes:
    """What stands in the file of a table."""
    path = folder / "other.binpb"
    Snapshot(path).keep(message, time.time())
    return path.read_bytes()


@pytest.mark.parametrize("spoil", ["other bytes", "cut", "one bit", "not usable", "folder"])
async def test_a_snapshot_that_can_not_be_used_is_no_obstacle(tmp_path: Path, spoil: str) -> None:
    snapshot, whole = tmp_path / "routes.binpb", kept_bytes(tmp_path, table(5))
    match spoil:
        case "other bytes":
            snapshot.write_bytes(b"\xff\xff")
        case "cut":
            # Where a field ends: what is left is a message, but of a table without its last rules.
            snapshot.write_bytes(whole[: len(whole) - len(table(5).SerializeToString()) + 2])
        case "one bit":
            snapshot.write_bytes(whole[:-3] + bytes((whole[-3] ^ 1,)) + whole[-2:])
        case "not usable":
            snapshot.write_bytes(kept_bytes(tmp_path, pb.RouteTable(version=9, backends=[pb.Backend(id="nothing")])))
        case _:
            snapshot.mkdir()
    async with RouteWatcher([f"127.0.0.1:{free_port()}"], "gateway", snapshot, patience=QUICK) as watcher:
        assert watcher.table.version == 0
    router = Router(version=3)
    async with router.running(), RouteWatcher([router.address], "gateway", snapshot) as watcher:
        assert await watcher.ready(2.0)
        assert watcher.table.version == 3


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("gateway-2", "cab"),
        ("gateway-3", "abc"),
        ("gateway-4", "bca"),
        ("gateway", "bca"),
        ("gateway-7f9c4-x", "cab"),
    ],
)
def test_processes_begin_with_different_routers(name: str, order: str) -> None:
    assert "".join(in_turn("abc", name)) == order
    assert in_turn([], name) == []


@pytest.mark.parametrize(
    ("variables", "name"),
    [({}, "gateway"), ({"MAESTRO_NAME": "gateway-2"}, "gateway-2"), ({"MAESTRO_NAME": "a/b c"}, "gateway")],
)
def test_the_name_of_a_process(variables: dict[str, str], name: str) -> None:
    assert process_name("gateway", variables) == name
