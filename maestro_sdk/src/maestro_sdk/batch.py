"""The client of callers for jobs: many requests in the background, each answered once and paid once.

    async with JobsClient() as client:
        job = await client.create(["Name a river.", "Name a lake."], model="fast", request_id="rivers-1")
        async for result in client.results(job.job_id):
            print(result.item.item_id, text_of(result.item.chat))

Failures are `maestro_sdk.errors`. What finds nobody at home is tried again: a job goes on whatever dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self, TypeAlias, TypedDict, TypeVar, Unpack, cast

import grpc.aio
from google.protobuf.message import Message

from maestro.job.v1 import job_pb2 as pb
from maestro.job.v1.job_pb2 import Job, JobResult
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro_sdk.connection import DEFAULT_TIMEOUT, Connection
from maestro_sdk.conversation import chat_request
from maestro_sdk.errors import MaestroError, NoBackend, StreamBroken, UpstreamError
from maestro_sdk.tracing import new_request_id

JobItem: TypeAlias = str | ChatRequest | EmbedRequest | BatchItem
"""One request of a job: a question, a whole request, or an item with a name of its own."""
AnswerT = TypeVar("AnswerT", bound=Message)

_SERVICE = "/maestro.job.v1.JobService/"
_AWAY = (UpstreamError, NoBackend, StreamBroken)
"""Errors of a gateway, or of the way to it, that is away for a moment."""
_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_PATIENCE = 60.0
_LOOK, _LONGEST_LOOK = 0.2, 5.0


class JobFields(TypedDict, total=False):
    """Fields of `CreateJobRequest`; what is missing or None stays unset. Times in seconds, money in US dollars."""

    display_name: str | None
    priority: Literal["low", "normal", "high"] | None
    economy: bool | None
    max_parallel: int | None
    max_runs: int | None
    max_cost_usd: str | None
    timeout: float | None
    keep_results: float | None
    metadata: Mapping[str, str] | None


class JobsClient:
    """A client for the jobs of one gateway. Close it, or use it as a context manager."""

    def __init__(
        self,
        target: str | None = None,
        key: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        patience: float = _PATIENCE,
        roots: bytes | None = None,
    ) -> None:
        """Parameters as for `LLMClient`; what finds nobody at home is tried again for `patience` seconds."""
        self._connection = Connection(target, key=key, timeout=timeout, roots=roots)
        self._patience = patience

    async def create(
        self,
        items: Iterable[JobItem] | None = None,
        *,
        input_file_id: str = "",
        model: str = "",
        request_id: str = "",
        **fields: Unpack[JobFields],
    ) -> Job:
        """Queues a job of `items`, or of those in a file. `model` is asked by items that name none.

        `request_id` makes a repeated call harmless, across processes too; without it one is made for this call. Raises
        `InvalidRequest` with the item and field, and `Conflict` when the same `request_id` made another job.
        """
        request = job_request(items or (), model=model, **fields)
        request.input_file_id = input_file_id
        request.request_id = request_id or new_request_id()
        return await self._ask("CreateJob", request, Job)

    async def get(self, job_id: str) -> Job:
        """A job. Raises `NotFound`."""
        return await self._ask("GetJob", pb.GetJobRequest(job_id=job_id), Job)

    async def list(self, *states: pb.JobState.ValueType) -> Sequence[Job]:
        """All jobs in one of the `states`, newest first; without any, all."""
        found: list[Job] = []
        request = pb.ListJobsRequest(page_size=1000, states=states)
        while True:
            page = await self._ask("ListJobs", request, pb.ListJobsResponse)
            found.extend(page.jobs)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def cancel(self, job_id: str) -> Job:
        """Cancels a job; one that is over stays as it is."""
        return await self._ask("CancelJob", pb.CancelJobRequest(job_id=job_id), Job)

    async def wait(self, job_id: str, timeout: float | None = None) -> Job:
        """The job, once it is over. Raises `TimeoutError` after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            pause = _LOOK
            while True:
                job = await self.get(job_id)
                if job.HasField("end_time"):
                    return job
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _LONGEST_LOOK)

    async def results(self, job_id: str) -> AsyncGenerator[JobResult]:
        """Each result, once, in the order in which items end; ends with the job. Goes on where a stream breaks."""
        request = pb.StreamJobResultsRequest(job_id=job_id)
        begun, pause = asyncio.get_running_loop().time(), _PAUSE
        while True:
            call, request_id = self._connection.open(
                f"{_SERVICE}StreamJobResults", request, pb.StreamJobResultsResponse, timeout=float("inf")
            )
            try:
                while (message := await call.read()) is not grpc.aio.EOF:
                    begun, pause = asyncio.get_running_loop().time(), _PAUSE
                    for result in message.results:
                        yield result
                    request.resume_token = message.resume_token
            except grpc.aio.AioRpcError as error:
                meaning = self._connection.meaning(error, request_id)
                if not _is_away(meaning) or asyncio.get_running_loop().time() > begun + self._patience:
                    raise meaning from None
            else:
                return
            finally:
                call.cancel()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def close(self) -> None:
        """Closes the connection; calls that still run end with `Cancelled`."""
        await self._connection.close()

    async def _ask(self, method: str, request: Message, answer: type[AnswerT]) -> AnswerT:
        end, pause = asyncio.get_running_loop().time() + self._patience, _PAUSE
        while True:
            try:
                return await self._connection.call(_SERVICE + method, request, answer)
            except MaestroError as error:
                if not _is_away(error) or asyncio.get_running_loop().time() + pause > end:
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def job_request(items: Iterable[JobItem], *, model: str = "", **fields: Unpack[JobFields]) -> pb.CreateJobRequest:
    """A request for a job. Raises `TypeError` for an unknown field and `ValueError` for an unknown priority."""
    request = pb.CreateJobRequest(items=[_item(one, model) for one in items])
    for name, value in fields.items():
        match name, value:
            case _, None:
                continue
            case "priority", str():
                if value not in {"low", "normal", "high"}:
                    raise ValueError(f"priority: {value!r} is none of low, normal, high")
                request.priority = pb.JobPriority.Value(f"JOB_PRIORITY_{value.upper()}")
            case "timeout" | "keep_results", int() | float():
                getattr(request, name).FromNanoseconds(int(value * 1e9))
            case "metadata", _:
                request.metadata.update(cast("Mapping[str, str]", value))
            case "display_name" | "economy" | "max_parallel" | "max_runs" | "max_cost_usd", _:
                setattr(request, name, value)
            case _:
                raise TypeError(f"a job has no field {name}; it has: {', '.join(sorted(JobFields.__annotations__))}")
    return request


def _item(one: JobItem, model: str) -> BatchItem:
    item = BatchItem()
    match one:
        case str():
            item.chat.CopyFrom(chat_request(one))
        case ChatRequest():
            item.chat.CopyFrom(one)
        case EmbedRequest():
            item.embed.CopyFrom(one)
        case BatchItem():
            item.CopyFrom(one)
    if item.HasField("chat"):
        item.chat.model = item.chat.model or model
    elif item.HasField("embed"):
        item.embed.model = item.embed.model or model
    return item


def _is_away(error: MaestroError) -> bool:
    return isinstance(error, _AWAY)
