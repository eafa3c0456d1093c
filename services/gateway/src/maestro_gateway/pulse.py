"""Signs of life on an idle stream, at the cost of one timer per stream and none per event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, TypeVar

log = logging.getLogger(__name__)

_Written = TypeVar("_Written")


class Pulse:
    """Calls `beat` when nothing was written for `interval` seconds; what goes through `write` never overlaps it."""

    __slots__ = ("_beat", "_beating", "_busy", "_ended", "_handle", "_interval", "_last", "_loop")

    def __init__(self, beat: Callable[[], Awaitable[None]], interval: float) -> None:
        self._beat = beat
        self._interval = interval
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._busy = self._ended = False
        self._beating: asyncio.Task[None] | None = None
        self._handle: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._handle = self._loop.call_later(self._interval, self._check)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        if self._handle is not None:
            self._handle.cancel()
        if self._beating is not None:
            if isinstance(error, asyncio.CancelledError):
                self._beating.cancel()
            # What is written next must not overtake a sign of life that is on its way.
            await asyncio.wait((self._beating,))

    async def write(self, writing: Awaitable[_Written]) -> _Written:
        """Awaits one write of the stream itself."""
        if self._beating is not None:
            await asyncio.wait((self._beating,))
        # A write that waits for a slow reader is no idle stream.
        self._busy = True
        written = await writing
        self._busy = False
        self._last = self._loop.time()
        return written

    def _check(self) -> None:
        left = self._last + self._interval - self._loop.time()
        if self._busy or left > 0.001:
            self._handle = self._loop.call_later(max(left, 0.05 * self._interval), self._check)
            return
        self._beating = self._loop.create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._beat()
        except Exception as error:  # noqa: BLE001 - whoever reads has gone; the stream itself finds out and ends
            log.debug("a sign of life was not sent: %r", error)
            return
        finally:
            self._beating = None
        if not self._ended:
            self._last = self._loop.time()
            self._handle = self._loop.call_later(self._interval, self._check)
