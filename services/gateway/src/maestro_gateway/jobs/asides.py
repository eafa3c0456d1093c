"""Items that wait to be tried again. They lie out of their job's queue, so they hold none of the job's places.

An item is put aside in this order: a copy of it, the note that says until when, and then it leaves its queue. It comes
back by a copy that its queue takes only while it has none. So a gateway may die between any two of these steps: at
worst an item is tried early, and one that has ended meanwhile is found to have a result.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maestro_gateway.jobs.outcome import Note
from maestro_gateway.jobs.record import JobRecord
from maestro_gateway.jobs.results import result_subject
from maestro_gateway.jobs.states import subject_of
from maestro_gateway.jobs.streams import ITEMS, PARTS, RESULTS, STATES, Streams, Superseded

log = logging.getLogger(__name__)

MOST = 1000
"""Items of a job that may lie aside, about: the next ones wait in their places. Each is tried again now and then."""
_AT_ONCE = 100
"""Items that come back in one turn: the books of other jobs are kept in between."""
AGAIN = "Maestro-Again"
"""The header of an item that was aside, and so has a note."""


@dataclass(slots=True)
class _Known:
    """Until when the items of a job lie aside, by index, from notes up to a place in the bucket."""

    after: int = 0
    due: dict[int, float] = field(default_factory=dict[int, float])


@dataclass(slots=True)
class Asides:
    """The items of all jobs that lie aside. Methods raise `NoBackend` while NATS does not answer.

    Workers `put` them, and whoever keeps the books of a job `release`s those whose time has come.
    """

    streams: Streams
    _known: dict[str, _Known] = field(default_factory=dict[str, _Known])

    async def put(self, record: JobRecord, index: int, message: Any, note: Note, due: float) -> None:
        """Keeps an item that was handed out until `due`, in Unix time. The caller then takes it out of its queue."""
        note.due, note.handed = due, 0
        await self.streams.put(_kept(record, index), message.data, headers=own_headers(message.headers or {}))
        subject = f"{subject_of(record.tenant, record.job_id)}.{index}"
        await self.streams.put(subject, note.encode())

    async def release(self, record: JobRecord, *, all_of_them: bool = False) -> int:
        """Gives items whose time has come back to their queue; the number of those that still wait."""
        known = self._known.setdefault(record.job_id, _Known())
        await self._read_notes(record, known)
        now = time.time()
        ripe = sorted((due, index) for index, due in known.due.items() if due <= now or all_of_them)[:_AT_ONCE]
        await asyncio.gather(*(self._give_back(record, index) for _, index in ripe))
        for _, index in ripe:
            del known.due[index]
        return len(known.due)

    def forget(self, job_id: str) -> None:
        """Drops what is known of a job that is over, or that another gateway keeps."""
        self._known.pop(job_id, None)

    async def _read_notes(self, record: JobRecord, known: _Known) -> None:
        subject = f"{subject_of(record.tenant, record.job_id)}.*"
        while page := await self.streams.read(STATES, subject, known.after):
            for stored in page:
                name = stored.subject.rpartition(".")[2]
                if name.isdigit():
                    due = Note.decode(stored.data).due
                    if due:
                        known.due[int(name)] = due
                    else:
                        known.due.pop(int(name), None)
            known.after = page[-1].sequence

    async def _give_back(self, record: JobRecord, index: int) -> None:
        if await self.streams.get(RESULTS, result_subject(record, index)) is not None:
            return
        found = await self.streams.get(PARTS, _kept(record, index))
        if found is None:
            return  # JetStream lost it, which is found out by counting
        waiting = f"maestro.jobs.items.{record.job_id}.{index}"
        if await self.streams.get(ITEMS, waiting) is not None:
            return
        try:
            await self.streams.put(waiting, found.data, expect=0, headers=own_headers(found.headers) | {AGAIN: "1"})
        except Superseded:
            log.debug("item %d of job %s is in the queue already", index, record.job_id)


def own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that a message was stored with: those of the server tell where it lay."""
    return {name: value for name, value in headers.items() if name.startswith("Maestro-")}


def _kept(record: JobRecord, index: int) -> str:
    return f"maestro.jobs.parts.{record.job_id}.aside.{index}"
