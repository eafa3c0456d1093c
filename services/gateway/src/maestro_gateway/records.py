"""What was recorded of a request: how its backends were chosen, and what then happened.

The record is the tenant's own event stream, so nothing more is written for it. An id that tells its time says where
to look; for any other one the last minutes are searched, or those behind a moment that the caller names.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from maestro.event.v1.event_pb2 import AttemptFailed, Event
from maestro_gateway.ledger.sieve import estimate_of
from maestro_sdk.errors import NoBackend, NotFound
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.event_search import Search
from maestro_sdk.tracing import time_of

WINDOW = 900.0
"""Seconds of the past that are searched for an id that does not tell its time."""
SLACK = 60.0
"""Seconds that the clock of whoever made an id may be ahead."""
_TIMEOUT = 5.0
_LINGER = 0.5
"""Seconds that events of a request may be behind its answer."""
_AT_ONCE = 4
_ENDS = ("request.completed", "request.failed")
_KINDS = ("attempt.failed", *_ENDS)


@dataclass(frozen=True, slots=True)
class Record:
    """One request: the event that it ended with, and its attempts that failed, in order."""

    end: Event
    failures: tuple[AttemptFailed, ...]


@dataclass(slots=True)
class _Gathering:
    """Gathers the events of one request. Where an id was used more than once, the latest use counts."""

    request_id: str
    first_only: bool
    failures: list[Event] = field(default_factory=list[Event])
    record: Record | None = None

    def take(self, event: Event) -> bool:
        if event.subject != f"request/{self.request_id}":
            return False  # its bytes hold the id as part of a longer one
        if event.kind not in _ENDS:
            self.failures.append(event)
            return False
        guessed = bool(estimate_of(event))
        if guessed and self.record is not None and self.record.end.id == estimate_of(event):
            return False  # its true end came before
        # Requests with one id may run side by side; their traces tell them apart.
        own = [failed for failed in self.failures if failed.trace_id == event.trace_id]
        if not guessed:
            self.failures = [failed for failed in self.failures if failed.trace_id != event.trace_id]
        self.record = Record(event, tuple(_once(own)))
        # The true end of what is only estimated may still come.
        return self.first_only and not guessed


class Records:
    """Finds records with `reader`; few searches at a time, since each may look at very many events."""

    def __init__(self, reader: EventReader) -> None:
        self._reader = reader
        self._turn = asyncio.Semaphore(_AT_ONCE)

    async def find(self, tenant: str, request_id: str, after: float | None = None) -> Record:
        """The record of one of the tenant's requests; `after` is Unix time.

        Raises `NotFound` when there is none, and `NoBackend` when the stream of events can't be read.
        """
        made = time_of(request_id)
        now = time.time()
        timed = after is None and made is not None and made < now + SLACK
        since = after if after is not None else made - SLACK if made is not None and timed else now - WINDOW
        gathering = _Gathering(request_id, first_only=timed)
        search = Search(tenant, _KINDS, since, f"request/{request_id}".encode(), gathering.take)
        try:
            async with asyncio.timeout(_TIMEOUT):
                await self._turn.acquire()
        except TimeoutError:
            raise NoBackend("other searches for records are under way; try again in a few seconds") from None
        try:
            await search.run(self._reader, timeout=_TIMEOUT, linger=_LINGER)
        finally:
            self._turn.release()
        if gathering.record is None:
            raise NotFound(self._say_why(request_id, search, now - since, timed=timed))
        return gathering.record

    def _say_why(self, request_id: str, search: Search, past: float, *, timed: bool) -> str:
        kept = self._reader.retention
        advice = ""
        if past > kept + SLACK and timed:
            advice = "; this one is older"
        elif past <= 0:
            advice = "; `after` lies in the future"
        elif search.seen >= search.most:
            advice = f"; only {search.seen} events were looked at, so give a later `after` (RFC 3339)"
        elif not timed:
            advice = f"; the last {_span(past)} were looked at: to go back further give `after` (RFC 3339)"
        return (
            f"no request {request_id} is recorded for this tenant; a request is recorded when it has ended, and kept "
            f"for {_span(kept)}{advice}"
        )


def _once(failures: list[Event]) -> list[AttemptFailed]:
    """Each failure once, though an event may be in the stream again."""
    return list({event.id: event.attempt_failed for event in failures}.values())


def _span(seconds: float) -> str:
    for size, unit in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} seconds"
