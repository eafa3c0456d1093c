"""Audit records are listed newest first, in pages, by every filter, and for their own tenant only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from maestro.event.v1.event_pb2 import Caller, Event, Failure, RequestDenied, RequestFailed
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.usage.v1.usage_pb2 import (
    AUDIT_OUTCOME_CANCELLED,
    AUDIT_OUTCOME_DENIED,
    AUDIT_OUTCOME_FAILED,
    AUDIT_OUTCOME_SUCCEEDED,
    ListAuditRecordsRequest,
    ListAuditRecordsResponse,
)
from maestro_gateway.audit.desk import AuditDesk
from maestro_gateway.audit.wire import Wire
from maestro_gateway.identity.principal import Principal, enter
from maestro_sdk.errors import InvalidRequest, NoBackend, PermissionDenied
from maestro_sdk.service.events import MESH, new_event

from .sealing import CHAT, a_book, a_sealer, completed


@asynccontextmanager
async def a_desk(url: str) -> AsyncGenerator[AuditDesk]:
    wire = Wire(url)
    keeping = asyncio.create_task(wire.keep())
    try:
        yield AuditDesk(wire)
    finally:
        keeping.cancel()
        await asyncio.wait((keeping,))


def failed(number: int, reason: ErrorReason.ValueType) -> Event:
    payload = RequestFailed(request_id=f"req-{number}", operation=CHAT, requested_model="other", key_id="key_2")
    payload.failure.CopyFrom(Failure(reason=reason))
    return new_event(payload, f"request/req-{number}", tenant="acme")


def denied(tenant: str, method: str) -> Event:
    payload = RequestDenied(request_id="req-x", failure=Failure(reason=ErrorReason.ERROR_REASON_UNAUTHENTICATED))
    payload.caller.CopyFrom(Caller(method=method))
    return new_event(payload, "request/req-x", tenant=tenant)


def admit(tenant: str, *scopes: str) -> None:
    enter(Principal(tenant, "key_9", frozenset(scopes), "key"))


def ids(page: ListAuditRecordsResponse) -> list[str]:
    return [record.request_id for record in page.records]


async def test_pages_and_filters(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, a_desk(book.server.url) as desk:
        # Those of another tenant stand between them, and a page never holds one.
        for n in range(40):
            await book.write(completed(n, ago=400.0 - 10 * n), completed(n, "globex"))
        await book.write(failed(40, ErrorReason.ERROR_REASON_TIMEOUT), failed(41, ErrorReason.ERROR_REASON_CANCELLED))
        await book.write(denied("acme", "/maestro.tool.v1.ToolService/CallTool"), denied(MESH, "/v1/chat/stream"))
        async with a_sealer(book):
            await book.sealed(43)
            await book.sealed(1, MESH)
        admit("acme", "admin")
        found: list[str] = []
        sizes: list[int] = []
        token = ""
        while True:
            page = await desk.list_records(ListAuditRecordsRequest(page_size=15, page_token=token))
            found += ids(page)
            sizes.append(len(page.records))
            assert {record.tenant for record in page.records} == {"acme"}
            if not (token := page.next_page_token):
                break
        assert found == ["req-x", "req-41", "req-40", *(f"req-{n}" for n in reversed(range(40)))]
        assert sizes == [15, 15, 13]

        async def ask(request: ListAuditRecordsRequest) -> list[str]:
            return ids(await desk.list_records(request))

        assert await ask(ListAuditRecordsRequest(request_id="req-7")) == ["req-7"]
        assert await ask(ListAuditRecordsRequest(key_id="key_2")) == ["req-41", "req-40"]
        assert await ask(ListAuditRecordsRequest(target="other", outcome=AUDIT_OUTCOME_FAILED)) == ["req-40"]
        assert await ask(ListAuditRecordsRequest(outcome=AUDIT_OUTCOME_CANCELLED)) == ["req-41"]
        assert await ask(ListAuditRecordsRequest(outcome=AUDIT_OUTCOME_DENIED)) == ["req-x"]
        assert await ask(ListAuditRecordsRequest(operation="tool")) == ["req-x"]
        assert len(await ask(ListAuditRecordsRequest(operation="chat", outcome=AUDIT_OUTCOME_SUCCEEDED))) == 40
        assert await ask(ListAuditRecordsRequest(key_id="key_nobody")) == []
        middle = (await desk.list_records(ListAuditRecordsRequest(request_id="req-20"))).records[0].time
        assert (await ask(ListAuditRecordsRequest(end_time=middle, page_size=2))) == ["req-19", "req-18"]
        since = await ask(ListAuditRecordsRequest(start_time=middle))
        assert since == found[:23]
        assert await ask(ListAuditRecordsRequest(start_time=Timestamp(seconds=4_000_000_000))) == []


async def test_only_operators_see_other_tenants(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, a_desk(book.server.url) as desk:
        await book.write(completed(1), completed(2, "globex"), denied(MESH, "/v1/chat/stream"))
        async with a_sealer(book):
            for tenant in ("acme", "globex", MESH):
                await book.sealed(1, tenant)
        admit("globex", "admin")
        assert ids(await desk.list_records(ListAuditRecordsRequest())) == ["req-2"]
        assert ids(await desk.list_records(ListAuditRecordsRequest(request_id="req-1"))) == []
        for other in ("acme", "nobody", MESH):
            with pytest.raises(PermissionDenied, match="tenant: another tenant"):
                await desk.list_records(ListAuditRecordsRequest(tenant=other))
        admit("globex", "operator")
        assert ids(await desk.list_records(ListAuditRecordsRequest(tenant="acme"))) == ["req-1"]
        (record,) = (await desk.list_records(ListAuditRecordsRequest(tenant=MESH))).records
        assert (record.operation, record.reason) == ("chat", ErrorReason.ERROR_REASON_UNAUTHENTICATED)


async def test_a_page_is_bounded_by_its_bytes(tmp_path: Path) -> None:
    events = [completed(n) for n in range(200)]
    for event in events:
        event.request_completed.metadata.update({f"label-{n}": "x" * 512 for n in range(31)})
    async with a_book(tmp_path) as book, a_desk(book.server.url) as desk:
        await asyncio.gather(*(book.write(event) for event in events))
        async with a_sealer(book):
            await book.sealed(200)
        admit("acme", "admin")
        sequences: list[int] = []
        token = ""
        while True:
            page = await desk.list_records(ListAuditRecordsRequest(page_size=1000, page_token=token))
            assert page.ByteSize() < 2.1 * 2**20
            sequences += [record.sequence for record in page.records]
            if not (token := page.next_page_token):
                break
        assert sequences == list(reversed(range(1, 201)))


@pytest.mark.parametrize("token", ["x", "-1", "0", "1.5", "9" * 30, "0" * 19 + "1" + "9" * 5000, "٣"])
async def test_a_token_of_nobody_is_refused(token: str) -> None:
    admit("acme", "admin")
    desk = AuditDesk(Wire("nats://127.0.0.1:1"))
    with pytest.raises(InvalidRequest, match="page_token"):
        await desk.list_records(ListAuditRecordsRequest(page_token=token))


async def test_nats_is_away() -> None:
    admit("acme", "admin")
    async with a_desk("nats://127.0.0.1:1") as desk:
        with pytest.raises(NoBackend, match="the audit can't be read now"):
            await desk.list_records(ListAuditRecordsRequest())


async def test_few_records_among_very_many_of_others(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, a_desk(book.server.url) as desk:
        events = [completed(1), *(completed(n, "globex") for n in range(2, 1500)), completed(1500)]
        await book.write(events[0])
        await asyncio.gather(*(book.write(event) for event in events[1:-1]))
        await book.write(events[-1])
        async with a_sealer(book):
            await book.sealed(2)
            await book.sealed(1498, "globex")
        admit("acme", "admin")
        page = await desk.list_records(ListAuditRecordsRequest())
        assert (ids(page), page.next_page_token) == (["req-1500", "req-1"], "")
        admit("globex", "admin")
        page = await desk.list_records(ListAuditRecordsRequest(page_size=1000))
        assert len(page.records) == 1000
        later = await desk.list_records(ListAuditRecordsRequest(page_size=1000, page_token=page.next_page_token))
        assert later.records[0].sequence == page.records[-1].sequence - 1
