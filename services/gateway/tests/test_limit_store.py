"""The limiter of a configuration: its store, the events of its loss and return, and changed files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.message import Message

from maestro.event.v1.event_pb2 import ROUTE_DEGRADATION_STORE_BACK, ROUTE_DEGRADATION_STORE_LOST, RouteDegraded
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_gateway.limits import Limiter, limiting
from maestro_gateway.limits.reload import follow_limits
from maestro_sdk.service.settings import Config, load
from maestro_sdk.testing.redis import RedisServer, find_redis
from maestro_sdk.testing.servers import free_port

needs_store = pytest.mark.skipif(find_redis() is None, reason="neither redis-server nor valkey-server is installed")


def configured(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "maestro.yaml"
    path.write_text(text)
    return load(path, {})


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def causes(told: list[Message]) -> list[int]:
    assert all(isinstance(payload, RouteDegraded) and payload.service == "gateway-2" for payload in told)
    return [payload.cause for payload in told if isinstance(payload, RouteDegraded)]


async def _admitted(limiter: Limiter) -> bool:
    ticket = limiter.ticket(ChatRequest(), "acme", "key_1", "", "")
    assert ticket is not None
    await ticket.take()
    return ticket.verdict is not None


@needs_store
async def test_loss_and_return_of_the_store_are_told_once_each(tmp_path: Path) -> None:
    told: list[Message] = []
    async with RedisServer() as server:
        config = configured(
            tmp_path, f"limits: {{every_tenant: {{requests: 100}}}}\nstore: {{url: '{server.url}', timeout: 1s}}\n"
        )
        async with limiting(config, told.append, "gateway-2") as limiter:
            assert await _admitted(limiter)
            assert told == [], "a store that is there is no news"
            await server.kill()
            assert [await _admitted(limiter) for _ in range(3)] == [True] * 3
            assert causes(told) == [ROUTE_DEGRADATION_STORE_LOST]
            await server.start()
            await until(lambda: len(told) == 2)
            assert await _admitted(limiter)
            assert causes(told) == [ROUTE_DEGRADATION_STORE_LOST, ROUTE_DEGRADATION_STORE_BACK]


@needs_store
async def test_a_store_that_is_not_there_at_the_start_is_told_as_well(tmp_path: Path) -> None:
    told: list[Message] = []
    config = configured(
        tmp_path,
        f"limits: {{every_tenant: {{requests: 1}}}}\nstore: {{url: 'redis://127.0.0.1:{free_port()}'}}\n",
    )
    async with limiting(config, told.append, "gateway-2") as limiter:
        assert await _admitted(limiter)
    assert causes(told) == [ROUTE_DEGRADATION_STORE_LOST]


async def test_a_changed_file_takes_effect_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    config = configured(tmp_path, "limits: {every_tenant: {requests: 5}}")
    limiter = Limiter(config.limits)

    def limit() -> int:
        ticket = limiter.ticket(ChatRequest(), "acme", "key_1", "", "")
        return ticket.rules[0].limit if ticket is not None else 0

    following = asyncio.create_task(follow_limits(config, limiter))
    try:
        assert limit() == 5
        await asyncio.sleep(0)
        (tmp_path / "maestro.yaml").write_text("limits: {every_tenant: {requests: 77}}")
        await until(lambda: limit() == 77)
        (tmp_path / "maestro.yaml").write_text("limits: {every_tenant: {requests: -7}}")
        await asyncio.sleep(1.3)  # two looks at the file, and some
        assert limit() == 77
        (tmp_path / "maestro.yaml").write_text("{}")
        await until(lambda: limit() == 0)
    finally:
        following.cancel()
