"""Canonical JSON is ProtoJSON, whatever a message holds, with its members in the order of RFC 8785."""

from __future__ import annotations

import hashlib
import json
import random
from typing import Any, cast

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from maestro.event.v1.event_pb2 import Event
from maestro.router.v1.router_pb2 import Candidate
from maestro.usage.v1.usage_pb2 import AuditRecord
from maestro_sdk.audit import prove
from maestro_sdk.canonical import canonical_json

_TEXTS = ["", 'é\n\x01"\\/', "\ue000", "\U0001f600", "\x7f\u2028", "plain"]


def slowly(value: Any) -> Any:
    """The same order, by the letter of the RFC."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {name: slowly(members[name]) for name in sorted(members, key=lambda name: name.encode("utf-16-be"))}
    return [slowly(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value


_NUMBERS = {
    FieldDescriptor.CPPTYPE_BOOL: [False, True],
    FieldDescriptor.CPPTYPE_INT32: [0, 1, -(2**31), 2**31 - 1],
    FieldDescriptor.CPPTYPE_UINT32: [0, 1, 2**32 - 1],
    FieldDescriptor.CPPTYPE_INT64: [0, 1, -5, 2**53 + 1, -(2**63), 2**63 - 1],
    FieldDescriptor.CPPTYPE_UINT64: [0, 1, 2**53 + 1, 2**64 - 1],
    FieldDescriptor.CPPTYPE_ENUM: [0, 1, 2, 3, 4711, -1],
}
_MOMENTS = [0, 1, 1_700_000_000_120_000_000, -1_000_000_001, 253402300799 * 10**9]
_SPANS = [0, 1, 250_000_000, 10**15, -5]


def fill(message: Message, dice: random.Random, depth: int = 4) -> None:
    """Sets about two of three fields, at every depth, to what is likely to go wrong."""
    match message:
        case Timestamp():
            message.FromNanoseconds(dice.choice(_MOMENTS))
            return
        case Duration():
            message.FromNanoseconds(dice.choice(_SPANS))
            return
        case _:
            pass
    for field in message.DESCRIPTOR.fields:
        if dice.random() < 1 / 3:
            continue
        held: Any = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for _ in range(dice.randrange(5)):
                held[dice.choice(_TEXTS)] = dice.choice(_TEXTS)
        elif field.message_type is not None:
            for each in [held.add() for _ in range(dice.randrange(3))] if field.is_repeated else [held]:
                if depth:
                    each.SetInParent()
                    fill(each, dice, depth - 1)
        elif field.is_repeated:
            held.extend(a_value(field, dice) for _ in range(dice.randrange(4)))
        else:
            setattr(message, field.name, a_value(field, dice))


def a_value(field: Any, dice: random.Random) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = dice.choice(_TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    return dice.choice(_NUMBERS[field.cpp_type])


def wanted(message: Message, without: str = "") -> bytes:
    """What the first version of the audit hashed: chains that it sealed have to go on."""
    document = MessageToDict(message, preserving_proto_field_name=True)
    document.pop(without, None)
    return json.dumps(slowly(document), ensure_ascii=False, separators=(",", ":")).encode()


def test_whatever_a_record_holds_it_is_what_the_slow_way_gives() -> None:
    dice, seen = random.Random(7), set[str]()
    for _ in range(500):
        record = AuditRecord()
        fill(record, dice)
        seen |= {field.name for field, _ in record.ListFields()}
        assert canonical_json(record, without="hash") == wanted(record, "hash")
        # What a newer version of the mesh put there is unknown to both.
        newer = AuditRecord.FromString(record.SerializeToString() + b"\xfa\x7f\x03new")
        assert canonical_json(newer, without="hash") == wanted(record, "hash")
    assert seen == {field.name for field in AuditRecord.DESCRIPTOR.fields}


def test_a_chain_of_the_first_version_is_proved() -> None:
    dice, records = random.Random(8), list[AuditRecord]()
    previous = ""
    for number in range(1, 50):
        record = AuditRecord()
        fill(record, dice)
        record.tenant, record.sequence, record.previous_hash = "acme", number, previous
        record.hash = previous = hashlib.sha256(wanted(record, "hash")).hexdigest()
        records.append(record)
    chain = prove(records)
    assert chain.broken is None
    assert chain.records == 49
    records[20].request_id += "x"
    assert prove(records).broken is not None


def test_members_of_an_event_are_sorted_at_every_depth() -> None:
    event = Event(id="1", tenant="acme")
    event.request_completed.attempt_usages.add(attempt=2, model="m").usage.output_tokens = 3
    assert canonical_json(event) == wanted(event)


def test_floating_point_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Candidate\.score"):
        canonical_json(Candidate(score=0.5))
