"""The hash chain of audit records: the form that is hashed, the hash, and what proves a chain.

The canonical form of a record is its ProtoJSON with the names of the contract, without fields that are at their
default and without `hash`, written as RFC 8785 says: members sorted by the UTF-16 code units of their names, no white
space, UTF-8. A record holds no floating-point number. `hash` is the SHA-256 of it; it covers `previous_hash`, so a
record vouches for all before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict

from maestro.usage.v1.usage_pb2 import AuditRecord
from maestro_sdk.canonical import canonical_json

__all__ = ["Break", "Chain", "Head", "canonical_form", "prove", "record_hash", "to_json"]


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: the place and hash of its newest record. An empty chain has 0 and no hash."""

    sequence: int = 0
    hash: str = ""

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash}"


@dataclass(frozen=True, slots=True)
class Break:
    """The first place at which a chain does not hold: `sequence` is that of the record, `what` a sentence."""

    sequence: int
    what: str


@dataclass(frozen=True, slots=True)
class Chain:
    """What a proof found: records that were looked at, the first and the last place, and what is wrong, if anything.

    `anchor` is the hash before the first record: empty when the chain was there from its beginning, else those before
    were pruned, and the anchor stands for them.
    """

    records: int
    first: int
    anchor: str
    head: Head
    broken: Break | None = None


def to_json(record: AuditRecord) -> dict[str, Any]:
    """A record as ProtoJSON with the names of the contract, without fields that are at their default."""
    return MessageToDict(record, preserving_proto_field_name=True)


def canonical_form(record: AuditRecord) -> bytes:
    """The bytes of a record that its hash is made of."""
    return canonical_json(record, without="hash")


def record_hash(record: AuditRecord) -> str:
    """The hash that a record has to have, as lower-case hexadecimal SHA-256."""
    return hashlib.sha256(canonical_form(record)).hexdigest()


def prove(records: Iterable[AuditRecord], expected: Head | None = None) -> Chain:
    """Proves the records of one tenant, oldest first. `expected` is a head that was noted earlier.

    Records may be missing at the beginning only, where retention prunes them. What is missing at the end shows only
    against a head that was noted: whoever can take away the newest records can make the chain end sooner.
    """
    count = first = 0
    anchor = ""
    head = Head()
    tenant = ""
    met = expected is None or expected.sequence == 0

    def ended(broken: Break | None) -> Chain:
        return Chain(count, first, anchor, head, broken)

    for record in records:
        if not count:
            first, anchor, tenant = record.sequence, record.previous_hash, record.tenant
            head = Head(record.sequence - 1, record.previous_hash)
        if (what := _wrong(record, head, tenant, first=not count)) is not None:
            return ended(what)
        head = Head(record.sequence, record.hash)
        count += 1
        if expected is not None and record.sequence == expected.sequence:
            met = True
            if record.hash != expected.hash:
                return ended(Break(record.sequence, "is not the record that was noted: the chain was written anew"))
    if expected is not None and expected.sequence >= first and not met:
        what = f"is missing: the chain went on to {expected.sequence} when it was noted"
        return ended(Break(head.sequence + 1, what))
    return ended(None)


def _wrong(record: AuditRecord, before: Head, tenant: str, *, first: bool) -> Break | None:
    sequence, wanted = record.sequence, before.sequence + 1
    if sequence != wanted:
        if sequence > wanted:
            return Break(wanted, f"is missing: {sequence} follows {before.sequence}")
        return Break(sequence, f"is out of order: it follows {before.sequence}")
    if record.tenant != tenant:
        return Break(sequence, f"belongs to {record.tenant!r}, the chain to {tenant!r}")
    if first and (sequence == 1) == bool(record.previous_hash):
        return Break(sequence, "was changed: only the first record of a chain has no hash before it")
    if record.hash != record_hash(record):
        return Break(sequence, "was changed: its content does not give its hash")
    if record.previous_hash != before.hash:
        return Break(sequence, f"does not follow {before.sequence}: one of the two was replaced")
    return None
