"""Who waits for others to give back what they hold: in order, a few of them asking at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

_ASKING = 8
_PAUSE = 0.05
"""Seconds after which another question makes sense: another gateway may have given something back."""


class Line:
    """Those who wait at one gateway for room in one counter; `most` may."""

    __slots__ = ("_asking", "_most", "_moved", "waiting")

    def __init__(self, most: int) -> None:
        self._most = most
        self._asking = asyncio.Semaphore(_ASKING)
        self._moved = asyncio.Event()
        self.waiting = 0

    @property
    def full(self) -> bool:
        """Whether nobody else may wait."""
        return self.waiting >= self._most

    @asynccontextmanager
    async def turn(self) -> AsyncGenerator[None]:
        """Waits for the turn, and has it to the end of the block."""
        self.waiting += 1
        try:
            async with self._asking:
                yield
        finally:
            self.waiting -= 1

    async def wait(self) -> None:
        """Waits until something may have changed."""
        self._moved.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PAUSE):
                await self._moved.wait()

    def move(self) -> None:
        """Something was given back here."""
        self._moved.set()
