"""Seals the ledger: each of its entries becomes one record in the chain of its tenant, in the order of the ledger.

Every gateway has a sealer, and usually the one with the lease works. Any number of them may work at once, and each may
die at any moment: what is sealed stands in the chains themselves, so the next one goes on behind that. An entry that
the ledger holds twice gets one record: records are known by the identifier of their event.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import nats.js.errors
from google.protobuf.message import DecodeError

from maestro.event.v1.event_pb2 import Event
from maestro.usage.v1.usage_pb2 import AuditRecord
from maestro_gateway.audit.chain import ANSWER, RECORD, SUBJECTS, Chains, Place, ensure_audit, subject_of
from maestro_gateway.audit.chain import STREAM as AUDIT
from maestro_gateway.audit.lease import Lease
from maestro_gateway.audit.pruning import prune
from maestro_gateway.audit.record import KINDS, record_of
from maestro_gateway.audit.wire import Wire
from maestro_gateway.ledger.scan import FAILURES, Entry, scan
from maestro_gateway.ledger.stream import STREAM as LEDGER
from maestro_sdk.service.bus import Client, heed_cancellation
from maestro_sdk.service.event_kinds import DUPLICATE_WINDOW

log = logging.getLogger(__name__)

BUCKET = "MAESTRO_SEALING"
_KEY = "sealer"
_PAUSE = 1.0
"""Seconds between two looks at the ledger, which is what a record is behind its entry at most."""
_LEASE = 5.0
_PRUNE = 3600.0
_SKEW = 60.0
"""Seconds that clocks may differ by."""
_LATE = DUPLICATE_WINDOW - 2 * _SKEW
"""Seconds after which an event that arrives may be there already: till then the stream itself knows it again."""
_SIDE_BY_SIDE = 16
"""Tenants whose records are stored at the same time; NATS takes 50 batches of records at once."""
_REMEMBERED = 20_000
_LEARNED = 5_000
"""Records that are looked at when a sealer begins, for what the ledger may hold twice."""


class Sealer:
    """Seals while `run` runs."""

    def __init__(
        self,
        wire: Wire,
        name: str,
        retention: Callable[[str], float],
        *,
        pause: float = _PAUSE,
        lease: float = _LEASE,
        learned: int = _LEARNED,
    ) -> None:
        """`retention` gives the seconds for which records of a tenant are kept; `pause` and `lease` in seconds.

        `learned` are the newest records that a beginning sealer looks at, for what comes again within minutes.
        """
        self.wire = wire
        self.name = name
        self.retention = retention
        self.pause = pause
        self.lease = lease
        self.learned = learned
        self.sealed = 0
        """Records that this sealer appended."""

    async def run(self) -> None:
        """Seals until cancelled."""
        told = ""
        while True:
            heed_cancellation()
            client, generation = await self.wire.connected()
            try:
                await _Turn(self, client, generation).run()
                told = ""
            except FAILURES as error:
                # Once for each reason; a lost connection is told of by others.
                fresh = self.wire.is_current(generation) and repr(error) != told
                log.log(logging.WARNING if fresh else logging.DEBUG, "the ledger can't be sealed now: %r", error)
                told = repr(error) if fresh else told
            except Exception:
                # Whatever it is: the gateway goes on, and so does the sealing.
                log.exception("the ledger can't be sealed; it is tried again")
            await asyncio.sleep(self.pause)


class _Turn:
    """One connection's worth of sealing."""

    def __init__(self, sealer: Sealer, client: Client, generation: int) -> None:
        self._sealer = sealer
        self._client = client
        self._generation = generation
        self._lease = Lease(client, BUCKET, _KEY, sealer.name, sealer.lease)
        self._chains = Chains(client)
        self._side_by_side = asyncio.Semaphore(_SIDE_BY_SIDE)
        self._position: Place | None = None
        """Everything up to it is sealed; None while it is not our turn."""
        self._known: OrderedDict[str, None] = OrderedDict()
        self._pruned = 0.0

    async def run(self) -> None:
        """Seals whenever the lease is ours, until the connection is lost."""
        # It was there when the connection was made.
        if await ensure_audit(self._client):
            log.error("the stream of the audit was deleted: every chain begins anew with what is sealed from now on")
        try:
            while self._sealer.wire.is_current(self._generation):
                heed_cancellation()
                pause = self._sealer.pause
                if await self._lease.hold():
                    await self._seal()
                    await self._prune()
                else:
                    self._position = None
                    pause = max(pause, self._sealer.lease / 4)
                await asyncio.sleep(pause)
        finally:
            if self._lease.held:
                with suppress(*FAILURES):
                    async with asyncio.timeout(1.0):
                        await self._lease.release()

    async def _seal(self) -> None:
        """Seals what the ledger holds and no chain does, for as long as the lease is ours."""
        ledger = await self._ledger()
        if ledger is None:
            return
        if self._position is None:
            self._chains = Chains(self._client)
            self._position = Place.read(self._lease.note)
            await self._learn()
        if self._position.ledger != ledger.ledger:
            self._position = Place(ledger.ledger, 0)
        if self._position.sequence >= ledger.sequence:
            return
        subjects = [f"maestro.events.*.{kind}" for kind in KINDS]
        async with aclosing(scan(self._client, LEDGER, subjects, self._position.sequence + 1)) as batches:
            async for batch in batches:
                await self._seal_batch(ledger.ledger, batch)
                self._position = Place(ledger.ledger, batch[-1].sequence)
                self._lease.note = str(self._position)
                if not await self._lease.hold():
                    self._position = None
                    return

    async def _seal_batch(self, ledger: str, batch: Iterable[Entry]) -> None:
        """Tenants side by side, the entries of each in their order."""
        found = [(entry, event) for entry in batch if (event := _event(entry)) is not None]
        await self._learn_late(found)
        chains: dict[str, list[tuple[Place, AuditRecord]]] = {}
        for entry, event in found:
            if event.id not in self._known and (record := record_of(event)) is not None:
                self._remember(event.id)
                chains.setdefault(event.tenant, []).append((Place(ledger, entry.sequence), record))
        # No TaskGroup: when one fails, Python 3.11 leaves this task as one that was cancelled.
        told = await asyncio.gather(*map(self._append, chains.values()), return_exceptions=True)
        for error in told:
            if error is not None:
                # What is known as sealed may not be: the next turn begins with what the chains hold.
                self._position = None
                self._known.clear()
                raise error

    async def _append(self, records: Sequence[tuple[Place, AuditRecord]]) -> None:
        async with self._side_by_side:
            heed_cancellation()
            # In two steps: other tenants are counted meanwhile.
            count = await self._chains.append(records)
            self._sealer.sealed += count

    async def _learn(self) -> None:
        """Remembers the newest records."""
        info = await self._ask(f"STREAM.INFO.{AUDIT}")
        last = int(info["state"]["last_seq"])
        self._known.clear()
        async with aclosing(scan(self._client, AUDIT, [SUBJECTS], max(1, last + 1 - self._sealer.learned))) as batches:
            async for batch in batches:
                for entry in batch:
                    self._remember(entry.headers.get(RECORD, ""))

    async def _learn_late(self, found: Iterable[tuple[Entry, Event]]) -> None:
        """Looks for records of events that arrived so late that they may have arrived before."""
        late: set[str] = set()
        tenants: set[str] = set()
        earliest = 0
        for entry, event in found:
            made = event.time.ToNanoseconds()
            if entry.time - made > _LATE * 1e9 and event.id not in self._known:
                late.add(event.id)
                tenants.add(event.tenant)
                earliest = min(earliest or made, made)
        if not late:
            return
        since = datetime.datetime.fromtimestamp(max(0.0, earliest / 1e9 - _SKEW), datetime.UTC)
        async with aclosing(scan(self._client, AUDIT, [*map(subject_of, sorted(tenants))], since)) as batches:
            async for batch in batches:
                for entry in batch:
                    if (record_id := entry.headers.get(RECORD, "")) in late:
                        self._remember(record_id)

    def _remember(self, record_id: str) -> None:
        self._known[record_id] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    async def _prune(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._pruned and now - self._pruned < _PRUNE:
            return
        await prune(self._client, self._sealer.retention)
        self._pruned = now

    async def _ledger(self) -> Place | None:
        """The end of the ledger; None while there is none."""
        try:
            info = await self._ask(f"STREAM.INFO.{LEDGER}")
        except nats.js.errors.NotFoundError:
            return None
        return Place(str(info["created"]), int(info["state"]["last_seq"]))

    async def _ask(self, what: str) -> dict[str, Any]:
        message = await self._client.request(f"$JS.API.{what}", b"", timeout=ANSWER)
        answer: dict[str, Any] = json.loads(message.data)
        if "error" in answer:
            raise nats.js.errors.APIError.from_error(answer["error"])
        return answer


def _event(entry: Entry) -> Event | None:
    try:
        return Event.FromString(entry.data)
    except DecodeError:
        log.warning("the entry %d of the ledger can't be read and gets no record", entry.sequence)
        return None
