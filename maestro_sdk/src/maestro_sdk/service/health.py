"""What a service says of its health, and how long it goes on taking calls once it was asked to stop.

Who sends it calls may know it well for a while: until everybody who keeps asking for its health was told. So a service
that stops takes calls until then, and until none came for a moment.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2, health_pb2_grpc

__all__ = ["LONGEST", "Health", "HealthServicer", "longest_stop"]

LONGEST = 5.0
"""Most seconds that who asks for health is waited for. Envoy's checks (envoy/envoy.yaml) tell it well before."""
_SETTLE = 0.3
"""Seconds for who was told to tell its own threads, and for what they sent before to arrive."""
_GONE = 2.5
"""Seconds after which who asked is not expected any more, unless it used to ask as rarely."""
_FIRST = 1.5
"""The same for who asked once by its connection: a proxy that just began will ask again, a probe will not."""
_MOST = 256
"""Of how many it is known that they ask."""
_QUIET = 5
"""Turns of the loop, `_TURN` seconds apart, without a call. Turns, since a busy loop comes late to its calls."""
_TURN = 0.01
_UNREST = 1.0
"""Most seconds that calls which go on coming hold up the end."""

_CLOSING = 3.0
"""Seconds that what is left has to close."""

_log = logging.getLogger(__name__)
_health: Any = grpc_health  # its asyncio half has no types


def longest_stop(notice: float, grace: float) -> float:
    """Seconds after which a service that was asked to stop has ended; who waits longer may kill it."""
    return max(notice, LONGEST) + _UNREST + grace + _CLOSING


class _Asker:
    __slots__ = ("every", "last", "told")

    def __init__(self, now: float) -> None:
        self.last = now
        self.every = 0.0
        self.told = False


class Health:
    """The health of one process, for all its ports."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self.reason = "it is starting"
        """Why no calls should be sent here; empty while it serves."""
        self.stopping = False
        self._clock = clock
        self._askers: dict[str, _Asker] = {}
        self._told = asyncio.Event()

    def ask(self, who: str) -> str:
        """Why no calls should be sent here, "" when they may. `who` is the connection that asks.

        Who asks by one connection again and again, or began to ask just now, is waited for when the service stops: it
        sends calls here.
        """
        now, asker = self._clock(), self._askers.pop(who, None)
        if asker is None:
            asker = _Asker(now)
            if len(self._askers) >= _MOST:
                del self._askers[next(iter(self._askers))]
        else:
            asker.every, asker.last = now - asker.last, now
        self._askers[who] = asker
        if self.stopping:
            asker.told = True
            self._told.set()
        return self.reason

    def stop(self) -> None:
        """From now on it says that it stops."""
        self.stopping, self.reason = True, "it is stopping"

    async def be_heard(self, least: float, arrived: Callable[[], int] = lambda: 0) -> None:
        """Waits until everybody who keeps asking was told that it stops, and no call comes any more.

        That is `least` seconds at least. `arrived` counts calls.
        """
        begun = self._clock()
        most = max(least, LONGEST)
        while self._waits_for() and (left := begun + most - self._clock()) > 0:
            self._told.clear()
            try:
                async with asyncio.timeout(min(left, _GONE / 4)):
                    await self._told.wait()
            except TimeoutError:
                continue  # Somebody may be gone by now.
        if waited_for := self._waits_for():
            _log.warning("%d that ask for health were not told within %g s that it stops", waited_for, most)
        heard = self._clock()
        await asyncio.sleep(max(least - (heard - begun), _SETTLE))
        end = self._clock() + _UNREST
        quiet, known = 0, arrived()
        while quiet < _QUIET and self._clock() < end:
            await asyncio.sleep(_TURN)
            quiet, known = (quiet + 1, known) if arrived() == known else (0, arrived())

    def _waits_for(self) -> int:
        """How many keep asking and were not told yet."""
        now = self._clock()
        return sum(
            not each.told and now - each.last <= (max(_GONE, each.every * 3) if each.every else _FIRST)
            for each in self._askers.values()
        )


class HealthServicer(health_pb2_grpc.HealthServicer):
    """`grpc.health.v1`, which notes who asks."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._statuses: Any = _health.aio.HealthServicer()

    async def Check(self, request: Any, context: Any) -> Any:
        answer = await self._statuses.Check(request, context)
        self._health.ask(context.peer())
        return answer

    async def Watch(self, request: Any, context: Any) -> None:
        await self._statuses.Watch(request, context)

    async def set_all(self, names: Iterable[str], *, ready: bool) -> None:
        """Says of each of the services `names`, and of the whole, whether it serves."""
        values = health_pb2.HealthCheckResponse
        for name in ("", *names):
            await self._statuses.set(name, values.SERVING if ready else values.NOT_SERVING)

    async def stop(self) -> None:
        """From now on nothing serves."""
        self._health.stop()
        await self._statuses.enter_graceful_shutdown()
