"""Brings lifecycle events to their stream.

Publishing costs the caller microseconds and never waits. While NATS is away events go to a file and follow later in
the same order under the same ids, so the stream holds each of them once. Kinds that are `durable` are on the disk when
`publish` returns: should the process be killed, its next life delivers them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import nats.errors

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.service.bus import NO_STREAM, Client, Link, ensure_stream, heed_cancellation, refusal
from maestro_sdk.service.event_counters import EventCounters
from maestro_sdk.service.event_journal import EventJournal
from maestro_sdk.service.settings import Config
from maestro_sdk.service.spool import Spool

_log = logging.getLogger(__name__)

_WINDOW = 512
"""Events in flight at once."""
_LINGER = 0.05
"""Seconds that a window waits for company unless it is full: one flush and one wake-up for all of its events.

A window costs NATS and its publisher as much as twenty events do, whatever it holds.
"""
_ACK_TIMEOUT = 5.0
_RETRY = 1.0
"""Seconds before what was refused is tried again."""
_SPILL = 1000
"""Events that are moved to the disk before other tasks get a turn."""


class EventPublisher:
    """Publishes events while its `async with` block runs. It starts and works without NATS, too."""

    def __init__(
        self,
        url: str,
        spool: Path,
        *,
        name: str = "maestro",
        queue: int = 10_000,
        spool_bytes: int = 64 * 2**20,
        retention: float = 7 * 86400.0,
        durable: Collection[str] = (),
    ) -> None:
        """`spool` is the file for events that wait; `queue` counts events, `retention` is in seconds.

        `durable` are the kinds that a death of this process must not take; they have a file beside the spool.
        """
        self._capacity = queue
        self._durable = frozenset(durable)
        self._journal = EventJournal(spool.with_stem(f"{spool.stem}-durable")) if durable else None
        self._retention = retention
        self._queue: deque[Event] = deque()
        self._spool = Spool(spool, spool_bytes)
        self._link = Link(url, name, self._link_changed)
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._settled = asyncio.Event()
        # What was taken from the queue and not acknowledged yet, by number; the place in the window is the number.
        self._hand: dict[int, bytes] = {}
        # How many of the queue are in hand.
        self._window = 0
        # Whether the disk took less than it was given in this turn.
        self._crowded = False
        # Whether what is in hand is on the disk already.
        self._copied = False
        self._refused = ""
        self._round = 0
        self._inbox = ""
        self._heard: Client | None = None
        self._accepted = self._delivered = self._spooled = self._dropped = 0
        self.left: tuple[Event, ...] = ()
        """Durable events of an earlier life, the oldest of those that were accepted."""
        self.on_secured: Callable[[int], None] = lambda number: None
        """Told each time how many of the accepted events, from the first, outlive this process, and before anything
        else that remembers them is given up."""
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, config: Config, name: str, durable: Collection[str] = ()) -> EventPublisher:
        """The publisher of the service `name`."""
        return cls(
            config.nats.url,
            config.data / "spool" / f"{name}.events",
            name=name,
            queue=config.events.queue,
            spool_bytes=config.events.spool,
            retention=config.events.retention,
            durable=durable,
        )

    async def __aenter__(self) -> Self:
        self._spool.open()
        if self._journal is not None:
            # They are younger than what the spool has.
            self._queue.extend(Event.FromString(record) for record in self._journal.open())
            self._accepted = len(self._queue)
            self.left = tuple(self._queue)
        if len(self._spool) or self._queue:
            _log.info("%d events wait on the disk since last time", len(self._spool) + len(self._queue))
            self._wake.set()
        self._task = asyncio.create_task(self._run(), name="events")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Delivers what it can within two seconds; the rest waits on the disk for the next start."""
        await self.flush(2.0 if self._link.up else 0.0)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        self._give_back()
        while self._queue and self._spill():
            pass
        self._release()
        self._drop(len(self._queue))
        self._spool.close()
        if self._journal is not None:
            self._journal.close()

    def publish(self, event: Event) -> None:
        """Takes an event. Never waits, never raises; when everything is full the event is dropped and counted."""
        if len(self._queue) >= self._capacity and self._task is not None:
            self._relieve()
        if len(self._queue) >= self._capacity or self._task is None:
            self._drop(1)
            return
        self._accepted += 1
        self._queue.append(event)
        if event.kind in self._durable and self._journal is not None:
            self._journal.put(self._accepted, event.SerializeToString())
        self._wake.set()

    async def flush(self, timeout: float = 20.0) -> bool:
        """Waits until every event of before is in the stream; False when that takes longer than `timeout` seconds."""
        before = self._accepted
        try:
            async with asyncio.timeout(timeout):
                while self.secured < before or len(self._spool):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    @property
    def degraded(self) -> str:
        """Why events wait on the disk instead of being in the stream; empty when all is well."""
        reason = self._link.trouble if not self._link.up else self._refused
        if reason and len(self._spool):
            return f"{reason}; {len(self._spool)} events wait on the disk"
        return reason

    @property
    def delayed(self) -> bool:
        """Whether events wait on the disk: nobody else knows of them."""
        return len(self._spool) > 0

    @property
    def ready(self) -> bool:
        """Whether events reach the stream."""
        return not self.degraded

    @property
    def accepted(self) -> int:
        """How many events were taken since the start."""
        return self._accepted

    @property
    def secured(self) -> int:
        """How many of the accepted events, from the first, outlive this process: in the stream, or on the disk."""
        return self._accepted - len(self._queue) - self._window

    @property
    def counters(self) -> EventCounters:
        """What became of the events."""
        return EventCounters(
            self._accepted,
            self._delivered,
            self._spooled,
            self._dropped,
            len(self._queue),
            len(self._spool),
            self._journal.missed if self._journal is not None else 0,
        )

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.keep(self._prepare))
            while True:
                heed_cancellation()
                try:
                    await self._step()
                    self._release()
                    self._moved.set()
                except Exception:  # noqa: BLE001 - whatever it is: events wait on the disk, and the service goes on
                    _log.exception("events can't be delivered")
                    self._give_back()
                    await asyncio.sleep(_RETRY)

    async def _step(self) -> None:
        """One turn: waits for work, then moves one window of events on."""
        waiting = len(self._spool)
        self._crowded = False
        if not self._queue and not (waiting and self._link.up):
            self._wake.clear()
            await self._wake.wait()
        elif not self._link.up:
            kept = self._spill()
            self._release()
            await asyncio.sleep(_RETRY if not kept else 0 if self._queue else _LINGER)
        elif waiting:
            # The disk has the older events: the queue waits, and goes behind them when it grows.
            if len(self._queue) > self._capacity // 2:
                self._spill()
            records = self._spool.peek(_WINDOW)
            settled = await self._send([Event.FromString(record) for record in records], records)
            self._spool.drop(records[:settled])
            self._delivered += settled
            self._hand.clear()
            if settled < len(records) and self._link.up:
                await asyncio.sleep(_RETRY)
        else:
            if len(self._queue) < _WINDOW:
                await asyncio.sleep(_LINGER)
                if not self._link.up:
                    return
            events = [self._queue.popleft() for _ in range(min(_WINDOW, len(self._queue)))]
            self._window = len(events)
            await self._send(events, [event.SerializeToString() for event in events])
            self._delivered += len(events) - len(self._hand)
            self._give_back()

    async def _send(self, events: list[Event], records: list[bytes]) -> int:
        """Publishes a window and waits for its acknowledgements; what lacks one stays in hand.

        Returns how many from the front need nothing more.
        """
        client = self._link.client
        self._hand = dict(enumerate(records))
        self._refused = ""
        self._settled.clear()
        self._round += 1
        if client is None:
            return 0
        for number, (event, record) in enumerate(zip(events, records, strict=True)):
            try:
                await client.publish(
                    f"maestro.events.{event.tenant}.{event.kind}",
                    record,
                    reply=f"{self._inbox}.{self._round}.{number}",
                    headers={"Nats-Msg-Id": event.id},
                )
            except (nats.errors.MaxPayloadError, nats.errors.BadSubjectError) as error:
                # It would fail for ever, and everything behind it with it.
                _log.error("an event %s can't be published: %s", event.kind, error)
                self._hand.pop(number, None)
                self._drop(1)
        try:
            async with asyncio.timeout(_ACK_TIMEOUT):
                while self._hand and self._link.up and not self._refused:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            self._refused = f"NATS acknowledged nothing within {_ACK_TIMEOUT:.0f} s"
        if self._refused:
            _log.warning("events go to the disk: %s", self._refused)
            if self._refused == NO_STREAM and self._link.up:
                # Somebody took it away. Events that were in it are gone, later ones need not be.
                with suppress(nats.errors.Error, TimeoutError, OSError):
                    await ensure_stream(client, self._retention)
        return min(self._hand, default=len(records))

    async def _prepare(self, client: Client) -> None:
        """Makes a new connection ready: the stream exists, acknowledgements are heard."""
        await ensure_stream(client, self._retention)
        if self._heard is not client:
            self._inbox = client.new_inbox()
            await client.subscribe(f"{self._inbox}.>", cb=self._on_ack)
            self._heard = client

    async def _on_ack(self, message: Any) -> None:
        turn, number = message.subject.split(".")[-2:]
        if int(turn) != self._round:
            return
        reason = refusal(message.data, message.headers)
        if reason:
            self._refused = reason
        else:
            self._hand.pop(int(number), None)
        if reason or not self._hand:
            self._settled.set()

    def _link_changed(self) -> None:
        self._settled.set()
        self._wake.set()

    def _give_back(self) -> None:
        """Puts what is still in hand on the disk: it is older than everything in the queue."""
        if self._window and not self._copied:
            self._keep(list(self._hand.values()))
        self._hand.clear()
        self._window = 0
        self._copied = False

    def _relieve(self) -> None:
        """Makes room in a queue that is full because NATS takes its time, or stands still."""
        if self._crowded:
            return
        if self._window and not self._copied:
            # It is older than the queue, and may be on its way: what comes twice is known by its id.
            hand = list(self._hand.values())
            self._copied = self._append(hand) == len(hand)
            self._crowded = not self._copied
        if not self._crowded:
            self._spill()
            self._release()

    def _spill(self) -> bool:
        """Moves the oldest events of the queue to the disk; False when it did not take all of them."""
        count = min(_SPILL, len(self._queue))
        return self._keep([self._queue.popleft().SerializeToString() for _ in range(count)])

    def _keep(self, records: list[bytes]) -> bool:
        """Puts records on the disk, and what it does not take back into the queue."""
        kept = self._append(records)
        self._queue.extendleft(Event.FromString(record) for record in reversed(records[kept:]))
        self._crowded = kept < len(records)
        return not self._crowded

    def _append(self, records: list[bytes]) -> int:
        if not records:
            return 0
        try:
            kept = self._spool.append(records)
        except OSError as error:
            _log.error("events can't be kept on the disk: %s", error)
            kept = 0
        self._spooled += kept
        return kept

    def _release(self) -> None:
        self.on_secured(self.secured)
        if self._journal is not None:
            self._journal.release(self.secured)

    def _drop(self, count: int) -> None:
        if not count:
            return
        if not self._dropped:
            _log.error("events are dropped: neither the stream nor the disk takes them (told once)")
        self._dropped += count
