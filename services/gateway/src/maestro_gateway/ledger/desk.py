"""Sums up the entries of one tenant: in runs that are over for good, and in one that is not for the moment.

A run ends with the hour in which its entries arrived, or when it is long: that follows from the entries alone.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.ledger.rollups import Mark, Rollups, Run
from maestro_gateway.ledger.scan import Entry
from maestro_gateway.ledger.sieve import SLACK, Found, Read, Sieve, estimate_of, event_of
from maestro_gateway.ledger.tally import HOUR, Row, Sums, Tally, View

_NANO = 10**9
_HOUR = HOUR * _NANO
_AHEAD = 24
"""Hours that a gateway's clock may be ahead."""


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time from `since` to before `until`, in nanoseconds of Unix time; without an end when that is None."""

    since: int
    until: int | None

    @property
    def first(self) -> int:
        """Its first hour, counted from 1970."""
        return self.since // _HOUR

    @property
    def end(self) -> int:
        """The hour after its last one."""
        return time.time_ns() // _HOUR + _AHEAD if self.until is None else -(-self.until // _HOUR)

    def cut(self, latest: int | None = None) -> frozenset[int]:
        """Hours that are only in part in it, for what happened up to `latest`."""
        ends = () if self.until is None or (latest is not None and latest < self.until) else (self.until,)
        return frozenset(moment // _HOUR for moment in (self.since, *ends) if moment % _HOUR)

    def holds(self, event: Event) -> bool:
        """Whether an event happened in it."""
        moment = event.time.ToNanoseconds()
        return self.since <= moment and (self.until is None or moment < self.until)


@dataclass(slots=True)
class _Run:
    """Entries from the sequence `first` on that arrived in one hour: the last one, when the latest event happened."""

    hour: int
    first: int
    last: Mark = field(default_factory=Mark)
    tally: Tally = field(default_factory=Tally)
    entries: int = 0
    latest: int = 0


class Desk:
    """What one process knows of one tenant's entries. Whoever uses it holds `lock`."""

    def __init__(self, epoch: int, longest: int = 20_000) -> None:
        """`epoch` is the life of the ledger that it belongs to; a run has at most `longest` entries, for everybody."""
        self._longest = longest
        self.epoch = epoch
        self.lock = asyncio.Lock()
        self._mark = Mark()
        self._position = 0
        self._sieve = Sieve(self._mark)
        # Behind the mark, oldest first; all but the last one are over.
        self._runs: deque[_Run] = deque()

    async def catch_up(self, rollups: Rollups, read: Read, hour: int) -> None:
        """Reads what arrived since the last time; runs that are over are put away, those before `hour` too.

        A reading that is cancelled has kept what it did.
        """
        self._adopt(await rollups.mark())
        async with aclosing(read(self._position + 1)) as batches:
            async for batch in batches:
                for found in await self._sieve.fresh(batch, read):
                    entry, event = found.entry, found.event
                    run = self._run_of(entry)
                    run.tally.count(event)
                    if found.undone is not None:
                        run.tally.uncount(found.undone)
                    run.entries += 1
                    run.last = Mark(entry.sequence, entry.time)
                    run.latest = max(run.latest, event.time.ToNanoseconds())
                self._position = batch[-1].sequence
                while len(self._runs) > 1:
                    await self._put_away(rollups)
        if self._runs and self._runs[0].hour < hour:
            await self._put_away(rollups)

    async def tally(self, rollups: Rollups, read: Read, span: Span, view: View | None = None) -> Tally:
        """The rows of a span, of all that was caught up with."""
        first, end = span.first, span.end
        total, again = Tally(view), dict[Run, frozenset[int]]()

        def take(run: Run, rows: Iterable[tuple[Row, Sums]], cut: frozenset[int]) -> None:
            for row, sums in rows:
                if row.hour in cut:
                    again[run] = cut
                elif first <= row.hour < end:
                    total.at(row).add(sums)

        async with aclosing(rollups.read(first, end, self._mark.sequence)) as stored:
            async for run, rows in stored:
                take(run, rows, span.cut())
        # The same hours for all of them: what one run holds a second time is known from another one.
        cut = span.cut(max((held.latest for held in self._runs), default=0))
        for held in self._runs:
            take((held.first, held.last.sequence), held.tally.rows.items(), cut)
        await _recount(total, read, again, span)
        return total

    async def beyond(self, batch: list[Entry], read: Read) -> list[Found]:
        """The events of a batch of the stream of events that count, and are not among the entries."""
        return await self._sieve.beyond(batch, read)

    def _adopt(self, mark: Mark) -> None:
        """Takes over what other gateways have put away."""
        if mark.sequence <= self._mark.sequence:
            return
        self._mark = mark
        while self._runs and self._runs[0].last.sequence <= mark.sequence:
            self._runs.popleft()
        if mark.sequence > self._position:
            self._position = mark.sequence
            self._runs.clear()
            self._sieve = Sieve(mark)

    def _run_of(self, entry: Entry) -> _Run:
        """The run that the next entry belongs to."""
        hour, before = entry.time // _HOUR, self._mark
        if self._runs:
            run = self._runs[-1]
            # The clock of NATS may have stepped back: that begins no run.
            if hour <= run.hour and run.entries < self._longest:
                return run
            hour, before = max(hour, run.hour), run.last
        self._runs.append(_Run(max(hour, before.time // _HOUR), before.sequence + 1))
        return self._runs[-1]

    async def _put_away(self, rollups: Rollups) -> None:
        run = self._runs[0]
        await rollups.store(run.first, run.last, run.tally)
        self._mark = run.last
        self._runs.popleft()


async def _recount(total: Tally, read: Read, runs: Mapping[Run, frozenset[int]], span: Span) -> None:
    """Counts one by one what of a span happened in these hours, for each run."""
    ids: set[str] = set()
    estimates: dict[str, Event] = {}
    for (first, last), cut in sorted(runs.items()):
        async with aclosing(read(first)) as batches:
            async for batch in batches:
                for entry in batch:
                    event = event_of(entry) if entry.sequence <= last else None
                    if event is None or event.id in ids:
                        continue
                    ids.add(event.id)
                    if (estimate := estimates.pop(event.id, None)) is not None:
                        total.uncount(estimate)
                    if event.time.ToNanoseconds() // _HOUR not in cut or not span.holds(event):
                        continue
                    if true_end := estimate_of(event):
                        if true_end in ids or await _came_before(true_end, event, entry, read):
                            continue
                        estimates[true_end] = event
                    total.count(event)
                if batch[-1].sequence >= last:
                    break


async def _came_before(true_end: str, estimate: Event, place: Entry, read: Read) -> bool:
    """Whether the true end of a request is among the entries before that of its estimate."""
    since = datetime.datetime.fromtimestamp(max(0, estimate.time.ToNanoseconds() - SLACK) / 1e9, datetime.UTC)
    async with aclosing(read(since)) as batches:
        async for batch in batches:
            for entry in batch:
                if entry.sequence >= place.sequence:
                    return False
                if (event := event_of(entry)) is not None and event.id == true_end:
                    return True
    return False
