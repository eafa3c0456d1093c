"""The same request at the same time: one of them asks, and the others wait for what it is told."""

from __future__ import annotations

import asyncio

from maestro_sdk.errors import Timeout

_LEADERS = 2
"""Calls that one request waits for at most: where they fail, many requests must not fail one after the other."""
_MOST = 4096
"""Requests that wait for one call; further ones ask by themselves."""


class Flight:
    """A call under way, in the hands of the request that makes it: it has to `land` or to `fail`."""

    __slots__ = ("_flights", "_key", "_over", "answer", "failed", "waiting")

    def __init__(self, flights: dict[str, Flight], key: str) -> None:
        self._flights, self._key = flights, key
        self._over = asyncio.Event()
        self.waiting = 0
        self.answer: bytes | None = None
        """The answer; None when it is none that may be given again."""
        self.failed = False

    def land(self, answer: bytes | None) -> None:
        """Gives the answer to those who wait. Without one each of them asks by itself."""
        self.answer = answer
        self._end()

    def fail(self) -> None:
        """It came to nothing, or its caller left: one of those who wait asks next. Nothing once it has landed."""
        if not self._over.is_set():
            self.failed = True
            self._end()

    async def wait(self) -> None:
        """Waits for its end."""
        self.waiting += 1
        try:
            await self._over.wait()
        finally:
            self.waiting -= 1

    def _end(self) -> None:
        del self._flights[self._key]
        self._over.set()


class Flights:
    """The calls of this gateway that others may wait for, by key."""

    def __init__(self) -> None:
        self._running: dict[str, Flight] = {}

    @property
    def waiting(self) -> int:
        """How many requests wait for the call of another one."""
        return sum(flight.waiting for flight in self._running.values())

    async def join(self, key: str, deadline: float | None) -> Flight | bytes | None:
        """The answer of the call that is under way; else the flight that this request now has in hand.

        None: it asks by itself, and nobody waits for it. `deadline` is of the monotonic clock; raises `Timeout`.
        """
        for _ in range(_LEADERS):
            flight = self._running.get(key)
            if flight is None:
                flight = self._running[key] = Flight(self._running, key)
                return flight
            if flight.waiting >= _MOST:
                return None
            try:
                async with asyncio.timeout_at(deadline):
                    await flight.wait()
            except TimeoutError:
                what = "the same request is under way, and its answer did not come within this one's deadline"
                raise Timeout(what, counts_against_health=False) from None
            if not flight.failed:
                return flight.answer
        return None
