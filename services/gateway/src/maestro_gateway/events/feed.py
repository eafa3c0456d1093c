"""The events of a tenant, read once per gateway however many follow them.

A thousand consumers of the stream would have each event sent, read and encoded a thousand times. So one subscription
per tenant fills a ring of recent events, and each follower has its own place in it. Whoever is behind the ring, coming
back or slow, reads the stream page by page, a few at a time over all, until the ring has caught it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import nats.errors

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.events.entry import Entry
from maestro_gateway.events.query import Query
from maestro_sdk.errors import Internal, NoBackend
from maestro_sdk.service.bus import STREAM, heed_cancellation
from maestro_sdk.service.event_reader import EventReader, decoded, filters
from maestro_sdk.service.stream_page import last_of, read_page

log = logging.getLogger(__name__)

MOST = 64
SIZE = 64 * 1024
"""Events, and about as many bytes of them, that a follower takes at once: one that is slow holds so much."""
_RING = 1024
_RING_BYTES = 2**20
_PAGES = 8
"""Pages of the past that are read at the same time, by all followers."""
_RETRY = 0.5
_TENANT = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FAILURES = (nats.errors.Error, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Gap:
    """Events up to `sequence` were asked for and are no longer kept."""

    sequence: int


class Feeds:
    """The feeds of the tenants that somebody follows."""

    def __init__(self, reader: EventReader, *, ring: int = _RING, ring_bytes: int = _RING_BYTES) -> None:
        """A feed keeps `ring` events and `ring_bytes` bytes of them at most."""
        self.reader = reader
        self._ring = ring
        self._ring_bytes = ring_bytes
        self._feeds: dict[str, Feed] = {}
        self._paging = asyncio.Semaphore(_PAGES)

    def __len__(self) -> int:
        """Tenants that are followed."""
        return len(self._feeds)

    @asynccontextmanager
    async def follow(self, tenant: str, query: Query, *, timeout: float = 5.0) -> AsyncGenerator[Follower]:
        """Follows the events of a tenant that a query wants. Raises `NoBackend` when NATS doesn't answer in time."""
        if not _TENANT.fullmatch(tenant):
            # It becomes part of a subject, where `*` and `>` would be every tenant's.
            raise ValueError(f"{tenant!r} is not a tenant")
        feed = self._feeds.get(tenant)
        if feed is None:
            feed = self._feeds[tenant] = Feed(self.reader, tenant, self._ring, self._ring_bytes)
        feed.followers += 1
        try:
            follower = Follower(feed, query, self._paging)
            try:
                async with asyncio.timeout(timeout):
                    await self.reader.connection()
                    await feed.begun()
                    await follower.begin()
            except _FAILURES:
                reason = self.reader.trouble or "NATS does not answer"
                raise NoBackend(f"events can't be read now: {reason}") from None
            yield follower
        finally:
            feed.followers -= 1
            if not feed.followers:
                if self._feeds.get(tenant) is feed:
                    del self._feeds[tenant]
                await feed.end()


class Feed:
    """The recent events of one tenant.

    `floor` and `head` are sequences: every event of the tenant above `floor` and up to `head` is in the ring. `count`
    is the number of events that were ever put into it, and `epoch` that of streams that were made anew meanwhile.
    """

    def __init__(self, reader: EventReader, tenant: str, ring: int, ring_bytes: int) -> None:
        self.reader = reader
        self.tenant = tenant
        self.followers = 0
        self.floor = self.head = 0
        self.count = 0
        self.epoch = 0
        self._most = ring
        self._most_bytes = ring_bytes
        self._ring: deque[Entry] = deque()
        self._bytes = 0
        self._begun = asyncio.Event()
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name=f"events of {tenant}")
        self._task.add_done_callback(self._note_end)

    async def begun(self) -> None:
        """Waits until it reads. Raises `NoBackend`."""
        await self._begun.wait()
        self.check()

    def check(self) -> None:
        """Raises why it reads no more."""
        if self._task.done() and not self._task.cancelled() and (error := self._task.exception()) is not None:
            if isinstance(error, NoBackend):
                raise NoBackend(error.message)
            raise Internal("events can't be read; the log of the gateway tells more") from error

    async def end(self) -> None:
        """Reads no more."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    def place_after(self, sequence: int) -> int | None:
        """The place in the ring of what follows a sequence; None when the ring does not reach back to it."""
        if sequence < self.floor:
            return None
        later = 0
        for entry in reversed(self._ring):
            if entry.sequence <= sequence:
                break
            later += 1
        return self.count - later

    def at(self, place: int) -> list[Entry] | None:
        """A few events from a place on, none at the end; None when the ring does not reach back to it any more."""
        behind = self.count - place
        if behind > len(self._ring):
            return None
        found: list[Entry] = []
        size = 0
        for number in range(-behind, min(0, MOST - behind)):
            found.append(self._ring[number])
            size += found[-1].size
            if size >= SIZE:
                break
        return found

    async def news(self, until: float | None) -> None:
        """Waits for the next events. Raises `TimeoutError` at `until`, on the loop's clock."""
        async with asyncio.timeout_at(until):
            await self._news.wait()

    def put(self, batch: list[tuple[int, Event]]) -> None:
        """Takes events in the order of the stream, and wakes those that wait."""
        for sequence, event in batch:
            if sequence <= self.head:
                # The stream was lost and made anew: its sequences begin again, and so does everybody here.
                self._ring.clear()
                self._bytes = 0
                self.floor = 0
                self.epoch += 1
            entry = Entry(sequence, event)
            self.head = sequence
            self.count += 1
            self._ring.append(entry)
            self._bytes += entry.size
            while len(self._ring) > self._most or self._bytes > self._most_bytes:
                oldest = self._ring.popleft()
                self._bytes -= oldest.size
                self.floor = oldest.sequence
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, NoBackend):
            log.error("the events of %s can't be read", self.tenant, exc_info=error)
        self._begun.set()
        self._wake()

    async def _run(self) -> None:
        async with self.reader.subscribe(self.tenant) as subscription:
            self.floor = self.head = subscription.newest
            self._begun.set()
            async for batch in subscription.batches():
                self.put(batch)


class Follower:
    """One reader's way through a feed. `start` is the sequence after which it begins, `newest` the last one then."""

    def __init__(self, feed: Feed, query: Query, paging: asyncio.Semaphore) -> None:
        self._feed = feed
        self._query = query
        self._paging = paging
        self._place: int | None = None
        self._epoch = 0
        self.start = self.newest = self._position = 0

    async def begin(self) -> None:
        """Finds the place to begin at. Raises what NATS raises."""
        feed, after = self._feed, self._query.after
        self.newest = feed.head
        if after is None:
            after = feed.head
        elif after > feed.head:
            # Another gateway may know more than this one; or the stream that it belongs to is no more.
            client, _ = await feed.reader.connection()
            self.newest = await last_of(client, STREAM)
            after = 0 if after > self.newest else after
        self._epoch = feed.epoch
        self.start = self._position = after
        self._place = feed.place_after(after)

    async def steps(self, idle: float | None = None) -> AsyncGenerator[list[Entry] | Gap | None]:
        """What comes, in order, for ever: a few wanted events at once, or that some are lost.

        None comes when nothing else did for `idle` seconds.
        """
        feed, query, now = self._feed, self._query, asyncio.get_running_loop().time
        quiet_until = None if idle is None else now() + idle
        while True:
            feed.check()
            if self._epoch != feed.epoch:
                lost, self._epoch = self._position, feed.epoch
                self._position, self._place = 0, feed.place_after(0)
                yield Gap(lost)
            elif self._place is None:
                async for found in self._past():
                    yield found
            else:
                entries = feed.at(self._place)
                if entries is None:
                    self._place = None
                elif not entries:
                    try:
                        await feed.news(quiet_until)
                    except TimeoutError:
                        yield None
                        quiet_until = None if idle is None else now() + idle
                else:
                    self._place += len(entries)
                    # A gateway that lags behind another one finds again what its reader has from there.
                    wanted = [e for e in entries if e.sequence > self._position and query.passes(e.event)]
                    self._position = max(self._position, entries[-1].sequence)
                    if wanted:
                        yield wanted
                        quiet_until = None if idle is None else now() + idle

    async def _past(self) -> AsyncGenerator[list[Entry] | Gap]:
        """One page behind the position."""
        heed_cancellation()
        feed, query, epoch = self._feed, self._query, self._feed.epoch
        try:
            async with self._paging:
                client, _ = await feed.reader.connection()
                page = await read_page(
                    client, STREAM, filters(feed.tenant, query.kinds), after=self._position, most=MOST, size=SIZE
                )
        except _FAILURES as error:
            log.debug("a page of the events of %s can't be read: %s", feed.tenant, error)
            await asyncio.sleep(_RETRY)
            return
        if epoch != feed.epoch:
            return
        if page.first > self._position + 1:
            yield Gap(page.first - 1)
        found: list[Entry] = []
        for sequence, data in page.messages:
            event = decoded(sequence, data)
            if event is not None and query.passes(event):
                found.append(Entry(sequence, event))
        before, self._position = self._position, page.upto
        self._place = feed.place_after(self._position)
        if found:
            yield found
        elif self._place is None and page.upto <= before:
            # The stream was made anew, and the feed has not found out yet.
            await asyncio.sleep(_RETRY)
