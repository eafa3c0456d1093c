"""An adapter announces itself on a real NATS: at once, in beats, when asked, and for the last time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import nats
import pytest

from maestro.router.v1.router_pb2 import AdapterAnnouncement
from maestro_sdk.adapter.announce import ANNOUNCE, BEAT, NAME, WHO, announcement_of, announcing
from maestro_sdk.service.settings import ConfigError, load
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.testing.servers import free_port

ECHO = AdapterAnnouncement(name="echo", address="127.0.0.1:50070", instance="one", regions=["eu"])


@pytest.fixture
async def server(tmp_path: Path) -> AsyncGenerator[NatsServer]:
    found = NatsServer(tmp_path / "nats")
    await found.start()
    yield found
    await found.kill()


@asynccontextmanager
async def hearing(url: str) -> AsyncGenerator[tuple[Any, Any]]:
    """A plain client of NATS and what it hears of announcements."""
    client = await cast("Any", nats).connect(url, allow_reconnect=False)
    try:
        heard = await client.subscribe(ANNOUNCE)
        await client.flush()
        yield client, heard
    finally:
        await client.close()


async def following(heard: Any, timeout: float = 5.0) -> AdapterAnnouncement:
    return AdapterAnnouncement.FromString((await heard.next_msg(timeout=timeout)).data)


async def test_it_is_announced_at_once_in_beats_and_when_asked_and_leaves(server: NatsServer):
    async with hearing(server.url) as (client, heard):
        async with announcing(ECHO, server.url, beat=0.2):
            begun = time.monotonic()
            assert await following(heard) == ECHO
            first = time.monotonic() - begun
            begun = time.monotonic()
            assert await following(heard) == ECHO
            assert 0.1 < time.monotonic() - begun < 2.0
        farewell = await following(heard)
        assert (farewell.name, farewell.instance, farewell.leaving) == ("echo", "one", True)
        assert first < 1.0
        async with announcing(ECHO, server.url, beat=60.0):
            await following(heard)
            for _ in range(2):
                await client.publish(WHO, b"")
                assert await following(heard, 1.0) == ECHO
    assert BEAT == 2.0


async def test_nothing_is_announced_after_the_goodbye(server: NatsServer):
    """Routers would take it in again, and wait for its silence."""
    async with hearing(server.url) as (client, heard):
        for _ in range(20):
            async with announcing(ECHO, server.url, beat=0.0001):
                await following(heard)
            await client.flush()
            said: list[AdapterAnnouncement] = []
            while heard.pending_msgs:
                said.append(await following(heard))
            assert [each.leaving for each in said].index(True) == len(said) - 1


async def test_many_questions_in_a_moment_get_one_answer(server: NatsServer):
    async with hearing(server.url) as (client, heard), announcing(ECHO, server.url, beat=60.0):
        await following(heard)
        for _ in range(500):
            await client.publish(WHO, b"whatever")
        await following(heard, 1.0)
        answers = 1
        with pytest.raises(TimeoutError):
            while True:
                await following(heard, 0.3)
                answers += 1
        assert answers <= 5


async def test_without_nats_it_tries_again_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    server = NatsServer(tmp_path / "nats")
    begun = time.monotonic()
    async with announcing(ECHO, server.url, beat=0.05):
        # Time has to pass in which it fails.
        await asyncio.sleep(0.6)
        assert caplog.text == ""
        await server.start()
        async with hearing(server.url) as (_, heard):
            assert await following(heard) == ECHO
        await server.kill()
    # Nobody is there to hear the goodbye: it holds up nothing.
    async with announcing(ECHO, f"nats://127.0.0.1:{free_port()}"):
        pass
    assert time.monotonic() - begun < 10


async def ask(client: Any, heard: Any) -> None:
    """Asks until somebody answers, and hears all answers."""
    answered = False
    while not answered:
        await client.publish(WHO, b"")
        with suppress(TimeoutError):
            answered = await following(heard, 0.2) == ECHO
    with suppress(TimeoutError):
        while True:
            await following(heard, 0.2)


async def test_after_a_loss_of_nats_it_is_heard_again_and_answers_once(server: NatsServer):
    async with announcing(ECHO, server.url, beat=60.0):
        for _ in range(2):
            async with hearing(server.url) as (client, heard), asyncio.timeout(10):
                await ask(client, heard)
                await client.publish(WHO, b"")
                assert await following(heard) == ECHO
                with pytest.raises(TimeoutError):
                    await following(heard, 0.3)
            await server.kill()
            await server.start()


def announced(env: dict[str, str]) -> AdapterAnnouncement | None:
    config = load(env={"MAESTRO__ADAPTERS__ECHO__ADDRESS": "127.0.0.1:50070", **env})
    return announcement_of(config, "echo", config.adapters["echo"])


def test_it_is_switched_on_by_configuration_or_environment():
    assert announced({}) is None
    assert announced({"MAESTRO__ADAPTERS__ECHO__ANNOUNCE": "false"}) is None
    found = announced({"MAESTRO__ADAPTERS__ECHO__ANNOUNCE": "true", "MAESTRO__ADAPTERS__ECHO__REGIONS": "[eu, us]"})
    again = announced({"MAESTRO__ADAPTERS__ECHO__ANNOUNCE": "{name: echo-2, address: 'echo.example:443'}"})
    assert found is not None
    assert again is not None
    assert (found.name, found.address, found.regions) == ("echo", "127.0.0.1:50070", ["eu", "us"])
    assert (again.name, again.address) == ("echo-2", "echo.example:443")
    assert found.instance != again.instance
    assert len(found.instance) == 32


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"ADDRESS": "0.0.0.0:50070"}, "adapters.echo.announce.address: 0.0.0.0:50070 stands for a whole machine"),
        ({"ADDRESS": "'[::]:50070'"}, "stands for a whole machine"),
        ({"ANNOUNCE": "{address: '127.0.0.1:0'}"}, "127.0.0.1:0 is not host:port"),
        ({"ANNOUNCE": "{address: 'unix:/run/echo:1'}"}, "is not host:port"),
        ({"ANNOUNCE": "{name: 'a:b'}"}, "adapters.echo.announce.name: 'a:b' is not a name to announce"),
        ({"ANNOUNCE": "{address: nowhere}"}, "is not an address"),
        ({"ANNOUNCE": "{adress: '127.0.0.1:1'}"}, "adress"),
        ({"ANNOUNCE": "5"}, "announce"),
    ],
)
def test_what_nobody_could_reach_is_refused(env: dict[str, str], said: str):
    given = {f"MAESTRO__ADAPTERS__ECHO__{name}": value for name, value in {"ANNOUNCE": "true", **env}.items()}
    with pytest.raises(ConfigError) as caught:
        announced(given)
    assert said in str(caught.value)


@pytest.mark.parametrize(("name", "good"), [("echo-2.eu_x", True), ("-x", False), ("", False), ("ä", False)])
def test_names(name: str, good: bool):
    assert bool(NAME.fullmatch(name)) is good
