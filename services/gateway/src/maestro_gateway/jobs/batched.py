"""Where items lie that are in a batch of a provider, out of their job's queue; and how far the batches of a job are."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

from maestro.llm.v1.batch_pb2 import BatchItem
from maestro_gateway.jobs.asides import own_headers
from maestro_gateway.jobs.bundle import Economy
from maestro_gateway.jobs.outcome import Note
from maestro_gateway.jobs.record import JobRecord
from maestro_gateway.jobs.results import result_subject
from maestro_gateway.jobs.states import subject_of
from maestro_gateway.jobs.streams import ITEMS, PARTS, RESULTS, STATES, Streams, Superseded

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Batched:
    """The items of one job that are in batches. Methods raise `NoBackend` while NATS does not answer.

    Each step may be done twice without harm: whoever takes over does not know how far the last one came.
    """

    streams: Streams
    record: JobRecord
    economy: Economy = field(default_factory=Economy)
    _writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def load(self) -> None:
        """Reads how far the batches are."""
        found = await self.streams.get(STATES, self._beneath("economy"))
        self.economy = Economy() if found is None else Economy.decode(found.data, found.sequence)

    async def store(self) -> None:
        """Writes down how far the batches are, unless another gateway took over. Raises `Superseded` then."""
        async with self._writing:
            data, subject = self.economy.encode(), self._beneath("economy")
            self.economy.revision = await self.streams.put(subject, data, expect=self.economy.revision)

    async def take(self, index: int) -> None:
        """Takes an item out of the queue."""
        waiting = self._waiting(index)
        found = await self.streams.get(ITEMS, waiting)
        if found is not None:
            await self.streams.put(self._kept(index), found.data, headers=own_headers(found.headers))
            await self.streams.purge(ITEMS, waiting)

    async def item(self, index: int) -> BatchItem | None:
        """An item that was taken; None for one that is gone again, or of which a piece is lost."""
        found = await self.streams.get(PARTS, self._kept(index))
        if found is None:
            return None
        try:
            data = await self.streams.unpack(self.record.job_id, f"in.{index}", found.data, found.headers)
        except LookupError as error:
            log.error("item %d of job %s can't be read any more: %s", index, self.record.job_id, error)
            return None
        return BatchItem.FromString(data)

    async def has_result(self, index: int) -> bool:
        """Whether an item has ended."""
        return await self.streams.get(RESULTS, result_subject(self.record, index)) is not None

    async def give_back(self, index: int) -> None:
        """Puts an item that was taken into the queue again, unless it has ended."""
        found = await self.streams.get(PARTS, self._kept(index))
        if found is None or await self.has_result(index):
            return
        try:
            await self.streams.put(self._waiting(index), found.data, expect=0, headers=own_headers(found.headers))
        except Superseded:
            log.debug("item %d of job %s is in the queue already", index, self.record.job_id)

    async def forget(self, index: int) -> None:
        """Drops what was taken: it is in the queue again, or has ended."""
        await self.streams.purge(PARTS, self._kept(index))

    async def note_run(self, index: int, note: Note) -> None:
        """Counts the provider's try as a run of the item, once."""
        try:
            await self.streams.put(self._beneath(str(index)), note.encode(), expect=0)
        except Superseded:
            log.debug("the run of item %d of job %s is counted already", index, self.record.job_id)

    def _waiting(self, index: int) -> str:
        return f"maestro.jobs.items.{self.record.job_id}.{index}"

    def _kept(self, index: int) -> str:
        return f"maestro.jobs.parts.{self.record.job_id}.economy.{index}"

    def _beneath(self, name: str) -> str:
        return f"{subject_of(self.record.tenant, self.record.job_id)}.{name}"
