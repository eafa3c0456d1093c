"""A ledger in a real NATS, and what the audit makes of it, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import nats

from maestro.event.v1.event_pb2 import Caller, Event, RequestCompleted, RequestOperation
from maestro.usage.v1.usage_pb2 import AuditRecord
from maestro_gateway.audit.chain import STREAM, subject_of
from maestro_gateway.audit.sealer import Sealer
from maestro_gateway.audit.wire import Wire
from maestro_gateway.ledger.scan import scan
from maestro_gateway.ledger.stream import ensure_ledger
from maestro_sdk.service.bus import ensure_stream
from maestro_sdk.service.events import new_event
from maestro_sdk.testing.nats import NatsServer

FOREVER = 400 * 86400.0
CHAT = RequestOperation.REQUEST_OPERATION_CHAT


class Book:
    """The streams of events, of the ledger and of the audit on one server."""

    def __init__(self, server: NatsServer, client: Any) -> None:
        self.server = server
        self.client = client
        self.js = client.jetstream(timeout=5)

    async def write(self, *events: Event, known_again: bool = True) -> None:
        """Publishes events as services do; without `known_again` the stream takes an event twice."""
        for event in events:
            headers = {"Nats-Msg-Id": event.id} if known_again else None
            subject = f"maestro.events.{event.tenant}.{event.kind}"
            await self.js.publish(subject, event.SerializeToString(), headers=headers)

    async def records(self, tenant: str = "acme") -> list[AuditRecord]:
        """The tenant's chain as it stands in the stream."""
        found: list[AuditRecord] = []
        async with aclosing(scan(self.client, STREAM, [subject_of(tenant)])) as batches:
            async for batch in batches:
                found += [AuditRecord.FromString(entry.data) for entry in batch]
        return found

    async def sealed(self, count: int, tenant: str = "acme", timeout: float = 15.0) -> list[AuditRecord]:
        """The chain, once it has `count` records. Raises `TimeoutError`."""
        found: list[AuditRecord] = []
        try:
            async with asyncio.timeout(timeout):
                while len(found := await self._there(tenant)) < count:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise TimeoutError(f"{len(found)} of {count} records were sealed") from None
        return found

    async def _there(self, tenant: str) -> list[AuditRecord]:
        with contextlib.suppress(Exception):
            return await self.records(tenant)
        return []


@asynccontextmanager
async def a_book(folder: Path) -> AsyncGenerator[Book]:
    """A server with an empty ledger."""
    server = NatsServer(folder / "nats")
    await server.start()
    try:
        client = await cast("Any", nats).connect(server.url, max_reconnect_attempts=-1, reconnect_time_wait=0.05)
        try:
            await ensure_stream(client, FOREVER)
            await ensure_ledger(client, FOREVER)
            yield Book(server, client)
        finally:
            await client.close()
    finally:
        await server.kill()


@asynccontextmanager
async def a_sealer(
    book: Book,
    retention: Callable[[str], float] = lambda _: FOREVER,
    *,
    lease: float = 0.5,
    learned: int = 5000,
) -> AsyncGenerator[Sealer]:
    """A gateway's sealer, with less patience than usual."""
    wire = Wire(book.server.url)
    sealer = Sealer(wire, "gateway", retention, pause=0.02, lease=lease, learned=learned)
    keeping, sealing = asyncio.create_task(wire.keep()), asyncio.create_task(sealer.run())
    try:
        yield sealer
    finally:
        for task in (sealing, keeping):
            task.cancel()
            await asyncio.wait((task,))


async def counts(*sealers: Sealer, wanted: int, timeout: float = 5.0) -> list[int]:
    """How many records each appended, once these are `wanted`. NATS shows records a moment before it says so."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while sum(sealer.sealed for sealer in sealers) < wanted:
                await asyncio.sleep(0.01)
    return [sealer.sealed for sealer in sealers]


def completed(number: int, tenant: str = "acme", ago: float = 0.0) -> Event:
    """The end of a request."""
    payload = RequestCompleted(
        request_id=f"req-{number}",
        operation=CHAT,
        requested_model="default",
        key_id="key_1",
        metadata={"team": 'ⓐ \U0001f600 "x"\n'},
        caller=Caller(principal="ada", client_address="10.0.0.7", user_agent="test", method="/v1/chat"),
    )
    payload.latency.FromMilliseconds(250)
    event = new_event(payload, f"request/req-{number}", tenant=tenant)
    event.time.FromNanoseconds(int((time.time() - ago) * 1e9))
    return event
