"""The stream of the audit: one chain of records for each tenant, to which any gateway may append.

A record is appended behind the one that its gateway knows as the newest of its tenant, or not at all: NATS compares.
So gateways that seal at the same time can't fork a chain. Many records are appended together: all of them or none.
Which entry of the ledger a record was made of stands in a header of its message: what is not behind the newest record's
entry is sealed already.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nats.js.errors
from nats.js import api

from maestro.usage.v1.usage_pb2 import AuditRecord
from maestro_gateway.ledger.stream import ask
from maestro_sdk.audit import Head, record_hash
from maestro_sdk.service.bus import Client

log = logging.getLogger(__name__)

STREAM = "MAESTRO_AUDIT"
SUBJECTS = "maestro.audit.*"
ANSWER = 5.0
"""Seconds that NATS has for an answer."""
ENTRY, RECORD = "Maestro-Ledger-Entry", "Maestro-Record"
"""Headers: the entry of the ledger that a record was made of, and the identifier of the record."""
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_BATCH, _NUMBER, _COMMIT = "Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"
_OLDEST = (2, 12)
"""The first NATS that stores several messages together, or none of them."""
_AT_ONCE = 250
"""Records that are stored together; NATS takes 1000."""
_WORTH = 24
"""Records from which on that is cheaper: a batch costs NATS as much as about so many single records."""
_NOT_LAST = {10071, 10164}
"""What NATS calls the refusal of a message that is not behind the expected one."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the ledger; `ledger` tells one from another that was made anew with sequences from 1 on."""

    ledger: str = ""
    sequence: int = 0

    @classmethod
    def read(cls, text: str) -> Place:
        """The place that `str` wrote; the beginning of no ledger when it can't be read."""
        ledger, _, sequence = text.rpartition("/")
        return cls(ledger, int(sequence)) if sequence.isdecimal() else cls()

    def __str__(self) -> str:
        return f"{self.ledger}/{self.sequence}"

    def covers(self, other: Place) -> bool:
        """Whether `other` is this place or before it, in the same ledger."""
        return self.ledger == other.ledger and other.sequence <= self.sequence


@dataclass(frozen=True, slots=True)
class Tail:
    """The newest record of a tenant: its sequence in the stream, its place in the chain, and what it was made of."""

    at: int
    head: Head
    place: Place


class Chains:
    """Appends to the chains of all tenants on one connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._js = client.jetstream(timeout=ANSWER)
        self._tails: dict[str, Tail] = {}

    async def append(self, entries: Sequence[tuple[Place, AuditRecord]]) -> int:
        """Seals records of one tenant into its chain, in their order; how many were not there yet, by whomever.

        Raises an error of NATS when they are not known to be there.
        """
        together = _AT_ONCE if len(entries) >= _WORTH else 1
        count = 0
        for begin in range(0, len(entries), together):
            count += await self._append(entries[begin : begin + together])
        return count

    async def _append(self, entries: Sequence[tuple[Place, AuditRecord]]) -> int:
        tenant = entries[0][1].tenant
        tail = self._tails.get(tenant) or await self._read(tenant)
        while new := [entry for entry in entries if not tail.place.covers(entry[0])]:
            head = tail.head
            for _, record in new:
                record.sequence, record.previous_hash = head.sequence + 1, head.hash
                record.hash = record_hash(record)
                head = Head(record.sequence, record.hash)
            try:
                last = await self._publish(subject_of(tenant), tail.at, new)
            except nats.js.errors.APIError as error:
                self._tails.pop(tenant, None)
                if error.err_code not in _NOT_LAST:
                    raise
                tail = await self._read(tenant, before=tail)
            except BaseException:
                # They may be there or not.
                self._tails.pop(tenant, None)
                raise
            else:
                self._tails[tenant] = Tail(last, head, new[-1][0])
                return len(new)
        return 0

    async def _publish(self, subject: str, at: int, entries: Sequence[tuple[Place, AuditRecord]]) -> int:
        """Stores records behind the message `at`, all or none, with one answer for all: the sequence of the last."""
        batch, data, headers = secrets.token_hex(12), b"", {_EXPECTED: str(at)}
        for number, (place, record) in enumerate(entries, 1):
            if number > 1:
                await self._client.publish(subject, data, headers=headers)
                headers = {}
            headers |= {ENTRY: str(place), RECORD: record.record_id}
            if len(entries) > 1:
                headers |= {_BATCH: batch, _NUMBER: str(number)}
            data = record.SerializeToString()
        if len(entries) > 1:
            headers[_COMMIT] = "1"
        message = await self._client.request(subject, data, timeout=ANSWER, headers=headers)
        answer: dict[str, Any] = json.loads(message.data)
        if "error" in answer:
            raise nats.js.errors.APIError.from_error(answer["error"])
        return int(answer["seq"])

    async def _read(self, tenant: str, before: Tail | None = None) -> Tail:
        try:
            message = await self._js.get_last_msg(STREAM, subject_of(tenant))
        except nats.js.errors.NotFoundError:
            tail = Tail(0, Head(), Place())
        else:
            record = AuditRecord.FromString(message.data or b"")
            headers: Mapping[str, str] = message.headers or {}
            tail = Tail(message.seq or 0, Head(record.sequence, record.hash), Place.read(headers.get(ENTRY, "")))
        if before is not None and tail.head.sequence < before.head.sequence:
            log.error(
                "the audit of tenant %s ended with %s and now ends with %s: somebody took records away",
                tenant,
                before.head,
                tail.head,
            )
        self._tails[tenant] = tail
        return tail


def subject_of(tenant: str) -> str:
    """The NATS subject of a tenant's chain."""
    return f"maestro.audit.{tenant}"


async def ensure_audit(client: Client) -> bool:
    """Makes the stream, if there is none; whether it did. Whoever comes first does it.

    It has no age of its own: the newest record of a tenant stays for ever, since the next one is appended to it. What
    is too old is pruned by whoever seals.
    """
    version = client.connected_server_version
    if (0, 0) < (version.major, version.minor) < _OLDEST:
        # It would store what belongs together one by one, and let two sealers fork a chain.
        told = f"{version.major}.{version.minor}.{version.patch}"
        oldest = ".".join(map(str, _OLDEST))
        raise RuntimeError(f"the audit needs NATS {oldest} or newer, and this is {told}: update the server")
    js: Any = client.jetstream(timeout=ANSWER)
    found: dict[str, Any] | None = (await ask(client, f"STREAM.INFO.{STREAM}")).get("config")
    if found is None:
        await js.add_stream(
            api.StreamConfig(
                name=STREAM,
                subjects=[SUBJECTS],
                storage=api.StorageType.FILE,
                discard=api.DiscardPolicy.NEW,
                compression=api.StoreCompression.S2,
                allow_direct=True,
                # Many records are stored together, with one answer for all.
                allow_atomic=True,
                # A single record is never taken out; pruning takes the oldest ones of a tenant together.
                deny_delete=True,
            )
        )
        return True
    if not found.get("allow_atomic"):
        # An earlier version stored them one by one.
        answer = await ask(client, f"STREAM.UPDATE.{STREAM}", found | {"allow_atomic": True})
        if "error" in answer:
            raise nats.js.errors.APIError.from_error(answer["error"])
    return False
