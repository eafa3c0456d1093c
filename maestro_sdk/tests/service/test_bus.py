"""What the connection to NATS owes its owners."""

from __future__ import annotations

import asyncio

import pytest

from maestro_sdk.service.bus import heed_cancellation


async def test_a_cancellation_that_somebody_swallowed_is_obeyed_at_the_next_turn():
    turns = 0

    async def swallow() -> None:
        nonlocal turns
        while True:
            heed_cancellation()
            turns += 1
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                # As a wait does whose answer comes at the same moment.
                continue

    task = asyncio.create_task(swallow())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert turns == 1


async def test_nobody_else_is_disturbed():
    async with asyncio.timeout(5):
        heed_cancellation()
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(1)
        except TimeoutError:
            heed_cancellation()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
