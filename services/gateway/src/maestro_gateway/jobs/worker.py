"""Runs items of jobs in this gateway: fair between tenants, a bounded number at a time, each to its one result.

An item is handed out by its queue, which hands it out again when nobody says for `lease` that it is under way. So it
may run twice, and two results may be on their way; the server stores the first one only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro_gateway.jobs.asides import AGAIN, MOST, Asides
from maestro_gateway.jobs.outcome import (
    CANCELLED,
    FAILED,
    SUCCEEDED,
    Note,
    cancelled,
    incomplete,
    keeps_place,
    next_step,
    out_of_time,
    put_answer,
    result_of,
)
from maestro_gateway.jobs.places import Places, created
from maestro_gateway.jobs.purse import Leave, Purses, most_cost, nano_of
from maestro_gateway.jobs.record import CANCELLING, QUEUED, JobRecord
from maestro_gateway.jobs.results import result_subject, store_result
from maestro_gateway.jobs.runner import Run, run_item
from maestro_gateway.jobs.schedule import Queue, allot
from maestro_gateway.jobs.states import Board, States, subject_of
from maestro_gateway.jobs.streams import RESULTS, STATES, Streams
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import BudgetExhausted, Internal, NoBackend
from maestro_sdk.service.bus import heed_cancellation
from maestro_sdk.service.jobs import JobsConfig

log = logging.getLogger(__name__)

_LOOK = 0.25
"""Seconds between two looks at what could run, without news."""
_PULL = 0.1
"""Seconds that a queue is asked for."""
_DRY = 0.3
"""Seconds for which a queue that gave nothing is left alone."""
_SETTLE = 1.0
"""Seconds that an item waits whose gateway seems to be gone: it may be storing the result."""
_PAUSE = 0.1
_COST_WAIT = 1.0
_LAST = 1.0
"""Seconds that items under way get when the gateway stops; then others go on with them."""


@dataclass(slots=True, eq=False)
class _Held:
    """An item that is under way here."""

    record: JobRecord
    index: int
    message: Any
    run: asyncio.Task[None] | None = None
    stopped: bool = False


@dataclass(slots=True)
class Worker:
    """Runs items while `run` runs."""

    mesh: Mesh
    streams: Streams
    states: States
    board: Board
    places: Places
    asides: Asides
    config: JobsConfig
    _held: dict[tuple[str, int], _Held] = field(default_factory=dict[tuple[str, int], _Held])
    _asked: Counter[str] = field(default_factory=Counter[str])
    """Places that are asked for, by job."""
    _dry: dict[str, float] = field(default_factory=dict[str, float])
    _tasks: set[asyncio.Task[None]] = field(default_factory=set[asyncio.Task[None]])
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Runs items until cancelled; those that are under way then get a moment to end, or go to other gateways."""
        holding = asyncio.create_task(self._keep_holding())
        try:
            with self.board.telling(self._wake.set):
                await self._go_on()
        finally:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_LAST)
            for task in self._tasks:
                task.cancel()
            holding.cancel()
            await asyncio.gather(holding, *self._tasks, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            heed_cancellation()
            self._wake.clear()
            self._stop_cancelled()
            for job_id, count in self._grants().items():
                self._asked[job_id] += count
                self._begin(self._fetch(self.board.jobs[job_id], count))
            try:
                async with asyncio.timeout(_LOOK):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _grants(self) -> dict[str, int]:
        """How many items of which job are asked for now."""
        if not self.streams.up:
            return {}
        here: Counter[str] = Counter(self._asked)
        for job_id, _ in self._held:
            here[job_id] += 1
        tenants: Counter[str] = Counter()
        for job_id, count in here.items():
            if (record := self.board.jobs.get(job_id)) is not None:
                tenants[record.tenant] += count
        free = self.config.parallel - here.total()
        if free <= 0:
            return {}
        return allot(self._queues(here), free, tenants, self.config.per_tenant)

    def _queues(self, here: Counter[str]) -> Iterator[Queue]:
        now = asyncio.get_running_loop().time()
        self._dry = {job_id: until for job_id, until in self._dry.items() if until > now}
        unfinished: dict[str, list[JobRecord]] = {}
        for record in self.board.jobs.values():
            if record.waits:
                unfinished.setdefault(record.tenant, []).append(record)
        for tenant, records in unfinished.items():
            admitted = self.places.admitted(tenant, records)
            # A place that comes free while a queue is asked is not for a job below it: it may have an item for it.
            least = max((each.job.priority for each in records if self._asked[each.job_id]), default=0)
            for record in records:
                job = record.job
                # One question at a time: its answer tells how many there are.
                idle = job.job_id not in self._dry and not self._asked[job.job_id]
                if record.runs and job.job_id in admitted and idle and job.priority >= least:
                    most = most_parallel(record, self.config)
                    yield Queue(job.job_id, tenant, job.priority, created(record), here[job.job_id], most)

    def _stop_cancelled(self) -> None:
        """Stops the items of jobs that were cancelled."""
        for held in self._held.values():
            record = self.board.jobs.get(held.record.job_id)
            if record is not None and record.job.state == CANCELLING and not held.stopped:
                held.stopped = True
                if held.run is not None:
                    held.run.cancel()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an item of a job could not be handled", exc_info=error)

    async def _fetch(self, record: JobRecord, count: int) -> None:
        """Asks for items of a job, and begins them."""
        job_id, found = record.job_id, 0
        try:
            if record.job.state == QUEUED and (await self.places.start(record)) is None:
                return  # other gateways were faster with other jobs of the tenant
            async for message in self.streams.pull(job_id, count, _PULL):
                found += 1
                self._asked[job_id] -= 1
                self._take(record, message)
        except LookupError:
            # It was lost with the server's files, or its job is over.
            current = await self.states.peek(record.tenant, job_id)
            if current is not None and not current.over:
                await self.streams.make_queue(job_id, self.config.lease, most_parallel(record, self.config))
        except NoBackend as error:
            log.debug("%s", error.message)
        finally:
            self._asked[job_id] -= count - found
            if not self._asked[job_id]:
                del self._asked[job_id]
            if found < count:
                self._dry[job_id] = asyncio.get_running_loop().time() + _DRY

    def _take(self, record: JobRecord, message: Any) -> None:
        index = int(message.subject.rpartition(".")[2])
        held = self._held.get((record.job_id, index))
        if held is not None:
            # NATS was away for longer than the lease: the item is still under way here.
            held.message = message
            return
        held = self._held[record.job_id, index] = _Held(record, index, message)
        self._begin(self._work(held))

    async def _work(self, held: _Held) -> None:
        """Brings an item to its result, or gives it back."""
        try:
            await self._handle(held)
        except NoBackend as error:
            log.debug("item %d of job %s waits: %s", held.index, held.record.job_id, error.message)
        except asyncio.CancelledError:
            await self.streams.give_back(held.message)
            raise
        except Exception:
            await self.streams.give_back(held.message, _SETTLE)
            raise
        finally:
            del self._held[held.record.job_id, held.index]
            self._dry.pop(held.record.job_id, None)

    async def _handle(self, held: _Held) -> None:
        record, index = held.record, held.index
        handed = int(held.message.metadata.num_delivered)
        # An item that was in a batch of a provider may have a note at once.
        noted = handed > 1 or record.job.economy or AGAIN in (held.message.headers or {})
        note = await self._note(record, index) if noted else Note()
        if handed > 1 and note.handed + 1 != handed:
            await asyncio.sleep(_SETTLE)
        if await self.streams.get(RESULTS, result_subject(record, index)) is not None:
            await self.streams.acknowledge(held.message)
            return
        message = held.message
        try:
            packed = await self.streams.unpack(record.job_id, f"in.{index}", message.data, message.headers or {})
        except LookupError as error:
            # Handed out again, it would be as incomplete.
            await self._end(
                held, result_of(index, BatchItem(item_id=str(index)), note, FAILED, incomplete(error)), note
            )
            return
        item = BatchItem.FromString(packed)
        record = held.record = self.board.jobs.get(record.job_id) or record
        if record.over:
            await self.streams.acknowledge(held.message)
        elif record.job.state == CANCELLING or held.stopped:
            await self._end(held, result_of(index, item, note, CANCELLED, cancelled()), note)
        elif time.time() >= record.deadline:
            await self._end(held, result_of(index, item, note, FAILED, out_of_time(record)), note)
        else:
            await self._run(held, item, note, handed)

    async def _run(self, held: _Held, item: BatchItem, note: Note, handed: int) -> None:
        """One run of an item, and what follows from it."""
        record, index = held.record, held.index
        purses = Purses(self.streams)
        if record.max_cost is not None:
            match await purses.take(record, index, most_cost(self.mesh, item, record.tenant)):
                case Leave.LATER:
                    await self._give_back(held, note, handed, _COST_WAIT)
                    return
                case Leave.NEVER:
                    error = BudgetExhausted("what is left of the job's max_cost_usd may not be enough for this item")
                    await self._end(held, result_of(index, item, note, FAILED, error), note)
                    return
                case Leave.GIVEN:
                    pass
        run = Run()
        await self._carry_out(held, item, note.runs + 1, run)
        if run.taken_over:
            return
        await purses.settle(record, index, nano_of(run.trail.cost if run.trail is not None else None))
        if held.stopped and run.answer is None:
            note.runs += 1
            note.count(run.trail, failed=True)
            await self._end(held, result_of(index, item, note, CANCELLED, cancelled()), note)
            return
        if run.answer is not None:
            note.runs += 1
            note.count(run.trail, failed=False)
            result = result_of(index, item, note, SUCCEEDED, None)
            put_answer(result, item, run.answer, run.route)
            await self._end(held, result, note)
            return
        error = run.error or Internal("the item ended without an answer")
        step = next_step(error, reached=run.reached, runs=note.runs + 1, max_runs=record.max_runs, waits=note.waits)
        if step is None or step.counted:
            note.runs, note.waits = note.runs + 1, 0
        else:
            note.waits = min(note.waits + 1, 16)
        note.count(run.trail, failed=True)
        left = record.deadline - time.time()
        if step is not None and left > 0:
            delay = min(step.delay, left)
            if keeps_place(error) or record.aside >= MOST:
                await self._give_back(held, note, handed, delay)
            else:
                await self._put_aside(held, note, delay)
            return
        error = error if left > 0 else out_of_time(record)
        await self._end(held, result_of(index, item, note, FAILED, error), note)

    async def _carry_out(self, held: _Held, item: BatchItem, number: int, run: Run) -> None:
        """Runs an item in a task of its own, which is what a cancelled job stops."""
        held.run = asyncio.create_task(run_item(self.mesh, held.record, held.index, item, number, run))
        try:
            await asyncio.wait((held.run,))
        except asyncio.CancelledError:
            run.hand_over(self.mesh)
            held.run.cancel()
            await asyncio.gather(held.run, return_exceptions=True)
            raise
        if not held.run.cancelled() and (error := held.run.exception()) is not None:
            log.error("item %d of job %s broke", held.index, held.record.job_id, exc_info=error)
            run.error = Internal("internal error; the log of the gateway tells more")

    async def _note(self, record: JobRecord, index: int) -> Note:
        found = await self.streams.get(STATES, f"{subject_of(record.tenant, record.job_id)}.{index}")
        return Note() if found is None else Note.decode(found.data)

    async def _put_aside(self, held: _Held, note: Note, delay: float) -> None:
        """Lets an item wait without holding a place of its job. Waits for NATS, should it be away."""
        await self.streams.secure()
        due = time.time() + delay
        await self._store(lambda: self.asides.put(held.record, held.index, held.message, note, due))
        await self.streams.acknowledge(held.message)

    async def _give_back(self, held: _Held, note: Note, handed: int, delay: float) -> None:
        """Lets an item wait; what it came to so far is kept. Waits for NATS, should it be away."""
        note.handed = handed
        await self.streams.secure()
        subject = f"{subject_of(held.record.tenant, held.record.job_id)}.{held.index}"
        await self._store(lambda: self.streams.put(subject, note.encode()))
        await self.streams.give_back(held.message, delay)

    async def _end(self, held: _Held, result: pb.JobResult, note: Note) -> None:
        """Stores the result of an item. It is paid for, so it is not given up while this gateway lives."""
        await self._store(lambda: store_result(self.streams, held.record, result, note))
        await self.streams.acknowledge(held.message)

    async def _store(self, store: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        while True:
            heed_cancellation()
            try:
                await store()
            except NoBackend:
                await asyncio.sleep(_PAUSE)
            else:
                return

    async def _keep_holding(self) -> None:
        """Says again and again that the items here are under way."""
        while True:
            heed_cancellation()
            await asyncio.sleep(self.config.lease / 4)
            for held in list(self._held.values()):
                await self.streams.hold(held.message)


def most_parallel(record: JobRecord, config: JobsConfig) -> int:
    """Items of a job that may be under way in the mesh at a time."""
    return min(record.max_parallel or config.per_tenant, config.per_tenant)
