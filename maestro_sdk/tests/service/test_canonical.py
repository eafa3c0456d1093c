"""Canonical JSON is ProtoJSON, whatever a message holds, with its members in the order of RFC 8785."""

from __future__ import annotations

import json
import random
from typing import Any, cast

import pytest
from google.protobuf.json_format import MessageToDict

from maestro.event.v1.event_pb2 import Event
from maestro.llm.v1.usage_pb2 import Usage
from maestro.router.v1.router_pb2 import Candidate
from maestro.usage.v1.usage_pb2 import AUDIT_OUTCOME_FAILED, AuditAttempt, AuditRecord
from maestro_sdk.canonical import canonical_json

_TEXTS = ["", 'é\n\x01"\\/', "\ue000", "\U0001f600", "\x7f\u2028", "plain"]


def slowly(value: Any) -> Any:
    """The same order, by the letter of the RFC."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {name: slowly(members[name]) for name in sorted(members, key=lambda name: name.encode("utf-16-be"))}
    return [slowly(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value


def a_record(dice: random.Random) -> AuditRecord:
    text = lambda: dice.choice(_TEXTS)  # noqa: E731
    record = AuditRecord(
        record_id=text(),
        sequence=dice.choice([0, 1, 2**62, -5]),
        tenant=text(),
        hash="h",
        cached=dice.random() < 0.5,
        outcome=dice.choice([AUDIT_OUTCOME_FAILED, cast("Any", 4711), cast("Any", 0)]),
        table_version=dice.choice([None, 0, 7]),
        metadata={text(): text() for _ in range(dice.randrange(4))},
        attempts=[AuditAttempt(attempt=number, model=text()) for number in range(dice.randrange(3))],
    )
    if dice.random() < 0.7:
        record.time.FromNanoseconds(
            dice.choice([0, 1, 1_700_000_000_120_000_000, -1_000_000_001, 253402300799 * 10**9])
        )
        record.latency.FromNanoseconds(dice.choice([0, 1, 250_000_000, 10**15, -5]))
    if dice.random() < 0.5:
        record.usage.CopyFrom(Usage(input_tokens=dice.randrange(3), output_tokens=2**31 - 1, estimated=True))
    return record


def test_it_is_what_the_slow_way_gives() -> None:
    dice = random.Random(7)
    for _ in range(500):
        record = a_record(dice)
        document = MessageToDict(record, preserving_proto_field_name=True)
        document.pop("hash")
        wanted = json.dumps(slowly(document), ensure_ascii=False, separators=(",", ":"))
        assert canonical_json(record, without="hash").decode() == wanted


def test_members_of_an_event_are_sorted_at_every_depth() -> None:
    event = Event(id="1", tenant="acme")
    event.request_completed.attempt_usages.add(attempt=2, model="m").usage.output_tokens = 3
    wanted = json.dumps(slowly(MessageToDict(event, preserving_proto_field_name=True)), separators=(",", ":"))
    assert canonical_json(event).decode() == wanted


def test_floating_point_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Candidate\.score"):
        canonical_json(Candidate(score=0.5))
