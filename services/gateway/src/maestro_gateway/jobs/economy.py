"""Economy: items of a job go to a provider's own batch API, which is cheaper and takes hours.

One gateway at a time follows the batches of a job. Items that are in a batch are out of the job's queue; what the
provider answers becomes their result, and what it does not get to goes back to the queue, to run as usual.
No batch is ever sent twice: it is written down before the provider is asked, and looked for there before it is again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from maestro.llm.v1.batch_pb2 import Batch, BatchItem, BatchItemResult, BatchState
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_gateway.files.attachments import attach
from maestro_gateway.jobs.batched import Batched
from maestro_gateway.jobs.bundle import OPEN, OVER, PLANNED, TRYING, Bundle, bundle, fits, is_over, route_of
from maestro_gateway.jobs.holdings import Holdings
from maestro_gateway.jobs.outcome import FAILED, SUCCEEDED, Note, put_answer, result_of
from maestro_gateway.jobs.places import Places
from maestro_gateway.jobs.provider_batches import ProviderBatches
from maestro_gateway.jobs.purse import Leave, Purses, most_cost, nano_of
from maestro_gateway.jobs.receipt import account_for, count_in
from maestro_gateway.jobs.record import CANCELLING, QUEUED, RUNNING, JobRecord
from maestro_gateway.jobs.results import store_result
from maestro_gateway.jobs.states import Board, States
from maestro_gateway.jobs.streams import ITEMS, Streams, Superseded
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import (
    Cancelled,
    Internal,
    InvalidRequest,
    MaestroError,
    NoBackend,
    NotFound,
    StreamBroken,
    Timeout,
    UpstreamError,
)
from maestro_sdk.mesh.table import Backend
from maestro_sdk.service.bus import heed_cancellation

log = logging.getLogger(__name__)

_LOOK = 0.25
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
"""Seconds between two questions for a batch: it is asked more seldom the longer it takes."""
_TRIES = 8
"""Times that a provider is asked to take a batch before its items run as usual."""
_UNSURE = (Timeout, UpstreamError, StreamBroken, Cancelled, NoBackend, Internal)
"""Errors after which a batch may have been started or not. All others are a refusal."""
_AGAIN = frozenset((ErrorReason.ERROR_REASON_TIMEOUT, ErrorReason.ERROR_REASON_CANCELLED))
"""What a provider says of items that it did not get to."""


@dataclass(slots=True)
class Economist:
    """Sorts the items of jobs that ask for economy, and follows their batches, while `run` runs.

    What a gateway that died followed goes to another one after `lease` seconds.
    """

    name: str
    mesh: Mesh
    streams: Streams
    states: States
    board: Board
    places: Places
    providers: ProviderBatches
    lease: float
    holdings: Holdings
    _tending: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, "asyncio.Task[None]"])
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Follows jobs until cancelled."""
        try:
            with self.board.telling(self._wake.set):
                while True:
                    heed_cancellation()
                    self._wake.clear()
                    for record in list(self.board.jobs.values()):
                        if record.job.economy and not record.over and (record.batched or self._may_sort(record)):
                            self._begin(record)
                    self.holdings.tidy(self.board.jobs)
                    try:
                        async with asyncio.timeout(_LOOK):
                            await self._wake.wait()
                    except TimeoutError:
                        continue
                    await asyncio.sleep(_LOOK / 2)
        finally:
            for task in self._tending.values():
                task.cancel()
            await asyncio.gather(*self._tending.values(), return_exceptions=True)

    def _may_sort(self, record: JobRecord) -> bool:
        """Whether a job is to be sorted now: as long as it has no place among those of its tenant, it waits."""
        if record.sorted or record.job.state != QUEUED:
            return not record.sorted
        waiting = [each for each in self.board.jobs.values() if each.tenant == record.tenant and each.waits]
        return record.job_id in self.places.admitted(record.tenant, waiting)

    def _begin(self, record: JobRecord) -> None:
        """Each job by itself: a provider that takes its time holds up nobody else's."""
        if record.job_id not in self._tending:
            task = self._tending[record.job_id] = asyncio.create_task(self._tend_safely(record))
            task.add_done_callback(lambda _: self._tending.pop(record.job_id))

    async def _tend_safely(self, record: JobRecord) -> None:
        batched = Batched(self.streams, record)
        try:
            await self._tend(batched)
        except Superseded:
            log.debug("the batches of job %s are followed by another gateway", record.job_id)
            self.holdings.leave(batched)
        except NoBackend as error:
            log.debug("the batches of job %s wait: %s", record.job_id, error.message)
        except MaestroError as error:
            log.warning("the batches of job %s wait: %s", record.job_id, error.message)
        except Exception:
            # One job that is broken must not stop the others.
            log.exception("the batches of job %s can't be followed", record.job_id)

    async def _tend(self, batched: Batched) -> None:
        """One step of each batch of a job, as long as this gateway holds the lease."""
        record = batched.record
        if record.job.state == QUEUED and not record.sorted:
            started = await self.places.start(record)
            if started is None:
                return
            batched.record = started
        await batched.load()
        economy, now = batched.economy, time.time()
        mine = economy.owner == self.name
        if not mine:
            self.holdings.leave(batched)
            if economy.until > now:
                return
        if not mine or economy.until < now + self.lease / 2:
            economy.owner, economy.until = self.name, now + self.lease
            await batched.store()
        tasks = [asyncio.create_task(work) for work in (self._step(batched), self._hold(batched))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _hold(self, batched: Batched) -> None:
        """Renews the lease. Ends when it can't: then another gateway may follow the job."""
        while time.time() < batched.economy.until:
            await asyncio.sleep(self.lease / 4)
            before, batched.economy.until = batched.economy.until, time.time() + self.lease
            try:
                await batched.store()
            except NoBackend:
                batched.economy.until = before

    async def _step(self, batched: Batched) -> None:
        record = batched.record
        if not record.sorted:
            await self._sort(batched)
        stop = record.job.state == CANCELLING or time.time() >= record.deadline
        for held in batched.economy.bundles:
            if held.state != OVER:
                await self.holdings.keep(batched, held)
                await self._advance(batched, held, stop=stop)
        await self._tell(batched)

    async def _sort(self, batched: Batched) -> None:
        """Takes the items that fit out of the queue; the others may run from now on."""
        economy = batched.economy
        if not economy.planned:
            waits = batched.record.job.state in {QUEUED, RUNNING}
            economy.bundles = await self._plan(batched) if waits else []
            economy.planned = True
            await batched.store()
        for held in economy.bundles:
            for index in held.indices:
                heed_cancellation()
                await batched.take(index)
        await self._tell(batched)

    async def _plan(self, batched: Batched) -> list[Bundle]:
        record = batched.record
        found: list[tuple[int, int, Backend]] = []
        costs: dict[int, int] = {}
        after = 0
        while page := await self.streams.read(ITEMS, f"maestro.jobs.items.{record.job_id}.*", after):
            after = page[-1].sequence
            for stored in page:
                index = int(stored.subject.rpartition(".")[2])
                try:
                    data = await self.streams.unpack(record.job_id, f"in.{index}", stored.data, stored.headers)
                except LookupError:
                    continue  # as usual, it fails with that
                item = BatchItem.FromString(data)
                backend = fits(item, self.mesh, record.tenant)
                if backend is not None and await self.holdings.take(record, index, item):
                    found.append((index, len(data), backend))
                    costs[index] = most_cost(self.mesh, item, record.tenant)
        if record.max_cost is not None:
            leaves = await Purses(self.streams).take_all(record, costs)
            self.holdings.give_back(record, [index for index, leave in leaves.items() if leave is not Leave.GIVEN])
            found = [each for each in found if leaves[each[0]] is Leave.GIVEN]
        return bundle(record.job_id, found)

    async def _advance(self, batched: Batched, held: Bundle, *, stop: bool) -> None:
        """One step of a batch, if it is time for one."""
        now = time.time()
        pause = min(_LONGEST_PAUSE, max(_FIRST_PAUSE, (now - held.tried) / 20)) if held.tried else 0.0
        if now < held.asked + pause and not (stop and not held.stopped):
            return
        held.asked = now
        match held.state:
            case state if state == PLANNED and stop:
                await self._release(batched, held)
            case state if state == PLANNED:
                await self._create(batched, held)
            case state if state == TRYING:
                await self._find(batched, held, stop=stop)
            case _:
                await self._follow(batched, held, stop=stop)

    async def _create(self, batched: Batched, held: Bundle) -> None:
        backend = self._backend(held)
        held.state, held.tried, held.tries = TRYING, time.time(), held.tries + 1
        await batched.store()
        try:
            batch = await self.providers.create(backend, held, self._items(batched, held))
        except MaestroError as error:
            log.warning("the batch %s can't be started: %s", held.name, error.message)
            if isinstance(error, _UNSURE):
                return  # it may be there all the same: it is looked for
            if not error.retryable or held.tries >= _TRIES:
                await self._release(batched, held)
                return
            held.state = PLANNED
            await batched.store()
            return
        await self._adopt(batched, held, batch)

    async def _adopt(self, batched: Batched, held: Bundle, batch: Batch) -> None:
        held.state, held.batch_id = OPEN, batch.batch_id
        await batched.store()

    async def _find(self, batched: Batched, held: Bundle, *, stop: bool) -> None:
        """Looks for a batch of which nobody knows whether it was started."""
        backend = self._backend(held)
        named, maybe = await self.providers.find(backend, held)
        if named is not None:
            await self._adopt(batched, held, named)
            return
        # Where a provider keeps no names, only the results tell whose a batch is.
        for batch in maybe:
            if not is_over(batch):
                log.info("the batch %s may be %s; its results will tell", batch.batch_id, held.name)
                return
            async for result in self.providers.results(backend, batch.batch_id):
                if held.index_of(result.item_id) is not None:
                    await self._adopt(batched, held, batch)
                    return
                break
        if stop or held.tries >= _TRIES:
            await self._release(batched, held)
        else:
            await self._create(batched, held)

    async def _follow(self, batched: Batched, held: Bundle, *, stop: bool) -> None:
        backend = self._backend(held)
        try:
            batch = await self.providers.get(backend, held.batch_id)
        except NotFound:
            log.error("the provider does not know the batch %s any more; its items run as usual", held.batch_id)
            await self._release(batched, held)
            return
        if not is_over(batch):
            if stop and not held.stopped:
                await self.providers.cancel(backend, held.batch_id)
                held.stopped = True
                await batched.store()
        elif batch.state == BatchState.BATCH_STATE_FAILED:
            log.warning("the batch %s failed, its items run as usual: %s", batch.batch_id, batch.error.message)
            await self._release(batched, held)
        else:
            await self._collect(batched, held, backend, stop=stop)

    async def _collect(self, batched: Batched, held: Bundle, backend: Backend, *, stop: bool) -> None:
        """Makes results of what the provider answered; all else goes back to the queue."""
        left = set(held.indices)
        costs: dict[int, int] = {}
        try:
            async for found in self.providers.results(backend, held.batch_id):
                heed_cancellation()
                index = held.index_of(found.item_id)
                if index is None or index not in left:
                    continue
                if await self._settle(batched, index, found, backend, stop=stop):
                    left.discard(index)
                    costs[index] = nano_of(found.cost if found.HasField("cost") else None)
        except NotFound as error:
            log.warning("the batch %s has no results: %s", held.batch_id, error.message)
        await Purses(self.streams).settle_all(batched.record, costs)
        await self._release(batched, held, left)

    async def _settle(
        self, batched: Batched, index: int, found: BatchItemResult, backend: Backend, *, stop: bool
    ) -> bool:
        """Stores what came of an item; False when it is to run as usual."""
        if await batched.has_result(index):
            return True
        record, item = batched.record, await batched.item(index)
        failed = found.WhichOneof("outcome") not in {"chat", "embed"}
        note = Note(runs=1)
        again = failed and (found.error.retryable or found.error.reason in _AGAIN)
        if again and (stop or record.max_runs > 1):
            if not stop:
                await batched.note_run(index, note)
            return False
        if item is None and failed:
            return False
        # Where a piece of the question is lost the answer is there all the same, and paid for.
        item = item or BatchItem(item_id=str(index), chat=ChatRequest(model=backend.model))
        count_in(note, found, backend)
        result = result_of(index, item, note, FAILED if failed else SUCCEEDED, None)
        result.economy = True
        if failed:
            result.item.error.CopyFrom(found.error)
        else:
            answer = found.chat if found.HasField("chat") else found.embed
            put_answer(result, item, answer, route_of(item, self.mesh, record.tenant))
        await account_for(self.mesh, record, index, item, found, backend)
        await store_result(self.streams, record, result, note)
        return True

    async def _release(self, batched: Batched, held: Bundle, left: set[int] | None = None) -> None:
        """Ends a batch; the items that are left, or all, go back to the queue, from which they run or are swept."""
        back = sorted(held.indices if left is None else left)
        await Purses(self.streams).settle_all(batched.record, dict.fromkeys(back, 0))
        self.holdings.give_back(batched.record, back)
        self.holdings.forget(batched.record, held.indices)
        for index in back:
            heed_cancellation()
            await batched.give_back(index)
        held.state = OVER
        await batched.store()
        for index in held.indices:
            await batched.forget(index)

    async def _tell(self, batched: Batched) -> None:
        """Notes in the job how many items are in batches; the first ones start it."""
        record, left = batched.record, batched.economy.left

        def note(found: JobRecord) -> bool:
            if found.over or (found.sorted and found.batched == left):
                return False
            found.sorted, found.batched = True, left
            if left and found.job.state == QUEUED:
                found.job.state = RUNNING
                found.job.start_time.FromNanoseconds(time.time_ns())
            return True

        if not record.sorted or record.batched != left:
            batched.record = await self.states.change(record.tenant, record.job_id, note)
            self.board.adopt(batched.record)

    async def _items(self, batched: Batched, held: Bundle) -> AsyncIterator[BatchItem]:
        """The items as the provider gets them, under names of this batch."""
        for index in held.indices:
            item = await batched.item(index)
            if item is None:
                continue
            item.item_id = held.item_id(index)
            if item.HasField("chat"):
                item.chat.model = held.model
                if self.mesh.files is not None:
                    try:
                        item.chat.CopyFrom(await attach(self.mesh.files, batched.record.tenant, item.chat))
                    except InvalidRequest:
                        continue  # a file that is gone: as usual, it fails with that
            else:
                item.embed.model = held.model
            yield item

    def _backend(self, held: Bundle) -> Backend:
        found = self.mesh.source.table.backends.get(held.backend)
        if found is None:
            raise NoBackend(f"{held.backend} is not there now", retry_after=1.0)
        return found
