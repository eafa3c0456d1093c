"""The records of jobs in their bucket: read, made, changed by whoever is not overtaken, and followed."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager

from maestro_gateway.jobs.record import JobRecord
from maestro_gateway.jobs.streams import BUCKET, STATES, Stored, Streams, Superseded
from maestro_sdk.errors import Conflict, NoBackend, NotFound
from maestro_sdk.service.bus import heed_cancellation

log = logging.getLogger(__name__)

_JOB_ID = re.compile(r"job_[0-9a-f]{24}")
_ATTEMPTS = 50
_LOOK = 1.0
"""Seconds after which the bucket is looked at without news."""
_AGAIN = 60.0
"""Seconds after which everything is read again."""


def subject_of(tenant: str, job_id: str) -> str:
    """Where the record of a job lies."""
    return f"$KV.{BUCKET}.{tenant}.{job_id}"


class States:
    """The records of all jobs. Methods raise `NoBackend` while NATS does not answer."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def find(self, tenant: str, job_id: str) -> JobRecord:
        """One of a tenant's jobs. Raises `NotFound`, for those of other tenants too."""
        if _JOB_ID.fullmatch(job_id):
            found = await self._streams.get(STATES, subject_of(tenant, job_id))
            record = _decoded(found) if found is not None else None
            if record is not None and record.ready and not _expired(record):
                return record
        raise NotFound(f"there is no job {job_id!r}; jobs are deleted when their `expire_time` is over")

    async def peek(self, tenant: str, job_id: str) -> JobRecord | None:
        """A record, ready or not."""
        found = await self._streams.get(STATES, subject_of(tenant, job_id))
        return _decoded(found) if found is not None else None

    async def create(self, record: JobRecord) -> None:
        """Makes a record. Raises `Superseded` when there is one."""
        record.revision = await self._streams.put(subject_of(record.tenant, record.job_id), record.encode(), expect=0)

    async def replace(self, record: JobRecord) -> None:
        """Stores a changed record. Raises `Superseded` when somebody else changed it meanwhile."""
        subject = subject_of(record.tenant, record.job_id)
        record.revision = await self._streams.put(subject, record.encode(), expect=record.revision)

    async def change(self, tenant: str, job_id: str, alter: Callable[[JobRecord], bool]) -> JobRecord:
        """Changes a record by `alter`, which says whether there is anything to store; as it is then."""
        for _ in range(_ATTEMPTS):
            heed_cancellation()
            record = await self.peek(tenant, job_id)
            if record is None:
                raise NotFound(f"there is no job {job_id!r}")
            if not alter(record):
                return record
            try:
                await self.replace(record)
            except Superseded:
                await asyncio.sleep(0.01)
                continue
            self._streams.tell_news()
            return record
        raise Conflict(f"the job {job_id} is being changed by others; try again")

    async def of_tenant(self, tenant: str) -> list[JobRecord]:
        """All jobs of a tenant, newest first."""
        found = [record async for record in self._all(f"$KV.{BUCKET}.{tenant}.*", 0) if not _expired(record)]
        return sorted((record for record in found if record.ready), key=place_of, reverse=True)

    async def all_of_tenant(self, tenant: str) -> AsyncIterator[JobRecord]:
        """The records of a tenant, those of jobs that are still being made, too."""
        async for record in self._all(f"$KV.{BUCKET}.{tenant}.*", 0):
            yield record

    async def since(self, revision: int) -> AsyncIterator[JobRecord]:
        """The records of all tenants that were changed after a revision."""
        async for record in self._all(f"$KV.{BUCKET}.*.*", revision):
            yield record

    async def forget(self, record: JobRecord) -> None:
        """Deletes a record, with what stands beneath it."""
        await self.tidy(record)
        await self._streams.purge(STATES, subject_of(record.tenant, record.job_id))

    async def tidy(self, record: JobRecord) -> None:
        """Deletes what stands beneath a record."""
        await self._streams.purge(STATES, f"{subject_of(record.tenant, record.job_id)}.*")

    async def _all(self, subject: str, after: int) -> AsyncIterator[JobRecord]:
        while found := await self._streams.read(STATES, subject, after):
            after = found[-1].sequence
            for stored in found:
                if (record := _decoded(stored)) is not None:
                    yield record


class Board:
    """The jobs of all tenants, as this gateway knows them: a moment behind the bucket."""

    def __init__(self, streams: Streams, states: States) -> None:
        self._streams = streams
        self._states = states
        self._read = 0
        self._generation = 0
        self._again = 0.0
        self.jobs: dict[str, JobRecord] = {}
        self.unready: dict[str, JobRecord] = {}
        """Those whose items are still being stored, or whose creator died over it."""
        self._listeners: list[Callable[[], None]] = []

    async def follow(self) -> None:
        """Follows the bucket until cancelled."""
        async with self._streams.listen() as news:
            while True:
                heed_cancellation()
                news.clear()
                try:
                    await self._look()
                except NoBackend as error:
                    log.debug("%s", error.message)
                self._tell()
                try:
                    async with asyncio.timeout(_LOOK):
                        await news.wait()
                except TimeoutError:
                    continue

    def adopt(self, record: JobRecord) -> None:
        """Takes note of a record that was read or written here."""
        known = self.jobs.get(record.job_id)
        if record.ready and (known is None or known.revision < record.revision):
            self.jobs[record.job_id] = record
            self._tell()

    def _tell(self) -> None:
        for call in list(self._listeners):
            call()

    @contextmanager
    def telling(self, call: Callable[[], None]) -> Generator[None]:
        """Calls `call` whenever something may be another."""
        self._listeners.append(call)
        try:
            yield
        finally:
            self._listeners.remove(call)

    def drop(self, job_id: str) -> None:
        """Forgets a job that was deleted."""
        self.jobs.pop(job_id, None)
        self.unready.pop(job_id, None)

    async def _look(self) -> None:
        now = time.monotonic()
        if self._streams.generation != self._generation or now > self._again:
            # Another connection may be one to a server that lost what it held.
            generation = self._streams.generation
            found = {record.job_id: record async for record in self._states.since(0)}
            self._read = max((record.revision for record in found.values()), default=0)
            self._generation, self._again = generation, now + _AGAIN
            self.jobs = {job_id: record for job_id, record in found.items() if record.ready}
            self.unready = {job_id: record for job_id, record in found.items() if not record.ready}
            return
        async for record in self._states.since(self._read):
            self._read = max(self._read, record.revision)
            self.adopt(record)


def place_of(record: JobRecord) -> tuple[int, str]:
    """What lists of jobs are ordered by."""
    return record.job.create_time.ToNanoseconds(), record.job_id


def _expired(record: JobRecord) -> bool:
    return 0 < record.expires <= time.time()


def _decoded(stored: Stored) -> JobRecord | None:
    try:
        return JobRecord.decode(stored.data, stored.sequence)
    except ValueError as error:
        log.warning("what stands under %s is no job: %s", stored.subject, error)
        return None
