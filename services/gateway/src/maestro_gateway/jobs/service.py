"""`maestro.job.v1.JobService`: makes jobs, tells of them, cancels them, and hands out their results."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any, Literal

from maestro.job.v1 import job_pb2 as pb
from maestro.job.v1.job_pb2_grpc import JobServiceServicer
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.file_pb2 import FilePurpose
from maestro_gateway.audit.acts import Acts
from maestro_gateway.identity import admitted, current_caller
from maestro_gateway.jobs.files import JobFiles
from maestro_gateway.jobs.intake import Place, check, digest_of, entries_of, in_list
from maestro_gateway.jobs.lines import count_lines, read_lines
from maestro_gateway.jobs.places import Places
from maestro_gateway.jobs.record import CANCELLING, QUEUED, Creator, JobRecord
from maestro_gateway.jobs.results import read_results
from maestro_gateway.jobs.states import Board, States, place_of
from maestro_gateway.jobs.streams import Streams, Superseded
from maestro_gateway.jobs.worker import most_parallel
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import Conflict, InvalidRequest, NotFound, TooLarge, Unimplemented, Violation
from maestro_sdk.service.bus import heed_cancellation
from maestro_sdk.service.jobs import JobsConfig

_DAY = 86400.0
_MOST_TIMEOUT, _MOST_KEEP = 30 * _DAY, 365 * _DAY
_RUNS = 3
_MOST_USD, _LONGEST_AMOUNT = 1_000_000_000, 32
_PAGE = 100
_PAGE_SIZE = 2 * 2**20
"""Bytes of results in one message, about; one that is larger comes alone."""
_AT_ONCE = 64
_LOOK = 1.0


class JobService(JobServiceServicer):
    """Serves the jobs of the tenant that asks; those of others are not there."""

    def __init__(
        self,
        mesh: Mesh,
        streams: Streams,
        states: States,
        board: Board,
        places: Places,
        config: JobsConfig,
        files: JobFiles | None,
        acts: Acts | None = None,
    ) -> None:
        """`acts` are told of every job that is made or cancelled."""
        self._acts = acts
        self._mesh = mesh
        self._streams = streams
        self._states = states
        self._board = board
        self._places = places
        self._config = config
        self._files = files

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.Job:
        creator = Creator.of(admitted(), current_caller())
        digest = digest_of(request)
        job_id = _job_id(creator.tenant, request.request_id)
        if request.request_id and (known := await self._states.peek(creator.tenant, job_id)) is not None:
            _require_same(known, digest)
            if known.ready:
                return known.job
        items, place = await self._items(request, creator.tenant)
        if len(items) > self._config.most_items:
            raise TooLarge(f"the job has {len(items)} items, more than the {self._config.most_items} that are allowed")
        record = _record(request, job_id, creator, digest, len(items), self._config)
        await check(items, place, self._mesh, creator.tenant)
        await self._places.enter(creator.tenant, job_id, self._config.most)
        try:
            await self._states.create(record)
        except Superseded:
            # The same request at the same time, or one whose gateway died over it: both store the same items.
            _require_same(await self._known(record), digest)
        return (await self._queue(record, items)).job

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.Job:
        return (await self._states.find(admitted().tenant, request.job_id)).job

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        tenant = admitted().tenant
        size = request.page_size or _PAGE
        after = _place(request.page_token)
        states = frozenset(request.states)
        found = [
            record
            for record in await self._states.of_tenant(tenant)
            if (after is None or place_of(record) < after) and (not states or record.job.state in states)
        ]
        page = found[:size]
        token = _encoded(*map(str, place_of(page[-1]))) if len(found) > size else ""
        return pb.ListJobsResponse(jobs=[record.job for record in page], next_page_token=token)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.Job:
        tenant = admitted().tenant
        await self._states.find(tenant, request.job_id)

        stopped = False

        def cancel(record: JobRecord) -> bool:
            nonlocal stopped
            stopped = not (record.over or record.job.state == CANCELLING)
            if not stopped:
                return False
            record.job.state, record.stopped = CANCELLING, time.time()
            return True

        record = await self._states.change(tenant, request.job_id, cancel)
        self._board.adopt(record)
        if stopped:
            self._note("cancel", record)
        return record.job

    def _note(self, action: str, record: JobRecord) -> None:
        if self._acts is not None:
            self._acts.note(action, f"job/{record.job_id}", record.tenant)

    async def ListJobResults(self, request: pb.ListJobResultsRequest, context: Any) -> pb.ListJobResultsResponse:
        record = await self._states.find(admitted().tenant, request.job_id)
        after = _sequence(request.page_token, request.job_id, "page_token")
        size, state = request.page_size or _PAGE, request.state
        page, bytes_ = pb.ListJobResultsResponse(), 0
        last = after
        async for sequence, result in read_results(self._streams, record.job_id, after, size=_PAGE_SIZE):
            if state and result.state != state:
                last = sequence
                continue
            bytes_ += result.ByteSize()
            if page.results and bytes_ > _PAGE_SIZE:
                break
            page.results.append(result)
            last = sequence
            if len(page.results) >= size:
                break
        # A record that is over counts all results.
        if not (record.over and last >= record.folded):
            page.next_page_token = _encoded(record.job_id, str(last))
        return page

    async def StreamJobResults(
        self, request: pb.StreamJobResultsRequest, context: Any
    ) -> AsyncIterator[pb.StreamJobResultsResponse]:
        tenant = admitted().tenant
        await self._states.find(tenant, request.job_id)
        after = _sequence(request.resume_token, request.job_id, "resume_token")
        results = f"maestro.jobs.results.{request.job_id}.*"
        async with self._streams.listen(results) as arrived:
            with self._board.telling(arrived.set):
                while True:
                    heed_cancellation()
                    arrived.clear()
                    # Asked before the results: what is over then has no more of them.
                    record = await self._states.find(tenant, request.job_id)
                    async for message in self._messages(request.job_id, after):
                        after = _sequence(message.resume_token, request.job_id, "resume_token")
                        yield message
                    if record.over:
                        return
                    await _wait(arrived)

    async def _messages(self, job_id: str, after: int) -> AsyncIterator[pb.StreamJobResultsResponse]:
        """The results that are there behind a place."""
        message, bytes_ = pb.StreamJobResultsResponse(), 0
        async for sequence, result in read_results(self._streams, job_id, after, size=_PAGE_SIZE):
            bytes_ += result.ByteSize()
            if message.results and (bytes_ > _PAGE_SIZE or len(message.results) >= _AT_ONCE):
                yield message
                message, bytes_ = pb.StreamJobResultsResponse(), result.ByteSize()
            message.results.append(result)
            message.resume_token = _encoded(job_id, str(sequence))
        if message.results:
            yield message

    async def _items(self, request: pb.CreateJobRequest, tenant: str) -> tuple[Sequence[BatchItem], Place]:
        """The items of the input, and what names them to people."""
        if not request.input_file_id:
            return request.items, in_list
        if self._files is None:
            raise Unimplemented("this gateway keeps no files; send `items`")
        try:
            file, data = await self._files.open(tenant, request.input_file_id)
        except NotFound as error:
            missing = Violation("input_file_id", error.message)
            raise NotFound(f"input_file_id: {error.message}", violations=[missing], failover=False) from None
        if file.purpose != FilePurpose.FILE_PURPOSE_JOB_INPUT:
            raise InvalidRequest.at("input_file_id", f"{file.file_id} was not uploaded with purpose JOB_INPUT")
        await count_lines(data, self._config.most_items)
        _, data = await self._files.open(tenant, request.input_file_id)
        items, numbers = await read_lines(data, self._config.most_items)
        return items, lambda index: f"line {numbers[index]}"

    async def _queue(self, record: JobRecord, items: Sequence[BatchItem]) -> JobRecord:
        """Stores the items, and then lets the job begin."""
        job_id = record.job_id
        entries: list[tuple[str, bytes, dict[str, str]]] = []
        for index, (subject, data) in enumerate(entries_of(job_id, items)):
            entries.append((subject, *(await self._streams.pack(job_id, f"in.{index}", data))))
        await self._streams.put_all(entries)
        await self._streams.make_queue(job_id, self._config.lease, most_parallel(record, self._config))

        begun = False

        def begin(found: JobRecord) -> bool:
            nonlocal begun
            begun, found.ready = not found.ready, True
            return begun

        stored = await self._states.change(record.tenant, job_id, begin)
        self._board.adopt(stored)
        if begun:
            # Of the same request at the same time one has made the job.
            self._note("create", stored)
        return stored

    async def _known(self, record: JobRecord) -> JobRecord:
        found = await self._states.peek(record.tenant, record.job_id)
        if found is None:
            raise Conflict(f"the job {record.job_id} was deleted meanwhile; try again")
        return found


def _record(
    request: pb.CreateJobRequest, job_id: str, creator: Creator, digest: str, total: int, config: JobsConfig
) -> JobRecord:
    """The record of a new job. Raises `InvalidRequest`."""
    now = time.time_ns()
    timeout = _seconds(request, "timeout", _DAY, _MOST_TIMEOUT)
    keep = _seconds(request, "keep_results", config.keep_results, _MOST_KEEP)
    job = pb.Job(
        job_id=job_id,
        display_name=request.display_name,
        state=QUEUED,
        priority=request.priority or pb.JobPriority.JOB_PRIORITY_NORMAL,
        economy=request.economy,
        progress=pb.JobProgress(total=total, queued=total),
        input_file_id=request.input_file_id,
        metadata=request.metadata,
    )
    job.usage.SetInParent()
    job.create_time.FromNanoseconds(now)
    job.deadline.FromNanoseconds(now + int(timeout * 1e9))
    return JobRecord(
        job=job,
        creator=creator,
        digest=digest,
        max_parallel=request.max_parallel,
        max_runs=request.max_runs if request.HasField("max_runs") else _RUNS,
        max_cost=_nano(request.max_cost_usd),
        keep=keep,
    )


def _nano(usd: str) -> int | None:
    """A bound on cost in nano-dollars; None for none."""
    if not usd:
        return None
    if len(usd) > _LONGEST_AMOUNT or Decimal(usd) > _MOST_USD:
        raise InvalidRequest.at("max_cost_usd", f"is more than the {_MOST_USD} US dollars that a job may cost")
    return int(Decimal(usd) * 10**9)


def _seconds(
    request: pb.CreateJobRequest, name: Literal["timeout", "keep_results"], default: float, most: float
) -> float:
    if not request.HasField(name):
        return default
    seconds = getattr(request, name).ToNanoseconds() / 1e9
    if seconds > most:
        raise InvalidRequest.at(name, f"is longer than the {most / _DAY:g} days that are allowed")
    return seconds


def _job_id(tenant: str, request_id: str) -> str:
    if request_id:
        return "job_" + hashlib.sha256(f"{tenant}/{request_id}".encode()).hexdigest()[:24]
    return f"job_{time.time_ns() // 1_000_000:012x}{os.urandom(6).hex()}"


def _require_same(known: JobRecord, digest: str) -> None:
    if known.digest != digest:
        raise Conflict(f"this request_id made the job {known.job_id} with another input; use a new one for a new job")


def _encoded(*parts: str) -> str:
    return base64.urlsafe_b64encode(":".join(parts).encode()).decode()


def _decoded(token: str, field: str) -> tuple[str, str]:
    try:
        first, _, second = base64.b64decode(token, altchars=b"-_", validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        first = second = ""
    if not first or not second:
        raise InvalidRequest.at(field, "is no token that this method gave")
    return first, second


def _sequence(token: str, job_id: str, field: str) -> int:
    """The place that a token of a job tells; 0 for none."""
    if not token:
        return 0
    owner, sequence = _decoded(token, field)
    if owner != job_id or not (sequence.isascii() and sequence.isdigit()) or len(sequence) > 18:
        raise InvalidRequest.at(field, "is no token of this job")
    return int(sequence)


def _place(token: str) -> tuple[int, str] | None:
    if not token:
        return None
    created, job_id = _decoded(token, "page_token")
    if not (created.isascii() and created.isdigit()) or len(created) > 20:
        raise InvalidRequest.at("page_token", "is no token that this method gave")
    return int(created), job_id


async def _wait(event: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(_LOOK):
            await event.wait()
    except TimeoutError:
        return
