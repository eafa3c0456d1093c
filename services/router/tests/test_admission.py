"""Adapters that announce themselves on a real NATS: who is shown, who is refused, who takes over, who is gone."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import nats
import pytest
from grpc_health.v1 import health, health_pb2
from grpc_health.v1.health_pb2_grpc import HealthServicer

from maestro.llm.v1.model_pb2 import GetInfoResponse
from maestro.router.v1 import router_pb2 as pb
from maestro_router.admission import Admission, Prove
from maestro_router.compile import Adapter
from maestro_router.verdicts import prove_core
from maestro_sdk.adapter.announce import ANNOUNCE, WHO, announcing
from maestro_sdk.adapter.servicer import ModelServicer
from maestro_sdk.service.settings import load
from maestro_sdk.testing.flawed_servicer import serve_flawed
from maestro_sdk.testing.flaws import Flaw
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import free_port, serve

UP, DOWN = pb.ADAPTER_STATE_SERVING, pb.ADAPTER_STATE_DOWN
VERIFYING, REFUSED = pb.ADAPTER_STATE_VERIFYING, pb.ADAPTER_STATE_REFUSED
QUICK = 0.05
"""Seconds between two looks, in tests that wait for silence: that is 0.7 s then."""


class Shown:
    """A board that remembers."""

    def __init__(self) -> None:
        self.now: dict[str, Adapter] = {}
        self.history: list[tuple[str, str]] = []

    def see(self, adapter: Adapter) -> None:
        self.now[adapter.name] = adapter
        self.history.append((adapter.name, pb.AdapterState.Name(adapter.state).removeprefix("ADAPTER_STATE_")))

    def forget(self, name: str) -> None:
        del self.now[name]
        self.history.append((name, "forgotten"))

    def state(self, name: str) -> pb.AdapterState.ValueType | None:
        return self.now[name].state if name in self.now else None


async def until(holds: Callable[[], object], timeout: float = 15.0) -> float:
    """Waits for something to be true; the seconds that it took."""
    begun = time.monotonic()
    async with asyncio.timeout(timeout):
        while not holds():
            await asyncio.sleep(0.005)
    return time.monotonic() - begun


@asynccontextmanager
async def admitting(
    folder: Path, url: str, mode: str, *, prove: Prove = prove_core, look: float = 0.5
) -> AsyncGenerator[Shown]:
    env = {"MAESTRO__NATS__URL": url, "MAESTRO__ROUTER__ADMISSION": mode, "MAESTRO__DATA": str(folder / "data")}
    shown = Shown()
    running = asyncio.create_task(Admission(load(env=env), shown, prove, look).run())
    try:
        yield shown
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


@asynccontextmanager
async def speaking(url: str) -> AsyncGenerator[Any]:
    """A plain client of NATS, as an adapter in another language has one."""
    client = await cast("Any", nats).connect(url, allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()


def said(name: str, address: str, instance: str = "one", **fields: Any) -> pb.AdapterAnnouncement:
    return pb.AdapterAnnouncement(name=name, address=address, instance=instance, **fields)


async def say(client: Any, name: str, address: str, instance: str = "one", **fields: Any) -> None:
    await client.publish(ANNOUNCE, said(name, address, instance, **fields).SerializeToString())
    await client.flush()


async def listened(client: Any) -> Any:
    """The messages on which routers ask who is there: from the first one on they hear."""
    asked = await client.subscribe(WHO)
    await client.flush()
    return asked


async def test_an_announced_adapter_joins_and_says_goodbye(tmp_path: Path, nats_server: NatsServer):
    async with (
        admitting(tmp_path, nats_server.url, "announced") as shown,
        serve_flawed(None) as address,
        speaking(nats_server.url),
    ):
        async with announcing(said("echo", address, regions=["eu"]), nats_server.url):
            await until(lambda: shown.state("echo") == UP)
            seen = shown.now["echo"]
            assert (seen.address, seen.announced, seen.regions) == (address, True, ("eu",))
            assert [model.id for model in seen.models] == ["obliging/embedder", "obliging/model"]
        await until(lambda: "echo" not in shown.now)
        assert shown.history[-2:] == [("echo", "DOWN"), ("echo", "forgotten")]


async def test_a_router_that_starts_asks_who_is_there(tmp_path: Path, nats_server: NatsServer):
    async with serve_flawed(None) as address, speaking(nats_server.url) as client:
        asked = await listened(client)
        async with announcing(said("echo", address), nats_server.url, beat=60.0):
            for _ in range(2):
                async with admitting(tmp_path, nats_server.url, "announced") as shown:
                    await asked.next_msg(timeout=5)
                    assert await until(lambda: shown.state("echo") == UP) < 1.0


async def test_nothing_joins_a_mesh_that_only_takes_what_is_configured(
    tmp_path: Path, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
):
    async with speaking(nats_server.url) as client, serve_flawed(None) as address:
        asked = await listened(client)
        async with admitting(tmp_path, nats_server.url, "configured") as shown:
            await asked.next_msg(timeout=5)
            for _ in range(5):
                await say(client, "echo", address)
            await until(lambda: "set router.admission" in caplog.text)
            await say(client, "other", address)
            await until(lambda: "adapter other" in caplog.text)
            assert caplog.text.count("adapter echo announces itself") == 1
            assert shown.history == []


async def test_the_configuration_wins_over_an_announcement(
    tmp_path: Path, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
):
    async with speaking(nats_server.url) as client, serve_flawed(None) as address:
        asked = await listened(client)
        async with admitting(tmp_path, nats_server.url, "announced") as shown:
            await asked.next_msg(timeout=5)
            for _ in range(3):
                await say(client, "claude", address)  # one of the defaults, switched off here
            await say(client, "echo", address)
            await until(lambda: shown.state("echo") == UP)
            assert "claude" not in shown.now
            assert caplog.text.count("the configuration has that name, and wins") == 1


async def test_only_who_keeps_the_core_of_the_contract_is_admitted(tmp_path: Path, nats_server: NatsServer):
    async with (
        admitting(tmp_path, nats_server.url, "verified") as shown,
        serve_flawed(None) as good,
        serve_flawed(Flaw.NO_FINISH) as bad,
        announcing(said("good", good), nats_server.url),
        announcing(said("bad", bad), nats_server.url),
    ):
        await until(lambda: shown.state("good") == VERIFYING)
        assert (shown.now["good"].models, shown.now["good"].providers) == ((), ())
        await until(lambda: shown.state("good") == UP and shown.state("bad") == REFUSED, 40)
        assert len(shown.now["good"].models) == 2
        assert not shown.now["bad"].models
        reason = shown.now["bad"].reason
        assert "core cases: finish_last (status OK without a `finish` event)" in reason
        assert f"maestro conformance {bad}" in reason
        assert ("bad", "SERVING") not in shown.history


async def test_who_was_proven_serves_at_once_in_its_next_life_and_is_proven_anew(
    tmp_path: Path, nats_server: NatsServer
):
    proofs: list[str] = []
    verdicts = {"good": "", "worse": ""}

    async def prove(adapter: Adapter) -> str:
        proofs.append(adapter.name)
        return verdicts[adapter.name]

    async with serve_flawed(None) as address, speaking(nats_server.url) as client:
        asked = await listened(client)
        for _ in range(2):  # the second router knows what the first one proved, and proves no process twice
            async with admitting(tmp_path, nats_server.url, "verified", prove=prove) as shown:
                await asked.next_msg(timeout=5)
                for name in verdicts:
                    await say(client, name, address)
                    await until(lambda: shown.state(name) == UP)  # noqa: B023
        assert proofs == ["good", "worse"]
        verdicts["worse"] = "fails finish_last"
        async with admitting(tmp_path, nats_server.url, "verified", prove=prove) as shown:
            await asked.next_msg(timeout=5)
            for name in verdicts:
                await say(client, name, address, "two")
            await until(lambda: shown.state("worse") == REFUSED and sorted(proofs[2:]) == ["good", "worse"])
            assert shown.state("good") == UP
            for name in verdicts:
                assert (name, "VERIFYING") not in shown.history
                assert (name, "SERVING") in shown.history


async def test_who_was_refused_is_proven_again_when_started_anew(tmp_path: Path, nats_server: NatsServer):
    verdicts = ["fails finish_last", "", "never asked"]

    async def prove(adapter: Adapter) -> str:
        return verdicts.pop(0)

    async with serve_flawed(None) as address, speaking(nats_server.url) as client:
        asked = await listened(client)
        async with admitting(tmp_path, nats_server.url, "verified", prove=prove) as shown:
            await asked.next_msg(timeout=5)
            await say(client, "echo", address, "one")
            await until(lambda: shown.state("echo") == REFUSED)
            await say(client, "echo", address, "one")
            await say(client, "echo", address, "two")
            await until(lambda: shown.state("echo") == UP and shown.now["echo"].models)
            assert verdicts == ["never asked"]


async def test_proofs_of_a_name_are_bounded(tmp_path: Path, nats_server: NatsServer):
    proofs: list[str] = []

    async def prove(adapter: Adapter) -> str:
        proofs.append(adapter.name)
        raise ValueError("what a strange server brings about")

    async with serve_flawed(None) as address, speaking(nats_server.url) as client:
        asked = await listened(client)
        async with admitting(tmp_path, nats_server.url, "verified", prove=prove) as shown:
            await asked.next_msg(timeout=5)
            for number in range(5):
                await say(client, "echo", address, f"life {number}")
                await until(lambda: len(proofs) == number + 1 and shown.state("echo") == REFUSED)  # noqa: B023
                assert "the proof ended with ValueError" in shown.now["echo"].reason
            await say(client, "echo", address, "life 5")
            await until(lambda: "verified 5 times within 10 minutes" in shown.now["echo"].reason)
            assert len(proofs) == 5


async def test_the_second_of_a_name_stands_by_and_takes_over(
    tmp_path: Path, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    async with speaking(nats_server.url) as client, AsyncExitStack() as stack:
        asked = await listened(client)
        shown = await stack.enter_async_context(admitting(tmp_path, nats_server.url, "announced"))
        await asked.next_msg(timeout=5)
        lives = [await stack.enter_async_context(AsyncExitStack()) for _ in range(3)]
        addresses: list[str] = []
        for number, life in enumerate(lives):
            addresses.append(await life.enter_async_context(serve_flawed(None)))
            await say(client, "echo", addresses[-1])
            await until(lambda: caplog.text.count("adapter echo is serving") == number + 1)  # noqa: B023
        assert caplog.text.count("stands by") == 2
        assert (shown.now["echo"].address, shown.history) == (addresses[0], [("echo", "DOWN"), ("echo", "SERVING")])
        # A goodbye: the next one serves in the same step.
        await say(client, "echo", addresses[0], leaving=True)
        await until(lambda: shown.now["echo"].address == addresses[1])
        assert shown.history[2:] == [("echo", "DOWN"), ("echo", "forgotten"), ("echo", "SERVING")]
        # A death without one: the health watch tells, long before the silence does.
        await lives[1].aclose()
        assert await until(lambda: shown.now["echo"].address == addresses[2]) < 2.0
        assert shown.state("echo") == UP


async def test_a_goodbye_of_an_earlier_life_is_none(tmp_path: Path, nats_server: NatsServer):
    async with serve_flawed(None) as address, speaking(nats_server.url) as client:
        asked = await listened(client)
        async with admitting(tmp_path, nats_server.url, "announced") as shown:
            await asked.next_msg(timeout=5)
            await say(client, "echo", address, "one")
            await until(lambda: shown.state("echo") == UP)
            since = shown.now["echo"].since
            await say(client, "echo", address, "two")
            await say(client, "echo", address, "one", leaving=True)
            await say(client, "other", address)
            await until(lambda: shown.state("other") == UP and shown.now["echo"].since > since)
            assert ("echo", "DOWN") not in shown.history[1:]  # a quick restart is none in the table, but begins anew


class Stuck(HealthServicer):
    """Said once that it serves, and answers nothing any more."""

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        await context.write(health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING))
        await asyncio.Event().wait()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        await asyncio.Event().wait()
        return health_pb2.HealthCheckResponse()


@asynccontextmanager
async def serve_stuck() -> AsyncGenerator[str]:
    async with serve(Stuck(), ModelServicer(ScriptedProvider()), interceptors=()) as address:
        yield address


class Ahead(ModelServicer):
    """Says that it will start in an hour: its clock is ahead."""

    async def GetInfo(self, request: Any, context: Any) -> GetInfoResponse:
        info = await super().GetInfo(request, context)
        info.started.FromNanoseconds(time.time_ns() // 1_000_000_000 * 1_000_000_000 + 3_600_000_000_000)
        return info


async def test_silence_does_not_take_away_who_answers_with_a_clock_that_is_ahead(
    tmp_path: Path, nats_server: NatsServer
):
    statuses: Any = vars(health)["aio"].HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    async with speaking(nats_server.url) as client, serve(Ahead(ScriptedProvider()), statuses) as address:
        asked = await listened(client)
        async with admitting(tmp_path, nats_server.url, "announced", look=QUICK) as shown:
            await asked.next_msg(timeout=5)
            await say(client, "ahead", address)
            await say(client, "nobody", f"127.0.0.1:{free_port()}")
            await until(lambda: shown.state("ahead") == UP)
            await until(lambda: ("nobody", "forgotten") in shown.history)
            # The one that is gone was heard after the other: both have been looked for by now.
            assert [state for name, state in shown.history if name == "ahead"] == ["DOWN", "SERVING"]


async def test_silence_takes_away_whom_nothing_answers_for(tmp_path: Path, nats_server: NatsServer):
    async with speaking(nats_server.url) as client, serve_flawed(None) as address:
        asked = await listened(client)
        async with admitting(tmp_path, nats_server.url, "announced", look=QUICK) as shown:
            await asked.next_msg(timeout=5)
            await say(client, "cut-off", address)  # its way to NATS is cut, but it serves
            await say(client, "nobody", f"127.0.0.1:{free_port()}")
            async with serve_stuck() as stuck:
                await say(client, "stuck", stuck)
                await until(lambda: shown.state("stuck") == UP)
                await until(lambda: ("stuck", "forgotten") in shown.history)
            await until(lambda: shown.state("cut-off") == UP)
            with socket.create_server(("127.0.0.1", 0)) as hung:  # which takes connections, and never says a word
                await say(client, "hung", f"127.0.0.1:{hung.getsockname()[1]}")
                await until(lambda: ("nobody", "forgotten") in shown.history and ("hung", "forgotten") in shown.history)
            assert shown.state("cut-off") == UP
            assert [state for name, state in shown.history if name == "cut-off"] == ["DOWN", "SERVING"]


async def test_without_nats_everything_stays_as_it_is(tmp_path: Path, nats_server: NatsServer):
    async with (
        admitting(tmp_path, nats_server.url, "announced", look=QUICK) as shown,
        serve_flawed(None) as address,
        announcing(said("echo", address), nats_server.url, beat=0.1),
    ):
        await until(lambda: shown.state("echo") == UP)
        await nats_server.kill()
        before = len(shown.history)
        # Twice the silence that would take it away: time has to pass, since nothing must happen.
        await asyncio.sleep(QUICK * 28)
        assert (shown.state("echo"), len(shown.history)) == (UP, before)
        await nats_server.start()
        async with serve_flawed(None) as late, announcing(said("late", late), nats_server.url, beat=0.1):
            await until(lambda: shown.state("late") == UP)
        assert shown.state("echo") == UP


async def test_what_is_no_announcement_does_no_harm(
    tmp_path: Path, nats_server: NatsServer, caplog: pytest.LogCaptureFixture
):
    async with serve_flawed(None) as address, speaking(nats_server.url) as client:
        asked = await listened(client)
        async with admitting(tmp_path, nats_server.url, "announced") as shown:
            await asked.next_msg(timeout=5)
            for data in (b"", b"\xff" * 50, b"x" * 900_000, b'{"name": "echo"}', b"\x0a\x05a\x1b[1m"):
                for _ in range(20):
                    await client.publish(ANNOUNCE, data)
            for number in range(300):
                await client.publish(ANNOUNCE, said(f"flood-{number}", "127.0.0.1:1").SerializeToString())
            await say(client, "flood-0", address)
            await until(lambda: "100 adapters are known by announcement already" in caplog.text)
            # The configuration's names are declined in any number; what joined before still does its work.
            await say(client, "flood-0", "127.0.0.1:1", leaving=True)
            await say(client, "echo", address)
            await until(lambda: shown.state("echo") == UP)
            assert len(shown.now) == 100
            assert caplog.text.count("an announcement is ignored") == 1
            assert "\x1b" not in caplog.text
            assert len(caplog.text) < 100_000
