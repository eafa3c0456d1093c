"""Keeps the books of jobs: sums up their results, tells of them, and ends them.

Every gateway could; of each job one does at a time, its owner for a while. The record is changed only by whoever is not
overtaken, so a gateway that thinks it still owns a job does no harm: results are summed up in their order, each once.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf.message import Message

from maestro.event.v1 import event_pb2 as events
from maestro.job.v1.job_pb2 import JobState
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro_gateway.endings import failure_of
from maestro_gateway.jobs.asides import Asides
from maestro_gateway.jobs.outcome import CANCELLED as ITEM_CANCELLED
from maestro_gateway.jobs.outcome import FAILED as ITEM_FAILED
from maestro_gateway.jobs.outcome import Note, detail_of, out_of_time, result_of, totals_from
from maestro_gateway.jobs.output import Output
from maestro_gateway.jobs.record import CANCELLED, CANCELLING, COMPLETED, FAILED, QUEUED, JobRecord
from maestro_gateway.jobs.results import store_result
from maestro_gateway.jobs.states import Board, States, subject_of
from maestro_gateway.jobs.streams import ITEMS, PARTS, RESULTS, STATES, Stored, Streams, Superseded
from maestro_gateway.jobs.totals import add, count, split
from maestro_sdk.errors import Cancelled, Internal, MaestroError, NoBackend
from maestro_sdk.service.bus import heed_cancellation
from maestro_sdk.service.events import new_event

log = logging.getLogger(__name__)

_LOOK = 0.25
_EVERY = 1.0
"""Seconds between two events of a job's progress."""
_STOPPING = 2.0
"""Seconds in which gateways may stop their items before the items get results without them."""
_LOST = 10.0
_ABANDONED = 600.0
"""Seconds after which a job is deleted whose creator died while it stored the items."""
_SWEPT = 500


@dataclass(slots=True)
class Keeper:
    """Keeps the books of whatever job has no owner, while `run` runs.

    `lease` in seconds; a job that has neither items nor results left to come fails `loss` seconds later.
    """

    name: str
    streams: Streams
    states: States
    board: Board
    output: Output | None
    lease: float
    asides: Asides
    loss: float = _LOST
    _missing: dict[str, float] = field(default_factory=dict[str, float])
    """Since when a job seems to have lost items."""
    _writing: dict[str, asyncio.Task[str]] = field(default_factory=dict[str, "asyncio.Task[str]"])
    """The output files that are being written, by job."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Keeps books until cancelled."""
        try:
            await self._go_on()
        finally:
            for task in self._writing.values():
                task.cancel()
            await asyncio.gather(*self._writing.values(), return_exceptions=True)

    async def _go_on(self) -> None:
        with self.board.telling(self._wake.set):
            while True:
                heed_cancellation()
                self._wake.clear()
                for record in [*self.board.jobs.values(), *self.board.unready.values()]:
                    await self._tend_safely(record)
                try:
                    async with asyncio.timeout(_LOOK):
                        await self._wake.wait()
                except TimeoutError:
                    continue
                # News come in flocks.
                await asyncio.sleep(_LOOK / 2)

    async def _tend_safely(self, record: JobRecord) -> None:
        now = time.time()
        try:
            if not record.ready:
                if now > record.job.create_time.ToNanoseconds() / 1e9 + _ABANDONED:
                    await self._delete(record)
            elif record.active:
                await self._tend(record.copy(), now)
            elif 0 < record.expires <= now:
                await self._delete(record)
        except Superseded:
            log.debug("job %s was changed by another gateway", record.job_id)
        except NoBackend as error:
            log.debug("job %s waits: %s", record.job_id, error.message)
        except MaestroError as error:
            log.error("the books of job %s can't be kept: %s", record.job_id, error.message)
        except Exception:
            # One job that is broken must not stop the others.
            log.exception("the books of job %s can't be kept", record.job_id)

    async def _tend(self, record: JobRecord, now: float) -> None:
        """One turn: what is new is summed up, and what is due is told."""
        mine = record.owner == self.name and record.until > now
        if not mine:
            self.asides.forget(record.job_id)
            if record.owner and record.until > now:
                return
        if not mine or record.until < now + self.lease / 2:
            record.owner, record.until = self.name, now + self.lease
            await self._replace(record)
        await self._tell_once(record)
        if record.over:
            await self._clear(record)
            return
        new = await self._sum_up(record)
        if not new:
            await self._look_for_loss(record, now)
        if record.ended >= record.job.progress.total:
            await self._finish(record)
        elif record.job.state == CANCELLING:
            if now > record.stopped + _STOPPING or not record.job.progress.running:
                await self._sweep(record)
        elif now > record.deadline + _STOPPING:
            await self._sweep(record)

    async def _sum_up(self, record: JobRecord) -> bool:
        """Adds the results that are new, and tells how far the job is when that is due."""
        found = await self.streams.read(RESULTS, f"maestro.jobs.results.{record.job_id}.*", record.folded, most=1000)
        progress = record.job.progress
        for stored in found:
            count(progress, stored.headers["Maestro-State"])
            add(record.job.usage, totals_from(stored.headers["Maestro-Totals"]))
            record.folded = stored.sequence
        before = progress.running, record.aside
        running, queued = await self.streams.under_way(record.job_id)
        hidden = progress.total - record.ended - record.batched - running - queued
        record.aside = await self.asides.release(record) if hidden > 0 else 0
        split(progress, running + record.batched)
        now = time.time()
        due = record.ended > record.told_count and now >= record.told_at + _EVERY
        if due:
            record.told_at, record.told_count = now, record.ended
        if found or due or before != (progress.running, record.aside):
            await self._replace(record)
        if due and record.ended < progress.total and time.time() < record.until:
            payload = events.JobProgress(job_id=record.job_id, progress=progress)
            await self.streams.tell(new_event(payload, f"job/{record.job_id}", tenant=record.tenant))
        return bool(found)

    async def _tell_once(self, record: JobRecord) -> None:
        """Publishes the events of which each job has one, in their order; twice, should this gateway die over it.

        Then both have the same identifier, by which the stream and its readers know the second one.
        """
        told = record.told
        for name, payload in _milestones(record):
            if name not in record.told:
                event = new_event(payload, f"job/{record.job_id}", tenant=record.tenant)
                event.id = hashlib.sha256(f"{record.job_id}/{name}".encode()).hexdigest()[:32]
                await self.streams.tell(event)
                record.told = (*record.told, name)
        if record.told != told:
            await self._replace(record)

    async def _finish(self, record: JobRecord) -> None:
        """Every item has a result: the job is over."""
        job = record.job
        state = CANCELLED if job.state == CANCELLING else COMPLETED
        if job.input_file_id and self.output is not None:
            # Beside the books of all other jobs: it may take long.
            writing = self._writing.get(job.job_id)
            if writing is None:
                writing = self._writing[job.job_id] = asyncio.create_task(self.output.write(record.copy()))
                writing.add_done_callback(lambda _: self._wake.set())
            if not writing.done():
                return
            del self._writing[job.job_id]
            job.output_file_id = writing.result()
        await self._close(record, state)

    async def _close(self, record: JobRecord, state: JobState.ValueType) -> None:
        job, now = record.job, time.time_ns()
        job.state = state
        split(job.progress, 0)
        job.end_time.FromNanoseconds(now)
        job.expire_time.FromNanoseconds(now + int(record.keep * 1e9))
        await self._replace(record)
        await self._tell_once(record)
        await self._clear(record)

    async def _clear(self, record: JobRecord) -> None:
        """Gives back what a job that is over needs no more."""
        await self.streams.drop_queue(record.job_id)
        await self.states.tidy(record)
        await self.streams.purge(PARTS, f"maestro.jobs.parts.{record.job_id}.in.>")
        await self.streams.purge(PARTS, f"maestro.jobs.parts.{record.job_id}.aside.*")
        self.asides.forget(record.job_id)
        record.cleared = True
        await self._replace(record)
        self._missing.pop(record.job_id, None)

    async def _sweep(self, record: JobRecord) -> None:
        """Gives the items that still wait their results: they are not run any more."""
        cancelled = record.job.state == CANCELLING
        error = Cancelled("the job was cancelled") if cancelled else out_of_time(record)
        record.aside = await self.asides.release(record, all_of_them=True)
        notes = await self._notes(record)
        for stored in await self.streams.read(ITEMS, f"maestro.jobs.items.{record.job_id}.*", 0, most=_SWEPT):
            heed_cancellation()
            index = int(stored.subject.rpartition(".")[2])
            note = notes.get(index) or Note()
            try:
                data = await self.streams.unpack(record.job_id, f"in.{index}", stored.data, stored.headers)
                item = BatchItem.FromString(data)
            except LookupError:
                item = BatchItem(item_id=str(index))  # a piece of it is lost
            state = ITEM_CANCELLED if cancelled else ITEM_FAILED
            await store_result(self.streams, record, result_of(index, item, note, state, error), note)
            await self.streams.purge(ITEMS, stored.subject)

    async def _notes(self, record: JobRecord) -> dict[int, Note]:
        """What earlier runs of items came to, by index."""
        found: dict[int, Note] = {}
        after, subject = 0, f"{subject_of(record.tenant, record.job_id)}.*"
        while page := await self.streams.read(STATES, subject, after):
            after = page[-1].sequence
            found |= {int(name): Note.decode(stored.data) for stored in page if (name := _last(stored)).isdigit()}
        return found

    async def _look_for_loss(self, record: JobRecord, now: float) -> None:
        """Fails a job whose items are gone without results: else it would be under way for ever."""
        if (
            not record.runs
            or record.batched
            or record.aside
            or record.job.progress.running
            or await self.streams.read(ITEMS, f"maestro.jobs.items.{record.job_id}.*", 0, most=1)
        ):
            self._missing.pop(record.job_id, None)
        elif (
            record.ended < record.job.progress.total and now > self._missing.setdefault(record.job_id, now) + self.loss
        ):
            lost = record.job.progress.total - record.ended
            error = Internal(f"{lost} items of the job are lost: JetStream does not hold them any more; start it again")
            record.job.error.CopyFrom(detail_of(error))
            await self._close(record, FAILED)

    async def _replace(self, record: JobRecord) -> None:
        await self.states.replace(record)
        self.board.adopt(record.copy())

    async def _delete(self, record: JobRecord) -> None:
        await self.streams.purge(RESULTS, f"maestro.jobs.results.{record.job_id}.*")
        await self.streams.purge(PARTS, f"maestro.jobs.parts.{record.job_id}.>")
        await self.streams.drop_queue(record.job_id)
        await self.states.forget(record)
        self.board.drop(record.job_id)


def _milestones(record: JobRecord) -> Iterator[tuple[str, Message]]:
    """The events that a job has once, as far as it is, in their order."""
    job = record.job
    yield (
        "queued",
        events.JobQueued(job_id=job.job_id, total=job.progress.total, priority=job.priority, economy=job.economy),
    )
    created, started, ended = (moment.ToNanoseconds() for moment in (job.create_time, job.start_time, job.end_time))
    if job.state == QUEUED:
        return
    if started:
        payload = events.JobStarted(job_id=job.job_id, total=job.progress.total)
        payload.waited.FromNanoseconds(max(0, started - created))
        yield "started", payload
    match job.state:
        case state if state == COMPLETED:
            done = events.JobCompleted(job_id=job.job_id, progress=job.progress, usage=job.usage)
            done.duration.FromNanoseconds(max(0, ended - (started or created)))
            yield "ended", done
        case state if state == FAILED:
            failure = failure_of(Internal("the job lost items"))
            yield (
                "ended",
                events.JobFailed(job_id=job.job_id, failure=failure, progress=job.progress, usage=job.usage),
            )
        case state if state == CANCELLED:
            yield "ended", events.JobCancelled(job_id=job.job_id, progress=job.progress, usage=job.usage)
        case _:
            return


def _last(stored: Stored) -> str:
    return stored.subject.rpartition(".")[2]
