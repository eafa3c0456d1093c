"""Those who are not let in leave a trace: who, why and from where, and few events however many knock."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import Event, Failure, RequestDenied, RequestStarted
from maestro.gateway.v1.key_pb2 import CreateKeyRequest, RevokeKeyRequest, RotateKeyRequest
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.usage.v1.usage_pb2 import AUDIT_OUTCOME_DENIED, AUDIT_OUTCOME_SUCCEEDED
from maestro_gateway.audit.acts import Acts
from maestro_gateway.audit.record import record_of
from maestro_gateway.audit.refusals import Refusals, refusing
from maestro_gateway.identity import Keys
from maestro_gateway.identity.door import authenticator
from maestro_gateway.identity.keys import configured
from maestro_gateway.identity.principal import Principal, enter
from maestro_gateway.identity.record import KeyRecord
from maestro_gateway.key_service import KeyService
from maestro_sdk.errors import PermissionDenied, Unauthenticated
from maestro_sdk.service.events import new_event
from maestro_sdk.tracing import Call, enter_call

UNKNOWN, FORBIDDEN = ErrorReason.ERROR_REASON_UNAUTHENTICATED, ErrorReason.ERROR_REASON_PERMISSION_DENIED
LIMITED = ErrorReason.ERROR_REASON_RATE_LIMITED
CHAT, KEYS = "/maestro.llm.v1.ChatService/Chat", "/maestro.gateway.v1.KeyService/CreateKey"


def knocking(refusals: Refusals, keys: Keys, method: str, key: str, address: str = "10.0.0.9") -> str | Awaitable[str]:
    metadata = (
        ("authorization", f"Bearer {key}"),
        ("x-request-id", "req-1"),
        ("x-forwarded-for", f"6.6.6.6, {address}"),
    )
    return authenticator(keys, refusals.note)(metadata, method)


def test_who_was_refused_and_why() -> None:
    events: list[Event] = []
    refusals = Refusals(events.append)
    keys = Keys([configured("acme", "mk-1", ["files"], name="ada")])
    record = KeyRecord("key_old", "globex", "11" * 32, "mk-", ("chat",), time.time() - 100, expires=time.time() - 1)
    keys.replace(record.principals(time.time()))
    with pytest.raises(Unauthenticated):
        knocking(refusals, keys, CHAT, "mk-nobody")
    with pytest.raises(PermissionDenied):
        knocking(refusals, keys, KEYS, "mk-1")
    # A REST call goes on to be refused in the shape of its API, and is told of once all the same.
    assert knocking(refusals, keys, "/maestro.gateway.v1.HttpService/Chat", "mk-1") == ""
    unknown, forbidden, facade = [event.request_denied for event in events]
    assert [event.tenant for event in events] == ["_mesh", "acme", "acme"]
    assert (unknown.failure.reason, unknown.key_id, unknown.request_id) == (UNKNOWN, "", "req-1")
    assert (unknown.caller.method, unknown.caller.client_address) == (CHAT, "10.0.0.9")
    assert (forbidden.failure.reason, forbidden.caller.principal) == (FORBIDDEN, "ada")
    assert forbidden.key_id == facade.key_id != ""
    assert b"mk-nobody" not in b"".join(event.SerializeToString() for event in events)
    told = record_of(events[1])
    assert told is not None
    assert (told.operation, told.outcome, told.key_id) == ("admin", AUDIT_OUTCOME_DENIED, forbidden.key_id)


def test_an_expired_key_is_refused_in_the_name_of_its_tenant() -> None:
    events: list[Event] = []
    keys = Keys([])
    good = configured("globex", "mk-old")
    keys.replace(
        {good.credential: Principal("globex", "key_old", frozenset({"chat"}), "key", "bob", expires=time.time() - 1)}
    )
    with pytest.raises(Unauthenticated, match="has expired"):
        knocking(Refusals(events.append), keys, CHAT, "mk-old")
    (event,) = events
    assert (event.tenant, event.request_denied.key_id) == ("globex", "key_old")
    assert event.request_denied.caller.principal == "bob"


async def test_an_attacker_fills_no_stream() -> None:
    events: list[Event] = []
    keys = Keys([("acme", "mk-1")])
    async with refusing(events.append) as refusals:
        for number in range(5000):
            with pytest.raises(Unauthenticated):
                knocking(refusals, keys, CHAT, f"mk-{number + 2}", f"10.0.{number % 500 // 250}.{number % 250}")
        # Ten calls of each of 64 addresses, and ten of all the others.
        assert len(events) == 650
        refusals.tell()
        assert (len(events), events[-1].request_denied.calls) == (651, 4350)
        refusals.tell()
        assert len(events) == 651
        for _ in range(12):
            with pytest.raises(Unauthenticated):
                knocking(refusals, keys, CHAT, "mk-x")
    # Each of them is counted once, those behind the last minute at the end.
    assert sum(event.request_denied.calls or 1 for event in events) == 5012
    assert events[-1].request_denied.calls == 2
    assert len({event.id for event in events}) == len(events)


def test_a_key_that_hammers_at_its_limit_fills_none_either() -> None:
    events: list[Event] = []
    refusals = Refusals(events.append)
    publish = refusals.sieve(events.append)
    for number in range(1000):
        denied = RequestDenied(request_id=f"r{number}", key_id="key_1", failure=Failure(reason=LIMITED))
        publish(new_event(denied, f"request/r{number}", tenant="acme"))
        publish(new_event(RequestStarted(request_id=f"r{number}"), f"request/r{number}", tenant="acme"))
    refusals.tell()
    assert [event.kind for event in events].count("request.started") == 1000
    told = [event.request_denied for event in events if event.kind == "request.denied"]
    assert [denied.calls for denied in told] == [0] * 10 + [990]
    assert [denied.request_id for denied in told] == [f"r{number}" for number in range(11)]


class Ring:
    """Keeps keys in memory, as a ring does in NATS."""

    def __init__(self) -> None:
        self.records: dict[str, KeyRecord] = {}
        self.used: dict[str, float] = {}

    def of_tenant(self, tenant: str | None) -> list[KeyRecord]:
        return [record for record in self.records.values() if tenant in (None, record.tenant)]

    async def create(self, record: KeyRecord) -> None:
        self.records[record.key_id] = record

    async def change(self, key_id: str, make: Callable[[KeyRecord], KeyRecord]) -> KeyRecord:
        self.records[key_id] = make(self.records[key_id])
        return self.records[key_id]


async def test_acts_of_administration_are_told() -> None:
    events: list[Event] = []
    ring: Any = Ring()
    service = KeyService(ring, Acts(events.append))
    enter(Principal("operations", "key_op", frozenset({"operator"}), "key", "root"))
    enter_call(Call("req-7", "operations", ""))
    made = await service.CreateKey(CreateKeyRequest(tenant="acme", display_name="ci"), None)
    await service.RotateKey(RotateKeyRequest(key_id=made.key.key_id), None)
    await service.RevokeKey(RevokeKeyRequest(key_id=made.key.key_id), None)
    # In the audit of the tenant that they concern, with who did them.
    assert [event.tenant for event in events] == ["acme"] * 3
    assert [event.admin_acted.action for event in events] == ["create", "rotate", "revoke"]
    assert {event.subject for event in events} == {f"key/{made.key.key_id}"}
    record = record_of(events[2])
    assert record is not None
    assert (record.operation, record.target) == ("admin", f"revoke key/{made.key.key_id}")
    assert (record.key_id, record.principal, record.request_id) == ("key_op", "root", "req-7")
    assert record.outcome == AUDIT_OUTCOME_SUCCEEDED
    assert made.secret.encode() not in b"".join(event.SerializeToString() for event in events)
