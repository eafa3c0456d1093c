"""How long a service that stops goes on taking calls: until those who ask for its health know."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from maestro_sdk.service.health import LONGEST, Health

ENVOY = Path(__file__).parents[3] / "envoy" / "envoy.yaml"


def asked(health: Health, who: str, times: int = 2) -> None:
    for _ in range(times):
        health.ask(who)


async def seconds(health: Health, least: float = 0.01, **more: Any) -> float:
    """How long it took to be heard."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await health.be_heard(least, **more)
    return loop.time() - begun


async def test_it_tells_why_nothing_should_be_sent() -> None:
    health = Health()
    assert health.ask("envoy") == "it is starting"
    health.reason = ""
    assert health.ask("envoy") == ""
    health.stop()
    assert (health.ask("envoy"), health.stopping) == ("it is stopping", True)


async def test_who_keeps_asking_is_waited_for() -> None:
    health = Health()
    asked(health, "envoy")
    asked(health, "another envoy")
    health.stop()
    heard = asyncio.create_task(health.be_heard(0.01))
    health.ask("envoy")
    await asyncio.sleep(0.5)
    assert not heard.done()
    health.ask("another envoy")
    async with asyncio.timeout(2):
        await heard


async def test_who_asked_long_ago_is_not_and_who_asked_once_for_a_moment_only() -> None:
    now = 100.0
    health = Health(lambda: now + asyncio.get_running_loop().time())
    asked(health, "gone")
    now += 3.0
    # Kubernetes opens a connection for each question, and learns of the end in another way.
    health.ask("kubelet")
    health.stop()
    assert await seconds(health) < 3.0


async def test_nobody_holds_up_the_end_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    health = Health(lambda: now + asyncio.get_running_loop().time() * 10)
    asked(health, "slow")
    await asyncio.sleep(0.3)
    health.ask("slow")  # every three seconds of this clock, so it is expected for nine
    health.stop()
    await health.be_heard(0.01)
    assert "1 that ask for health were not told within 5 s" in caplog.text


async def test_the_least_notice_is_kept() -> None:
    health = Health()
    health.stop()
    assert 0.6 <= await seconds(health, 0.6) < 1.5


async def test_calls_that_still_come_are_taken_for_a_while() -> None:
    health, calls = Health(), iter(range(10_000))
    health.stop()
    assert 1.0 <= await seconds(health, arrived=lambda: next(calls)) < 3.0


async def test_of_many_the_latest_are_known() -> None:
    health = Health()
    for number in range(1000):
        health.ask(f"peer {number}")
    asked(health, "envoy")
    health.stop()
    heard = asyncio.create_task(health.be_heard(0.01))
    await asyncio.sleep(0.4)
    assert not heard.done()
    health.ask("envoy")
    await heard


@pytest.mark.parametrize("cluster", ["gateway", "websocket"])
def test_the_checks_of_envoy_tell_it_before_the_wait_ends(cluster: str) -> None:
    found = yaml.safe_load(ENVOY.read_text(encoding="utf-8"))["static_resources"]["clusters"]
    check = next(each for each in found if each["name"] == cluster)["health_checks"][0]

    def seconds(name: str) -> float:
        match = re.fullmatch(r"([\d.]+)s", check[name])
        assert match is not None
        return float(match[1])

    # A check that began just before, its time-out, and the next one.
    slowest = max(seconds("interval"), seconds("no_traffic_interval")) + seconds("timeout")
    assert slowest + seconds("unhealthy_edge_interval") + seconds("timeout") < LONGEST
