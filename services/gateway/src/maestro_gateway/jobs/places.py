"""Which jobs of a tenant are unfinished, and which of them are under way: counted in the bucket, for all gateways.

A place belongs to its job for as long as that is not over, whoever took it: no gateway's death frees or loses one. The
places of a tenant are one record, changed only by whoever is not overtaken, so there is never one too many.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from maestro_gateway.jobs.record import QUEUED, RUNNING, JobRecord
from maestro_gateway.jobs.schedule import admitted_jobs
from maestro_gateway.jobs.states import Board, States
from maestro_gateway.jobs.streams import BUCKET, STATES, Streams, Superseded
from maestro_sdk.errors import TenantConcurrency
from maestro_sdk.service.bus import heed_cancellation

_BEING_MADE = 60.0
"""Seconds for which a job may be without a record: whoever makes it takes its place first."""
_AT_ONCE = 64


@dataclass(slots=True)
class Taken:
    """The places of a tenant: since when jobs are `unfinished`, and those that are `under_way`."""

    unfinished: dict[str, float] = field(default_factory=dict[str, float])
    under_way: list[str] = field(default_factory=list[str])


class Places:
    """The places of all tenants. Methods raise `NoBackend` while NATS does not answer."""

    def __init__(
        self, streams: Streams, states: States, board: Board, most_under_way: Callable[[str], int | None]
    ) -> None:
        """`most_under_way` gives the jobs of a tenant that may be under way at a time; None for any number."""
        self._streams = streams
        self._states = states
        self._board = board
        self._most_under_way = most_under_way

    async def enter(self, tenant: str, job_id: str, most: int) -> None:
        """Takes a place among the `most` unfinished jobs of a tenant. Raises `TenantConcurrency`."""
        while True:
            heed_cancellation()
            taken, revision = await self._load(tenant)
            if job_id in taken.unfinished:
                return
            if len(taken.unfinished) >= most:
                now = time.time()
                found = await self._look_up(tenant, taken.unfinished)
                for each, since in list(taken.unfinished.items()):
                    record = found[each]
                    if record.over if record is not None else now > since + _BEING_MADE:
                        del taken.unfinished[each]
            if len(taken.unfinished) >= most:
                raise TenantConcurrency(
                    f"tenant {tenant} has {len(taken.unfinished)} jobs that are not over, and no more are allowed at "
                    "once; wait for one to end, or cancel one"
                )
            taken.unfinished[job_id] = time.time()
            if await self._stored(tenant, taken, revision):
                return

    async def start(self, record: JobRecord) -> JobRecord | None:
        """The record of a job that is under way from now on, or is no longer waiting; None when it has no place yet."""
        most = self._most_under_way(record.tenant)
        if most is not None and not await self._take(record, most):
            return None
        return await self._begin(record.tenant, record.job_id)

    def admitted(self, tenant: str, records: Iterable[JobRecord]) -> set[str]:
        """Those of a tenant's jobs that are worth a try, as far as this gateway knows."""
        told = [(each.job_id, each.job.state == RUNNING, each.job.priority, created(each)) for each in records]
        return admitted_jobs(told, self._most_under_way(tenant))

    async def _take(self, record: JobRecord, most: int) -> bool:
        while True:
            heed_cancellation()
            taken, revision = await self._load(record.tenant)
            # Jobs that began while there was no limit have a place, too.
            began = (each for each in self._board.jobs.values() if each.tenant == record.tenant)
            unlisted = [each.job_id for each in began if each.job.state == RUNNING]
            taken.under_way = list(dict.fromkeys((*taken.under_way, *unlisted)))
            if record.job_id in taken.under_way:
                return True
            if len(taken.under_way) >= most:
                found = await self._look_up(record.tenant, taken.under_way)
                kept = [each for each in found.values() if each is not None and not each.over]
                taken.under_way = [each.job_id for each in kept]
                if len(kept) >= most:
                    for each in kept:
                        if each.job.state == QUEUED:
                            # Whoever gave it its place died before it could begin.
                            await self._begin(each.tenant, each.job_id)
                    return False
            taken.under_way.append(record.job_id)
            if await self._stored(record.tenant, taken, revision):
                return True

    async def _begin(self, tenant: str, job_id: str) -> JobRecord:
        """The record as it is now: under way, if it only waited."""

        def begin(found: JobRecord) -> bool:
            if found.job.state != QUEUED:
                return False
            found.job.state = RUNNING
            found.job.start_time.FromNanoseconds(time.time_ns())
            return True

        record = await self._states.change(tenant, job_id, begin)
        self._board.adopt(record)
        return record

    async def _look_up(self, tenant: str, job_ids: Iterable[str]) -> dict[str, JobRecord | None]:
        """The records of jobs as they are now; those that this gateway knows to be over stay so."""
        found: dict[str, JobRecord | None] = {}
        unsure: list[str] = []
        for job_id in job_ids:
            known = self._board.jobs.get(job_id)
            if known is not None and known.over:
                found[job_id] = known
            else:
                unsure.append(job_id)
        for start in range(0, len(unsure), _AT_ONCE):
            some = unsure[start : start + _AT_ONCE]
            records = await asyncio.gather(*(self._states.peek(tenant, job_id) for job_id in some))
            found |= dict(zip(some, records, strict=True))
        return found

    async def _load(self, tenant: str) -> tuple[Taken, int]:
        found = await self._streams.get(STATES, _subject(tenant))
        if found is not None:
            data: Any = orjson.loads(found.data)
            return Taken(data["unfinished"], data["under_way"]), found.sequence
        # Jobs of before, or a bucket that was lost: the records tell.
        records = [record async for record in self._states.all_of_tenant(tenant) if not record.over]
        now = time.time()
        under_way = [record.job_id for record in records if record.job.HasField("start_time")]
        return Taken({record.job_id: now for record in records}, under_way), 0

    async def _stored(self, tenant: str, taken: Taken, revision: int) -> bool:
        data = orjson.dumps({"unfinished": taken.unfinished, "under_way": taken.under_way})
        try:
            await self._streams.put(_subject(tenant), data, expect=revision)
        except Superseded:
            await asyncio.sleep(0.005)
            return False
        return True


def created(record: JobRecord) -> float:
    """When a job was made, in Unix time."""
    return record.job.create_time.ToNanoseconds() / 1e9


def _subject(tenant: str) -> str:
    return f"$KV.{BUCKET}.{tenant}"
