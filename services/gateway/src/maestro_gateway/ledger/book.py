"""The ledger as gateways read it: what was used and spent in a span of time, to the nano-dollar and to the entry.

What arrived in hours that are over is summed up once for all gateways; the rest is read entry by entry. What NATS has
not copied into the ledger yet is read from the stream of events, so an answer holds all that has left the gateways.
"""

from __future__ import annotations

import asyncio
import datetime
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Self

from maestro_gateway.ledger.desk import Desk, Span
from maestro_gateway.ledger.rollups import Rollups
from maestro_gateway.ledger.scan import FAILURES, Entry, scan
from maestro_gateway.ledger.standing import Missing, look, subjects
from maestro_gateway.ledger.stream import KINDS, STREAM, ensure_ledger
from maestro_gateway.ledger.tally import DAY, HOUR, Row, Tally, View
from maestro_sdk.errors import NoBackend
from maestro_sdk.service import bus
from maestro_sdk.service.bus import Client, Link
from maestro_sdk.service.settings import Config

_PATIENCE = 1.0
"""Seconds to wait for a connection: when none stands, another one hardly comes in time."""
_LIMIT = 30.0
_AT_ONCE = 4
_MOST_DESKS = 64
_NANO = 10**9


class Ledger:
    """Reads the ledger while its `async with` block runs, and makes it where it is missing. Works without NATS, too."""

    def __init__(self, url: str, *, retention: float = 400 * 86400.0) -> None:
        """`retention` in seconds."""
        self._retention = retention
        self._up = asyncio.Event()
        self._link: Link = Link(url, "ledger", self._link_changed)
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._desks: OrderedDict[str, Desk] = OrderedDict()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def from_config(cls, config: Config) -> Ledger:
        """The ledger of a mesh."""
        return cls(config.nats.url, retention=config.ledger.retention)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._link.keep(self._prepare), name="ledger")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    @property
    def client(self) -> Client | None:
        """The connection to NATS while it stands."""
        return self._link.client if self._link.up else None

    async def spent(
        self,
        tenant: str,
        since: float,
        until: float | None = None,
        *,
        key_id: str = "",
        persona: str = "",
        labels: Mapping[str, str] | None = None,
        timeout: float = _LIMIT,
    ) -> tuple[int, int]:
        """Nano-dollars and tokens of a tenant's requests that ended from `since` to before `until`.

        Times are Unix time; without `until`, all since. Only requests of this key and persona and with all these
        labels, where given. Raises `NoBackend` when NATS can't be reached or the time is up.
        """
        end = None if until is None else round(until * _NANO)
        wanted, everything = frozenset((labels or {}).items()), Row(0, "", "", "", "", "", "", "", ())

        def view(row: Row) -> Row | None:
            own = (not key_id or row.key == key_id) and (not persona or row.persona == persona)
            return everything if own and wanted.issubset(row.labels) else None

        tally = await self.tally(tenant, round(since * _NANO), end, view=view, timeout=timeout)
        return tally.total()

    async def tally(
        self, tenant: str, since: int, until: int | None = None, *, view: View | None = None, timeout: float = _LIMIT
    ) -> Tally:
        """All rows of a tenant's requests that ended from `since` to before `until`, in nanoseconds of Unix time.

        `view` lays rows together, so that fewer are held. Raises `NoBackend` when NATS can't be reached, or when it is
        not done in `timeout` seconds; what it has summed up by then is kept, so the next one goes on from there.
        """
        span = self._kept(since, until)
        try:
            async with asyncio.timeout(timeout):
                return await self._read(await self._connection(), tenant, span, view)
        except TimeoutError:
            reason = self._link.trouble or f"summing up takes longer than {timeout:g} s; ask again, it goes on"
            raise NoBackend(f"the ledger can't be read now: {reason}", retry_after=1.0) from None
        except FAILURES as error:
            raise NoBackend(f"the ledger can't be read now: {error!r}", retry_after=1.0) from error

    async def tenants(self, *, timeout: float = _LIMIT) -> list[str]:
        """The tenants of whom the ledger holds anything, by name. Raises `NoBackend`."""
        found: set[str] = set()
        try:
            async with asyncio.timeout(timeout):
                client = await self._connection()
                for stream, kinds in ((STREAM, (">",)), (bus.STREAM, KINDS)):
                    for kind in kinds:
                        async for subject in subjects(client, stream, f"maestro.events.*.{kind}"):
                            found.add(subject.split(".")[2])
        except (TimeoutError, *FAILURES) as error:
            reason = self._link.trouble or repr(error)
            raise NoBackend(f"the ledger can't be read now: {reason}", retry_after=1.0) from error
        return sorted(found)

    async def _connection(self) -> Client:
        """The connection to NATS. Raises `TimeoutError` when there is none, or no sign of life, for a second."""
        async with asyncio.timeout(_PATIENCE):
            await self._up.wait()
        client = self._link.client
        if client is None:
            raise TimeoutError
        # A server that stands still keeps its connections: nobody should wait for it as for a long sum.
        await client.flush(timeout=_PATIENCE)
        return client

    async def _read(self, client: Client, tenant: str, span: Span, view: View | None) -> Tally:
        try:
            standing = await look(client)
        except Missing:
            # Somebody deleted it while gateways run.
            await self._prepare(client)
            standing = await look(client)
        desk = self._desk(tenant, standing.epoch)

        def read(start: int | datetime.datetime) -> AsyncGenerator[list[Entry]]:
            return scan(client, STREAM, [f"maestro.events.{tenant}.>"], start)

        # In this order: a tenant that asks much waits for itself, and takes one turn of all.
        async with desk.lock, self._turn:
            rollups = Rollups(client, tenant, standing.epoch)
            await desk.catch_up(rollups, read, standing.newest // (HOUR * _NANO))
            total = await desk.tally(rollups, read, span, view)
            if standing.copied is None:
                return total
            kinds = [f"maestro.events.{tenant}.{kind}" for kind in KINDS]
            async with aclosing(scan(client, bus.STREAM, kinds, standing.copied + 1)) as batches:
                async for batch in batches:
                    for found in await desk.beyond(batch, read):
                        if span.holds(found.event):
                            total.count(found.event)
                        if found.undone is not None and span.holds(found.undone):
                            total.uncount(found.undone)
        return total

    def _kept(self, since: int, until: int | None) -> Span:
        """What of a span can hold anything."""
        now = time.time()
        oldest = int(now - self._retention - DAY) // HOUR * HOUR * _NANO
        newest = int(now + DAY) // HOUR * HOUR * _NANO
        return Span(max(since, oldest), None if until is None else min(until, newest))

    def _desk(self, tenant: str, epoch: int) -> Desk:
        desk = self._desks.get(tenant)
        if desk is None or desk.epoch != epoch:
            desk = self._desks[tenant] = Desk(epoch)
        self._desks.move_to_end(tenant)
        while len(self._desks) > _MOST_DESKS:
            self._desks.popitem(last=False)
        return desk

    async def _prepare(self, client: Client) -> None:
        await ensure_ledger(client, self._retention)

    def _link_changed(self) -> None:
        if self._link.up:
            self._up.set()
        else:
            self._up.clear()
