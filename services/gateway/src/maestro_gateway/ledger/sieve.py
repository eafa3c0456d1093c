"""Tells which entries of the ledger are there a second time.

NATS itself drops what comes again within minutes. What waited on a disk for hours, and was stored although nobody heard
so, comes again behind that: then its time is long before its arrival, and what arrived since is looked through.
"""

from __future__ import annotations

import datetime
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from google.protobuf.message import DecodeError

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.ledger.rollups import Mark
from maestro_gateway.ledger.scan import Entry

log = logging.getLogger(__name__)

SLACK = 300 * 10**9
"""Nanoseconds that the clock of a gateway may be ahead of that of NATS."""
_MOST = 400_000
"""Entries of which the ids are held."""

Read = Callable[[int | datetime.datetime], AsyncGenerator[list[Entry]]]
"""Reads one tenant's entries from a sequence or a moment on."""


class Sieve:
    """Knows the ids of one tenant's entries from some place on, up to the last one that it was shown."""

    def __init__(self, mark: Mark) -> None:
        """Of entries up to `mark` nothing is known yet; they are read where they matter."""
        # What arrived from this moment on, and from this sequence on, is known.
        self._begin: int = mark.time + 1 if mark.sequence else 0
        self._first: int = mark.sequence + 1
        self._ids: set[str] = set()
        # The same in their order, as (sequence, time of arrival, id).
        self._order: deque[tuple[int, int, str]] = deque()

    async def fresh(self, entries: list[Entry], read: Read) -> list[tuple[Entry, Event]]:
        """Those of the next entries of the ledger that were not there before, as events; remembers them."""
        found = await self._unknown(entries, read)
        for entry, event in found:
            self._ids.add(event.id)
            self._order.append((entry.sequence, entry.time, event.id))
        while len(self._order) > _MOST:
            sequence, time, known = self._order.popleft()
            self._ids.discard(known)
            self._first, self._begin = sequence + 1, max(self._begin, time + 1)
        return found

    async def beyond(self, entries: list[Entry], read: Read) -> list[Event]:
        """Those of entries that NATS has not copied to the ledger yet which are not there all the same."""
        return [event for _, event in await self._unknown(entries, read)]

    async def _unknown(self, entries: list[Entry], read: Read) -> list[tuple[Entry, Event]]:
        decoded = [(entry, event) for entry in entries if (event := event_of(entry)) is not None]
        if decoded:
            await self._reach(min(event.time.ToNanoseconds() for _, event in decoded) - SLACK, read)
        found: list[tuple[Entry, Event]] = []
        new: set[str] = set()
        for entry, event in decoded:
            if event.id not in new and event.id not in self._ids:
                new.add(event.id)
                found.append((entry, event))
        return found

    async def _reach(self, moment: int, read: Read) -> None:
        """Learns the ids of what arrived from `moment` on, where they are not known."""
        if moment >= self._begin:
            return
        older: list[tuple[int, int, str]] = []
        start = datetime.datetime.fromtimestamp(max(0, moment) / 1e9, datetime.UTC)
        async with aclosing(read(start)) as batches:
            async for batch in batches:
                earlier = (entry for entry in batch if entry.sequence < self._first)
                older += [
                    (each.sequence, each.time, event.id) for each in earlier if (event := event_of(each)) is not None
                ]
                if batch[-1].sequence >= self._first:
                    break
        if older:
            self._first = older[0][0]
            self._order.extendleft(reversed(older))
            self._ids.update(known for _, _, known in older)
        self._begin = moment


def event_of(entry: Entry) -> Event | None:
    """The event of an entry; None when it can't be read, which is logged."""
    try:
        return Event.FromString(entry.data)
    except DecodeError:
        log.warning("the entry %d on %s can't be read and is passed over", entry.sequence, entry.subject)
        return None
