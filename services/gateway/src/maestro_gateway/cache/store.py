"""Where answers wait: in this process, the least used ones go first, and on a shelf in NATS for other gateways.

Nobody waits for the shelf. What it does not give within milliseconds is a miss, and while it is silent it is not asked.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from maestro_gateway.cache.flight import Flights
from maestro_gateway.shelf import Shelf

BUCKET = "MAESTRO_CACHE"
LONGEST = 7 * 86400.0
"""Seconds after which an answer is gone whatever its route says."""
_ROOM = 64 * 2**20
"""Bytes of answers that one process holds."""
_SHARED_ROOM = 256 * 2**20
_ENTRY = 256
"""Bytes that an entry takes beside its answer, about."""
_PATIENCE = 0.02
"""Seconds that a request waits for what other gateways put there."""
_SILENCE = 1.0
"""Seconds in which a shelf that did not answer in time is not asked again."""
_HEAD = struct.Struct(">Q")
"""The time at which an answer goes, in milliseconds since 1970."""


class Others(Protocol):
    """Where gateways put answers for each other."""

    async def offer(self, key: str, data: bytes) -> None:
        """Stores if it can; nobody learns whether it did."""
        ...

    async def replace(self, key: str, data: bytes) -> None:
        """Stores if it can, and tells the others that what they remember is old."""
        ...

    async def take(self, key: str) -> bytes | None:
        """What is stored. Raises `LookupError` when nobody can tell now."""
        ...


class AnswerStore:
    """Answers as bytes, by key."""

    def __init__(
        self, others: Others | None = None, *, room: int = _ROOM, clock: Callable[[], float] = time.time
    ) -> None:
        """`room` in bytes; `clock` gives Unix time, which gateways have in common."""
        self._others = others
        self._room = room
        self._clock = clock
        self._held = 0
        # Answers with the time at which they go, the least used first.
        self._kept: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._silent_until = 0.0
        self.flights = Flights()
        """The calls of this gateway whose answers are about to be kept."""

    def held(self, key: str) -> bytes | None:
        """The answer under a key that this process holds."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        if entry[0] <= self._clock():
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return entry[1]

    async def find(self, key: str) -> bytes | None:
        """The answer under a key; None when there is none, or when nobody can tell in time."""
        held = self.held(key)
        if held is not None:
            return held
        if self._others is None or self._clock() < self._silent_until:
            return None
        try:
            async with asyncio.timeout(_PATIENCE):
                stored = await self._others.take(key)
        except LookupError:
            return None
        except TimeoutError:
            self._silent_until = self._clock() + _SILENCE
            return None
        if stored is None or len(stored) < _HEAD.size:
            return None
        until, data = _HEAD.unpack_from(stored)[0] / 1e3, stored[_HEAD.size :]
        if until <= self._clock():
            return None
        self._keep(key, until, data)
        return data

    async def put(self, key: str, data: bytes, ttl: float, *, anew: bool = False) -> None:
        """Stores an answer for `ttl` seconds; `anew` when it takes the place of one that others may remember."""
        until = self._clock() + min(ttl, LONGEST)
        self._keep(key, until, data)
        if self._others is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    store = self._others.replace if anew else self._others.offer
                    await store(key, _HEAD.pack(int(until * 1e3)) + data)

    def drop(self, key: str) -> None:
        """Forgets an answer that can't be read, or that another gateway replaced."""
        self._drop(key)

    def _keep(self, key: str, until: float, data: bytes) -> None:
        self._drop(key)
        self._kept[key] = (until, data)
        self._held += len(data) + _ENTRY
        while self._held > self._room:
            self._drop(next(iter(self._kept)))

    def _drop(self, key: str) -> None:
        old = self._kept.pop(key, None)
        if old is not None:
            self._held -= len(old[1]) + _ENTRY


@asynccontextmanager
async def caching(url: str) -> AsyncGenerator[AnswerStore]:
    """The store of a gateway while the block runs; `url` is that of NATS."""
    shelf = Shelf(url, LONGEST, bucket=BUCKET, room=_SHARED_ROOM)
    store = AnswerStore(shelf)
    shelf.replaced = store.drop
    async with shelf:
        yield store
