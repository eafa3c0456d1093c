"""Lists the records of one tenant, newest first.

There is no index: the stream is read backwards in windows, since the newest records are what is asked for most. A page
may hold fewer records than were asked for, none even, and still have a next one: a search looks at so many records in
one go and not at more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from maestro.usage.v1.usage_pb2 import AuditRecord, ListAuditRecordsRequest, ListAuditRecordsResponse
from maestro_gateway.audit.chain import ANSWER, STREAM, subject_of
from maestro_gateway.audit.wire import Wire
from maestro_gateway.ledger.scan import FAILURES, Entry, scan
from maestro_sdk.errors import InvalidRequest, NoBackend
from maestro_sdk.service.bus import Client

_PAGE = 100
_NARROWEST, _WIDEST = 1000, 2**20
"""Sequences of the stream that one window has."""
_FEW, _MANY = 250, 5000
"""Records of the tenant in a window below which the next one is wider, and above which it is read again narrower."""
_MOST_SEEN = 20_000
_MOST_BYTES = 2 * 2**20
"""Bytes of one page, about: labels may make records large."""
_TOKEN = 19
"""Digits of the largest sequence."""
_LIMIT = 10.0
_AT_ONCE = 4


class AuditLog:
    """Reads chains over `wire`; few at a time, since each reading may look at very many records."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def list(self, tenant: str, request: ListAuditRecordsRequest) -> ListAuditRecordsResponse:
        """One page. Raises `InvalidRequest` for a token of another answer, and `NoBackend` without NATS."""
        before = _read_token(request.page_token)
        client = await self._wire.client()
        try:
            async with asyncio.timeout(_LIMIT), self._turn:
                return await self._list(client, tenant, request, before)
        except TimeoutError:
            raise NoBackend("the audit can't be read now: NATS takes too long", retry_after=1.0) from None
        except FAILURES as error:
            raise NoBackend(f"the audit can't be read now: {error!r}", retry_after=1.0) from None

    async def _list(
        self, client: Client, tenant: str, request: ListAuditRecordsRequest, before: int
    ) -> ListAuditRecordsResponse:
        size = request.page_size or _PAGE
        since = request.start_time.ToNanoseconds() if request.HasField("start_time") else 0
        page, weight, full = ListAuditRecordsResponse(), 0, False
        async with aclosing(_backwards(client, subject_of(tenant), before)) as windows:
            async for entries, reached in windows:
                for entry in reversed(entries):
                    if entry.time < since:
                        # A record is never younger than its message, so nothing that is wanted lies before this one.
                        page.next_page_token = ""
                        return page
                    record = AuditRecord.FromString(entry.data)
                    if not _fits(record, request):
                        continue
                    if full:
                        return page
                    page.records.append(record)
                    weight += len(entry.data)
                    if full := len(page.records) == size or weight > _MOST_BYTES:
                        page.next_page_token = str(entry.sequence)
                if not reached or not full:
                    page.next_page_token = reached
        return page


async def _backwards(client: Client, subject: str, before: int) -> AsyncGenerator[tuple[list[Entry], str]]:
    """Windows of a stream, the newest first, and the token behind each; empty where nothing is left."""
    answer = json.loads((await client.request(f"$JS.API.STREAM.INFO.{STREAM}", b"", timeout=ANSWER)).data)
    if (state := answer.get("state")) is None:
        raise NoBackend("the stream of the audit is away; the gateways make it anew", retry_after=1.0)
    first, high = int(state["first_seq"]), int(state["last_seq"]) + 1
    high = min(high, before) if before else high
    width, seen = _NARROWEST, 0
    while high > first and seen < _MOST_SEEN:
        low = max(first, high - width)
        entries = await _window(client, subject, low, high)
        if entries is None:
            width = max(_NARROWEST, width // 8)
            continue
        seen, high = seen + len(entries), low
        yield entries, str(low) if low > first else ""
        if len(entries) < _FEW:
            width = min(width * 4, _WIDEST)


async def _window(client: Client, subject: str, low: int, high: int) -> list[Entry] | None:
    """What the stream holds from `low` to before `high`; None when that is too much for one window."""
    found: list[Entry] = []
    async with aclosing(scan(client, STREAM, [subject], low)) as batches:
        async for batch in batches:
            found += [entry for entry in batch if entry.sequence < high]
            if batch[-1].sequence >= high - 1:
                break
            if len(found) > _MANY:
                return None
    return found


def _fits(record: AuditRecord, request: ListAuditRecordsRequest) -> bool:
    moment = record.time.ToNanoseconds()
    return (
        (not request.HasField("start_time") or moment >= request.start_time.ToNanoseconds())
        and (not request.HasField("end_time") or moment < request.end_time.ToNanoseconds())
        and request.request_id in ("", record.request_id)
        and request.key_id in ("", record.key_id)
        and request.operation in ("", record.operation)
        and request.target in ("", record.target)
        and request.outcome in (0, record.outcome)
    )


def _read_token(token: str) -> int:
    if not token:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) <= _TOKEN and 0 < int(token) < 2**63):
        raise InvalidRequest.at("page_token", "is no token of an earlier answer")
    return int(token)
