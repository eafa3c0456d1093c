"""Results of jobs that are long, lost, or written into a file, on a real NATS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.file_pb2 import File, FilePurpose
from maestro_gateway.jobs.streams import Streams

from .job_gateway import LONG_ANSWER, Gateway, item, running, streams_up, until


class Files:
    """One file of input; outputs are stored when they may be."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.begun = asyncio.Event()
        self.lines: list[Any] = []

    async def open(self, tenant: str, file_id: str) -> tuple[File, AsyncIterator[bytes]]:
        async def lines() -> AsyncIterator[bytes]:
            for text in ("long0", "q1"):
                yield json_format.MessageToJson(item(text), indent=None).encode() + b"\n"

        return File(file_id=file_id, purpose=FilePurpose.FILE_PURPOSE_JOB_INPUT), lines()

    async def store(
        self,
        tenant: str,
        *,
        filename: str,
        mime_type: str,
        purpose: int,
        request_id: str,
        lasting: float,
        metadata: Mapping[str, str],
        data: AsyncIterator[bytes],
    ) -> str:
        self.begun.set()
        await self.free.wait()
        self.lines = [json.loads(line) for line in b"".join([piece async for piece in data]).splitlines()]
        return "file_of_results"


async def streamed(gateway: Gateway, job: pb.Job) -> list[pb.JobResult]:
    """All results, as they are streamed."""
    request = pb.StreamJobResultsRequest(job_id=job.job_id)
    return [result async for message in gateway.service.StreamJobResults(request, None) for result in message.results]


async def test_a_lost_result_hides_no_other(nats_url: str, tmp_path: Path):
    """It says in its own place what is lost and what to do; its cost and state were counted all the same."""
    async with running(nats_url, tmp_path) as gateway, Streams(nats_url) as streams:
        await until(streams_up(streams), bool)
        gateway.provider.open.set()
        named = item("long0")
        named.item_id = "the-long-one"
        items = [named, *(item(f"q{number}") for number in range(3)), item("long4")]
        job = await gateway.service.CreateJob(pb.CreateJobRequest(items=items, max_parallel=1), None)
        assert (await gateway.over(job)).progress.succeeded == 5
        whole = await gateway.results(job)
        assert [len(result.item.chat.parts[0].text.text) == LONG_ANSWER for result in whole] == [1, 0, 0, 0, 1]
        await streams.purge("MAESTRO_JOB_PARTS", f"maestro.jobs.parts.{job.job_id}.out.0.*.1")
        for found in (await gateway.results(job), await streamed(gateway, job)):
            assert list(found[1:]) == list(whole[1:])
            lost = found[0]
            assert (lost.index, lost.item.item_id, lost.runs) == (0, "the-long-one", 1)
            assert lost.state == pb.JOB_ITEM_STATE_FAILED
            assert lost.item.error.reason == ErrorReason.ERROR_REASON_INTERNAL
            assert lost.item.error.metadata["result"] == "lost"
            assert "SUCCEEDED" in lost.item.error.message
            assert "run the item again in a new job" in lost.item.error.message


async def test_a_long_output_file_holds_up_no_other_job(nats_url: str, tmp_path: Path):
    files = Files()
    async with running(nats_url, tmp_path, files=files, lease=1.0) as gateway:
        gateway.provider.open.set()
        request = pb.CreateJobRequest(input_file_id="file_of_items")
        first = await gateway.service.CreateJob(request, None)
        async with asyncio.timeout(10):
            await files.begun.wait()
        second = await gateway.create("q", 3)
        assert (await gateway.over(second)).progress.succeeded == 3
        assert (await gateway.get(first)).state == pb.JOB_STATE_RUNNING
        files.free.set()
        over = await gateway.over(first)
        assert (over.state, over.output_file_id) == (pb.JOB_STATE_COMPLETED, "file_of_results")
        assert sorted(line["item_id"] for line in files.lines) == ["0", "1"]
