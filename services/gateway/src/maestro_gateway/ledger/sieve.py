"""Tells which entries of the ledger count: those that are there a second time don't, nor do estimates with a true end.

NATS itself drops what comes again within minutes. What waited on a disk for hours, and was stored although nobody heard
so, comes again behind that: then its time is long before its arrival, and what arrived since is looked through.
"""

from __future__ import annotations

import datetime
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.ledger.rollups import Mark
from maestro_gateway.ledger.scan import Entry

log = logging.getLogger(__name__)

SLACK = 300 * 10**9
"""Nanoseconds that the clock of a gateway may be ahead of that of NATS."""
_MOST = 400_000
"""Entries of which the ids are held."""
_MOST_ESTIMATES = 10_000

Read = Callable[[int | datetime.datetime], AsyncGenerator[list[Entry]]]
"""Reads one tenant's entries from a sequence or a moment on."""


@dataclass(frozen=True, slots=True)
class Found:
    """An entry that counts. `undone` is the estimate of its request, which counted so far and does not any more."""

    entry: Entry
    event: Event
    undone: Event | None = None


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
        # Estimates whose true end did not come, by its id.
        self._estimates: dict[str, Event] = {}

    async def fresh(self, entries: list[Entry], read: Read) -> list[Found]:
        """Those of the next entries of the ledger that count; remembers them."""
        decoded = await self._decode(entries, read)
        found = _sift(decoded, self._ids, self._estimates)
        for entry, event in decoded:
            if event.id not in self._ids:
                self._ids.add(event.id)
                self._order.append((entry.sequence, entry.time, event.id))
        for each in found:
            if each.undone is not None:
                self._estimates.pop(each.event.id, None)
            elif (true_end := estimate_of(each.event)) and true_end not in self._ids:
                self._estimates[true_end] = each.event
        while len(self._order) > _MOST:
            sequence, time, known = self._order.popleft()
            self._ids.discard(known)
            self._first, self._begin = sequence + 1, max(self._begin, time + 1)
        while len(self._estimates) > _MOST_ESTIMATES:
            del self._estimates[next(iter(self._estimates))]
        return found

    async def beyond(self, entries: list[Entry], read: Read) -> list[Found]:
        """Those of entries that NATS has not copied to the ledger yet which count, and are not there all the same."""
        return _sift(await self._decode(entries, read), self._ids, self._estimates)

    async def _decode(self, entries: list[Entry], read: Read) -> list[tuple[Entry, Event]]:
        decoded = [(entry, event) for entry in entries if (event := event_of(entry)) is not None]
        if decoded:
            await self._reach(min(begin_of(event) for _, event in decoded) - SLACK, read)
        return decoded

    async def _reach(self, moment: int, read: Read) -> None:
        """Learns the ids of what arrived from `moment` on, where they are not known."""
        if moment >= self._begin:
            return
        older: list[tuple[Entry, Event]] = []
        start = datetime.datetime.fromtimestamp(max(0, moment) / 1e9, datetime.UTC)
        async with aclosing(read(start)) as batches:
            async for batch in batches:
                earlier = (entry for entry in batch if entry.sequence < self._first)
                older += [(each, event) for each in earlier if (event := event_of(each)) is not None]
                if batch[-1].sequence >= self._first:
                    break
        if older:
            self._first = older[0][0].sequence
            self._order.extendleft((each.sequence, each.time, event.id) for each, event in reversed(older))
            self._ids.update(event.id for _, event in older)
            for _, event in older:
                if (true_end := estimate_of(event)) and true_end not in self._ids:
                    self._estimates.setdefault(true_end, event)
        self._begin = moment


def _sift(decoded: Iterable[tuple[Entry, Event]], ids: set[str], estimates: dict[str, Event]) -> list[Found]:
    """What counts of entries in their order, where others are known by their ids, and some of these are estimates."""
    found: list[Found] = []
    new: set[str] = set()
    open_: dict[str, Event] = {}
    for entry, event in decoded:
        if event.id in new or event.id in ids:
            continue
        new.add(event.id)
        if true_end := estimate_of(event):
            if true_end in new or true_end in ids:
                continue
            open_[true_end] = event
        found.append(Found(entry, event, open_.pop(event.id, None) or estimates.get(event.id)))
    return found


def estimate_of(event: Event) -> str:
    """The id of the true end that an event stands in for; empty when it is a true end itself."""
    return event.request_failed.estimate_of if event.HasField("request_failed") else ""


def begin_of(event: Event) -> int:
    """When its request began, in nanoseconds of Unix time: an estimate of it is not older."""
    match event.WhichOneof("payload"):
        case "request_completed":
            latency = event.request_completed.latency.ToNanoseconds()
        case "request_failed":
            latency = event.request_failed.latency.ToNanoseconds()
        case _:
            latency = 0
    return event.time.ToNanoseconds() - latency


def event_of(entry: Entry) -> Event | None:
    """The event of an entry; None when it can't be read, which is logged."""
    try:
        return Event.FromString(entry.data)
    except DecodeError:
        log.warning("the entry %d on %s can't be read and is passed over", entry.sequence, entry.subject)
        return None
