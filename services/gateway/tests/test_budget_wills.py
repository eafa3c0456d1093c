"""What a gateway had in doubt that is gone for good, another one has told anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest_asyncio

from maestro_gateway.budgets.doubts import Doubts
from maestro_gateway.budgets.wills import STREAM, Wills
from maestro_gateway.ledger.stream import ask
from maestro_sdk.testing.nats import NatsServer

_LASTING = 0.8
_connect: Any = nats


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[Any]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    connection = await _connect.connect(server.url)
    try:
        yield connection
    finally:
        await connection.close()
        await server.kill()


@asynccontextmanager
async def alive(client: Any, name: str) -> AsyncGenerator[Doubts]:
    """The doubts of a gateway that lives, and is gone at the end of the block."""
    doubts = Doubts()
    task = asyncio.create_task(Wills(lambda: client, name, doubts, _LASTING).tend())
    try:
        yield doubts
    finally:
        task.cancel()
        await asyncio.wait((task,))


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not reached():
            await asyncio.sleep(0.01)


async def written(client: Any) -> int:
    """How many gateways have doubts."""
    info: dict[str, Any] = await ask(client, f"STREAM.INFO.{STREAM}")
    return int(info.get("state", {}).get("messages", 0))


async def settle(doubts: Doubts) -> list[str]:
    told: list[str] = []

    async def renew(name: str) -> bool:
        told.append(name)
        return True

    await doubts.settle(renew)
    return told


async def test_doubts_of_a_gateway_that_is_gone_are_taken_over(client: Any) -> None:
    async with alive(client, "heir") as heir:
        async with alive(client, "gone") as gone:
            gone.add(["a", "b"])
            async with asyncio.timeout(10):
                while not await written(client):
                    await asyncio.sleep(0.01)
            # It lives: nobody takes anything over from it, however long it doubts.
            await asyncio.sleep(2 * _LASTING)
            assert heir.names == []
            gone.add(["c"])
            await asyncio.sleep(_LASTING / 4)
        await until(lambda: sorted(heir.names) == ["a", "b", "c"])
        assert sorted(await settle(heir)) == ["a", "b", "c"]
        async with asyncio.timeout(10):
            while await written(client):
                await asyncio.sleep(0.01)
        assert heir.names == []


async def test_who_settles_its_doubts_leaves_none(client: Any) -> None:
    async with alive(client, "one") as one, alive(client, "other") as other:
        one.add(["a"])
        async with asyncio.timeout(10):
            while not await written(client):
                await asyncio.sleep(0.01)
        assert await settle(one) == ["a"]
        async with asyncio.timeout(10):
            while await written(client):
                await asyncio.sleep(0.01)
        assert (one.names, other.names) == ([], [])


async def test_nothing_is_made_where_nobody_doubts(client: Any) -> None:
    async with alive(client, "one"):
        await asyncio.sleep(_LASTING)
    assert "error" in await ask(client, f"STREAM.INFO.{STREAM}")
